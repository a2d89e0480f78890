"""Which texts are expressions: those that polars, Spark and ClickHouse compute alike, with the fields' types."""

import difflib
from collections.abc import Mapping
from decimal import Decimal

import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from metrics.expression_tree import (
    BOOL,
    FLOAT,
    GREATEST_SCALE,
    INT,
    MOST_NODES,
    NOTHING,
    STRING,
    FieldType,
    Node,
    compared,
    computed,
    converted,
    decimal_of,
    exact,
    has_field,
    joined,
    number,
    shown,
    size,
    unified,
)

_COMPARISONS: dict[type[sql.Expr], str] = {
    sql.EQ: "=",
    sql.NEQ: "<>",
    sql.LT: "<",
    sql.LTE: "<=",
    sql.GT: ">",
    sql.GTE: ">=",
}
_ARITHMETIC: dict[type[sql.Expr], str] = {sql.Add: "+", sql.Sub: "-", sql.Mul: "*"}
# the arguments that may be filled; whatever else sqlglot found in the text would be ignored
_ARGUMENTS: dict[type[sql.Expr], set[str]] = {
    sql.Column: {"this"},
    sql.Literal: {"this", "is_string"},
    sql.Boolean: {"this"},
    sql.Null: set(),
    sql.Paren: {"this"},
    sql.Neg: {"this"},
    sql.Not: {"this"},
    sql.Abs: {"this"},
    sql.In: {"this", "expressions"},
    sql.Between: {"this", "low", "high"},
    sql.Like: {"this", "expression", "negate"},
    sql.Case: {"this", "ifs", "default"},
    sql.Coalesce: {"this", "expressions"},
    **dict.fromkeys([*_COMPARISONS, *_ARITHMETIC, sql.And, sql.Or, sql.Is, sql.Nullif], {"this", "expression"}),
}
_ALLOWED = (
    "allowed are fields, literals, + - *, = <> < <= > >=, IN (literals), BETWEEN, LIKE, IS NULL, AND, OR, NOT, CASE, "
    "COALESCE, NULLIF, ABS"
)
_DIVISION = "division rounds differently in each engine. multiply by a literal, or define a `ratio` of two metrics"
_CASING = "letters change case differently in each engine. compare with each spelling by IN (...)"
_CASTING = "conversions round and read texts differently in each engine. declare the field with the type you need"
_NULL_SAFE = "NULL equals nothing here. write IS NULL"
_REASONS: dict[type[sql.Expr], str] = {
    **dict.fromkeys([sql.Div, sql.IntDiv], _DIVISION),
    sql.Mod: "the remainder of negative numbers differs between engines. send the remainder as a field of its own",
    **dict.fromkeys([sql.Lower, sql.Upper, sql.ILike], _CASING),
    **dict.fromkeys([sql.Cast, sql.TryCast], _CASTING),
    sql.Query: "an expression sees one event; it has no subqueries. send what it needs as a field of the event",
    sql.AggFunc: "an expression sees one event; it aggregates nothing. write the aggregation as `agg`",
    sql.Escape: "an escaped pattern means different things in each engine. use = or IN (...)",
    **dict.fromkeys([sql.NullSafeEQ, sql.NullSafeNEQ], _NULL_SAFE),
}


