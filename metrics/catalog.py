"""The catalog: one definition of every metric; both layers, tables, views and the dashboard follow from it.

A file is turned into a `Catalog` by `parse_catalog`: `metrics.catalog_parts` has the typed model of the file, and
`metrics.catalog_build` the rules that go beyond types.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property

from metrics.aggregation import SEMANTICS_VERSION, Aggregation
from metrics.alert import Alert
from metrics.expression import Condition
from metrics.hashing import digest
from metrics.window import AnyWindow, SessionWindow, SlicedWindow, slice_width

FIELD_TYPES = ("string", "int", "float", "bool", "decimal")
MOST_DIMENSIONS = 4

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a catalog: where, which rule, what was found and the way out."""

    file: str
    line: int
    rule: str
    value: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}; got `{self.value}`. {self.hint}"


class CatalogError(Exception):
    """A catalog that cannot be used, with all its problems."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Field:
    """A typed field of the events.

    Attributes:
        name: Its name in the event.
        type: string, int, float, bool or decimal.
        scale: Decimals after the point, of a decimal.
        default: What a missing field or a null reads as; without it, NULL.
        required: Whether an event without it is a dead letter.
    """

    name: str
    type: str
    scale: int = 0
    default: str | int | float | bool | None = None
    required: bool = False


@dataclass(frozen=True)
class Lookup:
    """A compacted topic whose records are versions of what is known of a key; events are joined with it.

    Attributes:
        name: Of the lookup; also the prefix of the joined fields.
        topic: Where its records are: the message key names what a record is of, the value is a JSON object.
        key: The field of an event whose text is looked up.
        fields: What a record holds, by the names there.
    """

    name: str
    topic: str
    key: str
    fields: tuple[Field, ...]

    @property
    def joined(self) -> tuple[Field, ...]:
        """Its fields as an event has them once it is joined."""
        return tuple(replace(field, name=f"{self.name}_{field.name}", required=False) for field in self.fields)


@dataclass(frozen=True)
class Metric:
    """A metric as its catalog defines it: an aggregation of the events that it selects, by window and dimensions."""

    name: str
    agg: Aggregation
    where: str | None
    by: tuple[str, ...]
    windows: tuple[AnyWindow, ...]
    condition: Condition | None
    metric_version: str
    description: str = ""
    unit: str = ""

    @property
    def grains(self) -> tuple[str, ...]:
        """The names of its windows' grains, in the order of the catalog."""
        return tuple(window.grain for window in self.windows)

    @property
    def session(self) -> SessionWindow | None:
        """Its window where that is a session: a session stands alone in its metric."""
        (first, *_) = self.windows
        return first if isinstance(first, SessionWindow) else None

    @property
    def slice_width(self) -> timedelta:
        """The width of the slices of which its windows are made; of a session, a millisecond."""
        sliced: list[SlicedWindow] = [window for window in self.windows if not isinstance(window, SessionWindow)]
        return slice_width(sliced) if sliced else timedelta(milliseconds=1)

    @property
    def versions(self) -> tuple[str, ...]:
        """The metric versions whose states it is presented from."""
        return (self.metric_version,)

    @property
    def operands(self) -> tuple["Metric", ...]:
        """The metrics that it is computed from: itself."""
        return (self,)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it is computed from, those of lookups among them; not the catalog's key."""
        arguments = (name for argument in self.agg.arguments for name in argument.fields)
        return frozenset({*self.by, *arguments, *(self.condition.fields if self.condition else ())})

    @property
    def text(self) -> str:
        """What it computes, as in a catalog."""
        return self.agg.text

    @property
    def value_type(self) -> str:
        """The ClickHouse type of a value, without Nullable."""
        return self.agg.value_type

    @property
    def exact(self) -> bool:
        """Whether the speed layer's values carry no sketch error."""
        return self.agg.exact

    def window(self, grain: str) -> AnyWindow:
        """The window of a grain.

        Raises:
            KeyError: The metric has no such grain.
        """
        return _window(self, grain)


@dataclass(frozen=True)
class RatioMetric:
    """One metric divided by another, window by window; NULL where the denominator is 0 or has no row."""

    name: str
    numerator: Metric
    denominator: Metric
    windows: tuple[AnyWindow, ...]
    metric_version: str
    description: str = ""
    unit: str = ""
    value_type: str = "Float64"
    where: None = None
    session: None = None

    @property
    def by(self) -> tuple[str, ...]:
        """The dimensions that both have."""
        return self.numerator.by

    @property
    def grains(self) -> tuple[str, ...]:
        """The names of its windows' grains, in the order of the catalog."""
        return tuple(window.grain for window in self.windows)

    @property
    def versions(self) -> tuple[str, ...]:
        """The metric versions whose states it is presented from."""
        return (self.numerator.metric_version, self.denominator.metric_version)

    @property
    def operands(self) -> tuple[Metric, ...]:
        """The metrics that it is computed from."""
        return (self.numerator, self.denominator)

    @property
    def text(self) -> str:
        """What it computes."""
        return f"{self.numerator.name} / {self.denominator.name}"

    @property
    def exact(self) -> bool:
        """Whether the speed layer's values carry no sketch error."""
        return self.numerator.exact and self.denominator.exact

    def window(self, grain: str) -> AnyWindow:
        """The window of a grain.

        Raises:
            KeyError: The metric has no such grain.
        """
        return _window(self, grain)


