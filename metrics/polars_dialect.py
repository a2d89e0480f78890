"""A checked expression in polars; the rules of its arithmetic are those of `metrics.sql_dialects`."""

from collections.abc import Callable
from decimal import Decimal
from functools import reduce

import polars as pl

from metrics.expression_tree import BOOL, FLOAT, INT, MOST_DIGITS, STRING, FieldType, Node

FIELD_PREFIX = "f_"

_FITS_38_DIGITS = 4e19
"""A product whose magnitude, as a double, is below fits 38 digits with a scale of 18; one above is out of range."""

_TYPES = {STRING: pl.String(), INT: pl.Int64(), FLOAT: pl.Float64(), BOOL: pl.Boolean()}


def polars_type(kind: FieldType) -> pl.DataType:
    """The polars type of values of a type."""
    return pl.Decimal(38, kind.scale) if kind.kind == "decimal" else _TYPES[kind]


_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def polars_expression(node: Node) -> pl.Expr:  # noqa: PLR0911, PLR0912 - a return for each form
    """The expression over columns ``f_<field>``."""
    dtype = polars_type(node.type)
    if node.op == "literal":
        return _literal(node)
    parts = [polars_expression(part) for part in node.parts]
    match node.op:
        case "field":
            return pl.col(FIELD_PREFIX + str(node.value))
        case "null":
            return pl.lit(None, dtype=dtype)
        case "convert":
            return parts[0].cast(dtype)
        case "settle":
            # polars takes x + 0.0 for x, and so keeps the negative zero
            value = pl.field("v")
            zero = pl.when(value == 0).then(pl.lit(0.0)).otherwise(value)
            return _bound({"v": parts[0]}, pl.when(value.is_finite()).then(zero))
        case "not":
            return ~parts[0]
        case "is_null":
            return parts[0].is_null()
        case "in":
            assert isinstance(node.value, tuple)
            return parts[0].is_in(list(node.value))
        case "like":
            return _like(parts[0], node.value)
        case "case":
            otherwise = parts[-1]
            for condition, value in reversed(list(zip(parts[:-1:2], parts[1:-1:2], strict=True))):
                otherwise = pl.when(condition).then(value).otherwise(otherwise)
            return otherwise
        case "coalesce":
            return pl.coalesce(parts)
        case "nullif":
            same = (parts[0] == parts[1]).fill_null(value=False)
            return pl.when(~same).then(parts[0])
        case "+" | "-" | "*" | "neg" | "abs":
            return _arithmetic(node, parts)
    return reduce(_COMPARE[node.op], parts)


def _literal(node: Node) -> pl.Expr:
    value = int(node.value) if node.type == INT and isinstance(node.value, Decimal) else node.value
    return pl.lit(value, dtype=polars_type(node.type))


def _like(value: pl.Expr, pattern: object) -> pl.Expr:
    assert isinstance(pattern, tuple)
    shape, text = pattern
    if shape == "contains":
        return value.str.contains(text, literal=True)
    return value.str.starts_with(text) if shape == "prefix" else value.str.ends_with(text)


def _arithmetic(node: Node, parts: list[pl.Expr]) -> pl.Expr:
    if node.type == FLOAT:
        return _operation(node.op, parts)
    scale = node.type.scale
    # polars rounds a product to the greater scale of its factors: it must be the product's
    parts = [part.cast(pl.Decimal(38, scale)) for part in parts]
    if node.op == "*" and node.type != INT:
        # an overflow would be an error
        left, right = pl.field("a"), pl.field("b")
        fits = left.cast(pl.Float64).abs() * right.cast(pl.Float64).abs() < _FITS_38_DIGITS
        result = _bound(dict(zip("ab", parts, strict=True)), pl.when(fits).then(left) * pl.when(fits).then(right))
    else:
        result = _operation(node.op, parts)
    return result.cast(pl.Decimal(MOST_DIGITS + scale, scale), strict=False).cast(polars_type(node.type))


def _bound(values: dict[str, pl.Expr], expression: pl.Expr) -> pl.Expr:
    """An expression over `pl.field(name)` of values that are written, and computed, once."""
    struct = pl.struct(value.alias(name) for name, value in values.items())
    return struct.struct.with_fields(expression.alias("result")).struct.field("result")


def _operation(op: str, parts: list[pl.Expr]) -> pl.Expr:
    if op == "abs":
        return parts[0].abs()
    return -parts[0] if op == "neg" else _COMPARE[op](*parts)
