"""Dead letters that are repaired on a real stack: each counted once by both layers, whatever is repeated or killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import speed_log
import yaml
from speed_log import START_MS, Log, event, expected, published

from batch_layer.run import run as batch
from infra import kafka as broker
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader
from metrics.event import Decoder
from reconciliation.reconcile import reader, reconcile
from reconciliation.tables import exception_records
from serving import schema
from speed_layer.dead_letters import Choice, Place, messages, read_letters
from speed_layer.log import Records
from speed_layer.published import frontier
from speed_layer.repair import Plan, by_command, look, plan, produce
from speed_layer.side_outputs import SideOutputs

WAIT_S = 240.0
GOOD = 600
BAD = range(6)
"""Events of both partitions and all countries, two of each, whose amount is no number."""

SENT_MS = START_MS + GOOD * 10
MEND = """sed 's/"x"/"0.10"/'"""
LARGE, LARGE_BYTES = 2_000, 33_000
"""Letters that take more than a step to be written, so that a command can be killed meanwhile."""

STEP_S = 0.02


@pytest.fixture
def source(unique: str) -> Catalog:
    return speed_log.catalog(unique)


@pytest.fixture
def file(source: Catalog, tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(speed_log.text(source.source))
    return path


def test_repaired_letters_are_counted_once_by_both_layers_and_leave_no_residual(
    stack: Settings, source: Catalog, file: Path
) -> None:
    log = Log(stack, source)
    log.good(GOOD)
    values = [(number % 2, number, event(number, id=f"bad{number}", amount="x")) for number in BAD]
    send(stack, source, [(p, SENT_MS, f"u{n}".encode(), value) for p, n, value in [*values, (0, 99, b"{")]])
    # events whose headers name a letter of another topic partition, and nothing: they repair none
    for partition, offset in ((1, b"303"), (0, b"x")):
        others = origin(source, 0) | {"lockstep-origin-offset": offset}
        send(stack, source, [(partition, SENT_MS, None, event(0, id=f"other{partition}"))], others)
    with speed(stack, source, file):
        await_offsets(stack, source, GOOD + 9)

        # while the lateness has not passed, those of one partition; and once more, by someone who looked just before
        first = planned(stack, source, [Place(0, 300 + n) for n in range(3)], SENT_MS + 1_000)
        assert produce(stack, source, Decoder(source), first) == len(first.repairs) == 3
        (copy, *_) = messages(stack, source.topic, {0: 305}, {0: 308})
        assert (copy.key(), copy.value(), copy.timestamp()[1]) == (b"u0", event(0, id="bad0"), SENT_MS + 1_000)
        assert dict(copy.headers() or ()) == origin(source, 300)
        assert produce(stack, source, Decoder(source), first) == 0
        later = {number: end for number, (_, end) in broker.log_offsets(stack, source.topic).items()}
        assert produce(stack, source, Decoder(source), replace(first, ends=later)) == 3

        # long after, all that is left
        code, told = repair(stack, file, "--with", MEND, "--dry-run")
        assert (code, told["repairable"], told["produced"], told["already_repaired"]) == (1, 3, 0, 3)
        for produced, before in ((3, 3), (0, 6)):
            code, told = repair(stack, file, "--with", MEND, "--yes")
            assert (code, told["chosen"], told["produced"], told["already_repaired"]) == (1, 7, produced, before)
            assert [(one["place"], one["reason"]) for one in told["refused"]] == [("0:303", "not_json")]
        await_offsets(stack, source, GOOD + 9 + 9)

    live = Counter(expected(GOOD)) + Counter(de=3, fr=1, it=1)
    assert published(stack, source) == live
    day = datetime.fromtimestamp(START_MS / 1000, UTC).date()
    (run,) = batch(stack, source, [day])
    assert (run.events, run.dead_letters) == (GOOD + 8, 7)
    (result,) = reconcile(stack, source, [day])
    assert result.certified
    assert (result.verdict, result.residual, result.repaired) == ("clean", 0, 6)
    causes = {name: number for name, number in result.causes.items() if number and name != "sketch"}
    assert causes == {"late": 3, "duplicate": 3, "dead_letter": 7}
    client = connect(stack, stack.database(source.source))
    records = exception_records(reader(client), stack.database(source.source), day, run.run_id)
    repairs = {(one.topic_partition, one.offset): one.repaired_offset for one in records if one.reason != "late"}
    letters = {
        (p, 300 + n): offset for p, first in ((0, 305), (1, 304)) for n, offset in enumerate(range(first, first + 3))
    }
    copies = {(0, offset): None for offset in (308, 309, 310)}
    assert repairs == letters | copies | {(0, 303): None}


def test_a_command_that_is_killed_and_repeated_produces_each_letter_once(
    kafka: Settings, clickhouse: Settings, source: Catalog, file: Path
) -> None:
    random = os.urandom(LARGE_BYTES).hex()
    values = [event(n, id=f"bad{n}", amount="x", blob=f"{n}{random[n:]}{random[:n]}") for n in range(LARGE)]
    send(kafka, source, [(n % 2, SENT_MS, None, value) for n, value in enumerate(values)])
    lay_aside(clickhouse, source)
    # the catalog is put right, so that the same bytes will do
    tree = yaml.safe_load(file.read_text())
    tree["fields"]["amount"] = "string"
    del tree["metrics"]["revenue"]
    file.write_text(yaml.safe_dump(tree))
    fixed = parse_catalog(tree, {}, "test")

    with subprocess.Popen(
        command(file, "--yes"), env=os.environ | kafka.environ(), stdout=subprocess.DEVNULL
    ) as killed:
        try:
            await_true(lambda: reached_by_steps(killed, lambda: length(kafka, source) > LARGE))
        finally:
            killed.kill()
    written = settled(lambda: length(kafka, source)) - LARGE
    assert 0 < written < LARGE
    code, told = repair(kafka, file, "--yes")
    assert (code, told["produced"], told["already_repaired"], told["refused"]) == (0, LARGE - written, written, [])
    code, told = repair(kafka, file, "--yes")
    assert (code, told["produced"], told["already_repaired"]) == (0, 0, LARGE)

    seen = look(kafka, fixed, {0: 0, 1: 0})
    assert Counter(copy.origin for copy in seen.copies) == Counter(
        Place(p, offset) for p in (0, 1) for offset in range(LARGE // 2)
    )
    assert len(seen.repaired(Decoder(fixed))) == LARGE
    # who reads the log anew with the catalog that was put right counts the origins themselves
    for number in (0, 1):
        chunk = PartitionReader(fixed).read(number, *columns(kafka, fixed, number))
        counts = chunk.ledger.row(0, named=True)
        assert (counts["counted"], counts["duplicate"]) == (LARGE // 2, LARGE // 2)


def test_who_cannot_be_asked_has_to_say_yes_and_what_is_not_there_is_said(
    kafka: Settings, source: Catalog, file: Path
) -> None:
    told = subprocess.run(command(file), env=os.environ | kafka.environ(), capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "`--yes` must say that records are to be produced where nobody can be asked" in told.stderr
    code, said = repair(kafka, file, "--yes")
    assert code == 2
    assert f"topic `{source.dlq_topic}` must hold the dead letters of `{source.source}`; it does not" in said["error"]
    broker.ensure_topics(kafka, {source.topic: 2, source.dlq_topic: 1})
    code, said = repair(kafka, file, "--yes")
    assert (code, said["chosen"], said["produced"], said["days"]) == (0, 0, 0, [])
    code, said = repair(kafka, file, "--yes", "--offset", "0:17")
    assert code == 2
    assert f"`--offset` must name dead letters of `{source.dlq_topic}`" in said["error"]
    code, said = repair(kafka, file, "--yes", "--offset", "17")
    assert code == 2
    assert "like 0:17; got `17`" in said["error"]


def planned(settings: Settings, source: Catalog, places: Sequence[Place], now_ms: int) -> Plan:
    letters = read_letters(settings, source, Choice(places=frozenset(places)))
    seen = look(settings, source, {0: places[0].offset}, set(places))
    return plan(source, Decoder(source), letters, seen, by_command(MEND, text=True), now_ms)


def origin(source: Catalog, offset: int) -> dict[str, bytes]:
    """Headers that name a place of the first topic partition."""
    named = {"topic": source.topic, "partition": 0, "offset": offset}
    return {f"lockstep-origin-{name}": str(value).encode() for name, value in named.items()}


def send(
    settings: Settings,
    source: Catalog,
    records: Sequence[tuple[int, int, bytes | None, bytes]],
    headers: dict[str, bytes] | None = None,
) -> None:
    """Appends records of (partition, timestamp, key, value)."""
    broker.ensure_topics(settings, {source.topic: 2})
    more = {"headers": headers} if headers else {}
    made = ({"partition": p, "timestamp": t, "key": k, "value": v, **more} for p, t, k, v in records)
    broker.produce_all(broker.producer(settings), source.topic, made)


def lay_aside(settings: Settings, source: Catalog) -> None:
    """Fills the dead-letter topic as the speed layer does."""
    schema.apply(connect(settings), source, settings.database(source.source))
    broker.ensure_topics(settings, {source.dlq_topic: 1})
    outputs = SideOutputs(settings, source, {})
    for number in (0, 1):
        offsets, times, values = columns(settings, source, number)
        chunk = PartitionReader(source).read(number, offsets, times, values)
        outputs.publish(chunk, Records(0, len(offsets), offsets=offsets, times=times, values=values))


def columns(settings: Settings, source: Catalog, number: int) -> tuple[list[int], list[int], list[bytes | None]]:
    """Offsets, timestamps and values of a topic partition."""
    begin, end = broker.log_offsets(settings, source.topic)[number]
    found = list(messages(settings, source.topic, {number: begin}, {number: end}))
    return [m.offset() for m in found], [m.timestamp()[1] for m in found], [m.value() for m in found]


def length(settings: Settings, source: Catalog) -> int:
    return sum(end for _, end in broker.log_offsets(settings, source.topic).values())


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "orchestration.cli.main", "--catalog", str(file), "repair", "dlq", *options]


def repair(settings: Settings, file: Path, *options: str) -> tuple[int, Any]:
    """Exit code and JSON object of the command."""
    done = subprocess.run(
        command(file, *options, "--json"), env=os.environ | settings.environ(), capture_output=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


@contextmanager
def speed(settings: Settings, source: Catalog, file: Path) -> Iterator[None]:
    """A speed layer in a process of its own, which reads on while the block runs."""
    started = [sys.executable, "-m", "speed_layer", "--catalog", str(file)]
    process = subprocess.Popen(started, env=os.environ | settings.environ())
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def await_offsets(settings: Settings, source: Catalog, count: int) -> None:
    """Waits until so many records are published."""

    def reached() -> bool:
        try:
            client = connect(settings, settings.database(source.source))
            return sum(frontier(client, source).values()) >= count
        except Exception:  # noqa: BLE001 - not there yet
            return False

    await_true(reached)


def reached_by_steps(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Lets the process go on for a step and looks while it is stopped, so that however slow the look is, it is in time.

    What was sent before the stop may still arrive after it.
    """
    assert process.poll() is None
    process.send_signal(signal.SIGCONT)
    time.sleep(STEP_S)
    process.send_signal(signal.SIGSTOP)
    return reached()


def settled(look: Callable[[], int]) -> int:
    """What two looks agree on."""
    before, now = -1, look()
    while before != now:
        time.sleep(0.3)
        before, now = now, look()
    return now


def await_true(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, "was not reached in time"
        time.sleep(0.005)
