"""Aggregations that depend on when events happened: the last value, and a level that is set and changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from metrics.aggregation import ARGUMENTS, DECIMAL_DIGITS, Aggregation, Presented, clickhouse_type, polars_type
from metrics.state import StateColumn, collect_maps, map_dtype


@dataclass(frozen=True)
class Last(Aggregation):
    """The value of the latest event, by event time, then by place in the log."""

    name = "last"
    nullable = True
    needs_place = True

    @property
    def value_type(self) -> str:
        """The argument's type."""
        return clickhouse_type(self.type)

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The value with the time and place of its event; -1 where there is none."""
        return (
            StateColumn("latest", polars_type(self.type), f"Nullable({self.value_type})", "latest"),
            StateColumn("latest_place", pl.Int64(), "Int64", "latest"),
            StateColumn("latest_at", pl.Int64(), "Int64", "max"),
        )

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """The greatest in order."""
        given = pl.col("argument").is_not_null()
        order = [pl.col(name).filter(given) for name in ("event_time", "place")]
        return (
            pl.col("argument").filter(given).sort_by(*order).last(),
            pl.col("place").filter(given).sort_by(*order).last().fill_null(-1),
            pl.col("event_time").filter(given).max().fill_null(-1),
        )

    def present_sql(self) -> Presented:
        """The value itself."""
        return Presented("latest")


@dataclass(frozen=True)
class Level(Aggregation):
    """A level that is set now and then and changed in between, such as a stock: the last level set plus later changes.

    Arguments are the level set and the change, either of them NULL where an event has none. A change at the very
    millisecond of a setting is part of it; of settings at one millisecond the greatest counts; before the first, the
    level starts at 0. All are kept by their time, so that their order of arrival does not matter.
    """

    name = "level"
    needs_place = True
    allows_sessions = False

    @property
    def scale(self) -> int:
        """Decimals after the point."""
        return max(argument.type.scale for argument in self.arguments)

    @property
    def value_type(self) -> str:
        """A decimal."""
        return f"Decimal({DECIMAL_DIGITS}, {self.scale})"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """Levels set and changes, by time in ms."""
        kind = f"Map(Int64, {self.value_type})"
        dtype = map_dtype(pl.Int64(), pl.Decimal(DECIMAL_DIGITS, self.scale))
        return (StateColumn("levels", dtype, kind, "max_map"), StateColumn("changes", dtype, kind, "sum_map"))

    def _prepare_map(
        self, column: StateColumn, events: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
    ) -> pl.DataFrame:
        """Collects one of the two by time."""
        argument = ARGUMENTS[0 if column.name == "levels" else 1]
        entries = events.select(
            *keys,
            pl.col("event_time").alias("key"),
            pl.col(argument).cast(pl.Decimal(DECIMAL_DIGITS, self.scale)).alias("value"),
        ).drop_nulls("value")
        return collect_maps(column, entries, all_keys, keys)

    def present_sql(self) -> Presented:
        """The last level set, plus the changes after it."""
        last_set = "if(empty(mapKeys(levels)), -1, arrayMax(mapKeys(levels)))"
        start = f"if(empty(mapKeys(levels)), CAST(0 AS {self.value_type}), levels[{last_set}])"
        later = f"arraySum((at, change) -> if(at > {last_set}, change, 0), mapKeys(changes), mapValues(changes))"
        return Presented(f"CAST({start} + {later} AS {self.value_type})")
