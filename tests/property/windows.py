"""Windows as polars folds them and ClickHouse's SQL merges and presents them, against the reference."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl
from chdb.session import Session
from judge import STATES, Place, Said, Tree, judge

from metrics import reference
from metrics.catalog import Catalog, Metric
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader
from metrics.fold import Group, groups, merge_states, metric_rows, partial_states, selected, session_rows
from metrics.reference import Record
from serving.presented import presented, presented_items

CHUNKS = 3
_TIMES = ("slice_start", "window_start", "window_end")


def compare(engine: Session, scratch: Path, tree: Tree, records: list[Record]) -> None:
    """Judges every metric of a catalog over a log: from states, and from distinct values where batch keeps these."""
    catalog = parse_catalog(tree, {}, "test.yaml")
    expected = reference.answer(tree, records).expected
    counted = _counted(catalog, records)
    for group in groups(catalog):
        states = merge_states(group, pl.concat([partial_states(group, part) for part in counted]))
        for metric in group.metrics:
            rows = session_rows(group, metric, states) if group.session else metric_rows(group, metric, states)
            relation = _relation(rows, metric, scratch / "states.parquet")
            also = _merged_map(metric)
            asked = {grain: presented(metric, grain, relation, also) for grain in metric.grains}
            for grain, found in _rows(engine, metric, asked, also):
                judge(metric, grain, found, expected, exact=metric.agg.exact)
            if metric.agg.by_value and not group.session:
                items = _items(group, metric, pl.concat(counted))
                relation = _relation(items, metric, scratch / "items.parquet")
                asked = {grain: presented_items(metric, grain, relation) for grain in metric.grains}
                for grain, found in _rows(engine, metric, asked):
                    judge(metric, grain, found, expected, exact=True)


def _counted(catalog: Catalog, records: list[Record]) -> list[pl.DataFrame]:
    """The events that count, as they are read in several chunks."""
    reader = PartitionReader(catalog)
    edges = [len(records) * part // CHUNKS for part in range(CHUNKS + 1)]
    chunks = [
        reader.read(0, [r.offset for r in own], [r.record_time for r in own], [r.value for r in own])
        for own in (records[start:end] for start, end in pairwise(edges))
    ]
    return [chunk.counted for chunk in chunks]


def _merged_map(metric: Metric) -> list[str]:
    """What merges the states that the reference has too."""
    if metric.agg.name not in STATES or metric.agg.name == "top":
        return []
    (state,) = metric.agg.state
    return [f"{state.merge_sql} AS states"]


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


def _rows(
    engine: Session, metric: Metric, asked: dict[str, str], also: list[str] | None = None
) -> Iterator[tuple[str, list[tuple[Place, Said]]]]:
    """The windows of each grain, by one statement for all."""
    keys = [*(["session_key"] if metric.session else []), *metric.by]
    start, end = (f"toUnixTimestamp64Milli({name})" for name in ("window_start", "window_end"))
    shown = f"{start} AS start, {end} AS end, [{', '.join(keys)}]::Array(String) AS dimensions, events,"
    shown += f" {'length_ms' if metric.session else 'NULL'} AS length, value, lower, upper"
    shown += f", {'states' if also else 'NULL'} AS states"
    selects = [f"SELECT '{grain}' AS grain, {shown} FROM ({sql})" for grain, sql in asked.items()]
    quoting = "max_threads = 1, output_format_json_quote_64bit_integers = 0, output_format_json_quote_decimals = 1"
    text = str(engine.query(f"{' UNION ALL '.join(selects)} SETTINGS {quoting}", "JSONEachRow"))
    found: dict[str, list[tuple[Place, Said]]] = {grain: [] for grain in asked}
    # not splitlines, which also splits within texts
    for row in (json.loads(line, parse_int=_number) for line in text.split("\n") if line):
        states = row["states"] and {int(key): value for key, value in row["states"].items()}
        said = Said(*(row[name] for name in ("end", "value", "lower", "upper", "events", "length")), states)
        found[row["grain"]].append(((row["start"], tuple(row["dimensions"])), said))
    yield from found.items()


def _number(text: str) -> float:
    """A whole number as JSON has it, where ClickHouse also writes floats without a fraction, the negative zero too."""
    return -0.0 if text == "-0" else int(text)
