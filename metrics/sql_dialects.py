"""A checked expression in the SQL of Spark and of ClickHouse.

All engines compute alike. Exact arithmetic: + and - have the greater scale, * the sum of scales; a result with more
than 18 digits before its point is NULL. Float arithmetic: a NaN or infinite result is NULL, -0.0 is 0.0.
"""

import re
from decimal import Decimal, localcontext
from typing import Protocol

from metrics.canonical import case_text
from metrics.expression_tree import BOOL, FLOAT, INT, MOST_DIGITS, STRING, FieldType, Node

FIELD_PREFIX = "f_"

_SPARK_EXACT_SCALE = 6
"""Spark keeps this many digits after the point of any product; further ones it may round away."""

_CLICKHOUSE = {STRING: "String", INT: "Int64", FLOAT: "Float64", BOOL: "Bool"}
_SPARK = {STRING: "string", INT: "bigint", FLOAT: "double", BOOL: "boolean"}


class _Dialect(Protocol):
    """What the two SQL texts have of their own."""

    zero: str

    def root(self, text: str, kind: FieldType) -> str: ...
    def field(self, name: str) -> str: ...
    def string(self, text: str) -> str: ...
    def literal(self, node: Node) -> str: ...
    def null(self, kind: FieldType) -> str: ...
    def convert(self, text: str, kind: FieldType) -> str: ...
    def settle(self, text: str) -> str: ...
    def like(self, text: str, shape: str, pattern: str) -> str: ...
    def arithmetic(self, node: Node, parts: list[str]) -> str: ...


def spark(node: Node) -> str:
    """The expression in Spark SQL (ansi on) over columns ``f_<field>``."""
    return _SPARK_DIALECT.root(_sql(node, _SPARK_DIALECT), node.type)


def clickhouse(node: Node) -> str:
    """The expression in ClickHouse SQL over Nullable columns ``f_<field>``."""
    return _CLICKHOUSE_DIALECT.root(_sql(node, _CLICKHOUSE_DIALECT), node.type)


def _sql(node: Node, dialect: _Dialect) -> str:  # noqa: PLR0911, PLR0912 - a return for each form
    if node.op == "case":
        return "(" + case_text(node.parts, lambda part: _sql(part, dialect)) + ")"
    parts = [_sql(part, dialect) for part in node.parts]
    match node.op:
        case "field":
            name = dialect.field(FIELD_PREFIX + str(node.value))
            # ClickHouse makes one set of a chain of equalities, and finds no -0.0 where the set has 0.0
            return f"({name} + {dialect.zero})" if node.type == FLOAT else name
        case "literal":
            return dialect.string(node.value) if isinstance(node.value, str) else dialect.literal(node)
        case "null":
            return dialect.null(node.type)
        case "convert":
            return dialect.convert(parts[0], node.type)
        case "settle":
            return dialect.settle(parts[0])
        case "not":
            return f"(NOT {parts[0]})"
        case "is_null":
            return f"({parts[0]} IS NULL)"
        case "in":
            assert isinstance(node.value, tuple)
            items = [
                dialect.string(v) if isinstance(v, str) else dialect.literal(Node("literal", INT, value=Decimal(v)))
                for v in node.value
            ]
            return f"({parts[0]} IN ({', '.join(items)}))"
        case "like":
            assert isinstance(node.value, tuple)
            shape, pattern = map(str, node.value)
            return dialect.like(parts[0], shape, pattern)
        case "coalesce" | "nullif":
            return f"{node.op}({', '.join(parts)})"
        case "+" | "-" | "*" | "neg" | "abs":
            return dialect.arithmetic(node, parts)
    return "(" + f" {node.op.upper()} ".join(parts) + ")"


def _plain(value: Decimal, scale: int) -> str:
    with localcontext(prec=100):
        return f"{value:.{scale}f}"


def _operation(op: str, parts: list[str]) -> str:
    if op == "abs":
        return f"abs({parts[0]})"
    return f"(- {parts[0]})" if op == "neg" else f"({parts[0]} {op} {parts[1]})"