class Checker:
    """Builds the tree of an expression over fields of given types."""

    def __init__(self, types: Mapping[str, FieldType]) -> None:
        self._types = types

    def tree(self, text: str, noun: str) -> Node:
        """The tree of a text.

        Raises:
            ValueError: The text does not parse, names an unknown field, mixes types or uses what is not allowed.
        """
        try:
            text.encode()
            parsed = sqlglot.parse(text)
        except (SqlglotError, UnicodeEncodeError) as error:
            raise ValueError(_unparsable(text, noun)) from error
        except RecursionError as error:
            raise ValueError(_too_long(text)) from error
        if len(parsed) != 1 or not isinstance(parsed[0], sql.Expr):
            raise ValueError(_unparsable(text, noun))
        try:
            node = self._node(parsed[0])
            if node.type == FLOAT and node.op != "settle":
                node = Node("settle", FLOAT, (node,))
            if node.type == NOTHING or not has_field(node):
                msg = f"`{text}` names no field. the fields are: {', '.join(self._types)}"
                raise ValueError(msg)
            if size(node) > MOST_NODES:
                raise ValueError(_too_long(text))
        except RecursionError as error:
            raise ValueError(_too_long(text)) from error
        return exact(node)

    def _node(self, node: sql.Expr) -> Node:  # noqa: PLR0911, PLR0912 - a case for each form
        _refuse_others(node)
        match node:
            case sql.Paren():
                return self._node(node.this)
            case sql.Column():
                return self._field(node)
            case sql.Boolean():
                return Node("literal", BOOL, value=bool(node.this))
            case sql.Null():
                return Node("null", NOTHING)
            case sql.Literal():
                return Node("literal", STRING, value=node.name) if node.is_string else number(decimal_of(node))
            case sql.Neg() | sql.Abs():
                return self._signed(node)
            case sql.Add() | sql.Sub() | sql.Mul():
                return self._arithmetic(node)
            case sql.And() | sql.Or():
                op = "and" if isinstance(node, sql.And) else "or"
                return joined(op, [self._bool(node.this), self._bool(node.expression)])
            case sql.Not():
                return Node("not", BOOL, (self._bool(node.this),))
            case sql.Is():
                return self._is(node)
            case sql.In():
                return self._in(node)
            case sql.Between():
                value, low, high = self._value(node.this), self._value(node.args["low"]), self._value(node.args["high"])
                return joined("and", [compared(">=", [value, low], node), compared("<=", [value, high], node)])
            case sql.Like():
                return self._like(node)
            case sql.Case():
                return self._case(node)
            case sql.Coalesce():
                parts, kind = unified([self._value(part) for part in (node.this, *node.expressions)], node)
                return Node("coalesce", kind, tuple(parts))
            case sql.Nullif():
                parts, kind = unified([self._value(node.this), self._value(node.expression)], node)
                return Node("nullif", kind, tuple(parts))
        return compared(_COMPARISONS[type(node)], [self._value(node.this), self._value(node.expression)], node)

    def _field(self, node: sql.Column) -> Node:
        if node.name not in self._types:
            near = difflib.get_close_matches(node.name, self._types, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            msg = f"unknown field `{node.name}`. {hint}the fields are: {', '.join(self._types)}"
            raise ValueError(msg)
        return Node("field", self._types[node.name], value=node.name)

    def _value(self, node: sql.Expr) -> Node:
        """An operand; NULL is none."""
        checked = self._node(node)
        if checked.type == NOTHING:
            msg = f"NULL is no operand in `{shown(node.parent or node)}`; the result would be NULL. write IS NULL"
            raise ValueError(msg)
        return checked

    def _bool(self, node: sql.Expr) -> Node:
        checked = self._value(node)
        if checked.type != BOOL:
            msg = f"`{shown(node)}` is {checked.type.noun}, no condition. compare it, for example by = or IS NOT NULL"
            raise ValueError(msg)
        return checked

    def _numeric(self, node: sql.Expr) -> Node:
        checked = self._value(node)
        if checked.type.kind not in {"int", "float", "decimal"}:
            msg = f"`{shown(node)}` is {checked.type.noun}; arithmetic needs a number. declare the field a number"
            raise ValueError(msg)
        return checked

    def _signed(self, node: sql.Expr) -> Node:
        part = self._numeric(node.this)
        if part.is_literal and isinstance(part.value, Decimal):
            return number(-part.value if isinstance(node, sql.Neg) else abs(part.value))
        op = "neg" if isinstance(node, sql.Neg) else "abs"
        return computed(op, part.type, [part])

    def _arithmetic(self, node: sql.Expr) -> Node:
        op = _ARITHMETIC[type(node)]
        parts = [self._numeric(node.this), self._numeric(node.expression)]
        alike, kind = unified(parts, node)
        if op != "*" or kind.kind != "decimal":
            return computed(op, kind, alike)
        parts = [exact(part) for part in parts]
        factors = [part if part.type.kind == "decimal" else converted(part, FieldType("decimal")) for part in parts]
        scale = sum(factor.type.scale for factor in factors)
        if scale > GREATEST_SCALE:
            msg = (
                f"`{shown(node)}` has {scale} digits after the point; at most {GREATEST_SCALE} are kept exactly. "
                "declare the fields with a smaller scale"
            )
            raise ValueError(msg)
        return computed("*", FieldType("decimal", scale), factors)

    def _is(self, node: sql.Is) -> Node:
        if not isinstance(node.expression, sql.Null):
            msg = f"`{shown(node)}` asks for more than NULL. write = {shown(node.expression)}"
            raise ValueError(msg)
        return Node("is_null", BOOL, (exact(self._value(node.this)),))

    def _in(self, node: sql.In) -> Node:
        if not node.expressions:
            raise ValueError(_not_allowed(node))
        value, items = self._value(node.this), [self._node(item) for item in node.expressions]
        for item, written in zip(items, node.expressions, strict=True):
            if item.type == NOTHING:
                msg = f"NULL in a list is never found in it, and hides what is not in `{shown(node)}`. write IS NULL"
                raise ValueError(msg)
            if not item.is_literal:
                msg = f"`{shown(written)}` must be a literal. compare fields by = and OR"
                raise ValueError(msg)
        if all(part.type in (STRING, INT) and part.type == value.type for part in items):
            values = tuple(int(item.value) if isinstance(item.value, Decimal) else str(item.value) for item in items)
            return Node("in", BOOL, (exact(value),), tuple(sorted(set(values))))
        return joined("or", [compared("=", [value, item], node) for item in items])

    def _like(self, node: sql.Like) -> Node:
        value, pattern = self._value(node.this), node.expression
        if value.type != STRING or not isinstance(pattern, sql.Literal) or not pattern.is_string:
            msg = f"LIKE takes a string field and a literal pattern; got `{shown(node)}`. compare with = or IN (...)"
            raise ValueError(msg)
        text = pattern.name
        inner = text.removeprefix("%").removesuffix("%")
        if not inner or any(character in inner for character in "%_\\"):
            msg = (
                f"a pattern is 'text%', '%text' or '%text%', without _ and \\; got {shown(pattern)}. "
                "use such a pattern, or = and IS NOT NULL"
            )
            raise ValueError(msg)
        start, end = text.startswith("%"), text.endswith("%")
        shape = {(False, True): "prefix", (True, False): "suffix", (True, True): "contains"}.get((start, end))
        if shape is None:
            found = compared("=", [value, Node("literal", STRING, value=text)], node)
        else:
            found = Node("like", BOOL, (value,), (shape, inner))
        return Node("not", BOOL, (found,)) if node.args.get("negate") else found

    def _case(self, node: sql.Case) -> Node:
        conditions: list[Node] = []
        values: list[Node] = []
        for branch in node.args["ifs"]:
            if node.this is None:
                conditions.append(self._bool(branch.this))
            else:
                conditions.append(compared("=", [self._value(node.this), self._value(branch.this)], node))
            values.append(self._node(branch.args["true"]))
        default = node.args.get("default")
        values.append(Node("null", NOTHING) if default is None else self._node(default))
        values, kind = unified(values, node)
        if kind == NOTHING:
            msg = f"every value of `{shown(node)}` is NULL. give one of them a value"
            raise ValueError(msg)
        paired = [part for pair in zip(conditions, values[:-1], strict=True) for part in pair]
        return Node("case", kind, (*paired, values[-1]))


def _unparsable(text: str, noun: str) -> str:
    return f"`{text}` is not {noun} that parses. write it as in SQL, for example " + (
        "event_type = 'purchase'" if noun == "a condition" else "price * quantity"
    )


def _too_long(text: str) -> str:
    return f"`{text[:60]}...` is too long to be computed. send what it computes as a field of the event"


def _not_allowed(node: sql.Expr) -> str:
    return f"`{shown(node)}` is not allowed. {_ALLOWED}"


def _refuse_others(node: sql.Expr) -> None:
    """Refuses forms that are not known, and known ones with further clauses."""
    for kind, reason in _REASONS.items():
        if isinstance(node, kind):
            msg = f"`{shown(node)}` is not allowed; {reason}"
            raise ValueError(msg)
    filled = {name for name, value in node.args.items() if value not in (None, False, [])}
    if type(node) not in _ARGUMENTS or filled - _ARGUMENTS[type(node)]:
        if isinstance(node, sql.Column) and isinstance(node.this, sql.Identifier):
            msg = f"`{shown(node)}` is no field; a field has no table. quote a name that has a point"
            raise ValueError(msg)
        raise ValueError(_not_allowed(node))
