"""The canonical text of a checked expression: one for all spellings, and it parses to the same expression."""

import re
from collections.abc import Callable
from decimal import Decimal, localcontext

import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from metrics.expression_tree import MOST_DIGITS, Node

_STRENGTH = {"or": 1, "and": 2, "not": 3, "+": 5, "-": 5, "*": 6, "neg": 7}
_COMPARING = 4
_ATOM = 8


def canonical(node: Node) -> str:
    """The one text of all spellings of an expression; it parses to the same expression."""
    return _canonical(node)[0]


def _canonical(node: Node) -> tuple[str, int]:  # noqa: PLR0911, PLR0912 - a return for each form
    parts = node.parts
    match node.op:
        case "convert" | "settle":
            return _canonical(parts[0])
        case "field":
            return _named(str(node.value)), _ATOM
        case "null":
            return "NULL", _ATOM
        case "literal":
            return _canonical_literal(node.value)
        case "and" | "or":
            strength = _STRENGTH[node.op]
            return f" {node.op.upper()} ".join(_wrapped(part, strength + 1) for part in parts), strength
        case "not":
            return f"NOT {_wrapped(parts[0], _ATOM)}", _STRENGTH["not"]
        case "neg":
            return f"-{_wrapped(parts[0], _ATOM)}", _STRENGTH["neg"]
        case "+" | "-" | "*":
            strength = _STRENGTH[node.op]
            return f"{_wrapped(parts[0], strength)} {node.op} {_wrapped(parts[1], strength + 1)}", strength
        case "is_null":
            return f"{_wrapped(parts[0], _COMPARING + 1)} IS NULL", _COMPARING
        case "in":
            assert isinstance(node.value, tuple)
            items = ", ".join(_quoted(v) if isinstance(v, str) else str(v) for v in node.value)
            return f"{_wrapped(parts[0], _COMPARING + 1)} IN ({items})", _COMPARING
        case "like":
            assert isinstance(node.value, tuple)
            shape, text = node.value
            pattern = {"prefix": f"{text}%", "suffix": f"%{text}", "contains": f"%{text}%"}[str(shape)]
            return f"{_wrapped(parts[0], _COMPARING + 1)} LIKE {_quoted(pattern)}", _COMPARING
        case "case":
            return case_text(parts, canonical), _ATOM
        case "coalesce" | "nullif" | "abs":
            return f"{node.op.upper()}({', '.join(map(canonical, parts))})", _ATOM
    return f"{_wrapped(parts[0], _COMPARING + 1)} {node.op} {_wrapped(parts[1], _COMPARING + 1)}", _COMPARING


def _wrapped(node: Node, at_least: int) -> str:
    text, strength = _canonical(node)
    return text if strength >= at_least else f"({text})"


def _canonical_literal(value: object) -> tuple[str, int]:
    if isinstance(value, bool):
        return str(value).upper(), _ATOM
    if isinstance(value, str):
        return _quoted(value), _ATOM
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(str(value))
    with localcontext(prec=1_000):
        number = number.normalize()
    text = f"{number:f}" if abs(number.adjusted()) <= 2 * MOST_DIGITS else str(number)
    return text, _ATOM if number >= 0 else _STRENGTH["neg"]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _named(name: str) -> str:
    try:
        plain = sqlglot.parse_one(f"{name} = 1")
    except SqlglotError:
        plain = None
    if re.fullmatch(r"[A-Za-z_]\w*", name) and isinstance(plain, sql.EQ) and isinstance(plain.this, sql.Column):
        return name
    return '"' + name.replace('"', '""') + '"'


def case_text(parts: tuple[Node, ...], write: Callable[[Node], str]) -> str:
    """A CASE whose parts `write` writes."""
    branches = "".join(
        f" WHEN {write(condition)} THEN {write(value)}"
        for condition, value in zip(parts[:-1:2], parts[1:-1:2], strict=True)
    )
    return f"CASE{branches} ELSE {write(parts[-1])} END"
