"""Avro records are taken apart by their writer's schema, and judged by the rules that hold for JSON."""

import io
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.avro import AvroReader, unframe_of
from infra.avro_writer import AvroNameError, AvroWriter, schema_of, subject_of
from infra.registry import Registry, RegistryUnavailableError, UnknownSchemaError
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.event import Decoder

NOW = 1_767_225_600_000
TREE = {
    "source": "shop",
    "topic": "events.shop",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "fields": {
        "user": {"type": "string", "required": True},
        "country": {"type": "string", "default": "unknown"},
        "amount": {"type": "decimal", "scale": 2},
        "items": "int",
        "weight": "float",
        "member": "bool",
    },
    "metrics": {
        "events": {"agg": "count", "by": ["user", "country", "member"], "window": "tumbling 1m"},
        "spent": {"agg": "sum(amount)", "window": "tumbling 1m"},
        "items": {"agg": "sum(items)", "window": "tumbling 1m"},
        "weight": {"agg": "sum(weight)", "window": "tumbling 1m"},
    },
}
JSON = parse_catalog(TREE, {}, "test")
AVRO = parse_catalog(TREE | {"format": "avro"}, {}, "test")
PLAIN = {"id": "string", "ts": "long", "user": "string"}


class FakeRegistry:
    """Schemas by id; `away` many questions are not answered."""

    def __init__(self, schemas: Mapping[int, Any] | None = None, away: int = 0) -> None:
        self.schemas = dict(schemas or {})
        self.references: list[Any] = []
        self.away = away
        self.asked = 0

    def schema(self, number: int) -> tuple[Any, list[Any]]:
        self.asked += 1
        if self.away:
            self.away -= 1
            raise RegistryUnavailableError
        if number not in self.schemas:
            raise UnknownSchemaError
        return self.schemas[number], self.references

    def register(self, _: str, schema: Any) -> int:
        self.schemas[1] = schema
        return 1


def record(**types: Any) -> dict[str, Any]:
    return {"type": "record", "name": "shop", "fields": [{"name": n, "type": t} for n, t in types.items()]}


def framed(number: int, schema: Any, values: Any) -> bytes:
    out = io.BytesIO()
    out.write(b"\0" + number.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), values)
    return out.getvalue()


def reader(registry: FakeRegistry, catalog: Catalog = AVRO) -> AvroReader:
    made = AvroReader("http://nowhere", catalog.event_time_field, catalog.event_time_unit, 0.0)
    made._registry = registry  # type: ignore[assignment]
    return made


def decoded(values: list[bytes | None], registry: FakeRegistry, catalog: Catalog = AVRO) -> Any:
    numbers = list(range(len(values)))
    return Decoder(catalog, reader(registry, catalog)).decode(0, numbers, [NOW] * len(values), values)


def only(value: bytes, registry: FakeRegistry, catalog: Catalog = AVRO) -> dict[str, Any]:
    found = decoded([value], registry, catalog)
    assert found.dead_letters.is_empty(), found.dead_letters.to_dicts()
    (event,) = found.events.to_dicts()
    return event


def reason(value: bytes | None, registry: FakeRegistry, catalog: Catalog = AVRO) -> str:
    (dead,) = decoded([value], registry, catalog).dead_letters.to_dicts()
    return str(dead["reason"])


def one(catalog: Catalog = AVRO, **fields: tuple[Any, Any]) -> tuple[bytes, FakeRegistry]:
    """A record whose fields have these types and values, besides those that every event has."""
    schema = record(**(PLAIN | {name: kind for name, (kind, _) in fields.items()}))
    values = {"id": "a", "ts": NOW, "user": "u"} | {name: value for name, (_, value) in fields.items()}
    return framed(1, schema, values), FakeRegistry({1: schema})


def test_a_catalog_of_another_format_needs_to_be_told_how_it_is_read() -> None:
    with pytest.raises(ValueError, match="`unframe` reads every format but json"):
        Decoder(AVRO)
    with pytest.raises(ValueError, match="`unframe` reads every format but json"):
        Decoder(JSON, reader(FakeRegistry()))
    assert unframe_of(Settings(), JSON, patience_s=None) is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "no_value"),
        (b"", "not_avro"),
        (b"\0\0\0\0", "not_avro"),
        (b'{"id": "a"}', "not_avro"),
        (b"\x01\0\0\0\x01abc", "not_avro"),
        (b"\0\0\0\0\x01", "not_avro"),
        (b"\0\0\0\0\x09abc", "unknown_schema"),
        (b"\0\xff\xff\xff\xffabc", "unknown_schema"),
        (b"\0\0\0\0\x02abc", "not_avro"),
        (b"\0" * 1_000_001, "too_large"),
    ],
)
def test_bytes_that_are_no_record_are_dead_letters(value: bytes | None, why: str) -> None:
    registry = FakeRegistry({1: record(**PLAIN), 2: "PROTOBUF"})
    assert reason(value, registry) == why


