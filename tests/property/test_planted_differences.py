"""A difference planted in the fold, or in the SQL that merges and presents its states, is found by the judge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chdb.session import Session
from conformance import AGGREGATIONS, CHANGES, LOG, Tree, drawn_by, events
from windows import compare

from metrics import by_value, fold, over_time, session, sketch, state, totals
from metrics.aggregation import Presented
from metrics.reference import Record
from serving import window_sql

SOME = {
    "n": "sliding 2h every 1h",
    "size": "tumbling 36h",
    "least": "tumbling 1h",
    "most": "week Africa/Cairo",
    "mean": "day America/New_York",
    "spread": "global",
    "users": "week Africa/Cairo",
    "p95": "month Australia/Lord_Howe",
    "p1": "tumbling 1h",
    "top": "global",
    "latest": "tumbling 36h",
    "stock": "day Australia/Lord_Howe",
}
SOME_SESSIONS = {"n": "session 30m max 2h"}


def tree_of(*names: str) -> Tree:
    """A catalog of some metrics, each with one window, and sessions where `SOME_SESSIONS` has them."""
    metrics = {name: AGGREGATIONS[name] | {"window": SOME[name]} for name in names}
    sessions = {f"{n}_sessions": AGGREGATIONS[n] | {"window": SOME_SESSIONS[n]} for n in names if n in SOME_SESSIONS}
    return LOG | {"metrics": metrics | sessions}


@pytest.fixture(scope="module")
def logs() -> list[list[Record]]:
    """Several, as what a seed draws depends on the modules that were imported before."""
    return [drawn_by(seed, events(CHANGES["Lord Howe loses half an hour"], 30, 40)) for seed in range(7, 11)]


def test_nothing_is_found_where_nothing_is_planted(engine: Session, tmp_path: Path, logs: list[list[Record]]) -> None:
    for number, records in enumerate(logs):
        (tmp_path / str(number)).mkdir()
        compare(engine, tmp_path / str(number), tree_of(*SOME), records)


def merged_but(kind: str, otherwise: Callable[[state.StateColumn], Any]) -> Callable[[state.StateColumn], Any]:
    """`StateColumn.merged` that merges one kind of column otherwise."""
    right = state.StateColumn.merged.fget
    assert right is not None
    return lambda column: otherwise(column) if column.merge == kind else right(column)


def sql_but(kind: str, otherwise: str) -> Callable[[state.StateColumn], str]:
    """`StateColumn.merge_sql` that merges one kind of column otherwise."""
    right = state.StateColumn.merge_sql.fget
    assert right is not None
    return lambda column: otherwise.format(f"s.{column.name}") if column.merge == kind else right(column)


def own(column: state.StateColumn) -> pl.Expr:
    return pl.col(column.name)


def later_registers(values: list[str]) -> tuple[Any, Any]:
    register, rank = _registers(values)
    return register, rank + 1


_registers, _buckets, _slices = sketch.registers_of, sketch.buckets_of, fold.slice_start
_quantile, _rank, _midnight = sketch.quantile_sql, sketch.rank_sql, window_sql._midnight
_sessions = session.assign_sessions

IN_THE_FOLD = {
    "a count of one more": ("n", totals.Count, "folds", property(lambda _: (pl.len() + 1,))),
    "an event at the end of a slice": (
        "n",
        fold,
        "slice_start",
        lambda width: ((pl.col("event_time") - 1) // width * width).alias("slice_start"),
    ),
    "sessions that join at the gap": (
        "n",
        fold,
        "assign_sessions",
        lambda rows, keys, window: _sessions(rows, keys, type(window)(window.gap * 2, window.max_length)),
    ),
    "a sum of the first part": (
        "size",
        state.StateColumn,
        "merged",
        property(merged_but("sum", lambda c: own(c).first())),
    ),
    "a minimum that is the greatest of parts": (
        "least",
        state.StateColumn,
        "merged",
        property(merged_but("min", lambda c: own(c).max())),
    ),
    "a mean that is not weighted": (
        "spread",
        state.StateColumn,
        "merged",
        property(merged_but("mean", lambda c: own(c).mean())),
    ),
    "squares without the means between them": (
        "spread",
        state.StateColumn,
        "merged",
        property(merged_but("squares", lambda c: own(c).sum())),
    ),
    "the first value for the last": (
        "latest",
        state.StateColumn,
        "merged",
        property(merged_but("latest", lambda c: own(c).sort_by("latest_at", "latest_place").first())),
    ),
    "a rank of one more": ("users", sketch, "registers_of", later_registers),
    "buckets of unlike width": ("p1", sketch, "buckets_of", lambda values: _buckets(values * 1.02)),
    "NULL counted as a value": (
        "mean",
        totals.Mean,
        "folds",
        property(lambda mean: (*mean.total_folds, pl.len())),
    ),
}
IN_THE_SQL = {
    "a sum that is the greatest": ("n", state.StateColumn, "merge_sql", property(sql_but("sum", "max({})"))),
    "a maximum that is the least of slices": (
        "most",
        state.StateColumn,
        "merge_sql",
        property(sql_but("max", "min({})")),
    ),
    "registers that are added up": (
        "users",
        state.StateColumn,
        "merge_sql",
        property(sql_but("max_map", "sumMap({})")),
    ),
    "squares that are only added up": (
        "spread",
        state.StateColumn,
        "merge_sql",
        property(sql_but("squares", "sum({})")),
    ),
    "any value for the last": (
        "latest",
        state.StateColumn,
        "merge_sql",
        property(sql_but("latest", "argMin({}, (s.latest_at, s.latest_place))")),
    ),
    "a deviation of all": (
        "spread",
        totals.Stddev,
        "present_sql",
        lambda _: Presented("if(number < 2, NULL, sqrt(squares / number))"),
    ),
    "a rank that is rounded down": (
        "p95",
        sketch,
        "rank_sql",
        lambda total, quantile: _rank(f"({total} - 1)", quantile),
    ),
    "an edge for the middle of a bucket": (
        "p1",
        sketch,
        "quantile_sql",
        lambda *given: tuple(f"({sql} * 1.02)" for sql in _quantile(*given)),
    ),
    "items in the order of their texts": (
        "top",
        by_value.Top,
        "_first",
        lambda top, pairs: f"arraySlice(arraySort(x -> x.1, {pairs}), 1, {top.most})",
    ),
    "changes at the moment of a setting": (
        "stock",
        over_time.Level,
        "present_sql",
        lambda level: Presented(
            f"CAST(arraySum(mapValues(levels)) + arraySum(mapValues(changes)) AS {level.value_type})"
        ),
    ),
    "days that begin in UTC": ("users", window_sql, "_midnight", lambda day, zone: _midnight(day, "UTC")),
    "windows that end a millisecond later": (
        "n",
        window_sql,
        "_instant",
        lambda millis: f"fromUnixTimestamp64Milli({millis} + 1, 'UTC')",
    ),
}


@pytest.mark.parametrize("planted", [*IN_THE_FOLD, *IN_THE_SQL])
def test_a_planted_difference_is_found(
    engine: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[list[Record]], planted: str
) -> None:
    name, where, what, difference = (IN_THE_FOLD | IN_THE_SQL)[planted]
    monkeypatch.setattr(where, what, difference)
    with pytest.raises(AssertionError) as found:
        for number, records in enumerate(logs):
            (tmp_path / str(number)).mkdir()
            compare(engine, tmp_path / str(number), tree_of(name), records)
    assert str(found.value).startswith(name)
