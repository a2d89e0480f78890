"""The reference page and the JSON Schema are those of the model, and say everything of every key."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from metrics import catalog_parts
from orchestration.catalog_reference import json_schema, keys, reference

DOCS = Path(__file__).parents[3] / "docs"


def test_the_pages_in_docs_are_those_of_the_model() -> None:
    assert (DOCS / "catalog.md").read_text() == reference(), "run `make docs`"
    assert (DOCS / "catalog.schema.json").read_text() == json_schema(), "run `make docs`"


@pytest.mark.parametrize("name", ["CatalogPart", "EventTimePart", "FieldPart", "MetricPart", "AlertPart"])
def test_every_key_has_type_default_example_meaning_and_error(name: str) -> None:
    part: type[BaseModel] = getattr(catalog_parts, name)
    for row in keys(part):
        assert all(row[column] for column in ("name", "type", "default", "example", "meaning", "error")), row


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(catalog_parts.CatalogPart.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]["MetricPart"]["properties"]) == set(catalog_parts.MetricPart.model_fields)