ShownMetric = Metric | RatioMetric
"""What has views: a metric that the layers fold, or a ratio of two such."""


@dataclass(frozen=True)
class Catalog:
    """A source of events, their fields, the metrics over them and the alerts.

    Attributes:
        metrics: What the layers fold, in the order of the catalog.
        ratios: What is computed from two metrics when it is read.
        registry: The URL of the schema registry, for format avro; None for that of the settings.
        lookups: What events are joined with.
        owners: Whom to ask about the source: e-mail addresses, or `team:` and a name.
    """

    source: str
    topic: str
    format: str
    event_id: str
    event_time_field: str
    event_time_unit: str
    key: str | None
    out_of_orderness: timedelta
    allowed_lateness: timedelta
    dedup_horizon: int
    topic_partitions: int
    fields: Mapping[str, Field]
    metrics: tuple[Metric, ...]
    ratios: tuple[RatioMetric, ...] = ()
    alerts: tuple[Alert, ...] = ()
    registry: str | None = None
    order: tuple[str, ...] = field(default=(), compare=False)
    lookups: tuple[Lookup, ...] = ()
    owners: tuple[str, ...] = ()

    @property
    def dlq_topic(self) -> str:
        """Where records go that are no events."""
        return f"{self.topic}.dlq"

    @property
    def late_topic(self) -> str:
        """Where events go that came too late for the speed layer."""
        return f"{self.topic}.late"

    @cached_property
    def columns(self) -> Mapping[str, Field]:
        """The fields of an event once it is joined: its own, and those of the lookups."""
        return {**self.fields, **{field.name: field for lookup in self.lookups for field in lookup.joined}}

    @cached_property
    def used(self) -> frozenset[str]:
        """The names of the fields that metrics and alerts are computed from, those of lookups among them."""
        of_sessions = {self.key} if any(metric.session for metric in self.metrics) else set()
        return frozenset(
            {name for metric in self.metrics for name in metric.fields}
            | {name for alert in self.alerts for name in alert.fields}
            | {name for name in of_sessions if name is not None}
        )

    def lookups_of(self, metric: "ShownMetric") -> tuple[Lookup, ...]:
        """The lookups whose fields a metric is computed from."""
        used = {name for operand in metric.operands for name in operand.fields}
        return tuple(lookup for lookup in self.lookups if used & {field.name for field in lookup.joined})

    @cached_property
    def version(self) -> str:
        """A hash of all metric and alert versions, in the catalog's order-free sense."""
        return digest(
            sorted(
                [
                    *([metric.name, metric.metric_version] for metric in self.metrics),
                    *([alert.name, alert.alert_version] for alert in self.alerts),
                ]
            )
        )

    @cached_property
    def decoding_version(self) -> str:
        """A hash of what decides whether a record is an event, and when it happened."""
        fields = sorted([f.name, f.type, f.scale, f.required] for f in self.fields.values())
        time = [self.event_time_field, self.event_time_unit]
        return digest([SEMANTICS_VERSION, self.format, self.event_id, time, fields])

    @cached_property
    def shown(self) -> tuple[ShownMetric, ...]:
        """Everything that has views, in the order of the catalog."""
        everything: tuple[ShownMetric, ...] = (*self.metrics, *self.ratios)
        known = {metric.name: metric for metric in everything}
        return tuple(known[name] for name in self.order) if self.order else tuple(known.values())

    def only(self, names: Collection[str]) -> "Catalog":
        """The same source with some of the metrics that the layers fold, and neither ratios nor alerts."""
        chosen = tuple(metric for metric in self.metrics if metric.name in names)
        return replace(self, metrics=chosen, ratios=(), alerts=(), order=())

    def metric(self, name: str) -> ShownMetric:
        """The metric of a name.

        Raises:
            KeyError: There is none; the message lists those there are.
        """
        for metric in self.shown:
            if metric.name == name:
                return metric
        known = ", ".join(metric.name for metric in self.shown)
        msg = f"unknown metric `{name}`. the metrics of source `{self.source}` are: {known}"
        raise KeyError(msg)


def _window(metric: ShownMetric, grain: str) -> AnyWindow:
    for window in metric.windows:
        if window.grain == grain:
            return window
    msg = f"metric `{metric.name}` has no grain `{grain}`. its grains are: {', '.join(metric.grains)}"
    raise KeyError(msg)
