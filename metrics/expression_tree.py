"""The tree of a checked expression: every node has a type, and conversions are nodes of their own.

The functions here give nodes their types; `metrics.expression_check` says which texts become a tree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

from sqlglot import expressions as sql

GREATEST_SCALE = 18
MOST_DIGITS = 18
"""Digits before the point that the result of an exact + - * may have; one with more is NULL."""

MOST_NODES = 2_000
"""How large an expression may be, items of lists counted and NULLIF twice."""


@dataclass(frozen=True)
class FieldType:
    """What a value is.

    Attributes:
        kind: string, int, float, decimal or bool.
        scale: Digits after the point of a decimal; otherwise 0.
    """

    kind: str
    scale: int = 0

    @property
    def noun(self) -> str:
        """The kind with its article, for messages."""
        return f"an {self.kind}" if self.kind == "int" else f"a {self.kind}"


STRING, INT, FLOAT, BOOL = FieldType("string"), FieldType("int"), FieldType("float"), FieldType("bool")
NOTHING = FieldType("null")
"""The type of a NULL literal, until its neighbours give it theirs."""

Value = str | int | float | Decimal | bool | tuple[str | int, ...] | None


@dataclass(frozen=True)
class Node:
    """A checked part of an expression.

    Attributes:
        op: ``field literal null and or not = <> < <= > >= in is_null like + - * neg abs case coalesce nullif``, or one
            that no text spells: ``convert`` to the node's own type, and ``settle``, which makes of a float's NaN and
            infinities NULL and of -0.0 the positive zero.
        type: What its value is.
        parts: Its operands; of ``case`` condition, value, condition, value, ..., the other value.
        value: The name of a field, the value of a literal, the values of ``in``, the shape and text of ``like``.
    """

    op: str
    type: FieldType
    parts: tuple["Node", ...] = ()
    value: Value = None

    @property
    def is_literal(self) -> bool:
        """Whether it is a literal."""
        return self.op == "literal"


def size(node: Node) -> int:
    """The nodes of a tree; those that NULLIF gives and compares twice."""
    repeated = 2 if node.op == "nullif" else 1
    return 1 + repeated * sum(map(size, node.parts)) + (len(node.value) if isinstance(node.value, tuple) else 0)


def has_field(node: Node) -> bool:
    """Whether it names a field."""
    return node.op == "field" or any(map(has_field, node.parts))


def shown(node: sql.Expr) -> str:
    """A part of a text as messages show it."""
    text = node.sql()
    return text if len(text) <= 200 else f"{text[:200]}..."  # noqa: PLR2004 - what fits a message


def decimal_of(node: sql.Literal) -> Decimal:
    """The value of a number literal, exact.

    Raises:
        ValueError: It has too many digits to be computed with.
    """
    try:
        with localcontext(Emax=10_000, Emin=-10_000, prec=1_000):
            return Decimal(node.name) + 0
    except ArithmeticError as error:
        msg = f"`{node.name}` is no number that can be computed with. write fewer digits"
        raise ValueError(msg) from error


def number(value: Decimal) -> Node:
    """An exact literal; beside a float it becomes one."""
    value = Decimal(0) if value.is_zero() else value
    with localcontext(prec=1_000):
        shortest = value.normalize()
    exponent = shortest.as_tuple().exponent
    assert isinstance(exponent, int)
    if exponent >= 0 and -(2**63) <= shortest < 2**63:
        return Node("literal", INT, value=shortest)
    return Node("literal", FieldType("decimal", max(0, -exponent)), value=shortest)


def exact(node: Node) -> Node:
    """The node itself, where it is no literal too large or too fine for an exact number."""
    if node.type.kind != "decimal" or not isinstance(node.value, Decimal):
        return node
    if abs(node.value) >= 10**MOST_DIGITS or node.type.scale > GREATEST_SCALE:
        msg = (
            f"`{node.value}` has too many digits; exact numbers have at most {MOST_DIGITS} before the point and "
            f"{GREATEST_SCALE} after it. write fewer digits"
        )
        raise ValueError(msg)
    return node


def converted(node: Node, kind: FieldType) -> Node:
    """The node as a value of a wider type."""
    if node.type == NOTHING:
        return Node("null", kind)
    if node.type == kind:
        return exact(node)
    if node.is_literal:
        return Node("literal", kind, value=exact(node).value)
    return Node("convert", kind, (node,))


def unified(parts: Sequence[Node], node: sql.Expr) -> tuple[list[Node], FieldType]:
    """The parts in one type: the widest of exact numbers; literals become floats beside floats."""
    kinds = {part.type.kind for part in parts if part.type != NOTHING}
    if "float" in kinds and all(
        part.type.kind in {"float", "null"} or (part.is_literal and isinstance(part.value, Decimal)) for part in parts
    ):
        return [as_float(part) for part in parts], FLOAT
    if not kinds:
        return list(parts), NOTHING
    if "float" in kinds and kinds <= {"float", "int", "decimal"}:
        msg = (
            f"`{shown(node)}` mixes a float with an exact number. declare the fields all float, or all int and decimal"
        )
        raise ValueError(msg)
    if len(kinds) > 1 and not kinds <= {"int", "decimal"}:
        msg = (
            f"`{shown(node)}` mixes {' and '.join(sorted(kinds))}. "
            "write a literal of the field's type, or declare the fields alike"
        )
        raise ValueError(msg)
    scale = max((exact(part).type.scale for part in parts), default=0)
    kind = FieldType("decimal", scale) if "decimal" in kinds else FieldType(kinds.pop())
    return [converted(part, kind) for part in parts], kind


def as_float(node: Node) -> Node:
    """The node, a literal as the nearest double."""
    if node.type == NOTHING:
        return Node("null", FLOAT)
    if not isinstance(node.value, Decimal):
        return node
    value = float(node.value)
    if not math.isfinite(value):
        msg = f"`{node.value}` is too large for a float. write a smaller number"
        raise ValueError(msg)
    return Node("literal", FLOAT, value=value + 0.0)


def computed(op: str, kind: FieldType, parts: Sequence[Node]) -> Node:
    """The result of arithmetic over parts of one type."""
    if kind != FLOAT:
        return Node(op, kind, tuple(exact(part) for part in parts))
    # once NaN or infinite, + - * and ABS stay so: it is enough to look at the end
    inner = (part.parts[0] if part.op == "settle" else part for part in parts)
    return Node("settle", FLOAT, (Node(op, kind, tuple(inner)),))


def compared(op: str, parts: Sequence[Node], node: sql.Expr) -> Node:
    """A comparison of two values."""
    alike, kind = unified(parts, node)
    if kind == BOOL and op not in {"=", "<>"}:
        msg = f"`{shown(node)}` orders bools. compare them with = or <>"
        raise ValueError(msg)
    return Node(op, BOOL, tuple(alike))


def joined(op: str, parts: Sequence[Node]) -> Node:
    """AND or OR of parts, nested ones of the same kind joined in."""
    flat = [inner for part in parts for inner in (part.parts if part.op == op else (part,))]
    return Node(op, BOOL, tuple(flat)) if len(flat) > 1 else flat[0]
