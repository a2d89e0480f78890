"""The JSON Schema takes what the typed model takes, and refuses the shapes that it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from metrics.catalog_parts import CatalogPart, Part
from orchestration.catalog_reference import json_schema

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads(json_schema())
GOOD = [
    *sorted((ROOT / "orchestration" / "catalogs").glob("*.yaml")),
    *sorted((ROOT / "tests" / "data").glob("clickstream*.yaml")),
    *sorted((ROOT / "speed_layer" / "bench").glob("*.yaml")),
    ROOT / "README.md",
    ROOT / "docs" / "your-own-source.md",
]
BAD = sorted((ROOT / "tests" / "data" / "bad_catalogs").glob("*.yaml"))
NO_MAPPING = {"a_list", "not_yaml"}
OF_A_TEXT = "value_error"
"""What the model finds wrong with what a text says; the schema may know no pattern for it."""

STRICTER = {"negative_lateness"}
"""What the schema refuses already and the model leaves to a rule."""


def catalogs(path: Path) -> list[dict[str, Any]]:
    """The catalogs of a YAML file, or those that a page shows."""
    text = path.read_text()
    blocks = re.findall(r"^```yaml[^\n]*\n(source: .*?)^```", text, re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in (blocks if path.suffix == ".md" else [text])]


def faults(catalog: object, schema: dict[str, Any] = SCHEMA) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(catalog)]


def refusals(catalog: object) -> list[str]:
    """The kinds of errors that the model finds."""
    try:
        CatalogPart.model_validate(catalog)
    except ValidationError as error:
        return [one["type"] for one in error.errors()]
    return []


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_the_catalogs_that_ship_and_those_in_the_docs_are_valid(path: Path) -> None:
    found = catalogs(path)
    assert found
    assert [faults(catalog) for catalog in found] == [[]] * len(found)


@pytest.mark.parametrize("path", [path for path in BAD if path.stem not in NO_MAPPING], ids=lambda path: path.stem)
def test_a_bad_catalog_is_invalid_where_the_model_refuses_its_shape(path: Path) -> None:
    (catalog,) = catalogs(path)
    found = refusals(catalog)
    if set(found) - {OF_A_TEXT}:
        assert faults(catalog)
    elif not found:
        assert bool(faults(catalog)) is (path.stem in STRICTER)


def test_many_bad_catalogs_are_such_that_the_model_refuses_their_shape() -> None:
    found = [refusals(*catalogs(path)) for path in BAD if path.stem not in NO_MAPPING]
    assert sum(bool(set(kinds) - {OF_A_TEXT}) for kinds in found) > 20


@pytest.mark.parametrize("part", Part.__subclasses__())
def test_examples_and_defaults_are_valid_values_of_their_keys(part: type[Part]) -> None:
    properties = (SCHEMA if part is CatalogPart else SCHEMA["$defs"][part.__name__])["properties"]
    assert set(properties) == set(part.model_fields)
    for key, of_key in properties.items():
        values = [*of_key["examples"], *([of_key["default"]] if "default" in of_key else [])]
        schema = {**of_key, "$defs": SCHEMA["$defs"]}
        assert [faults(value, schema) for value in values] == [[]] * len(values), key


@pytest.mark.parametrize(
    ("place", "forms"),
    [
        (("fields", "user"), ["string", {"type": "decimal", "scale": 2}]),
        (("fields", "pulse", "default"), ["none", 3, 0.5, True, None]),
        (("lookups", "customers", "fields", "segment"), ["string", {"type": "string", "default": "none"}]),
        (("metrics", "events", "window"), ["tumbling 1m", ["tumbling 1m", "day Europe/Berlin"]]),
        (("metrics", "events", "by"), ["user", ["user", "pulse"]]),
        (("alerts", "burst", "by"), ["user", ["user", "pulse"]]),
    ],
)
def test_short_and_long_forms_of_a_value_are_valid_and_other_ones_are_not(
    place: tuple[str, ...], forms: list[object]
) -> None:
    catalog: dict[str, Any] = {
        "source": "shop",
        "topic": "events.shop.v1",
        "event_id": "id",
        "event_time": {"field": "ts"},
        "fields": {"user": "string", "pulse": {"type": "string"}},
        "lookups": {"customers": {"topic": "customers.v1", "key": "user", "fields": {"segment": "string"}}},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
        "alerts": {"burst": {"when": "count > 100", "within": "1m"}},
    }
    mapping = catalog
    for step in place[:-1]:
        mapping = mapping[step]
    for form in forms:
        mapping[place[-1]] = form
        assert faults(catalog) == []
        assert not refusals(catalog)
    mapping[place[-1]] = [[]]
    assert faults(catalog)
    assert refusals(catalog)
