"""It survives: whatever is killed, and when, what is published is what an undisturbed run publishes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from beam_workers import workers
from fault_rig import (
    FIRST,
    LAG_S,
    PARTITIONS,
    RECORDS,
    RECOVERED_S,
    TREE,
    Rig,
    catalog,
    held,
    inserting,
    kill,
    record,
    service,
    standing,
    wait,
)
from published_states import assert_same, contents

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import DISPOSITIONS, PartitionReader
from metrics.fold import groups, merge_states, metric_rows, partial_states
from serving.versions import switch

pytestmark = pytest.mark.faults

LATER_MS = 600_000
SOON_MS = 1_000
CHANGED = TREE["metrics"] | {"revenue": TREE["metrics"]["revenue"] | {"where": "kind = 'buy' OR kind = 'cart'"}}


@pytest.fixture(scope="module")
def undisturbed(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """What a run publishes of all records that nothing happens to."""
    rig = Rig(stack, catalog("quiet"), tmp_path_factory.mktemp("quiet"))
    rig.write(RECORDS)
    with rig.speed():
        rig.await_published(RECORDS)
    found = rig.contents()
    assert all(found["ledger"][name].sum() for name in DISPOSITIONS)
    assert found["events"]["events"].sum() == found["ledger"]["counted"].sum()
    assert found["visits"].filter(pl.col("events") > 1).height
    return found


@pytest.fixture
def rig(stack: Settings, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Rig:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    rig = Rig(stack, catalog(unique), tmp_path, say)
    rig.write(FIRST)
    return rig


@contextmanager
def in_the_middle(rig: Rig) -> Iterator[Callable[[], None]]:
    """While records are written and published; the block calls what it is given, then kills.

    In the end everything is published, and the lag was short again soon enough.
    """
    rig.await_published(1)
    with rig.writing():
        rig.await_published(FIRST + 1)
        at: list[float] = []

        def killing() -> None:
            wait(lambda: FIRST < rig.published() < rig.written < RECORDS, "records on their way")
            at.append(time.monotonic())

        yield killing
        rig.killed.set()
        rig.await_short_lag()
        [began] = at
        rig.say(f"  lag under {LAG_S:g} s again {time.monotonic() - began:.1f} s after the kill")
        assert time.monotonic() - began < RECOVERED_S
    rig.await_published(RECORDS)


def test_workers_in_mid_chunk(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed(), in_the_middle(rig) as killing:
        wait(lambda: rig.checkpoints().get("completed", 0) > 0, "a checkpoint")
        before = rig.checkpoints()
        killed = workers(rig.settings)
        assert killed
        killing()
        kill(*killed)
        wait(lambda: rig.checkpoints().get("restored", 0) > before["restored"], "a restart from a checkpoint")
    assert_same(rig.contents(), undisturbed)


def test_workers_in_mid_insert(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed(), in_the_middle(rig) as killing:
        wait(lambda: rig.checkpoints().get("completed", 0) > 0, "a checkpoint")
        before = rig.checkpoints()
        killing()
        with held(service(rig.settings, "clickhouse")):
            kill(*wait(lambda: inserting(rig.settings), "an insert under way"))
        wait(lambda: rig.checkpoints().get("restored", 0) > before["restored"], "a restart from a checkpoint")
    assert_same(rig.contents(), undisturbed)


def test_flink_before_its_first_checkpoint(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed(checkpoint_interval_ms=LATER_MS), in_the_middle(rig) as killing:
        assert rig.checkpoints()["completed"] == 0
        killing()
        kill(service(rig.settings, "flink-jobserver"))
        wait(lambda: rig.checkpoints().get("completed") == 0, "another job")
    assert_same(rig.contents(), undisturbed)


def test_flink_during_a_checkpoint(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed(checkpoint_interval_ms=SOON_MS), in_the_middle(rig) as killing:
        wait(lambda: rig.checkpoints().get("completed", 0) > 0, "a checkpoint")
        killing()
        # a write that waits holds the checkpoint up
        with held(service(rig.settings, "clickhouse")):
            wait(lambda: inserting(rig.settings), "an insert under way")
            wait(lambda: rig.checkpoints().get("in_progress", 0) > 0, "a checkpoint under way")
            kill(service(rig.settings, "flink-jobserver"))
        wait(lambda: rig.checkpoints().get("completed", 0) > 0, "a checkpoint of another job")
    assert_same(rig.contents(), undisturbed)


def test_flink_after_a_checkpoint(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed(), in_the_middle(rig) as killing:
        wait(lambda: rig.checkpoints().get("completed", 0) > 1, "checkpoints")
        wait(lambda: rig.checkpoints().get("in_progress") == 0, "no checkpoint under way")
        killing()
        kill(service(rig.settings, "flink-jobserver"))
        wait(lambda: rig.checkpoints().get("completed", 0) > 0, "a checkpoint of another job")
    assert_same(rig.contents(), undisturbed)


@pytest.mark.parametrize("name", ["kafka", "clickhouse"])
def test_a_service_that_is_written_to(rig: Rig, undisturbed: dict[str, pl.DataFrame], name: str) -> None:
    with rig.speed(), in_the_middle(rig) as killing:
        victim, before = service(rig.settings, name), standing(rig.settings, name).restarts
        killing()
        if name == "clickhouse":
            victim.suspend()
            wait(lambda: inserting(rig.settings), "an insert under way")
        kill(victim)
        wait(lambda: standing(rig.settings, name).restarts > before, "its successor")
    assert_same(rig.contents(), undisturbed)


def test_a_second_copy_and_the_end_of_the_first(rig: Rig, undisturbed: dict[str, pl.DataFrame]) -> None:
    with rig.speed() as first, rig.speed() as second, in_the_middle(rig) as killing:
        assert (first.poll(), second.poll()) == (None, None)
        killing()
        first.kill()
        first.wait()
    assert_same(rig.contents(), undisturbed)


def test_a_new_version_catches_up_beside_the_old_which_drains(
    rig: Rig, undisturbed: dict[str, pl.DataFrame], stack: Settings
) -> None:
    new, database = catalog(rig.catalog.source, metrics=CHANGED), stack.database(rig.catalog.source)
    beside = new.only(["revenue"])
    with rig.speed() as old:
        rig.await_published(1)
        with rig.writing(), rig.speed(CHANGED, ["revenue"]):
            rig.await_published(FIRST + 1, beside)
            wait(lambda: rig.published(beside) >= rig.published() > 0, "the new version's catching up")
            [switched] = switch(connect(stack, database), database, new.shown, force=True)
            assert switched.name == "revenue"
            drained = rig.written
            old.terminate()
            assert old.wait(60) == 0
            assert drained <= rig.published()
            assert FIRST < drained < RECORDS, "it comes in the middle"
            rig.killed.set()
    with rig.speed(CHANGED):
        rig.await_published(RECORDS, new)

    wanted = undisturbed | {"revenue": revenue_of(new)}
    assert_same(contents(connect(stack, database), new), wanted)


def revenue_of(changed: Catalog) -> pl.DataFrame:
    """The changed metric's rows, folded in one go."""
    metric = changed.metric("revenue")
    group = next(group for group in groups(changed) if metric in group.metrics)
    states = []
    for number in range(PARTITIONS):
        own = [record(n) for n in range(number, RECORDS, PARTITIONS)]
        times, values = [each["timestamp"] for each in own], [each["value"] for each in own]
        chunk = PartitionReader(changed).read(number, range(len(own)), times, values)
        states.append(partial_states(group, chunk.counted))
    rows = metric_rows(group, metric, merge_states(group, pl.concat(states)))
    return rows.with_columns(pl.col("slice_start").cast(pl.Datetime("ms", "UTC")))
