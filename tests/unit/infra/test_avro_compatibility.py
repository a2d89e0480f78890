"""Which schemas can read what others wrote."""

from typing import Any

import pytest

from infra.avro_compatibility import unreadable


def record(*fields: Any, name: str = "r") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


COLOURS = {"type": "enum", "name": "c", "symbols": ["red", "green"]}


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        ("string", "string"),
        ("double", "int"),
        ("bytes", "string"),
        (["null", "string"], "string"),
        (["null", "long"], ["int", "null"]),
        (record(field("a", "int")), record(field("a", "int"), field("b", "int"))),
        (record(field("a", "int"), field("b", ["null", "int"], default=None)), record(field("a", "int"))),
        (record(field("a", "int", aliases=["b"])), record(field("b", "int"))),
        ({**COLOURS, "symbols": ["red", "green", "blue"]}, COLOURS),
        ({**COLOURS, "symbols": ["red"], "default": "red"}, COLOURS),
        ({"type": "array", "items": "long"}, {"type": "array", "items": "int"}),
        (record(field("a", "int"), name="x.r"), record(field("a", "int"), name="y.r")),
        (record(field("next", ["null", "r"])), record(field("next", ["null", "r"]))),
    ],
)
def test_readable(reader: Any, writer: Any) -> None:
    assert unreadable(reader, writer) is None


@pytest.mark.parametrize(
    ("reader", "writer", "cause"),
    [
        ("int", "string", "the schema was string and would be read as int"),
        ("int", "long", "the schema was long and would be read as int"),
        ("string", ["null", "string"], "the schema was null and would be read as string"),
        (record(field("a", ["null", "int"])), record(field("a", "string")), "a has no branch for string"),
        (record(field("a", "int")), record(), "a is new and has no default"),
        (record(name="r"), record(name="s"), "the schema was called s and is called r now"),
        ({**COLOURS, "symbols": ["red"]}, COLOURS, "the enum has lost green"),
        (
            record(field("m", {"type": "fixed", "name": "f", "size": 2})),
            record(field("m", {"type": "fixed", "name": "f", "size": 3})),
            "m had 3 bytes and has 2 now",
        ),
        (
            record(field("a", {"type": "map", "values": "int"})),
            record(field("a", {"type": "map", "values": "string"})),
            "a{} was string and would be read as int",
        ),
        (
            record(field("a", record(field("b", "int"), name="n")), field("c", "n")),
            record(field("a", record(field("b", "string"), name="n")), field("c", "n")),
            "a.b was string and would be read as int",
        ),
    ],
)
def test_unreadable_with_its_cause(reader: Any, writer: Any, cause: str) -> None:
    assert unreadable(reader, writer) == cause
