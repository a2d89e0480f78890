"""The catalog reference in docs/ and the JSON Schema for editors, made from the typed model of a catalog file."""

import json
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from metrics import catalog_parts as parts
from metrics.aggregation import Aggregation
from metrics.aggregation_text import parse_aggregation
from metrics.expression import FieldType
from metrics.sketch import BOUND_SIGMAS, REGISTERS, STANDARD_ERROR
from metrics.window import format_duration, parse_window

TEMPLATES = Path(__file__).parent / "templates"

WINDOWS = {
    "tumbling 5m": "windows of one size without gap or overlap, aligned to the epoch",
    "sliding 5m every 1m": "windows of one size, one starting at each multiple of the period; at most 1,440 overlap",
    "session 30m max 12h": "bursts of events of a `key` and dimensions, less than the gap apart; by default at most 1d",
    "day Europe/Berlin": "the zone's days, of 23, 24 or 25 hours, or 23.5 and 24.5",
    "week America/New_York": "the zone's weeks, from Monday",
    "month UTC": "the zone's months",
    "global": "everything since the start of the log",
}
"""Windows by an example of each, with their meaning."""

AGGREGATIONS = (
    "count",
    "sum(amount)",
    "min(amount)",
    "max(amount)",
    "mean(amount)",
    "stddev(amount)",
    "distinct(user_id)",
    "quantile(amount, 0.95)",
    "top(page, 10)",
    "last(status)",
    "level(counted, change)",
)
_TYPES = {
    "amount": FieldType("decimal", 2),
    "change": FieldType("int"),
    "counted": FieldType("int"),
    "page": FieldType("string"),
    "status": FieldType("string"),
    "user_id": FieldType("string"),
}
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}


def reference() -> str:
    """The reference page, in Markdown."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, of our own texts
    )
    return environment.get_template("catalog.md.j2").render(
        file_keys=keys(parts.CatalogPart),
        event_time_keys=keys(parts.EventTimePart),
        field_keys=keys(parts.FieldPart),
        lookup_keys=keys(parts.LookupPart),
        metric_keys=keys(parts.MetricPart),
        alert_keys=keys(parts.AlertPart),
        windows=[(text, parse_window(text).grain, meaning) for text, meaning in WINDOWS.items()],
        aggregations=[_aggregation(parse_aggregation(text, _TYPES)) for text in AGGREGATIONS],
        registers=f"{REGISTERS:,}",
        standard_error=f"{STANDARD_ERROR:.1%}",
        sigmas=BOUND_SIGMAS,
    )


def json_schema() -> str:
    """The JSON Schema of a catalog file, for editors that complete and check YAML."""
    schema = parts.CatalogPart.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lockstep catalog",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def keys(model: type[BaseModel]) -> list[dict[str, str]]:
    """A row for each key of a mapping: name, type, default, unit, example, meaning, error."""
    return [_key(name, field) for name, field in model.model_fields.items()]


def _key(name: str, field: FieldInfo) -> dict[str, str]:
    extra: Any = field.json_schema_extra or {}
    needed = field.is_required()
    return {
        "name": name,
        "type": _type(field.annotation, field.metadata),
        "default": "needed" if needed else _shown(field.default),
        "unit": extra.get("x-unit") or "",
        "example": _yaml((field.examples or [""])[0]),
        "meaning": field.description or "",
        "error": extra.get("x-error") or ("field required" if needed else "input should be a valid value of its type"),
    }


def _type(annotation: Any, metadata: list[Any]) -> str:  # noqa: ANN401, PLR0911 - a return for each kind
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, more)
    if origin in {Union, UnionType}:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return " or ".join(dict.fromkeys(_type(kind, metadata) for kind in kinds))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is list:
        return "text or list of texts"
    if origin is dict:
        return "mapping by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if getattr(annotation, "__name__", "") == "timedelta":
        return "duration"
    limits = [f"{word} {value:,}" for word, value in _limits(metadata)]
    return " ".join([_PLAIN.get(annotation, "text"), *limits])


def _limits(metadata: list[Any]) -> list[tuple[str, int]]:
    found = []
    for rule in metadata:
        for word, attribute in (("from", "ge"), ("to", "le")):
            value = getattr(rule, attribute, None)
            if isinstance(value, int):
                found.append((word, value))
    return found


def _shown(default: Any) -> str:  # noqa: ANN401 - any default
    if default is PydanticUndefined or default is None or default in ({}, [], ""):
        return "none"
    return f"`{format_duration(default)}`" if hasattr(default, "total_seconds") else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:  # noqa: ANN401 - any example
    """A value on one line, as YAML's flow style has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return str(value)


def _aggregation(agg: Aggregation) -> dict[str, str]:
    without = "no value" if agg.nullable else {"Array": "empty list"}.get(agg.value_type[:5], "0")
    return {
        "text": agg.text,
        "meaning": (agg.__doc__ or "").strip().splitlines()[0],
        "type": agg.value_type.replace("Decimal(38, 2)", "Decimal(38, scale)"),
        "without": without,
        "speed": "exact" if agg.exact else "within bounds",
    }


def main(directory: Path) -> None:
    """Writes both into a directory."""
    (directory / "catalog.md").write_text(reference(), encoding="utf-8")
    (directory / "catalog.schema.json").write_text(json_schema(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
