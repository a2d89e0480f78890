"""Writes events as Avro records under a schema that follows from the catalog and is kept in the schema registry."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Context, Decimal
from typing import Any

import fastavro

from infra.avro import HEADER_BYTES, MAGIC
from infra.registry import Registry, registry_address
from infra.settings import Settings
from metrics.catalog import Catalog, Field
from metrics.event import Decoder

DECIMAL_DIGITS = 38
"""Of every decimal, whatever its scale: a field that gets more digits keeps its schema."""

_WAIT_S = 10.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WIDE = Context(prec=DECIMAL_DIGITS * 2)
_TYPES = {"string": "string", "int": "long", "float": "double", "bool": "boolean"}
_TIMES: dict[str, Any] = {
    "ms": {"type": "long", "logicalType": "timestamp-millis"},
    "us": {"type": "long", "logicalType": "timestamp-micros"},
    "s": "long",
    "iso": "string",
}


class AvroNameError(ValueError):
    """A field has a name that Avro does not allow."""


def subject_of(catalog: Catalog) -> str:
    """The subject of a topic's records, by Confluent's default."""
    return f"{catalog.topic}-value"


def schema_of(catalog: Catalog) -> dict[str, Any]:
    """The Avro schema of a catalog's events.

    The id and the time are always there, as are required fields; any other may be null, and is so by default, so that
    a catalog may gain and lose such fields while its log goes on. Defaults stay in the catalog.

    Raises:
        AvroNameError: A field's name is none in Avro.
    """
    fields: dict[str, dict[str, Any]] = {
        catalog.event_id: {"name": catalog.event_id, "type": "string"},
        catalog.event_time_field: {"name": catalog.event_time_field, "type": _TIMES[catalog.event_time_unit]},
    }
    for name, field in catalog.fields.items():
        if name in fields:
            continue
        kind = _type_of(field)
        fields[name] = {"name": name, "type": kind if field.required else ["null", kind]}
        if not field.required:
            fields[name]["default"] = None
    for name in fields:
        if not _NAME.fullmatch(name):
            msg = f"a field of Avro must have a name of letters, digits and _; got `{name}`. rename it, or use json"
            raise AvroNameError(msg)
    return {"type": "record", "name": catalog.source, "namespace": "lockstep", "fields": list(fields.values())}


class AvroWriter:
    """Turns events in JSON into framed Avro records; the schema is registered at once.

    Raises:
        AvroNameError: A field's name is none in Avro.
        SchemaRefusedError: The registry holds a schema whose records the new one could not read.
        RegistryUnavailableError: It does not answer.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        schema = schema_of(catalog)
        self._decoder = Decoder(replace(catalog, format="json"))
        self._decimals = {
            name: Decimal(1).scaleb(-field.scale) for name, field in catalog.fields.items() if field.type == "decimal"
        }
        number = Registry(registry_address(settings, catalog), _WAIT_S).register(subject_of(catalog), schema)
        self._header = bytes([MAGIC]) + number.to_bytes(HEADER_BYTES - 1, "big")
        self._schema = fastavro.parse_schema(schema)

    def __call__(self, event: bytes) -> bytes:
        """The record of an event; of what the catalog does not name, nothing is written.

        Raises:
            DeadLetterError: A value is not what the catalog asks for, so that the schema has no place for it.
        """
        return self.write(self._decoder.fields(event))

    def write(self, values: Mapping[str, Any]) -> bytes:
        """The record of values that are of the catalog's types."""
        exact = {
            name: None if (value := values.get(name)) is None else value.quantize(step, context=_WIDE)
            for name, step in self._decimals.items()
        }
        out = io.BytesIO()
        out.write(self._header)
        fastavro.schemaless_writer(out, self._schema, {**values, **exact})
        return out.getvalue()


def _type_of(field: Field) -> Any:  # noqa: ANN401
    if field.type == "decimal":
        return {"type": "bytes", "logicalType": "decimal", "precision": DECIMAL_DIGITS, "scale": field.scale}
    return _TYPES[field.type]
