"""What is published is the same for any chunks, bundles and numbers of workers, wherever they are killed."""

import random
from collections import Counter
from typing import Any

import polars as pl
import pytest
from published_states import assert_same, contents
from speed_world import (
    FROM_CHECKPOINT,
    FROM_THE_START,
    SECOND_COPY,
    START,
    Attempt,
    Killed,
    Tables,
    Written,
    settle,
    written,
)

from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import DISPOSITIONS
from metrics.fold import groups, state_schema
from speed_layer.panes import EARLY, ON_TIME, PaneBatch
from speed_layer.publish import WritePanes

pytestmark = pytest.mark.faults

TREE: dict[str, Any] = {
    "topic": "any.chunks",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "key": "user",
    "out_of_orderness": "10s",
    "allowed_lateness": "1m",
    "topic_partitions": 4,
    "fields": {
        "user": "string",
        "kind": {"type": "string", "required": True},
        "amount": {"type": "decimal", "scale": 2},
    },
    "metrics": {
        "events": {"agg": "count", "by": ["kind"], "window": "tumbling 10s"},
        "revenue": {"agg": "sum(amount)", "where": "kind = 'buy'", "by": ["kind"], "window": "tumbling 10s"},
        "largest": {"agg": "max(amount)", "window": "tumbling 10s"},
        "last_kind": {"agg": "last(kind)", "window": "tumbling 1m"},
        "visitors": {"agg": "distinct(user)", "window": "tumbling 1m"},
        "p95": {"agg": "quantile(amount, 0.95)", "window": "tumbling 1m"},
        "visits": {"agg": "count", "where": "kind = 'visit'", "window": "session 30s max 2m"},
    },
}


@pytest.mark.parametrize(
    ("events", "sizes", "kills", "seed"),
    [(30_000, (10, 3_000), 20, 1), (2_000_000, (100, 100_000), 30, 2)],
)
def test_ledger_exceptions_and_states_are_those_of_an_undisturbed_run(
    clickhouse: Settings, unique: str, events: int, sizes: tuple[int, int], kills: int, seed: int
) -> None:
    tree = TREE | {"dedup_horizon": events // 100}
    quiet, wild = (parse_catalog(tree | {"source": f"{unique}_{name}"}, {}, "test") for name in ("quiet", "wild"))
    log = written(quiet, events, seed)
    expected, found = Tables(clickhouse, quiet), Tables(clickhouse, wild)

    undisturbed(clickhouse, quiet, log, expected)
    died = disturbed(clickhouse, wild, log, found, sizes, kills, seed)

    assert died.total() == kills
    assert died.keys() == {FROM_CHECKPOINT, FROM_THE_START, SECOND_COPY}
    assert settle(clickhouse, quiet, log, expected)
    assert settle(clickhouse, wild, log, found)
    assert found.exceptions == expected.exceptions
    wanted, got = contents(expected.client, quiet), contents(found.client, wild)
    assert_same(got, wanted)
    _says_something(wanted, events)


def test_an_on_time_pane_is_written_again_after_the_early_one_of_a_replay(clickhouse: Settings, unique: str) -> None:
    catalog = parse_catalog(TREE | {"source": unique}, {}, "test")
    tables, writer = Tables(clickhouse, catalog), WritePanes(clickhouse, catalog)
    writer.setup()
    group = next(group for group in groups(catalog) if group.metrics == (catalog.metric("largest"),))
    columns = {"slice_start": [START, START + 10_000], "largest.events": [5, 7], "largest.maximum": [1, 2]}
    rows = pl.DataFrame(
        {name: pl.Series(columns.get(name, [None] * 2), dtype=t) for name, t in state_schema(group).items()}
    )

    for part, pane in ((rows[:1], EARLY), (rows[:1], ON_TIME), (rows, EARLY), (rows[:1], ON_TIME)):
        list(writer.process(PaneBatch({group.id: part.with_columns(pane=pl.lit(pane))})))

    shown = tables.client.query("SELECT pane FROM speed_largest FINAL ORDER BY slice_start").result_rows
    assert shown == [(ON_TIME,), (EARLY,)]


def undisturbed(settings: Settings, catalog: Catalog, log: list[Written], tables: Tables) -> None:
    """One job with one worker and chunks of one size."""
    job = Attempt(settings, catalog, log, tables, random.Random(0), (20_000, 20_000), 1)
    while not job.over:
        job.step()


def disturbed(
    settings: Settings,
    catalog: Catalog,
    log: list[Written],
    tables: Tables,
    sizes: tuple[int, int],
    kills: int,
    seed: int,
) -> Counter[str]:
    """Jobs that are killed again and again; returns how often each way to go on was taken."""
    chance = random.Random(seed)
    events = sum(len(part.times) for part in log)
    ways = [FROM_THE_START, FROM_THE_START, SECOND_COPY, *[FROM_CHECKPOINT] * (kills - 3)]
    chance.shuffle(ways)
    moments = sorted(chance.sample(range(events // 50, events * 3 // 4), kills))

    def fresh() -> Attempt:
        return Attempt(settings, catalog, log, tables, chance, sizes, chance.randint(1, 4))

    jobs, taken, read = [fresh()], Counter[str](), 0
    while jobs:
        job = chance.choice(jobs)
        before = job.read
        if moments and tables.inserts_left is None and read >= moments[0]:
            moments.pop(0)
            tables.inserts_left, tables.stored = chance.randrange(4), chance.random() < 0.5
        try:
            job.step()
        except Killed:
            job.die()
            assert not job.over, "it was killed in the middle"
            way = ways.pop()
            taken[way] += 1
            if way == FROM_CHECKPOINT:
                job.fall_back()
            elif way == FROM_THE_START:
                jobs[jobs.index(job)] = fresh()
            else:
                jobs.append(fresh())
                job.fall_back()
        read += max(0, job.read - before)
        jobs = [each for each in jobs if not each.over]
    return taken


def _says_something(wanted: dict[str, pl.DataFrame], events: int) -> None:
    """What was compared holds every disposition and as many events as the ledger says."""
    ledger, visits = wanted["ledger"].sum(), wanted["visits"]
    assert ledger["records"].item() == events
    assert all(ledger[name].item() for name in DISPOSITIONS)
    assert wanted["events"]["events"].sum() == ledger["counted"].item()
    assert visits.filter(pl.col("events") > 1).height > visits.height / 10