def test_damage_anywhere_in_a_record_is_a_dead_letter() -> None:
    value, registry = one()
    assert reason(value[:-1], registry) == "not_avro"
    assert reason(value + b"x", registry) == "not_avro"
    assert reason(value.replace(b"u", b"\xff"), registry) == "not_avro"


def test_one_bad_record_takes_no_other_with_it() -> None:
    value, registry = one()
    found = decoded([value, b"x", value], registry)
    assert (found.events["offset"].to_list(), found.dead_letters["offset"].to_list()) == ([0, 2], [1])


def test_a_registry_that_is_away_makes_no_dead_letter() -> None:
    value, registry = one()
    registry.away = 1
    read = Decoder(AVRO, reader(registry))
    with pytest.raises(RegistryUnavailableError):
        read.decode(0, [0], [NOW], [value])
    assert read.decode(0, [0], [NOW], [value]).events.height == 1


def test_the_registry_is_asked_once_for_a_schema() -> None:
    value, registry = one()
    decoded([value] * 50, registry)
    assert registry.asked == 1
    decoded([b"\0\0\0\0\x09" + b"x" * n for n in range(50)], registry := FakeRegistry())
    assert registry.asked == 1


def test_a_patient_client_asks_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    registry = Registry("http://name:secret@127.0.0.1:9", None, slept.append)
    answers = iter([OSError("refused"), OSError("refused"), 7])

    def answer() -> int:
        found = next(answers)
        if isinstance(found, OSError):
            raise found
        return found

    assert registry._ask("a schema", answer) == 7
    assert len(slept) == 2


def test_an_impatient_client_says_where_it_asked_without_the_password() -> None:
    registry = Registry("http://name:secret@127.0.0.1:9/registry", 0.0)
    with pytest.raises(RegistryUnavailableError, match=r"answered at `http://127.0.0.1:9/registry` when") as caught:
        registry.schema(1)
    assert "secret" not in str(caught.value)


def test_a_reader_travels_to_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(AvroReader("http://r", "ts", "us", 1.0)))
    assert sent._settings == ("http://r", "ts", "us", 1.0)


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, Decimal("-12.30"), "-12.30"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 4}, Decimal("12.3000"), "12.30"),
        (["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}], Decimal("0.00"), "0.00"),
        (
            ["null", {"type": "fixed", "name": "m", "size": 8, "logicalType": "decimal", "precision": 9, "scale": 2}],
            Decimal("-0.01"),
            "-0.01",
        ),
        (["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}], None, None),
        ("string", "1.5", "1.50"),
        ("long", 3, "3.00"),
        ("double", 1.1, "1.10"),
    ],
)
def test_a_decimal_is_read_from_every_type_that_holds_it_exactly(kind: Any, value: Any, read: str | None) -> None:
    found = only(*one(amount=(kind, value)))["f_amount"]
    assert (None if found is None else str(found)) == read


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [
        ("amount", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 3}, Decimal("0.001")),
        ("amount", {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 0}, Decimal(10) ** 18),
        ("amount", "bytes", b"\x01"),
        ("amount", "float", 0.1),
        ("amount", "double", math.nan),
        ("amount", ["bytes", {"type": "fixed", "name": "f", "size": 1}], b"\x01"),
        ("weight", "double", math.nan),
        ("weight", "double", -math.inf),
        ("weight", "string", "1.5"),
        ("items", "double", 3.0),
        ("items", "boolean", True),
        ("items", "string", "3"),
        ("member", "int", 1),
        ("country", "bytes", b"DE"),
        ("country", {"type": "array", "items": "string"}, ["DE"]),
    ],
)
def test_a_value_of_another_type_is_a_dead_letter(field: str, kind: Any, value: Any) -> None:
    assert reason(*one(**{field: (kind, value)})) == "wrong_type"


