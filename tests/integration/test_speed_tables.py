"""Every aggregation's states on their way from chunks to rows in ClickHouse."""

import random
import sys
from pathlib import Path

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from polars.testing import assert_frame_equal

from infra.clickhouse import connect, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from metrics.catalog_build import parse_catalog
from metrics.fold import groups, metric_rows, session_rows
from serving.schema import metric_tables
from speed_layer.displaced import take_back
from speed_layer.publish import WritePanes

sys.path.append(str(Path(__file__).parents[1] / "unit" / "speed_layer"))

from merge_harness import Job, Row

START = 1_700_000_000_000 // 3_600_000 * 3_600_000
AGGREGATIONS = {
    "events": "count",
    "total_int": "sum(size)",
    "total_decimal": "sum(amount)",
    "total_float": "sum(weight)",
    "least_decimal": "min(amount)",
    "greatest_int": "max(size)",
    "greatest_float": "max(weight)",
    "mean_decimal": "mean(amount)",
    "mean_float": "mean(weight)",
    "spread": "stddev(weight)",
    "pages": "distinct(page)",
    "median": "quantile(amount, 0.5)",
    "median_float": "quantile(weight, 0.5)",
    "top_pages": "top(page, 2)",
    "last_text": "last(page)",
    "last_decimal": "last(amount)",
    "last_bool": "last(paid)",
    "stock": "level(size, amount)",
}
FIELDS = {
    "user": "string",
    "country": "string",
    "page": "string",
    "size": "int",
    "amount": {"type": "decimal", "scale": 2},
    "weight": "float",
    "paid": "bool",
}


def catalog(source: str, aggregations: dict[str, str], window: str) -> Catalog:
    metrics = {name: {"agg": agg, "by": ["country"], "window": window} for name, agg in aggregations.items()}
    tree = {
        "source": source,
        "topic": source,
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "fields": FIELDS,
        "metrics": metrics,
    }
    return parse_catalog(tree, {}, "test")


def events() -> list[Row]:
    """Some with all fields, some with none, and a country in which nothing has a value."""
    found = []
    for n in range(120):
        row: Row = {"ts": START + n * 61_000, "user": f"u{n % 5}", "country": ("de", "fr", "it")[n % 3]}
        if n % 4 and row["country"] != "it":
            row |= {
                "page": f"/é{n % 7}",
                "size": n,
                "amount": f"{n}.{n % 100:02d}",
                "weight": n / 7,
                "paid": n % 5 == 0,
            }
        found.append(row)
    return found


def written(clickhouse: Settings, source: Catalog, chunks: list[list[Row]]) -> Client:
    """Merges chunks, writes every bundle's rows, and gives a client of the tables."""
    database = clickhouse.database(source.source)
    connect(clickhouse).command(f"CREATE DATABASE {quote(database)}")
    client = connect(clickhouse, database)
    for table in (metric_tables(metric)[0] for metric in source.metrics):
        client.command(table.create(database))
    client.command(
        "CREATE TABLE ledger (topic String, topic_partition Int32, block Int64, records UInt64, counted UInt64, "
        "late UInt64, duplicate UInt64, id_conflict UInt64, dead_letter UInt64) ENGINE = Memory"
    )
    publish(clickhouse, source, chunks)
    return client


def publish(clickhouse: Settings, source: Catalog, chunks: list[list[Row]]) -> None:
    """Merges chunks and writes every bundle's rows, as one attempt that knows of no other."""
    job, writer = Job(source), WritePanes(clickhouse, source)
    writer.setup()
    for chunk in chunks:
        list(writer.process(job.bundle(chunk)))


def whole(source: Catalog, rows: list[Row]) -> pl.DataFrame:
    """The states of events that are folded in one go."""
    job = Job(source, buckets=1)
    job.bundle(rows)
    return job.states


