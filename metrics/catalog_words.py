"""What the typed model of a catalog refuses, in words: rule, value and way out."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from metrics.catalog import Path
from metrics.catalog_parts import AlertPart, CatalogPart, EventTimePart, FieldPart, LookupPart, MetricPart


def in_words(  # noqa: PLR0911 - a return for each kind
    path: Path, kind: str, message: str, given: object, context: Mapping[str, Any] | None
) -> tuple[Path, str, object, str]:
    """Path, rule, value and way out of what the typed model refuses."""
    key = path[-1]
    limits = context or {}
    match kind:
        case "missing":
            return path, f"`{key}` is needed", "nothing", "add it; the catalog reference shows an example"
        case "extra_forbidden":
            known = _keys_at(path[:-1])
            return path, f"unknown key `{key}`", key, known_names(str(key), dict.fromkeys(known), "keys here")
        case "literal_error":
            return path, f"`{key}` is one of {limits['expected']}", given, "write one of them"
        case "too_short":
            return path, f"`{key}` has at least one entry", given, "define one"
        case "greater_than_equal" | "less_than_equal":
            word = "at least" if kind == "greater_than_equal" else "at most"
            return path, f"`{key}` is {word} {limits.get('ge', limits.get('le'))}", given, "correct the value"
        case "value_error":
            rule, _, hint = message.removeprefix("Value error, ").partition(". ")
            return path, f"`{key}`: {rule.partition('; got ')[0]}", given, hint or "correct the value"
    return path, f"`{key}`: {message[:1].lower()}{message[1:]}", given, "correct the value"


def _keys_at(path: Path) -> list[str]:
    """The keys that may stand in the mapping at a path of the file."""
    parts: dict[str, type[BaseModel]] = {
        "event_time": EventTimePart,
        "fields": FieldPart,
        "lookups": LookupPart,
        "metrics": MetricPart,
        "alerts": AlertPart,
    }
    of_record = path[:1] == ("lookups",) and "fields" in path[2:3]
    part = FieldPart if of_record else parts.get(str(path[0]), CatalogPart) if path else CatalogPart
    return list(part.model_fields)


def known_names(name: str, known: Mapping[str, object], what: str = "fields") -> str:
    """The names there are, with the one that was probably meant first."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean `{near[0]}`? " if near else "") + f"the {what} are: {', '.join(known)}"