def test_a_decimal_of_very_many_digits_is_a_dead_letter() -> None:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    schema = record(**PLAIN, amount="bytes")
    value = framed(1, schema, {"id": "a", "ts": NOW, "user": "u", "amount": b"\x7f" * 500_000})
    assert reason(value, FakeRegistry({1: record(**PLAIN, amount=kind)})) == "wrong_type"


def test_a_decimal_with_more_digits_than_its_schema_says_is_not_rounded() -> None:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 2}
    value = framed(1, record(**PLAIN, amount="bytes"), {"id": "a", "ts": NOW, "user": "u", "amount": b"\x01\xe2\x40"})
    assert str(only(value, FakeRegistry({1: record(**PLAIN, amount=kind)}))["f_amount"]) == "1234.56"


def test_enums_are_text_and_smaller_numbers_are_numbers() -> None:
    country = {"type": "enum", "name": "c", "symbols": ["DE", "FR"]}
    event = only(*one(country=(country, "FR"), items=("int", 7), weight=("float", 0.5), member=("boolean", True)))
    assert (event["f_country"], event["f_items"], event["f_weight"], event["f_member"]) == ("FR", 7, 0.5, True)


@pytest.mark.parametrize(
    ("unit", "logical", "stored"),
    [
        ("ms", "timestamp-millis", NOW + 1),
        ("ms", "timestamp-micros", (NOW + 1) * 1000 + 999),
        ("us", "timestamp-millis", NOW + 1),
        ("us", "timestamp-micros", (NOW + 1) * 1000),
        ("iso", "timestamp-micros", (NOW + 1) * 1000),
        ("iso", "local-timestamp-millis", NOW + 1),
        ("s", "timestamp-millis", NOW + 999),
    ],
)
def test_a_timestamp_is_read_by_its_own_unit(unit: str, logical: str, stored: int) -> None:
    catalog = replace(AVRO, event_time_unit=unit)
    event = only(*one(ts=({"type": "long", "logicalType": logical}, stored)), catalog)
    assert event["event_time"] == (NOW if unit == "s" else NOW + 1)


def test_a_timestamp_out_of_range_is_a_dead_letter() -> None:
    kind = {"type": "long", "logicalType": "timestamp-millis"}
    for unit in ("ms", "iso"):
        catalog = replace(AVRO, event_time_unit=unit)
        assert reason(*one(ts=(kind, 2**62)), catalog) == "event_time_out_of_range"
        assert reason(*one(ts=(["null", kind], None)), catalog) == "wrong_type"


def test_a_field_that_an_old_schema_lacks_is_missing() -> None:
    old, new = record(**PLAIN), record(**PLAIN, country=["null", "string"], amount=["null", "string"])
    event = {"id": "a", "ts": NOW, "user": "u"}
    values = [framed(1, old, event), framed(2, new, event | {"country": "DE", "amount": "1.5"})]
    found = decoded(values, FakeRegistry({1: old, 2: new})).events
    assert found["f_country"].to_list() == ["unknown", "DE"]
    assert found["f_amount"].to_list() == [None, Decimal("1.50")]


def test_a_required_field_that_a_schema_lacks_is_a_dead_letter() -> None:
    schema = record(id="string", ts="long")
    assert reason(framed(1, schema, {"id": "a", "ts": NOW}), FakeRegistry({1: schema})) == "missing_field"


def test_a_schema_may_refer_to_others() -> None:
    money = {"type": "fixed", "name": "money", "size": 4, "logicalType": "decimal", "precision": 9, "scale": 2}
    written = record(**PLAIN, amount=money)
    registry = FakeRegistry({1: record(**PLAIN, amount="money")})
    registry.references = [money]
    value = framed(1, written, {"id": "a", "ts": NOW, "user": "u", "amount": Decimal("2.50")})
    assert str(only(value, registry)["f_amount"]) == "2.50"


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (["null", "shop"], "`shop` holds itself, which is not read"),
        ({"type": "map", "values": ["null", "shop"]}, "`shop` holds itself, which is not read"),
        ({"type": "array", "items": "null"}, "an array of values without bytes is not read"),
        ({"type": "array", "items": record(nothing="null") | {"name": "n"}}, "an array of values without bytes"),
    ],
)
def test_a_schema_whose_records_could_bring_the_reader_down_is_not_read(kind: Any, cause: str) -> None:
    found = decoded([b"\0\0\0\0\x01" + b"\x02" * 20_000], FakeRegistry({1: record(**PLAIN, next=kind)}))
    (dead,) = found.dead_letters.to_dicts()
    assert dead["reason"] == "not_avro"
    assert cause in dead["detail"]


