"""The typed model of a catalog file: every key with its type, default, meaning and an example.

The catalog reference in docs/ and the JSON Schema for editors are made from this model.
"""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic import Field as Option
from pydantic_core import PydanticCustomError

from metrics.window import format_duration, parse_duration

DURATION_PATTERN = r"^\d+(ms|s|m|h|d)$"
NAME_RULE = "a name is lower case letters, digits and _, begins with a letter and has at most 63 characters"
OWNER_RULE = "an owner is an e-mail address, or `team:` and a name of letters, digits and _"
DURATION_UNIT = "ms, s, m, h or d"

Scalar = str | int | float | bool
TypeName = Literal["string", "int", "float", "bool", "decimal"]


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _typed(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def _scalar(value: object) -> object:
    if value is None or isinstance(value, Scalar):
        return value
    # a union would refuse it once for each of its types
    kind = "scalar_type"
    raise PydanticCustomError(kind, "a scalar is a text, a number, or true or false")


Duration = Annotated[
    timedelta, BeforeValidator(_duration), WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
]
Names = Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]


def option(
    description: str,
    example: Any,
    *,
    unit: str = "",
    error: str = "",
    **rules: Any,  # noqa: ANN401 - any YAML value
) -> Any:  # noqa: ANN401 - pydantic's own
    """A key of a mapping.

    Args:
        description: What it means.
        example: A value of it, as a catalog has it.
        unit: Of its value, if that has one.
        error: The rule that a value of the right type may still break, as the refusal begins; "" where there is none.
        rules: Its default and limits.
    """
    extra: dict[str, Any] = {"x-unit": unit, "x-error": error}
    if isinstance(default := rules.get("default"), timedelta):
        extra["default"] = format_duration(default)
    return Option(description=description, examples=[example], json_schema_extra=extra, **rules)


