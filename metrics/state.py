"""States: the columns that a metric keeps of its events, and how two rows of them become one.

Merging is associative and commutative and the absent row is its identity, so that the order in which rows are merged
never matters. A column says how it is merged in polars and in ClickHouse's SQL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

Merge = Literal["sum", "min", "max", "sum_map", "max_map", "mean", "squares", "latest"]

_SIMPLE_SQL = {"sum": "sum", "min": "min", "max": "max", "sum_map": "sumMap", "max_map": "maxMap"}


@dataclass(frozen=True)
class StateColumn:
    """One column of a state.

    Attributes:
        name: The column's name in tables and frames.
        dtype: Its polars type.
        clickhouse_type: Its ClickHouse type.
        merge: How values become one: ``sum``, ``min``, ``max``; ``sum_map`` and ``max_map`` do so per key of a map;
            ``mean`` is weighted by the column `number`; ``squares`` is a sum of squared deviations from the column
            `mean` (Chan); ``latest`` takes the value of the row that is greatest in (`latest_at`, `latest_place`).
        tolerance: What two writers of the same events may differ by, as SQL over the state's columns; None where
            they must be equal to the bit. Only sums of floats depend on their order.
    """

    name: str
    dtype: pl.DataType
    clickhouse_type: str
    merge: Merge
    tolerance: str | None = None

    @property
    def is_map(self) -> bool:
        """Whether the column holds a map."""
        return self.merge in {"sum_map", "max_map"}

    @property
    def merged(self) -> pl.Expr:
        """The merged value, as an aggregation over the rows of a group; not for maps."""
        own = pl.col(self.name)
        match self.merge:
            case "sum":
                return own.sum()
            case "min":
                return own.min()
            case "max":
                return own.max()
            case "mean":
                return _pooled_mean().fill_nan(0.0).alias(self.name)
            case "squares":
                apart = pl.col("mean") - _pooled_mean()
                return (own + pl.col("number") * apart * apart).sum().fill_nan(0.0).alias(self.name)
            case "latest":
                return own.sort_by("latest_at", "latest_place").last()
        msg = f"a {self.merge} is merged by `merge_maps`"
        raise TypeError(msg)

    @property
    def merge_sql(self) -> str:
        """The merged value in ClickHouse, as an aggregate over rows of the relation `s`."""
        match self.merge:
            case "mean":
                return f"if(sum(s.number) = 0, 0, {_POOLED_MEAN_SQL})"
            case "squares":
                means = f"arrayWithConstant(count(), if(sum(s.number) = 0, 0, {_POOLED_MEAN_SQL}))"
                rows = "groupArray(s.number), groupArray(s.mean), groupArray(s.squares)"
                return f"arraySum((n, mean, own, pooled) -> own + n * pow(mean - pooled, 2), {rows}, {means})"
            case "latest":
                return f"argMax(s.{self.name}, (s.latest_at, s.latest_place))"
        return f"{_SIMPLE_SQL[self.merge]}(s.{self.name})"


_POOLED_MEAN_SQL = "sum(s.number * s.mean) / sum(s.number)"


def _pooled_mean() -> pl.Expr:
    return (pl.col("number") * pl.col("mean")).sum() / pl.col("number").sum()


def map_dtype(key: pl.DataType, value: pl.DataType) -> pl.List:
    """The polars type of a map, as ClickHouse reads it from Arrow: entries in ascending order of their keys."""
    return pl.List(pl.Struct({"key": key, "value": value}))


def merge_states(columns: Sequence[StateColumn], states: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Merges rows of states to one per key: columns `keys`, `events` and the state's.

    Args:
        columns: The state's columns.
        states: Columns `keys`, `events` and the state's.
        keys: Columns that name a row.
    """
    plain = [column.merged for column in columns if not column.is_map]
    merged = states.group_by(keys).agg(pl.col("events").sum(), *plain)
    for column in columns:
        if column.is_map:
            merged = merged.join(merge_maps(column, states, keys), on=list(keys), how="left", nulls_equal=True)
    return merged.select(*keys, "events", *(pl.col(c.name).cast(c.dtype) for c in columns))


def merge_maps(column: StateColumn, states: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Merges a column of maps to one per key, entries ascending: columns `keys` and the column's."""
    entries = states.select(*keys, column.name).explode(column.name).filter(pl.col(column.name).is_not_null())
    return collect_maps(column, entries.unnest(column.name), states.select(keys).unique(), keys)


def collect_maps(
    column: StateColumn, entries: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
) -> pl.DataFrame:
    """Maps from entries, merged where a key of the map stands more than once; `all_keys` without entries have none.

    Args:
        column: The column of maps that is wanted.
        entries: Columns `keys`, `key` and `value`.
        all_keys: The rows that the result has.
        keys: Columns that name a row.
    """
    value = pl.col("value")
    maps = (
        entries.group_by([*keys, "key"])
        .agg(value.sum() if column.merge == "sum_map" else value.max())
        .sort("key")
        .group_by(keys, maintain_order=True)
        .agg(pl.struct("key", "value").alias(column.name))
        .cast({column.name: column.dtype})
    )
    joined = all_keys.join(maps, on=list(keys), how="left", nulls_equal=True)
    return joined.with_columns(pl.col(column.name).fill_null(pl.lit([], dtype=column.dtype)))
