"""The oracle's expressions: one value of one event at a time, in Python's exact numbers.

It shares no code with `metrics.expression`, which it judges.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any

from sqlglot import expressions as sql

Kind = tuple[str, int]
"""string, int, float, decimal, bool or null, and the digits after a decimal's point."""

_RANGE = 10**18
_INT64 = 2**63


def kinds(fields: Mapping[str, Any]) -> dict[str, Kind]:
    """The kinds of the fields of a catalog file."""
    options: dict[str, Mapping[str, Any]] = {
        name: {"type": given} if isinstance(given, str) else given for name, given in fields.items()
    }
    return {name: (option["type"], option.get("scale", 0)) for name, option in options.items()}


def evaluate(node: sql.Expr, fields: Mapping[str, Any], types: Mapping[str, Kind]) -> Any:  # noqa: ANN401
    """The value of a parsed expression, None for NULL."""
    return _shaped(_value(node, fields, types), kind_of(node, types))


def kind_of(node: sql.Expr, types: Mapping[str, Kind]) -> Kind:  # noqa: PLR0911 - a return a form
    """What the value of an expression is."""
    match node:
        case sql.Column():
            return types[node.name]
        case sql.Null():
            return "null", 0
        case sql.Literal() if node.is_string:
            return "string", 0
        case sql.Literal():
            with localcontext(prec=1_000):
                number = Decimal(node.name).normalize()
            digits = -int(number.as_tuple().exponent)
            return ("decimal", digits) if digits > 0 else ("int" if abs(number) <= _INT64 else "decimal", 0)
        case sql.Paren() | sql.Neg() | sql.Abs():
            return kind_of(node.this, types)
        case sql.Add() | sql.Sub() | sql.Coalesce() | sql.Nullif():
            return _widest([kind_of(part, types) for part in node.iter_expressions()])
        case sql.Mul():
            sides = [kind_of(node.left, types), kind_of(node.right, types)]
            kind, _ = _widest(sides)
            return kind, sum(scale for _, scale in sides) if kind == "decimal" else 0
        case sql.Case():
            values = [branch.args["true"] for branch in node.args["ifs"]]
            return _widest([kind_of(part, types) for part in [*values, node.args.get("default") or sql.Null()]])
    return "bool", 0


def _widest(parts: Sequence[Kind]) -> Kind:
    names = [name for name, _ in parts if name != "null"]
    for name in ("float", "decimal"):
        if name in names:
            return name, max(scale for _, scale in parts) if name == "decimal" else 0
    return (names[0] if names else "null"), 0


def _shaped(value: Any, kind: Kind) -> Any:  # noqa: ANN401
    if value is None:
        return None
    match kind[0]:
        case "float":
            return float(value) + 0.0
        case "int":
            return int(value)
        case "decimal":
            with localcontext(prec=200):
                return round(Decimal(value), kind[1]) + 0
    return value


def _value(node: sql.Expr, fields: Mapping[str, Any], types: Mapping[str, Kind]) -> Any:  # noqa: ANN401, PLR0911, PLR0912
    def of(part: sql.Expr) -> Any:  # noqa: ANN401
        return _value(part, fields, types)

    match node:
        case sql.Column():
            return fields[node.name]
        case sql.Null():
            return None
        case sql.Literal():
            return node.name if node.is_string else Decimal(node.name)
        case sql.Boolean():
            return node.this
        case sql.Paren():
            return of(node.this)
        case sql.Neg() | sql.Abs() | sql.Add() | sql.Sub() | sql.Mul():
            return _number(node, kind_of(node, types), _alike(list(node.iter_expressions()), fields, types))
        case sql.And():
            return _and(of(node.left), of(node.right))
        case sql.Or():
            return _not(_and(_not(of(node.left)), _not(of(node.right))))
        case sql.Not():
            return _not(of(node.this))
        case sql.Is():
            return of(node.this) is None
        case sql.In():
            value, *items = _alike([node.this, *node.expressions], fields, types)
            return None if value is None else value in items
        case sql.Between():
            low = _compare(">=", *_alike([node.this, node.args["low"]], fields, types))
            return _and(low, _compare("<=", *_alike([node.this, node.args["high"]], fields, types)))
        case sql.Like():
            value = of(node.this)
            return None if value is None else _like(value, node.expression.name) != bool(node.args.get("negate"))
        case sql.Case():
            kind = kind_of(node, types)
            for branch in node.args["ifs"]:
                condition = branch.this if node.this is None else sql.EQ(this=node.this.copy(), expression=branch.this)
                if of(condition) is True:
                    return _shaped(of(branch.args["true"]), kind)
            return _shaped(of(node.args.get("default") or sql.Null()), kind)
        case sql.Coalesce():
            values = _alike([node.this, *node.expressions], fields, types)
            return next((value for value in values if value is not None), None)
        case sql.Nullif():
            left, right = _alike([node.this, node.expression], fields, types)
            return None if left is not None and left == right else left
        case sql.EQ() | sql.NEQ() | sql.LT() | sql.LTE() | sql.GT() | sql.GTE():
            return _compare(_SIGNS[type(node)], *_alike([node.this, node.expression], fields, types))
    msg = f"the reference does not know `{node.sql()}`"
    raise ValueError(msg)


_SIGNS = {sql.EQ: "=", sql.NEQ: "<>", sql.LT: "<", sql.LTE: "<=", sql.GT: ">", sql.GTE: ">="}


def _alike(parts: Sequence[sql.Expr], fields: Mapping[str, Any], types: Mapping[str, Kind]) -> list[Any]:
    """The values of operands; literals beside a float are floats."""
    floating = "float" in {kind_of(part, types)[0] for part in parts}
    values = [_value(part, fields, types) for part in parts]
    return [float(value) if floating and value is not None else value for value in values]


def _number(node: sql.Expr, kind: Kind, values: Sequence[Any]) -> Any:  # noqa: ANN401
    if None in values:
        return None
    first, second = values[0], values[-1]
    with localcontext(prec=200):
        match node:
            case sql.Neg():
                result = -first
            case sql.Abs():
                result = abs(first)
            case sql.Add():
                result = first + second
            case sql.Sub():
                result = first - second
            case _:
                result = first * second
    if kind[0] == "float":
        return result if math.isfinite(result) else None
    signed_literal = isinstance(node, sql.Neg | sql.Abs) and isinstance(node.this.unnest(), sql.Literal)
    return result if signed_literal or -_RANGE < result < _RANGE else None


def _and(left: bool | None, right: bool | None) -> bool | None:
    return False if False in (left, right) else None if None in (left, right) else True


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _compare(sign: str, left: Any, right: Any) -> bool | None:  # noqa: ANN401, PLR0911
    if left is None or right is None:
        return None
    if isinstance(left, str):
        left, right = left.encode(), right.encode()
    match sign:
        case "=":
            return bool(left == right)
        case "<>":
            return bool(left != right)
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
    return bool(left >= right)


def _like(value: str, pattern: str) -> bool:
    text = pattern.removeprefix("%").removesuffix("%")
    if pattern.startswith("%"):
        return text in value if pattern.endswith("%") else value.endswith(text)
    return value.startswith(text) if pattern.endswith("%") else value == text
