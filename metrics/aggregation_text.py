"""From a catalog's text such as ``quantile(amount, 0.95)`` to an aggregation."""

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal

from metrics.aggregation import Aggregation
from metrics.by_value import Distinct, Quantile, Top
from metrics.expression import Expression, FieldType
from metrics.over_time import Last, Level
from metrics.totals import Count, Max, Mean, Min, Stddev, Sum

NUMBERS = ("int", "decimal", "float")
EXACT_TEXT = ("string", "int", "decimal", "bool")
ANY = ("string", "int", "decimal", "float", "bool")
LARGEST_TOP = 1000
QUANTILE_DIGITS = 6

_FORM = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_SIMPLE: dict[str, tuple[type[Aggregation], tuple[str, ...]]] = {
    "sum": (Sum, NUMBERS),
    "min": (Min, NUMBERS),
    "max": (Max, NUMBERS),
    "mean": (Mean, NUMBERS),
    "stddev": (Stddev, NUMBERS),
    "distinct": (Distinct, EXACT_TEXT),
    "last": (Last, ANY),
}
_ALL = (
    "count, sum(E), min(E), max(E), mean(E), stddev(E), distinct(E), quantile(E, Q), top(E, K), last(E), "
    "level(SET, CHANGE)"
)


def parse_aggregation(text: str, types: Mapping[str, FieldType]) -> Aggregation:
    """The aggregation that a text names, its arguments compiled against the fields' types.

    Raises:
        ValueError: It is unknown, or its arguments are not what it takes; rule, then way out.
    """
    match = _FORM.fullmatch(text)
    name = match[1].lower() if match else text
    arguments = _split(match[2]) if match and match[2] is not None and match[2].strip() else []
    if name == "count":
        _take("count", arguments, 0, "count")
        return Count()
    if name in _SIMPLE:
        kind, allowed = _SIMPLE[name]
        _take(name, arguments, 1, f"{name}(amount)")
        return kind((_argument(name, arguments[0], types, allowed),))
    if name == "quantile":
        _take(name, arguments, 2, "quantile(amount, 0.95)")
        return Quantile((_argument(name, arguments[0], types, NUMBERS),), _quantile(arguments[1]))
    if name == "top":
        _take(name, arguments, 2, "top(page, 10)")
        return Top((_argument(name, arguments[0], types, EXACT_TEXT),), _most(arguments[1]))
    if name == "level":
        _take(name, arguments, 2, "level(counted, change)")
        return Level(tuple(_argument(name, argument, types, ("int", "decimal")) for argument in arguments))
    near = difflib.get_close_matches(name, [*_SIMPLE, "count", "quantile", "top", "level"], n=1)
    msg = f"unknown aggregation; got `{text}`. " + (f"did you mean `{near[0]}`? " if near else "")
    raise ValueError(msg + f"the aggregations are: {_ALL}")


def _take(name: str, arguments: list[str], wanted: int, example: str) -> None:
    if len(arguments) != wanted:
        msg = f"{name} takes {wanted} argument{'' if wanted == 1 else 's'}; got {len(arguments)}. write {example}"
        raise ValueError(msg)


def _argument(name: str, text: str, types: Mapping[str, FieldType], allowed: tuple[str, ...]) -> Expression:
    argument = Expression(text, types)
    if argument.type.kind not in allowed:
        hint = "declare the field a decimal or a string" if argument.type.kind == "float" else "name another field"
        msg = f"{name} takes {_either(allowed)}, and `{text}` is a {argument.type.kind}; got {text}. {hint}"
        raise ValueError(msg)
    return argument


def _either(kinds: tuple[str, ...]) -> str:
    named = [f"an {kind}" if kind == "int" else f"a {kind}" for kind in kinds]
    return f"{', '.join(named[:-1])} or {named[-1]}"


def _quantile(text: str) -> str:
    if not re.fullmatch(rf"0(\.\d{{1,{QUANTILE_DIGITS}}})?|1(\.0{{1,{QUANTILE_DIGITS}}})?", text):
        msg = (
            f"the quantile lies between 0 and 1, with at most {QUANTILE_DIGITS} decimals; got {text}. "
            "write for example quantile(amount, 0.95)"
        )
        raise ValueError(msg)
    return format(Decimal(text).normalize(), "f")


def _most(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= LARGEST_TOP:
        msg = f"top shows between 1 and {LARGEST_TOP} values; got {text}. write for example top(page, 10)"
        raise ValueError(msg)
    return int(text)


def _split(inside: str) -> list[str]:
    """The arguments between commas that are not inside parentheses or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in inside:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]
