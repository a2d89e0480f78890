"""Windows in ClickHouse say what the reference says: every aggregation, every window, over every change of clocks."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from chdb.session import Session
from conformance import LOG, events, judge
from hypothesis import HealthCheck, given, settings

from metrics import reference
from metrics.catalog import Metric
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader
from metrics.fold import Group, groups, merge_states, metric_rows, partial_states, selected, session_rows
from metrics.reference import Record
from serving.presented import presented, presented_items

CATALOG = parse_catalog(LOG, {}, "test.yaml")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events())
def test_every_window_says_what_the_reference_says(engine: Session, tmp_path: Path, records: list[Record]) -> None:
    expected = reference.answer(LOG, records).expected
    chunk = PartitionReader(CATALOG).read(
        0, [r.offset for r in records], [r.record_time for r in records], [r.value for r in records]
    )
    for group in groups(CATALOG):
        states = merge_states(group, partial_states(group, chunk.counted))
        for metric in group.metrics:
            rows = session_rows(group, metric, states) if group.session else metric_rows(group, metric, states)
            for grain in metric.grains:
                sql = presented(metric, grain, _relation(rows, metric, tmp_path / "states.parquet"))
                judge(metric, grain, _rows(engine, metric, sql), expected, exact=metric.agg.exact)
                if metric.agg.by_value and not group.session:
                    items = _items(group, metric, chunk.counted)
                    sql = presented_items(metric, grain, _relation(items, metric, tmp_path / "items.parquet"))
                    judge(metric, grain, _rows(engine, metric, sql), expected, exact=True)


def _items(group: Group, metric: Metric, counted: pl.DataFrame) -> pl.DataFrame:
    """The distinct values of a metric with their counts."""
    argument = pl.col("argument") if metric.agg.name == "quantile" else pl.col("argument").cast(pl.String)
    return selected(group, metric, counted).group_by(*group.keys, argument.alias("item")).agg(n=pl.len())


def _relation(rows: pl.DataFrame, metric: Metric, file: Path) -> str:
    """The rows as a relation with the types of the metric's tables."""
    times = [pl.col(name).cast(pl.Datetime("ms", "UTC")) for name in rows.columns if name in _TIMES]
    rows.with_columns(times).write_parquet(file)
    types = {column.name: column.clickhouse_type for column in metric.agg.state}
    types |= {"item": f"Nullable({metric.agg.item_type})", "n": "UInt64"} if metric.agg.by_value else {}
    columns = [
        f"CAST({name} AS {types[name]}) AS {name}"
        if name in types
        else f"toDateTime64({name}, 3, 'UTC') AS {name}"
        if name in _TIMES
        else f"assumeNotNull({name}) AS {name}"
        for name in rows.columns
    ]
    return f"(SELECT {', '.join(columns)} FROM file('{file}', 'Parquet'))"


_TIMES = ("slice_start", "window_start", "window_end")


def _rows(engine: Session, metric: Metric, sql: str) -> dict[tuple[int, tuple[str, ...]], dict[str, Any]]:
    keys = [*(["session_key"] if metric.session else []), *metric.by]
    start, end = (f"toUnixTimestamp64Milli({name})" for name in ("window_start", "window_end"))
    shown = f"SELECT {start} AS start, {end} AS end, [{', '.join(keys)}]::Array(String) AS dimensions, events,"
    shown += f" {'length_ms' if metric.session else '0'} AS length, value, lower, upper FROM ({sql})"
    quoting = "output_format_json_quote_64bit_integers = 0, output_format_json_quote_decimals = 1"
    found = str(engine.query(f"{shown} SETTINGS {quoting}", "JSONEachRow"))
    rows = [json.loads(line) for line in found.splitlines()]
    result = {(row["start"], tuple(row["dimensions"])): row for row in rows}
    assert len(result) == len(rows)
    return result