def test_types_may_be_used_again_and_nested() -> None:
    money = {"type": "fixed", "name": "money", "size": 4, "logicalType": "decimal", "precision": 9, "scale": 2}
    lines = {"type": "array", "items": {"type": "record", "name": "line", "fields": [{"name": "p", "type": "money"}]}}
    schema = record(**PLAIN, amount=money, paid="money", lines=lines, more={"type": "map", "values": "line"})
    event = {"id": "a", "ts": NOW, "user": "u", "amount": Decimal("1.50"), "paid": Decimal("0.50")}
    values = event | {"lines": [{"p": Decimal("1.00")}], "more": {"x": {"p": Decimal("2.00")}}}
    assert str(only(framed(1, schema, values), FakeRegistry({1: schema}))["f_amount"]) == "1.50"


# What is written.


def writer(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry) -> AvroWriter:
    monkeypatch.setattr("infra.avro_writer.Registry", lambda *_: registry)
    return AvroWriter(Settings(), catalog)


def test_the_schema_follows_from_the_catalog() -> None:
    types = {field["name"]: field["type"] for field in schema_of(AVRO)["fields"]}
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 2}
    assert types == {
        "id": "string",
        "ts": {"type": "long", "logicalType": "timestamp-millis"},
        "user": "string",
        "country": ["null", "string"],
        "amount": ["null", decimal],
        "items": ["null", "long"],
        "weight": ["null", "double"],
        "member": ["null", "boolean"],
    }
    assert subject_of(AVRO) == "events.shop-value"


def test_a_name_that_avro_lacks_is_refused() -> None:
    with pytest.raises(AvroNameError, match=r"letters, digits and _; got `user-id`. rename it, or use json"):
        schema_of(replace(AVRO, event_id="user-id"))


FIELDS = st.fixed_dictionaries(
    {"id": st.text(), "ts": st.integers(NOW - 10**7, NOW), "user": st.text()},
    optional={
        "country": st.none() | st.text(),
        "amount": st.none() | st.decimals(-(10**17), 10**17, places=2).map(str) | st.integers(-(10**17), 10**17),
        "items": st.none() | st.integers(-(2**63), 2**63 - 1),
        "weight": st.none() | st.floats(-1e100, 1e100) | st.integers(-(2**53), 2**53),
        "member": st.none() | st.booleans(),
    },
)


@given(st.lists(FIELDS, max_size=8), st.sampled_from(["ms", "us", "s", "iso"]))
def test_json_and_avro_give_the_same_events(events: list[dict[str, Any]], unit: str) -> None:
    moments = {"ms": lambda t: t, "us": lambda t: t * 1000, "s": lambda t: t // 1000, "iso": _iso}
    events = [event | {"ts": moments[unit](event["ts"])} for event in events]
    texts = [json.dumps(event, ensure_ascii=False).encode() for event in events]
    registry = FakeRegistry()
    with pytest.MonkeyPatch.context() as patch:
        encode = writer(replace(AVRO, event_time_unit=unit), patch, registry)
    offsets, times = list(range(len(texts))), [NOW] * len(texts)
    plain = Decoder(replace(JSON, event_time_unit=unit)).decode(0, offsets, times, texts)
    framed_ = decoded([encode(text) for text in texts], registry, replace(AVRO, event_time_unit=unit))
    assert plain.dead_letters.is_empty()
    assert framed_.dead_letters.is_empty()
    assert plain.events.equals(framed_.events, null_equal=True)


def _iso(moment: int) -> str:
    return str(pl.Series([moment]).cast(pl.Datetime("ms")).dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ")[0])


@pytest.mark.parametrize("zero", [-0.0, 0.0])
def test_the_negative_zero_is_zero_in_both_formats(zero: float) -> None:
    text = json.dumps({"id": "a", "ts": NOW, "user": "u", "weight": zero}).encode()
    plain = Decoder(JSON).decode(0, [0], [NOW], [text]).events["f_weight"][0]
    avro = only(*one(weight=("double", zero)))["f_weight"]
    assert [math.copysign(1, value) for value in (plain, avro)] == [1, 1]
