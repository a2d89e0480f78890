"""Mergeable aggregations: what a metric keeps of its events, and how it is presented.

A **state** is a row of `StateColumn`s; `metrics.state` merges states. `prepare` makes one row per key from events. A
state is presented in ClickHouse, where it is served, by the SQL of `present_sql`. Aggregations are in `metrics.totals`,
`metrics.by_value` and `metrics.over_time`; `metrics.aggregation_text` reads them from a catalog.

The batch layer keeps exact mergeable states too. For most aggregations these are the same columns. For aggregations
`by_value` it keeps each distinct value with its count, presented by `items_sql`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from metrics.expression import Expression, FieldType
from metrics.state import StateColumn

SEMANTICS_VERSION = 2
"""Raised whenever the same definition would yield other numbers than before; part of every `metric_version`."""

DECIMAL_DIGITS = 38
ARGUMENTS = ("argument", "argument2")
"""Columns of events that hold an aggregation's arguments."""

PLACE_BITS = 48
"""`place` is an event's place in the log as one number: topic partition, then offset in so many bits."""


@dataclass(frozen=True)
class Presented:
    """SQL expressions of what a reader sees; bounds are NULL where the state is exact."""

    value: str
    lower: str = "NULL"
    upper: str = "NULL"


@dataclass(frozen=True)
class Aggregation:
    """What a metric computes over the events that it selects.

    Attributes:
        arguments: The expressions aggregated over; NULL is no value.
    """

    arguments: tuple[Expression, ...] = ()

    name = ""
    exact = True
    """Whether the speed layer's state gives the exact value, so that it has no sketch error."""
    by_value = False
    """Whether the batch layer keeps distinct values with their counts instead of a state."""
    nullable = False
    """Whether a window with events may have no value."""
    needs_place = False
    """Whether `prepare` needs the columns event_time and place."""
    allows_sessions = True

    @property
    def text(self) -> str:
        """The canonical text in a catalog, for example ``sum(amount)``."""
        inside = ", ".join([*(argument.canonical for argument in self.arguments), *self.options])
        return f"{self.name}({inside})" if inside else self.name

    @property
    def options(self) -> tuple[str, ...]:
        """What stands after the arguments."""
        return ()

    @property
    def type(self) -> FieldType:
        """The type of the first argument."""
        return self.arguments[0].type

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The state's columns."""
        raise NotImplementedError

    @property
    def value_type(self) -> str:
        """The ClickHouse type of the presented value, without Nullable."""
        raise NotImplementedError

    @property
    def shown_type(self) -> str:
        """The ClickHouse type of the column `value`."""
        return f"Nullable({self.value_type})" if self.nullable else self.value_type

    @property
    def bound_type(self) -> str:
        """The ClickHouse type of the columns `lower` and `upper`."""
        return f"Nullable({self.value_type})"

    @property
    def item_type(self) -> str:
        """The ClickHouse type of a distinct value; only `by_value`."""
        return clickhouse_type(self.type)

    @property
    def folds(self) -> tuple[pl.Expr, ...] | None:
        """The state's columns as aggregations over the events of a group, in order; None where `prepare` must do it."""
        return None

    def prepare(self, events: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """One row per key from events: columns `keys`, `events` (UInt64, how many) and the state's.

        Args:
            events: Columns `keys`, `ARGUMENTS` as far as there are any, and with `needs_place` event_time and place.
            keys: Columns that name a row.
        """
        counted = pl.len().cast(pl.UInt64).alias("events")
        if self.folds is not None:
            named = [fold.cast(c.dtype).alias(c.name) for fold, c in zip(self.folds, self.state, strict=True)]
            return events.group_by(keys).agg(counted, *named)
        rows = events.group_by(keys).agg(counted)
        for column in self.state:
            rows = rows.join(
                self._prepare_map(column, events, rows.select(keys), keys), on=list(keys), nulls_equal=True
            )
        return rows

    def _prepare_map(
        self, column: StateColumn, events: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
    ) -> pl.DataFrame:
        """A column of maps from events: columns `keys` and the column's."""
        raise NotImplementedError

    def present_sql(self) -> Presented:
        """How ClickHouse presents a merged state, by expressions over its columns."""
        raise NotImplementedError

    def items_sql(self) -> str:
        """How ClickHouse presents distinct values: an aggregate over rows with the columns `item` and `n`."""
        raise NotImplementedError


def clickhouse_type(kind: FieldType) -> str:
    """The ClickHouse type of an expression."""
    plain = {"string": "String", "int": "Int64", "float": "Float64", "bool": "Bool"}
    return plain.get(kind.kind) or f"Decimal({DECIMAL_DIGITS}, {kind.scale})"


def polars_type(kind: FieldType) -> pl.DataType:
    """The polars type of an expression."""
    plain: dict[str, pl.DataType] = {
        "string": pl.String(),
        "int": pl.Int64(),
        "float": pl.Float64(),
        "bool": pl.Boolean(),
    }
    return plain.get(kind.kind) or pl.Decimal(DECIMAL_DIGITS, kind.scale)


def spark_type(kind: FieldType) -> str:
    """The Spark type of an expression."""
    plain = {"string": "string", "int": "bigint", "float": "double", "bool": "boolean"}
    return plain.get(kind.kind) or f"decimal({DECIMAL_DIGITS},{kind.scale})"
