"""Aggregations that tell values apart: distinct, quantile and top.

The batch layer keeps each distinct value with its count, the speed layer a sketch or, for top, the counts themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from metrics import sketch
from metrics.aggregation import Aggregation, Presented, clickhouse_type
from metrics.state import StateColumn, collect_maps, map_dtype

_EXACT_BELOW = 2**50
"""Of values of fewer units than this, none is rounded across a bucket's edge when it becomes a float."""

_ROUNDING = 2.0**-50
"""By how much, relative to itself, a float may differ at most from the integer or decimal that it was made of."""


@dataclass(frozen=True)
class Distinct(Aggregation):
    """The number of distinct values, compared as text. The state is a sparse HyperLogLog sketch: register -> rank."""

    name = "distinct"
    exact = False
    by_value = True
    value_type = "UInt64"
    item_type = "String"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The registers that are not zero, in ascending order."""
        return (StateColumn("registers", map_dtype(pl.UInt16(), pl.UInt8()), "Map(UInt16, UInt8)", "max_map"),)

    def _prepare_map(
        self, column: StateColumn, events: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
    ) -> pl.DataFrame:
        """Hashes each distinct value of each key once."""
        values = (
            events.select(*keys, pl.col("argument").cast(pl.String)).unique().filter(pl.col("argument").is_not_null())
        )
        register, rank = sketch.registers_of(values["argument"].to_list())
        entries = values.select(keys).with_columns(pl.Series("key", register), pl.Series("value", rank))
        return collect_maps(column, entries, all_keys, keys)

    def present_sql(self) -> Presented:
        """Ertl's estimate with bounds three standard errors away."""
        return Presented(*sketch.distinct_sql("registers"))

    def items_sql(self) -> str:
        """How many there are."""
        return "countIf(isNotNull(item))"


@dataclass(frozen=True)
class Quantile(Aggregation):
    """The value of rank ceil(q * n) in ascending order, never interpolated. The state counts values by bucket.

    Attributes:
        quantile: q, a decimal in [0, 1] as text.
    """

    quantile: str = "0.5"

    name = "quantile"
    exact = False
    by_value = True
    nullable = True

    @property
    def options(self) -> tuple[str, ...]:
        """The quantile."""
        return (self.quantile,)

    @property
    def value_type(self) -> str:
        """The argument's type, since the quantile is one of the values."""
        return clickhouse_type(self.type)

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The buckets that are not empty, in the order of the values."""
        return (StateColumn("buckets", map_dtype(pl.Int32(), pl.UInt64()), "Map(Int32, UInt64)", "sum_map"),)

    def _prepare_map(
        self, column: StateColumn, events: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
    ) -> pl.DataFrame:
        """Counts the values of each bucket."""
        values = events.select(*keys, pl.col("argument").cast(pl.Float64)).filter(pl.col("argument").is_not_null())
        buckets = pl.Series("key", sketch.buckets_of(values["argument"].to_numpy()), dtype=pl.Int32)
        entries = values.select(keys).with_columns(buckets, value=pl.lit(1, pl.UInt64))
        return collect_maps(column, entries, all_keys, keys)

    def present_sql(self) -> Presented:
        """The middle of the bucket, between its edges; rounded outwards to what the argument's type can hold."""
        middle, low, high = sketch.quantile_sql("buckets", self.quantile)
        if self.type.kind == "float":
            return Presented(middle, low, high)
        # a large value may have been rounded into the next bucket when it became a float
        margin = f"if(abs(u) < {_EXACT_BELOW}, 0, abs(u) * {_ROUNDING})"
        return Presented(
            self._of_type(middle, "round(u)"),
            self._of_type(low, f"floor(u - {margin})"),
            self._of_type(high, f"ceil(u + {margin})"),
        )

    def _of_type(self, text: str, rounded: str) -> str:
        """A float as a value of the argument's type, the nearest there is where it lies beyond the type's range.

        Args:
            text: SQL of an edge or a middle: it has so few bits that it is exact in the last decimals, too.
            rounded: SQL that makes a whole number of `u`, which is the float in units of the type's last decimal.
        """
        scale = self.type.scale
        if self.type.kind == "int":
            least, greatest = (f"toInt64('{limit}')" for limit in (-(2**63), 2**63 - 1))
            value = f"if(n >= {2.0**63!r}, {greatest}, if(n < {-(2.0**63)!r}, {least}, toInt64(n)))"
        else:
            unit = f"{10**-scale:.{scale}f}"
            value = f"CAST(toDecimal256(n, 0) * toDecimal128('{unit}', {scale}), 'Nullable({self.value_type})')"
        return f"arrayMap(n -> {value}, arrayMap(u -> {rounded}, [{text} * {10.0**scale!r}]))[1]"

    def items_sql(self) -> str:
        """Walks up the sorted values to the rank."""
        sorted_items = "arraySort(groupArrayIf((assumeNotNull(item), n), isNotNull(item)))"
        rank = sketch.rank_sql("sumIf(n, isNotNull(item))", self.quantile)
        reached = f"arrayFirstIndex(reached -> reached >= {rank}, arrayCumSum(x -> x.2, {sorted_items}))"
        return f"if(countIf(isNotNull(item)) = 0, NULL, {sorted_items}[{reached}].1)"


@dataclass(frozen=True)
class Top(Aggregation):
    """The most frequent values with their counts: by count descending, then by the value's bytes. Counts all values.

    Attributes:
        most: How many are shown.
    """

    most: int = 10

    name = "top"
    by_value = True
    value_type = "Array(Tuple(item String, count UInt64))"
    bound_type = "Nullable(Float64)"
    item_type = "String"

    @property
    def options(self) -> tuple[str, ...]:
        """How many are shown."""
        return (str(self.most),)

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The count of every value."""
        return (StateColumn("counts", map_dtype(pl.String(), pl.UInt64()), "Map(String, UInt64)", "sum_map"),)

    def _prepare_map(
        self, column: StateColumn, events: pl.DataFrame, all_keys: pl.DataFrame, keys: Sequence[str]
    ) -> pl.DataFrame:
        """Counts each value."""
        values = events.select(*keys, pl.col("argument").cast(pl.String).alias("key")).drop_nulls("key")
        return collect_maps(column, values.with_columns(value=pl.lit(1, pl.UInt64)), all_keys, keys)

    def present_sql(self) -> Presented:
        """The first of the sorted counts."""
        return Presented(self._first("arrayZip(mapKeys(counts), mapValues(counts))"))

    def items_sql(self) -> str:
        """The first of the sorted values."""
        return self._first("groupArrayIf((assumeNotNull(item), n), isNotNull(item))")

    def _first(self, pairs: str) -> str:
        return f"arraySlice(arraySort(x -> (-toInt64(x.2), x.1), {pairs}), 1, {self.most})"
