"""Mergeable aggregations: what a metric keeps of its events, how two such states become one, how a state is presented.

A **state** is a row of state columns. `prepare` makes one row per key from events, `merge` one row per key from rows;
both are columnar. The order in which states are merged never matters: merging is associative and commutative, and the
absent row is its identity. A state is presented in ClickHouse, where it is served, by the SQL of `present_sql`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars as pl
import xxhash

SEMANTICS_VERSION = 1
"""Raised whenever the same definition would yield other numbers than before; part of every `metric_version`."""

PRECISION = 12
"""Index bits of the HyperLogLog sketch: 2**12 registers, a relative standard error of 1.04 / 2**6 = 1.6 %."""

REGISTERS = 1 << PRECISION
STANDARD_ERROR = 1.04 / REGISTERS**0.5
BOUND_SIGMAS = 3
"""Bounds of a distinct count lie this many standard errors away: they hold in 99.7 % of windows."""

DECIMAL_DIGITS = 38
_REST_BITS = 64 - PRECISION


@dataclass(frozen=True)
class StateColumn:
    """One column of a state.

    Attributes:
        name: The column's name in tables and frames.
        dtype: Its polars type.
        clickhouse_type: Its ClickHouse type.
        merge: How two values become one: ``sum``, or ``max_map`` (per key of a map the greater value).
    """

    name: str
    dtype: pl.DataType
    clickhouse_type: str
    merge: Literal["sum", "max_map"]

    @property
    def merge_sql(self) -> str:
        """The ClickHouse aggregate function that merges this column."""
        return {"sum": "sum", "max_map": "maxMap"}[self.merge]


@dataclass(frozen=True)
class Presented:
    """SQL expressions, over merged state columns, of what a reader sees; bounds are NULL where the state is exact."""

    value: str
    lower: str
    upper: str


class Aggregation(Protocol):
    """What a metric computes over the events that it selects."""

    @property
    def text(self) -> str:
        """The canonical text in a catalog, for example ``sum(amount)``."""

    @property
    def field(self) -> str | None:
        """The field aggregated over, or None."""

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The state's columns."""

    @property
    def value_type(self) -> str:
        """The ClickHouse type of the presented value."""

    @property
    def exact(self) -> bool:
        """Whether the state gives the exact value, so that the speed layer has no sketch error."""

    def prepare(self, events: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """One state per key: columns `keys` and the state's. ``argument`` in `events` is the field aggregated over."""

    def present_sql(self) -> Presented:
        """How ClickHouse presents a merged state."""


@dataclass(frozen=True)
class Count:
    """The number of events."""

    text: str = "count"
    field: None = None
    exact: bool = True
    value_type: str = "UInt64"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """One exact counter."""
        return (StateColumn("count", pl.UInt64(), "UInt64", "sum"),)

    def prepare(self, events: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """Counts the events of each key."""
        return events.group_by(keys).agg(pl.len().cast(pl.UInt64).alias("count"))

    def present_sql(self) -> Presented:
        """The counter itself."""
        return Presented("count", "NULL", "NULL")


@dataclass(frozen=True)
class Sum:
    """The exact sum of an integer or decimal field; NULL adds nothing. The state is a scaled integer of 38 digits."""

    field: str
    scale: int
    exact: bool = True

    @property
    def text(self) -> str:
        """As written in a catalog."""
        return f"sum({self.field})"

    @property
    def value_type(self) -> str:
        """A decimal of the field's scale."""
        return f"Decimal({DECIMAL_DIGITS}, {self.scale})"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The total as an exact decimal."""
        return (StateColumn("total", pl.Decimal(DECIMAL_DIGITS, self.scale), self.value_type, "sum"),)

    def prepare(self, events: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """Adds up the argument of each key."""
        column = self.state[0]
        return events.group_by(keys).agg(pl.col("argument").cast(column.dtype).sum().alias(column.name))

    def present_sql(self) -> Presented:
        """The total itself."""
        return Presented("total", "NULL", "NULL")


@dataclass(frozen=True)
class Distinct:
    """The number of distinct values of a field; NULL is no value.

    The state is a sparse HyperLogLog sketch: register -> greatest rank seen, where a value's 64-bit XXH3 hash gives
    the register by its first 12 bits and the rank by the number of leading zeros, plus one, of the others. Registers
    depend on the set of values alone, never on order or repetition.

    Source:
        Flajolet et al., "HyperLogLog" (2007); estimator: Ertl, "New cardinality estimation algorithms for HyperLogLog
        sketches" (2017), section 4.
    """

    field: str
    exact: bool = False
    value_type: str = "UInt64"

    @property
    def text(self) -> str:
        """As written in a catalog."""
        return f"distinct({self.field})"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The registers that are not zero, in ascending order."""
        dtype = pl.List(pl.Struct({"key": pl.UInt16(), "value": pl.UInt8()}))
        return (StateColumn("registers", dtype, "Map(UInt16, UInt8)", "max_map"),)

    def prepare(self, events: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """Hashes each distinct value of each key once; keys whose values are all NULL have no registers."""
        values = (
            events.select(*keys, pl.col("argument").cast(pl.String)).unique().filter(pl.col("argument").is_not_null())
        )
        register, rank = registers_of(values["argument"].to_list())
        hashed = values.select(keys).with_columns(pl.Series("key", register), pl.Series("value", rank))
        return _with_empty(events.select(keys).unique(), _largest_ranks(hashed, keys), keys)

    def present_sql(self) -> Presented:
        """Ertl's estimate, with bounds three standard errors away, never below the number of registers hit."""
        filled = "length(mapKeys(registers))"
        empty_share = f"(1 - {filled} / {REGISTERS})"
        sigma = f"({empty_share} + arraySum(k -> pow({empty_share}, exp2(k)) * exp2(k - 1), range(1, 32)))"
        harmonic = f"({REGISTERS} * {sigma} + arraySum(rank -> exp2(-toFloat64(rank)), mapValues(registers)))"
        estimate = f"if({filled} = 0, 0, {REGISTERS**2} / (2 * log(2)) / {harmonic})"
        error = BOUND_SIGMAS * STANDARD_ERROR
        return Presented(
            f"greatest({filled}, toUInt64(round({estimate})))",
            f"greatest({filled}, toUInt64(floor({estimate} / (1 + {error}))))",
            f"greatest({filled}, toUInt64(ceil({estimate} / (1 - {error}))))",
        )


def registers_of(values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The register (uint16) and the rank (uint8) of each value."""
    digest = xxhash.xxh3_64_intdigest
    hashes = np.fromiter((digest(value.encode()) for value in values), dtype=np.uint64, count=len(values))
    register = (hashes >> np.uint64(_REST_BITS)).astype(np.uint16)
    rest = hashes & np.uint64((1 << _REST_BITS) - 1)
    # frexp's exponent is the bit length: exact, because the rest has 52 bits and a double holds 53
    _, bit_length = np.frexp(rest.astype(np.float64))
    return register, (_REST_BITS - bit_length + 1).astype(np.uint8)


def merge(column: StateColumn, states: pl.DataFrame, keys: Sequence[str], name: str) -> pl.DataFrame:
    """Merges a state column, stored under `name`, to one row per key: columns `keys` and `name`."""
    if column.merge == "sum":
        return states.group_by(keys).agg(pl.col(name).sum())
    exploded = states.select(*keys, name).explode(name).filter(pl.col(name).is_not_null()).unnest(name)
    merged = _with_empty(states.select(keys).unique(), _largest_ranks(exploded, keys), keys)
    return merged.rename({"registers": name})


def _largest_ranks(ranks: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return (
        ranks.group_by([*keys, "key"])
        .agg(pl.col("value").max())
        .sort("key")
        .group_by(keys, maintain_order=True)
        .agg(pl.struct("key", "value").alias("registers"))
    )


def _with_empty(all_keys: pl.DataFrame, states: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    joined = all_keys.join(states, on=list(keys), how="left", nulls_equal=True)
    empty = pl.lit([], dtype=joined.schema["registers"])
    return joined.with_columns(pl.col("registers").fill_null(empty))
