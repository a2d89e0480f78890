"""Aggregations whose state is a few numbers: count, sum, mean, min, max and standard deviation."""

from dataclasses import dataclass

import polars as pl

from metrics.aggregation import DECIMAL_DIGITS, Aggregation, Presented, clickhouse_type, polars_type
from metrics.expression import Expression
from metrics.state import StateColumn

FLOAT_TOLERANCE = 1e-9
"""What float sums of the same events may differ by, relative to the sum of their magnitudes."""

MOST_VALUES_DIGITS = 11
_VALUE_DIGITS = 19
GREATEST_TOTAL_SCALE = DECIMAL_DIGITS - _VALUE_DIGITS - MOST_VALUES_DIGITS
"""Decimals that a total may have: beside them its 38 digits hold 10**11 integers of 64 bits, the greatest values."""


def check_total(name: str, argument: Expression) -> None:
    """Checks that a total of an argument cannot outgrow its 38 digits.

    Args:
        name: Of what adds it up, for the message.
        argument: What is added up.

    Raises:
        ValueError: It has too many decimals.
    """
    if argument.type.scale > GREATEST_TOTAL_SCALE:
        msg = (
            f"{name} adds up at most {GREATEST_TOTAL_SCALE} decimals, so that 10^{MOST_VALUES_DIGITS} values fit the "
            f"{DECIMAL_DIGITS} digits of a total; got {argument.type.scale} of `{argument.canonical}`. "
            "declare its fields with a smaller scale, or as int in a smaller unit"
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class Count(Aggregation):
    """The number of events."""

    name = "count"
    value_type = "UInt64"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """One exact counter."""
        return (StateColumn("count", pl.UInt64(), "UInt64", "sum"),)

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """The number of rows."""
        return (pl.len(),)

    def present_sql(self) -> Presented:
        """The counter itself."""
        return Presented("count")


class _Total(Aggregation):
    """What keeps a total: exact for integers and decimals, of floats a sum with the sum of their magnitudes."""

    @property
    def is_float(self) -> bool:
        return self.type.kind == "float"

    @property
    def total_type(self) -> str:
        return "Float64" if self.is_float else f"Decimal({DECIMAL_DIGITS}, {self.type.scale})"

    @property
    def totals(self) -> tuple[StateColumn, ...]:
        if not self.is_float:
            return (StateColumn("total", pl.Decimal(DECIMAL_DIGITS, self.type.scale), self.total_type, "sum"),)
        tolerance = f"{FLOAT_TOLERANCE} * magnitude"
        return (
            StateColumn("total", pl.Float64(), "Float64", "sum", tolerance),
            StateColumn("magnitude", pl.Float64(), "Float64", "sum", tolerance),
        )

    @property
    def total_folds(self) -> tuple[pl.Expr, ...]:
        argument = pl.col("argument")
        if self.is_float:
            return (argument.sum(), argument.abs().sum())
        return (argument.cast(pl.Decimal(DECIMAL_DIGITS, self.type.scale)).sum(),)


@dataclass(frozen=True)
class Sum(_Total):
    """The sum of a number; NULL adds nothing. Exact for integers, and for decimals of a scale up to 8."""

    name = "sum"

    @property
    def value_type(self) -> str:
        """A decimal of the argument's scale, or a float."""
        return self.total_type

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The total."""
        return self.totals

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """The sum."""
        return self.total_folds

    def present_sql(self) -> Presented:
        """The total itself."""
        return Presented("total")


@dataclass(frozen=True)
class Mean(_Total):
    """The arithmetic mean, as a float: the total, exact where it can be, divided by the number of values."""

    name = "mean"
    nullable = True
    value_type = "Float64"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The total and the number of values."""
        return (*self.totals, StateColumn("number", pl.UInt64(), "UInt64", "sum"))

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """The sum and the number of values."""
        return (*self.total_folds, pl.col("argument").count())

    def present_sql(self) -> Presented:
        """One division."""
        return Presented("if(number = 0, NULL, toFloat64(total) / number)")


@dataclass(frozen=True)
class _Extreme(Aggregation):
    """The least or greatest value."""

    nullable = True
    column = ""
    merge = ""

    @property
    def value_type(self) -> str:
        """The argument's type."""
        return clickhouse_type(self.type)

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """The value; NULL where there is none."""
        return (StateColumn(self.column, polars_type(self.type), f"Nullable({self.value_type})", self.merge),)  # type: ignore[arg-type]

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """The value."""
        argument = pl.col("argument")
        return (argument.min() if self.merge == "min" else argument.max(),)

    def present_sql(self) -> Presented:
        """The value itself."""
        return Presented(self.column)


@dataclass(frozen=True)
class Min(_Extreme):
    """The least value."""

    name = "min"
    column = "minimum"
    merge = "min"


@dataclass(frozen=True)
class Max(_Extreme):
    """The greatest value."""

    name = "max"
    column = "maximum"
    merge = "max"


@dataclass(frozen=True)
class Stddev(Aggregation):
    """The standard deviation of a sample (n - 1), in floats; NULL for fewer than two values.

    The state is number, mean and sum of squared deviations, so that nothing cancels.

    Source:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    name = "stddev"
    nullable = True
    value_type = "Float64"

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """Number, mean and sum of squared deviations; rounding is judged against the root mean square."""
        mean_square = "(mean * mean + if(number = 0, 0, squares / number))"
        return (
            StateColumn("squares", pl.Float64(), "Float64", "squares", f"{FLOAT_TOLERANCE} * number * {mean_square}"),
            StateColumn("mean", pl.Float64(), "Float64", "mean", f"{FLOAT_TOLERANCE} * sqrt({mean_square})"),
            StateColumn("number", pl.UInt64(), "UInt64", "sum"),
        )

    @property
    def folds(self) -> tuple[pl.Expr, ...]:
        """Two passes over the values of a group."""
        argument = pl.col("argument").cast(pl.Float64)
        apart = argument - argument.mean()
        return ((apart * apart).sum(), argument.mean().fill_null(0.0), argument.count())

    def present_sql(self) -> Presented:
        """The root of the unbiased variance."""
        return Presented("if(number < 2, NULL, sqrt(squares / (number - 1)))")
