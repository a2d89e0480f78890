"""Expressions over an event's fields: a small SQL subset, parsed once, checked, compiled for three engines.

Allowed are fields, string, number, boolean and NULL literals, ``+ - *``, ``= <> < <= > >=``, ``IN (literals)``,
``BETWEEN``, ``LIKE 'text%'``, ``IS [NOT] NULL``, ``AND OR NOT``, ``CASE``, ``COALESCE``, ``NULLIF``, ``ABS`` and
parentheses. NULL behaves as in SQL. Strings are compared by their bytes.

Polars, Spark and ClickHouse give the same value for the same event; what they would compute differently is refused.
A result of ``+ - *``, ``-x`` or ``ABS`` that has more than 18 digits before its point is NULL, as is one that is NaN or
infinite; ``-0.0`` is ``0.0``.
"""

from collections.abc import Mapping

import polars as pl

from metrics.canonical import canonical
from metrics.expression_check import Checker
from metrics.expression_tree import BOOL, GREATEST_SCALE, FieldType, Node
from metrics.polars_dialect import polars_expression
from metrics.sql_dialects import clickhouse, spark

__all__ = ["Condition", "Expression", "FieldType"]


class Expression:
    """A checked expression over the fields of an event.

    Attributes:
        type: What its value is.
        canonical: The same text for every spelling of the same expression.
        fields: The fields that it names.
        polars: Over columns ``f_<field>`` as `metrics.event.event_schema` has them.
        spark: Spark SQL over columns ``f_<field>`` of decimal(38, scale), bigint, double, string and boolean; needs
            ``spark.sql.ansi.enabled``.
        clickhouse: ClickHouse SQL over Nullable columns ``f_<field>`` of Decimal(38, scale), Int64, Float64, String
            and Bool.

    Args:
        text: The expression in SQL.
        types: The type of each field that may be named; a decimal given without its scale has the greatest one.

    Raises:
        ValueError: The text does not parse, names an unknown field, mixes types or uses what is not allowed.
    """

    _noun = "an expression"

    def __init__(self, text: str, types: Mapping[str, FieldType | str]) -> None:
        self._tree: Node = Checker({name: _typed(given) for name, given in types.items()}).tree(text, self._noun)
        self.type: FieldType = self._tree.type
        self.canonical: str = canonical(self._tree)
        self.fields: frozenset[str] = _fields(self._tree)
        self.polars: pl.Expr = polars_expression(self._tree)
        self.spark: str = spark(self._tree)
        self.clickhouse: str = clickhouse(self._tree)


class Condition(Expression):
    """An expression that holds or does not; where it is NULL it does not hold.

    Attributes:
        holds: Polars, never NULL.
        spark_holds: Spark SQL, never NULL.
        clickhouse_holds: ClickHouse SQL, never NULL.
    """

    _noun = "a condition"

    def __init__(self, text: str, types: Mapping[str, FieldType | str]) -> None:
        super().__init__(text, types)
        if self.type != BOOL:
            msg = f"`{text}` is {self.type.noun}, no condition. compare it, for example by = or IS NOT NULL"
            raise ValueError(msg)
        self.holds: pl.Expr = self.polars.fill_null(value=False)
        self.spark_holds: str = f"coalesce({self.spark}, false)"
        self.clickhouse_holds: str = f"ifNull({self.clickhouse}, false)"

    @property
    def expression(self) -> pl.Expr:
        """`holds`, by its former name."""
        return self.holds


def _typed(given: FieldType | str) -> FieldType:
    if isinstance(given, FieldType):
        return given
    return FieldType(given, GREATEST_SCALE if given == "decimal" else 0)


def _fields(node: Node) -> frozenset[str]:
    own = {str(node.value)} if node.op == "field" else set()
    return frozenset(own.union(*map(_fields, node.parts)))