def rows_of(client: Client, metric: Metric, names: list[str]) -> pl.DataFrame:
    """The table's rows as they stand, in order of what names them."""
    columns = ", ".join(quote(name) for name in names)
    live = "WHERE is_deleted = 0" if metric.session else ""
    found = query_frame(client, f"SELECT {columns} FROM {quote(f'speed_{metric.name}')} FINAL {live}")
    return found.sort(*(["window_start", "session_key"] if metric.session else ["slice_start"]), *metric.by)


@pytest.mark.parametrize(("window", "aggregations"), [("tumbling 1h", AGGREGATIONS)])
def test_states_of_slices_come_out_of_the_tables_as_they_went_in(
    clickhouse: Settings, unique: str, window: str, aggregations: dict[str, str]
) -> None:
    source = catalog(unique, aggregations, window)

    client = written(clickhouse, source, [events()[n : n + 13] for n in range(0, 120, 13)])

    [group] = groups(source)
    states = whole(source, events())
    for metric in group.metrics:
        expected = metric_rows(group, metric, states).with_columns(pl.col("slice_start").cast(pl.Datetime("ms", "UTC")))
        found = rows_of(client, metric, expected.columns)
        assert_frame_equal(found, expected.sort(group.keys), check_exact=False)


def test_sessions_and_tombstones_come_out_of_the_tables(clickhouse: Settings, unique: str) -> None:
    aggregations = {name: agg for name, agg in AGGREGATIONS.items() if name != "stock"}
    source = catalog(unique, aggregations, "session 20m max 1h")
    apart, between = events()[::2], events()[1::2]

    client = written(clickhouse, source, [apart, between])

    [group] = groups(source)
    states = whole(source, [*apart, *between])
    for metric in group.metrics:
        expected = session_rows(group, metric, states).with_columns(
            pl.col("window_start", "window_end").cast(pl.Datetime("ms", "UTC")), pl.col("length_ms").cast(pl.UInt64)
        )
        found = rows_of(client, metric, expected.columns)
        assert_frame_equal(found, expected.sort("window_start", *group.dimensions), check_exact=False)
        assert client.query(f"SELECT count() FROM speed_{metric.name} WHERE is_deleted").result_rows != [(0,)]


@pytest.mark.parametrize("seed", range(6))
def test_sessions_of_an_attempt_that_failed_do_not_outlive_another_in_other_chunks(
    clickhouse: Settings, unique: str, seed: int
) -> None:
    by_chance = random.Random(seed)
    source = catalog(unique, {"events": "count"}, "session 20m max 1h")
    log = by_chance.sample(events(), 120)
    failed = [log[n : n + 7] for n in range(0, by_chance.randrange(80, 110), 7)]
    client = written(clickhouse, source, failed)
    [group], [metric] = groups(source), source.metrics
    expected = session_rows(group, metric, whole(source, log)).with_columns(
        pl.col("window_start", "window_end").cast(pl.Datetime("ms", "UTC")), pl.col("length_ms").cast(pl.UInt64)
    )

    publish(clickhouse, source, [log[n : n + 40] for n in range(0, 120, 40)])
    before = rows_of(client, metric, expected.columns)
    taken = take_back(client, metric)

    assert_frame_equal(rows_of(client, metric, expected.columns), expected.sort("window_start", *group.dimensions))
    assert before.height == expected.height + taken
    assert taken > 0
    assert take_back(client, metric) == 0


def test_sessions_are_looked_for_only_near_what_was_written_since(clickhouse: Settings, unique: str) -> None:
    source = catalog(unique, {"events": "count"}, "session 20m max 1h")
    [metric], (first, between, last) = source.metrics, events()[0:31:15]
    client = written(clickhouse, source, [[between, last], [first]])
    client.command("DELETE FROM speed_events WHERE is_deleted")
    now = int(client.query("SELECT toUnixTimestamp(now())").result_rows[0][0])

    assert take_back(client, metric, now + 3_600) == 0
    assert take_back(client, metric, now - 3_600) == 1
