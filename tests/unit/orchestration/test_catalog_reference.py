"""The reference page is that of the model, and what it says of a key is so."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from metrics import catalog_parts
from metrics.catalog import CatalogError
from metrics.catalog_build import parse_catalog
from metrics.window import parse_duration
from orchestration.catalog_reference import json_schema, keys, reference

ROOT = Path(__file__).parents[3]
WHOLE = {
    "source": "shop",
    "topic": "events.shop.v1",
    "event_id": "id",
    "event_time": {"field": "ts"},
    "fields": {"user": "string", "pulse": {"type": "float"}, "customers_age": "int"},
    "lookups": {"customers": {"topic": "customers.v1", "key": "user", "fields": {"segment": "string"}}},
    "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    "alerts": {"burst": {"when": "count > 100", "within": "1m"}},
}
"""A catalog with each kind of mapping."""

PLACES: dict[str, tuple[str, ...]] = {
    "CatalogPart": (),
    "EventTimePart": ("event_time",),
    "FieldPart": ("fields", "pulse"),
    "LookupPart": ("lookups", "customers"),
    "MetricPart": ("metrics", "events"),
    "AlertPart": ("alerts", "burst"),
}
"""Where it has them."""

OF_NO_TYPE = (3.5, [[]])
"""Values of which no key takes both."""

WRONG: dict[tuple[str, str], Any] = {
    ("CatalogPart", "source"): "Shop",
    ("CatalogPart", "registry"): "http://127.0.0.1:8081",
    ("CatalogPart", "key"): "nobody",
    ("CatalogPart", "owners"): ["shop@here"],
    ("CatalogPart", "out_of_orderness"): "-1s",
    ("CatalogPart", "allowed_lateness"): "-1s",
    ("FieldPart", "scale"): 2,
    ("FieldPart", "default"): "fast",
    ("LookupPart", "topic"): "events.shop.v1",
    ("LookupPart", "key"): "nobody",
    ("LookupPart", "fields"): {"age": "int"},
    ("MetricPart", "agg"): "median(pulse)",
    ("MetricPart", "ratio"): ["events"],
    ("MetricPart", "where"): "nobody = 'x'",
    ("MetricPart", "by"): ["user"] * 5,
    ("MetricPart", "window"): "weekly",
    ("AlertPart", "when"): "count",
    ("AlertPart", "where"): "nobody = 'x'",
    ("AlertPart", "by"): "nobody",
    ("AlertPart", "within"): None,
    ("AlertPart", "topic"): "events.shop.v1",
}
"""Values of the right type that break the rule of a key; the other keys have none."""

PARTS = {part.__name__: part for part in catalog_parts.Part.__subclasses__()}
KEYS = [(part, row["name"]) for part, model in PARTS.items() for row in keys(model)]


def row_of(part: str, key: str) -> dict[str, str]:
    return next(row for row in keys(PARTS[part]) if row["name"] == key)


def rules(catalog: dict[str, Any]) -> list[str]:
    try:
        parse_catalog(catalog, {}, "shop.yaml")
    except CatalogError as error:
        return [problem.rule for problem in error.problems]
    return []


def spoilt(part: str, key: str, *value: object) -> list[str]:
    """The rules that the whole catalog breaks with a value for a key, or without the key."""
    catalog = copy.deepcopy(WHOLE)
    mapping: Any = catalog
    for step in PLACES[part]:
        mapping = mapping[step]
    mapping.pop(key, None)
    if value:
        (mapping[key],) = value
    return rules(catalog)


def wrongly_typed(part: str, key: str) -> list[str]:
    return [rule for value in OF_NO_TYPE for rule in spoilt(part, key, value)]


def test_the_pages_in_docs_are_those_of_the_model() -> None:
    assert (ROOT / "docs" / "catalog.md").read_text() == reference(), "run `make docs`"
    assert (ROOT / "docs" / "catalog.schema.json").read_text() == json_schema(), "run `make docs`"


def test_every_mapping_has_its_place_and_its_table_on_the_page() -> None:
    assert set(PARTS) == set(PLACES)
    page = reference()
    for part, key in KEYS:
        row = row_of(part, key)
        assert f"| `{key}` | {row['type']} | {row['default']} | {row['unit']} | `{row['example']}` |" in page


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_key_has_type_default_example_meaning_and_error(part: type[BaseModel]) -> None:
    for row in keys(part):
        assert all(row[column] for column in ("name", "type", "default", "example", "meaning", "error")), row


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_numbers_and_durations_have_a_unit_and_nothing_else_has(part: str, key: str) -> None:
    row = row_of(part, key)
    assert bool(row["unit"]) is row["type"].startswith(("whole number", "duration"))
    if row["type"] == "duration":
        assert all(parse_duration(f"1{unit}") for unit in re.findall(r"\b[a-z]+\b(?<!or)", row["unit"]))


def test_the_catalog_whose_keys_are_spoilt_is_a_good_one() -> None:
    assert rules(WHOLE) == []


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_a_key_is_refused_with_what_the_page_says(part: str, key: str) -> None:
    documented = row_of(part, key)["error"]
    if (part, key) in WRONG:
        produced = spoilt(part, key, WRONG[part, key])
    else:
        produced = [*spoilt(part, key), *wrongly_typed(part, key)]
    assert any(rule.startswith(documented) for rule in produced), (documented, produced)


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_a_value_of_a_wrong_type_is_refused_in_the_words_of_the_page(part: str, key: str) -> None:
    kinds = row_of(part, key)["type"].split(" or ")
    found = wrongly_typed(part, key)
    assert found
    for rule in found:
        about = re.fullmatch(r"(an entry of )?`(\w+)` is (.+)", rule)
        assert about, rule
        assert about[2] == key
        assert "list of texts" in kinds if about[1] else all(kind in about[3] for kind in kinds)


def test_the_page_says_how_an_editor_gets_the_schema() -> None:
    assert "lockstep schema > catalog.schema.json" in " ".join(reference().split())
