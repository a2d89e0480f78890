"""Avro records in Confluent's framing: a zero byte, the schema's id in four bytes, big endian, then Avro's binary form.

Each record is read with the schema that it was written with, so records of older and newer schemas stand side by side
in one log; a field that a schema does not have is missing, and the catalog says what that means. Of Avro's logical
types two are read: a decimal, in any field, and a timestamp, as the event time. Everything else is read as the type
that it is stored as.
"""

import io
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from functools import partial
from typing import Any

import fastavro

from infra.registry import Registry, UnknownSchemaError, registry_address
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.event import LATEST_EVENT_TIME, DeadLetterError, Unframe

MAGIC = 0
HEADER_BYTES = 5
NOT_AVRO, UNKNOWN_SCHEMA = "not_avro", "unknown_schema"

_LARGEST_ID = 2**31 - 1
_ASK_AGAIN_S = 10.0
_LARGEST_BITS = 256
_LARGEST_SCALE = 1_000
_WIDE = Context(prec=100, Emax=10_000, Emin=-10_000)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PER_SECOND = {
    "timestamp-millis": 1_000,
    "timestamp-micros": 1_000_000,
    "timestamp-nanos": 1_000_000_000,
    "local-timestamp-millis": 1_000,
    "local-timestamp-micros": 1_000_000,
    "local-timestamp-nanos": 1_000_000_000,
    "s": 1,
    "ms": 1_000,
    "us": 1_000_000,
}

Convert = Callable[[Any], Any]


def unframe_of(settings: Settings, catalog: Catalog, *, patience_s: float | None) -> Unframe | None:
    """How records of a catalog's topic are taken apart; None for JSON, which needs no help.

    Args:
        settings: Where the schema registry is, unless the catalog says so itself.
        catalog: Of the source.
        patience_s: How long a registry that is away is waited for; None: for ever.
    """
    if catalog.format == "json":
        return None
    address = registry_address(settings, catalog)
    return AvroReader(address, catalog.event_time_field, catalog.event_time_unit, patience_s)


def schema_ids(values: Iterable[bytes | None]) -> set[int]:
    """The ids of writer schemas that stand in framed records; of those that are no such records, none."""
    framed = {value[:HEADER_BYTES] for value in values if value and len(value) >= HEADER_BYTES and value[0] == MAGIC}
    return {int.from_bytes(head[1:], "big") for head in framed}


@dataclass(frozen=True)
class Shape:
    """How records of one schema are read: the schema, and what is done to fields of a logical type."""

    schema: Any
    conversions: tuple[tuple[str, Convert], ...]


class AvroReader:
    """Takes framed Avro records apart. It can be sent to another process, where it asks the registry anew.

    Args:
        address: The schema registry's URL.
        event_time_field: Of the catalog.
        event_time_unit: Of the catalog; a timestamp is cut down to it.
        patience_s: How long a registry that is away is waited for; None: for ever.
    """

    def __init__(
        self, address: str, event_time_field: str, event_time_unit: str, patience_s: float | None = None
    ) -> None:
        self._settings = (address, event_time_field, event_time_unit, patience_s)
        self._registry = Registry(address, patience_s)
        self._time = (event_time_field, event_time_unit)
        self._shapes: dict[int, Shape] = {}
        self._unreadable: dict[int, str] = {}
        self._unknown: dict[int, float] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["AvroReader"], tuple[Any, ...]]:
        return AvroReader, self._settings

    def __call__(self, value: bytes) -> Mapping[str, Any]:
        """The fields of a record.

        Raises:
            DeadLetterError: It is no framed Avro record (`not_avro`), or the registry knows no such schema.
            RegistryUnavailableError: The registry did not answer in time.
        """
        if len(value) < HEADER_BYTES or value[0] != MAGIC:
            raise DeadLetterError(NOT_AVRO, f"a record begins with a zero byte and a schema id; got {value[:5].hex()}")
        number = int.from_bytes(value[1:HEADER_BYTES], "big")
        shape = self._shapes.get(number) or self._shape(number)
        body = io.BytesIO(value)
        body.seek(HEADER_BYTES)
        try:
            record: dict[str, Any] = fastavro.schemaless_reader(body, shape.schema, None)  # type: ignore[assignment]
        except Exception as error:  # damaged bytes break fastavro in ever new ways
            detail = f"the bytes do not fit schema {number}: {type(error).__name__} {error}"
            raise DeadLetterError(NOT_AVRO, detail) from error
        if body.tell() != len(value):
            raise DeadLetterError(NOT_AVRO, f"{len(value) - body.tell()} bytes follow the record of schema {number}")
        for name, convert in shape.conversions:
            record[name] = convert(record[name])
        return record

    def _shape(self, number: int) -> Shape:
        """What the registry says of an id: a schema, for good; that there is none, for now, as it may come later."""
        with self._lock:
            if number in self._shapes:
                return self._shapes[number]
            if number in self._unreadable:
                raise DeadLetterError(NOT_AVRO, self._unreadable[number])
            detail = f"the registry has no schema {number}"
            if not 0 < number <= _LARGEST_ID or time.monotonic() < self._unknown.get(number, 0.0):
                raise DeadLetterError(UNKNOWN_SCHEMA, detail)
            try:
                schema, references = self._registry.schema(number)
            except UnknownSchemaError as error:
                self._unknown[number] = time.monotonic() + _ASK_AGAIN_S
                raise DeadLetterError(UNKNOWN_SCHEMA, detail) from error
            try:
                self._shapes[number] = shape_of(schema, references, *self._time)
            except Exception as error:  # a registry may hold anything
                self._unreadable[number] = f"schema {number} is no Avro record: {error}"
                raise DeadLetterError(NOT_AVRO, self._unreadable[number]) from error
            return self._shapes[number]