class _Spark:
    zero = "0.0D"

    @staticmethod
    def root(text: str, kind: FieldType) -> str:
        return f"cast({text} as decimal(38, {kind.scale}))" if kind.kind == "decimal" else text

    @staticmethod
    def field(name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    @staticmethod
    def string(text: str) -> str:
        # the dollar would begin a variable, which Spark replaces before it parses
        plain = re.sub(r"[\x00-\x1f\x7f'\\$\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)
        return f"'{plain}'"

    @classmethod
    def literal(cls, node: Node) -> str:
        value = node.value
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"({value!r}D)"
        assert isinstance(value, Decimal)
        if node.type == INT:
            return f"({_plain(value, 0)}L)"
        scale = node.type.scale
        return f"cast('{_plain(value, scale)}' as decimal({MOST_DIGITS + 1 + scale}, {scale}))"

    @staticmethod
    def null(kind: FieldType) -> str:
        return f"cast(null as {f'decimal(38, {kind.scale})' if kind.kind == 'decimal' else _SPARK[kind]})"

    @staticmethod
    def convert(text: str, kind: FieldType) -> str:
        # one digit more than decimals have: an int has up to 19
        return f"cast({text} as decimal({MOST_DIGITS + 1 + kind.scale}, {kind.scale}))"

    @staticmethod
    def settle(text: str) -> str:
        finite = f"nanvl({text} + 0.0D, double('Infinity'))"
        return f"nullif(nullif({finite}, double('Infinity')), double('-Infinity'))"

    @classmethod
    def like(cls, text: str, shape: str, pattern: str) -> str:
        name = {"prefix": "startswith", "suffix": "endswith", "contains": "contains"}[shape]
        return f"{name}({text}, {cls.string(pattern)})"

    @classmethod
    def arithmetic(cls, node: Node, parts: list[str]) -> str:
        if node.type == FLOAT:
            return _operation(node.op, parts)
        scale = node.type.scale
        if node.op == "*" and scale > _SPARK_EXACT_SCALE:
            whole = [
                f"cast(concat(cast({text} as string), 'E{part.type.scale}') as decimal(38, 0))"
                for text, part in zip(parts, node.parts, strict=True)
            ]
            result = f"concat(cast(try_multiply({whole[0]}, {whole[1]}) as string), 'E-{scale}')"
        elif node.op == "*" and node.type != INT:
            result = f"try_multiply({parts[0]}, {parts[1]})"
        elif node.op == "abs":
            # abs() and the unary minus keep only 34 digits
            result = f"trim(leading '-' from cast({parts[0]} as string))"
        elif node.op == "neg":
            result = f"(0L - {cls.convert(parts[0], FieldType('decimal', scale))})"
        else:
            # a sum of two decimals of 38 digits would lose digits after the point
            result = _operation(node.op, [cls.convert(part, FieldType("decimal", scale)) for part in parts])
        ranged = f"try_cast({result} as decimal({MOST_DIGITS + scale}, {scale}))"
        return f"cast({ranged} as bigint)" if node.type == INT else ranged


class _ClickHouse:
    zero = "0.0"

    @staticmethod
    def _type(kind: FieldType) -> str:
        return f"Nullable({f'Decimal(38, {kind.scale})' if kind.kind == 'decimal' else _CLICKHOUSE[kind]})"

    @classmethod
    def root(cls, text: str, kind: FieldType) -> str:
        return f"CAST({text}, '{cls._type(kind)}')"

    @staticmethod
    def field(name: str) -> str:
        return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"

    @staticmethod
    def string(text: str) -> str:
        plain = re.sub(r"[\x00-\x1f\x7f'\\]", lambda match: f"\\x{ord(match[0]):02x}", text)
        return f"'{plain}'"

    @classmethod
    def literal(cls, node: Node) -> str:
        value = node.value
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"({value!r})"
        assert isinstance(value, Decimal)
        return f"CAST('{_plain(value, node.type.scale)}', '{cls._type(node.type)}')"

    @classmethod
    def null(cls, kind: FieldType) -> str:
        return f"CAST(NULL, '{cls._type(kind)}')"

    @classmethod
    def convert(cls, text: str, kind: FieldType) -> str:
        return f"CAST({text}, '{cls._type(kind)}')"

    @staticmethod
    def _bound(condition: str, value: str, text: str) -> str:
        """Tests a value that is written, and computed, once."""
        return f"arrayMap(v -> if({condition}, {value}, NULL), [{text}])[1]"

    @classmethod
    def settle(cls, text: str) -> str:
        return cls._bound("isFinite(v)", "v + 0.0", text)

    @classmethod
    def like(cls, text: str, shape: str, pattern: str) -> str:
        if shape == "contains":
            return f"(position({text}, {cls.string(pattern)}) > 0)"
        return f"{'startsWith' if shape == 'prefix' else 'endsWith'}({text}, {cls.string(pattern)})"

    @classmethod
    def arithmetic(cls, node: Node, parts: list[str]) -> str:
        if node.type == FLOAT:
            return _operation(node.op, parts)
        if node.type == INT:
            wide = "Nullable(Int128)"
            bound, narrow = f"toInt128('{10**MOST_DIGITS}')", "Int64"
            result = _operation(node.op, [f"CAST({part}, '{wide}')" for part in parts])
        else:
            bound, narrow = f"toDecimal128('{10**MOST_DIGITS}', 0)", f"Decimal(38, {node.type.scale})"
            result = _operation(
                node.op,
                [
                    f"CAST({text}, 'Nullable(Decimal(76, {part.type.scale}))')"
                    for text, part in zip(parts, node.parts, strict=True)
                ],
            )
        return cls._bound(f"abs(v) < {bound}", f"accurateCastOrNull(v, '{narrow}')", result)


_SPARK_DIALECT: _Dialect = _Spark()
_CLICKHOUSE_DIALECT: _Dialect = _ClickHouse()
