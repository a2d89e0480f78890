"""Conditions over an event's fields: a small SQL subset, parsed once, checked against the schema, compiled to polars.

Allowed are fields, string, number and boolean literals, ``= <> < <= > >=``, ``IN (literals)``, ``IS [NOT] NULL``,
``AND``, ``OR``, ``NOT`` and parentheses. NULL behaves as in SQL, and a condition that is NULL does not hold.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal

import polars as pl
import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

Literal = str | int | Decimal | bool

_COMPARISONS: dict[type[sql.Expr], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    sql.EQ: lambda a, b: a == b,
    sql.NEQ: lambda a, b: a != b,
    sql.LT: lambda a, b: a < b,
    sql.LTE: lambda a, b: a <= b,
    sql.GT: lambda a, b: a > b,
    sql.GTE: lambda a, b: a >= b,
}
_KINDS = {"string": str, "int": Decimal, "float": Decimal, "decimal": Decimal, "bool": bool}


class Condition:
    """A checked condition over the fields of an event.

    Args:
        text: The condition in SQL.
        types: The type of each field that may be named: string, int, float, decimal or bool.

    Raises:
        ValueError: The text does not parse, names an unknown field, mixes types or uses what is not allowed.
    """

    def __init__(self, text: str, types: Mapping[str, str]) -> None:
        try:
            self._tree: sql.Expr = sqlglot.parse_one(text)
        except SqlglotError as error:
            msg = f"`{text}` is not a condition that parses. write it as in SQL, for example event_type = 'purchase'"
            raise ValueError(msg) from error
        self._types = types
        self.expression = self._compile(self._tree).fill_null(value=False)

    @property
    def canonical(self) -> str:
        """The same text for every spelling of the same condition."""
        return self._tree.sql()

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the condition names."""
        return frozenset(column.name for column in self._tree.find_all(sql.Column))

    def _compile(self, node: sql.Expr) -> pl.Expr:  # noqa: PLR0911 - one return for each form
        match node:
            case sql.Paren():
                return self._compile(node.this)
            case sql.And():
                return self._compile(node.left) & self._compile(node.right)
            case sql.Or():
                return self._compile(node.left) | self._compile(node.right)
            case sql.Not():
                return ~self._compile(node.this)
            case sql.Is() if isinstance(node.expression, sql.Null):
                return self._column(node.this).is_null()
            case sql.In() if node.expressions:
                field = self._column(node.this)
                return self._any_of([field == self._literal(item, node.this) for item in node.expressions])
            case sql.Column() if self._types.get(node.name) == "bool":
                return self._column(node)
            case sql.EQ() | sql.NEQ() | sql.LT() | sql.LTE() | sql.GT() | sql.GTE():
                return self._comparison(node)
        msg = (
            f"`{node.sql()}` is not allowed in a condition. allowed are fields, literals, = <> < <= > >=, "
            "IN (literals), IS NULL, AND, OR, NOT"
        )
        raise ValueError(msg)

    def _comparison(self, node: sql.Binary) -> pl.Expr:
        compare = _COMPARISONS[type(node)]
        if isinstance(node.left, sql.Column) and isinstance(node.right, sql.Column):
            if self._kind(node.left) is not self._kind(node.right):
                msg = f"`{node.sql()}` compares fields of unlike types"
                raise ValueError(msg)
            return compare(self._column(node.left), self._column(node.right))
        if isinstance(node.left, sql.Column):
            return compare(self._column(node.left), self._literal(node.right, node.left))
        return compare(self._literal(node.left, node.right), self._column(node.right))

    def _column(self, node: sql.Expr) -> pl.Expr:
        self._kind(node)
        return pl.col(f"f_{node.name}")

    def _kind(self, node: sql.Expr) -> type:
        if not isinstance(node, sql.Column) or node.table:
            msg = f"`{node.sql()}` must be a field"
            raise ValueError(msg)
        if node.name not in self._types:
            msg = f"unknown field `{node.name}`. the fields are: {', '.join(self._types)}"
            raise ValueError(msg)
        return _KINDS[self._types[node.name]]

    def _literal(self, node: sql.Expr, field: sql.Expr) -> pl.Expr:
        kind = self._kind(field)
        value: Literal
        if isinstance(node, sql.Literal) and node.is_string:
            value = node.name
        elif isinstance(node, sql.Boolean):
            value = bool(node.this)
        elif isinstance(node, sql.Literal):
            value = Decimal(node.name)
        elif isinstance(node, sql.Neg) and isinstance(node.this, sql.Literal) and not node.this.is_string:
            value = -Decimal(node.this.name)
        else:
            msg = f"`{node.sql()}` must be a literal"
            raise ValueError(msg)
        if not isinstance(value, kind):
            msg = f"field `{field.name}` is a {self._types[field.name]}; it cannot be compared with {node.sql()}"
            raise ValueError(msg)
        if isinstance(value, Decimal):
            if self._types[field.name] == "float":
                return pl.lit(float(value))
            return pl.lit(int(value)) if value == int(value) else pl.lit(value)
        return pl.lit(value)

    @staticmethod
    def _any_of(conditions: list[pl.Expr]) -> pl.Expr:
        result = conditions[0]
        for condition in conditions[1:]:
            result = result | condition
        return result