def shape_of(schema: Any, references: list[Any], event_time_field: str, event_time_unit: str) -> Shape:  # noqa: ANN401
    """How records of a schema are read.

    Args:
        schema: The schema's plain values.
        references: Those of the schemas that it names, before it.
        event_time_field: Of the catalog.
        event_time_unit: Of the catalog.

    Raises:
        ValueError: It is not a record's, or some bytes in it would take any depth or memory to read.
        SchemaParseException: It is not Avro's.
    """
    named: dict[str, Any] = {}
    for reference in references:
        fastavro.parse_schema(_untyped(reference), named)
    parsed: Any = fastavro.parse_schema(_untyped(schema), named)
    if not isinstance(parsed, dict) or parsed["type"] != "record":
        msg = "its type is not `record`"
        raise ValueError(msg)
    _smallest(parsed, named, {})
    conversions: list[tuple[str, Convert]] = []
    for field in parsed["fields"]:
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        types = [named.get(each, {"type": each}) if isinstance(each, str) else each for each in branches]
        # Of two branches that look the same once they are read, nobody can say which it was.
        binary = [each for each in types if each["type"] in {"bytes", "fixed"}]
        whole = [each for each in types if each["type"] in {"int", "long"}]
        name, unit = field["name"], whole[0].get(_LOGICAL) if len(whole) == 1 else None
        if len(binary) == 1 and binary[0].get(_LOGICAL) == "decimal":
            scale = binary[0].get("scale", 0)
            if 0 <= scale <= _LARGEST_SCALE:
                conversions.append((name, partial(_decimal, name, scale)))
        elif name == event_time_field and unit in _PER_SECOND:
            conversions.append((name, partial(_time, _PER_SECOND[unit], event_time_unit)))
    return Shape(parsed, tuple(conversions))


_LOGICAL = "logical"


def _untyped(schema: Any) -> Any:  # noqa: ANN401
    """A schema without logical types, by which fastavro would round and limit, and defaults, which nobody reads.

    The key of the logical type is renamed, so that it can still be found in what fastavro makes of the schema.
    """
    if isinstance(schema, list):
        return [_untyped(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name not in {"default", "logicalType", _LOGICAL}}
    for part in ("type", "items", "values", "fields"):
        if part in kept:
            kept[part] = _untyped(kept[part])
    return kept | ({_LOGICAL: schema["logicalType"]} if "logicalType" in schema else {})


_BYTES = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1, "enum": 1}


def _smallest(schema: Any, named: Mapping[str, Any], known: dict[str, int | None]) -> int:  # noqa: ANN401
    """The least number of bytes of a value. Bytes are not read that could bring the process down.

    fastavro reads a record inside itself by recursion in C, which ten thousand levels end with a fault; and an array
    of values that take no bytes has any length in a few.

    Args:
        schema: As fastavro parsed it.
        named: Its named types.
        known: Those looked at; None while they are.

    Raises:
        ValueError: A record holds itself, or an array values without bytes.
    """
    if isinstance(schema, list):
        return 1 + min(_smallest(branch, named, known) for branch in schema) if schema else 1
    node = named.get(schema, {"type": schema}) if isinstance(schema, str) else schema
    kind, name = node["type"], node.get("name", "")
    if name in known:
        least = known[name]
        if least is None:
            msg = f"`{name}` holds itself, which is not read"
            raise ValueError(msg)
        return least
    if name:
        known[name] = None
    match kind:
        case "record" | "error":
            least = sum(_smallest(field["type"], named, known) for field in node["fields"])
        case "array":
            if not _smallest(node["items"], named, known):
                msg = "an array of values without bytes is not read"
                raise ValueError(msg)
            least = 1
        case "map":
            _smallest(node["values"], named, known)
            least = 1
        case "fixed":
            least = node["size"]
        case _:
            least = _BYTES[kind]
    if name:
        known[name] = least
    return least


def _decimal(name: str, scale: int, value: Any) -> Any:  # noqa: ANN401
    """The number of a two's complement, exactly; what is of another branch of the union stays as it is."""
    if not isinstance(value, bytes):
        return value
    number = int.from_bytes(value, "big", signed=True)
    if number.bit_length() > _LARGEST_BITS:
        reason, detail = "wrong_type", f"`{name}` must have fewer digits; got a decimal of {len(value)} bytes"
        raise DeadLetterError(reason, detail)
    return Decimal(number).scaleb(-scale, _WIDE)


def _time(per_second: int, unit: str, value: Any) -> Any:  # noqa: ANN401
    """A timestamp in the catalog's unit."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if unit != "iso":
        return value * _PER_SECOND[unit] // per_second
    at = value * 1_000 // per_second
    if not 0 <= at < LATEST_EVENT_TIME:
        reason = "event_time_out_of_range"
        raise DeadLetterError(reason, f"{at} ms since 1970 is not between 1970 and 2200")
    return (_EPOCH + timedelta(milliseconds=at)).isoformat()