class Part(BaseModel):
    """A mapping of a catalog file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EventTimePart(Part):
    """Where an event says when it happened."""

    field: str = option("The field that holds the event time.", "ts")
    unit: Literal["us", "ms", "s", "iso"] = option(
        "Microseconds, milliseconds or seconds since 1970-01-01T00:00:00Z, or ISO 8601 text (without a zone: UTC).",
        "ms",
        default="ms",
    )


class FieldPart(Part):
    """A field of the events; a bare type name stands for a mapping with only `type`."""

    type: TypeName = option("The type that a value must have; another is a dead letter. Money is a decimal.", "decimal")
    scale: int = option(
        "Digits after the point of a decimal; a value with more is a dead letter.",
        2,
        default=0,
        ge=0,
        le=18,
        unit="digits",
        error="only a decimal has a scale",
    )
    default: Annotated[Scalar | None, BeforeValidator(_scalar)] = option(
        "What a missing field or a null reads as; without it, NULL.",
        "unknown",
        default=None,
        error="the default must be of the field's type",
    )
    required: bool = option("Whether an event without it is a dead letter.", example=True, default=False)


Fields = dict[str, Annotated[FieldPart, BeforeValidator(_typed, json_schema_input_type=TypeName | FieldPart)]]


class LookupPart(Part):
    """A lookup: a compacted topic whose records say what is known of a key, from when on; events are joined with it."""

    topic: str = option(
        "The compacted topic. A record's message key is the text that is looked up, its value a JSON object; one "
        "without a value deletes.",
        "customers.v1",
        error="a lookup has a topic of its own",
    )
    key: str = option("The field whose text is looked up.", "user_id", error="`key` of a lookup must be a field")
    fields: Fields = option(
        "The fields of a record, by name; an event has them as LOOKUP_FIELD. Where there is no version, they read as "
        "their default, else as NULL.",
        {"segment": "string"},
        min_length=1,
        error="a joined field must not have the name of another field",
    )


class MetricPart(Part):
    """A metric: an aggregation by window, or a ratio of two metrics."""

    agg: str | None = option(
        "The aggregation: count, sum(E), min(E), max(E), mean(E), stddev(E), distinct(E), quantile(E, Q), top(E, K), "
        "last(E) or level(SET, CHANGE); E is an expression over fields.",
        "sum(amount)",
        default=None,
        error="unknown aggregation",
    )
    ratio: Names | None = option(
        "Numerator and denominator: two metrics with the same dimensions; instead of `agg`.",
        ["purchases", "views"],
        default=None,
        error="a ratio names two metrics",
    )
    where: str | None = option(
        "Which events count: a condition over fields, in SQL.",
        "event_type = 'purchase'",
        default=None,
        error="unknown field",
    )
    by: Names = option(
        "Dimensions: fields by whose values the metric is split, at most four.",
        ["country"],
        default=[],
        error="a metric has at most 4 dimensions",
    )
    window: Names = option(
        "The windows: tumbling SIZE, sliding SIZE every PERIOD, session GAP [max LENGTH], day ZONE, week ZONE, "
        "month ZONE or global. A ratio's default is the windows that both metrics have.",
        ["tumbling 1m", "day Europe/Berlin"],
        default=[],
        error="unknown window",
    )
    description: str = option("What the metric says, for people.", "Paid orders", default="")
    unit: str = option("The unit of its values, for people.", "EUR", default="")


class AlertPart(Part):
    """An alert: raised once when a value over the last `within` of a key crosses a threshold."""

    when: str = option(
        "What is watched: count, sum(E), share(CONDITION) or the name of a level metric; then > >= < <= and a number.",
        "count > 3",
        error="`when` is a value, an operator of > >= < <= and a number",
    )
    where: str | None = option("Which events count.", "event_type = 'purchase'", default=None, error="unknown field")
    by: Names = option(
        "The fields whose values name a key; default: one key for all.",
        ["user_id"],
        default=[],
        error="unknown field",
    )
    within: Duration | None = option(
        "The sliding time; every alert but that of a level metric has one.",
        "2m",
        default=None,
        unit=DURATION_UNIT,
        error="an alert needs `within`",
    )
    at_least: int = option(
        "Events that a share needs before it is judged.", 20, default=1, ge=1, le=1_000_000, unit="events"
    )
    topic: str | None = option(
        "Where the alerts are sent; default: alerts.SOURCE.NAME.",
        "alerts.card_velocity",
        default=None,
        error="an alert's topic holds alerts alone",
    )
    description: str = option("What a person should know.", "Many card payments within minutes", default="")


class CatalogPart(Part):
    """A catalog file: one source of events, its fields, metrics and alerts."""

    source: str = option("The name of the source; also of its database.", "shop", error=NAME_RULE)
    topic: str = option(
        "The Kafka topic of the events. Dead letters go to TOPIC.dlq, late events to TOPIC.late.", "events.shop.v1"
    )
    format: Literal["json", "avro"] = option(
        "How a record is written: JSON, or Avro in Confluent's framing.", "json", default="json"
    )
    registry: str | None = option(
        "The URL of the schema registry, for avro; default: that of the settings.",
        "http://127.0.0.1:8081",
        default=None,
        error="only avro has a schema registry",
    )
    event_id: str = option("The field that names an event; the same id and time again is a duplicate.", "event_id")
    event_time: EventTimePart = option("Where an event says when it happened.", {"field": "ts", "unit": "ms"})
    key: str | None = option(
        "The field that is the message key: sessions are of its values.",
        "user_id",
        default=None,
        error="`key` must be a field",
    )
    out_of_orderness: Duration = option(
        "How far the watermark stays behind the greatest record timestamp.",
        "10s",
        default=timedelta(seconds=10),
        unit=DURATION_UNIT,
        error="`out_of_orderness` must not be negative",
    )
    allowed_lateness: Duration = option(
        "How long after `out_of_orderness` an event still counts in the speed layer; what is sent later is late, and "
        "only the batch layer counts it.",
        "1h",
        default=timedelta(hours=1),
        unit=DURATION_UNIT,
        error="`allowed_lateness` must not be negative",
    )
    dedup_horizon: int = option(
        "Offsets per topic partition within which the speed layer knows a copy.",
        500_000,
        default=500_000,
        ge=0,
        unit="offsets",
    )
    topic_partitions: int = option(
        "Partitions of the topic, where `lockstep` creates it.", 4, default=4, ge=1, le=1024, unit="partitions"
    )
    owners: Names = option(
        "Whom to ask about the source, an e-mail address or `team:` and a name; Dagster shows them at its assets.",
        ["team:shop"],
        default=[],
        error=OWNER_RULE,
    )
    fields: Fields = option("The fields of the events that metrics use, by name.", {"user_id": "string"})
    lookups: dict[str, LookupPart] = option(
        "The compacted topics that events are joined with, by name.",
        {"customers": {"topic": "customers.v1", "key": "user_id", "fields": {"segment": "string"}}},
        default={},
    )
    metrics: dict[str, MetricPart] = option(
        "The metrics, by name.", {"events": {"agg": "count", "window": "tumbling 1m"}}, min_length=1
    )
    alerts: dict[str, AlertPart] = option(
        "The alerts, by name.", {"burst": {"when": "count > 100", "within": "1m"}}, default={}
    )
