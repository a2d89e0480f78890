"""The catalog reference in docs/ and the JSON Schema for editors, made from the typed model of a catalog file."""

import json
import sys
from pathlib import Path
from typing import Any, Literal, get_origin

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from metrics import catalog_parts as parts
from metrics import catalog_words as words
from metrics.aggregation import Aggregation
from metrics.aggregation_text import parse_aggregation
from metrics.expression import FieldType
from metrics.sketch import BOUND_SIGMAS, REGISTERS, STANDARD_ERROR
from metrics.totals import GREATEST_TOTAL_SCALE, MOST_VALUES_DIGITS
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
        total_scale=GREATEST_TOTAL_SCALE,
        most_values=f"{10**MOST_VALUES_DIGITS:,}",
    )


def json_schema() -> str:
    """The JSON Schema of a catalog file, for editors that complete and check YAML."""
    schema = parts.CatalogPart.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lockstep catalog",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def keys(model: type[BaseModel]) -> list[dict[str, str]]:
    """A row for each key of a mapping: name, type, default, unit, example, meaning, error.

    The error is the rule that a value of the right type may still break; without one, what a catalog that lacks the
    key is refused with; of a key that may be missing, or has a choice of values, what a value of a wrong type is.
    """
    return [_key(name, field) for name, field in model.model_fields.items()]


def _key(name: str, field: FieldInfo) -> dict[str, str]:
    extra: Any = field.json_schema_extra or {}
    kinds = words.kinds_of(field.annotation, field.metadata)
    needed, choice = field.is_required(), get_origin(field.annotation) is Literal
    return {
        "name": name,
        "type": " or ".join(kinds),
        "default": "needed" if needed else _shown(field.default),
        "unit": extra["x-unit"],
        "example": words.one_line((field.examples or [""])[0]),
        "meaning": field.description or "",
        "error": extra["x-error"]
        or (words.needed(name) if needed and not choice else words.wrong_kind((name,), kinds)),
    }


def _shown(default: Any) -> str:  # noqa: ANN401 - any default
    if default is PydanticUndefined or default is None or default in ({}, [], ""):
        return "none"
    return f"`{format_duration(default)}`" if hasattr(default, "total_seconds") else f"`{words.one_line(default)}`"


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
