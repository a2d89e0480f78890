"""The catalog: one definition of every metric; both layers, tables, views and the dashboard follow from it."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic import Field as Option

from metrics.aggregation import SEMANTICS_VERSION, Aggregation, Count, Distinct, Sum
from metrics.expression import Condition
from metrics.window import TumblingWindow, format_duration, parse_duration, parse_window, slice_width

FIELD_TYPES = ("string", "int", "float", "bool", "decimal")
MOST_DIMENSIONS = 4
AGGREGATIONS = "count, sum(FIELD), distinct(FIELD)"

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")
_AGGREGATION = re.compile(r"(\w+)(?:\(\s*(\w+)\s*\))?")
_RESERVED = frozenset(
    {"argument", "as_of", "count", "drift", "events", "grain", "is_final", "layer", "lower", "metric_version", "pane"}
    | {"partition", "registers", "run_id", "slice_start", "status", "total", "upper", "value", "value_counted"}
    | {"value_with_late", "window_end", "window_start", "written_at"}
)

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
        name: Its name in the JSON object.
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
class Metric:
    """A metric as its catalog defines it."""

    name: str
    agg: Aggregation
    where: str | None
    by: tuple[str, ...]
    windows: tuple[TumblingWindow, ...]
    condition: Condition | None
    metric_version: str

    @property
    def grains(self) -> tuple[str, ...]:
        """The names of its windows' grains, in the order of the catalog."""
        return tuple(window.grain for window in self.windows)

    @property
    def slice_width(self) -> timedelta:
        """The width of the slices of which its windows are made."""
        return slice_width(self.windows)

    def window(self, grain: str) -> TumblingWindow:
        """The window of a grain.

        Raises:
            KeyError: The metric has no such grain.
        """
        for window in self.windows:
            if window.grain == grain:
                return window
        msg = f"metric `{self.name}` has no grain `{grain}`. its grains are: {', '.join(self.grains)}"
        raise KeyError(msg)


@dataclass(frozen=True)
class Catalog:
    """A source of events, their fields and the metrics over them."""

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

    @property
    def dlq_topic(self) -> str:
        """Where records go that are no events."""
        return f"{self.topic}.dlq"

    @property
    def late_topic(self) -> str:
        """Where events go that came too late for the speed layer."""
        return f"{self.topic}.late"

    @cached_property
    def version(self) -> str:
        """A hash of all metric versions, in the catalog's order-free sense."""
        return _digest(sorted([metric.name, metric.metric_version] for metric in self.metrics))

    def metric(self, name: str) -> Metric:
        """The metric of a name.

        Raises:
            KeyError: There is none; the message lists those there are.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        known = ", ".join(metric.name for metric in self.metrics)
        msg = f"unknown metric `{name}`. the metrics of source `{self.source}` are: {known}"
        raise KeyError(msg)


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Duration = Annotated[timedelta, BeforeValidator(_duration)]
_Names = Annotated[list[str], BeforeValidator(_one_or_many)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _EventTimePart(_Part):
    field: str
    unit: Literal["us", "ms", "s", "iso"] = "ms"


class _FieldPart(_Part):
    type: Literal["string", "int", "float", "bool", "decimal"]
    scale: int = Option(default=0, ge=0, le=18)
    default: str | int | float | bool | None = None
    required: bool = False


class _MetricPart(_Part):
    agg: str
    where: str | None = None
    by: _Names = []
    window: _Names


class _CatalogPart(_Part):
    source: str
    topic: str
    format: Literal["json"] = "json"
    event_id: str
    event_time: _EventTimePart
    key: str | None = None
    out_of_orderness: _Duration = timedelta(seconds=10)
    allowed_lateness: _Duration = timedelta(hours=1)
    dedup_horizon: int = Option(default=500_000, ge=0)
    topic_partitions: int = Option(default=4, ge=1, le=1024)
    fields: dict[str, Annotated[_FieldPart, BeforeValidator(lambda v: {"type": v} if isinstance(v, str) else v)]]
    metrics: dict[str, _MetricPart] = Option(min_length=1)


_HINTS = {
    "missing": "add it; the catalog reference shows an example",
    "extra_forbidden": "remove it or correct its spelling",
    "literal_error": "write one of those named by the rule",
    "too_short": "define at least one",
}


def parse_catalog(tree: Any, lines: Mapping[Path, int], file: str) -> Catalog:  # noqa: ANN401 - whatever YAML held
    """Builds a catalog from the plain values of a file.

    Args:
        tree: Mappings, lists and scalars, as read.
        lines: The line of each value, by its path of keys and indices.
        file: The file's name, for messages.

    Raises:
        CatalogError: With every problem found.
    """
    return _Builder(lines, file).build(tree)


class _Builder:
    """Turns checked parts into a catalog and collects what is wrong on the way."""

    def __init__(self, lines: Mapping[Path, int], file: str) -> None:
        self._lines = lines
        self._file = file
        self._problems: list[Problem] = []

    def build(self, tree: Any) -> Catalog:  # noqa: ANN401
        try:
            part = _CatalogPart.model_validate(tree)
        except ValidationError as error:
            for item in error.errors():
                kind, location = item["type"], tuple(item["loc"])
                rule = ".".join(map(str, location)) + ": " + item["msg"].removeprefix("Value error, ")
                value = location[-1] if kind in {"missing", "extra_forbidden"} else item["input"]
                self._problem(location, rule, value, _HINTS.get(kind, "correct the value"))
            raise CatalogError(self._problems) from error
        fields = {name: Field(name, f.type, f.scale, f.default, f.required) for name, f in part.fields.items()}
        self._check_names(part, fields)
        metrics = [self._metric(part, fields, name, metric) for name, metric in part.metrics.items()]
        if self._problems:
            raise CatalogError(self._problems)
        return Catalog(
            part.source,
            part.topic,
            part.format,
            part.event_id,
            part.event_time.field,
            part.event_time.unit,
            part.key,
            part.out_of_orderness,
            part.allowed_lateness,
            part.dedup_horizon,
            part.topic_partitions,
            fields,
            tuple(metric for metric in metrics if metric is not None),
        )

    def _check_names(self, part: _CatalogPart, fields: Mapping[str, Field]) -> None:
        rule = "a name is lower case letters, digits and _, begins with a letter and has at most 63 characters"
        for path, name in [(("source",), part.source), *((("metrics", name), name) for name in part.metrics)]:
            if not _IDENTIFIER.fullmatch(name):
                self._problem(path, rule, name, f"write for example `{_suggested(name)}`")
        for option, duration in (
            ("out_of_orderness", part.out_of_orderness),
            ("allowed_lateness", part.allowed_lateness),
        ):
            if duration < timedelta(0):
                self._problem((option,), f"`{option}` must not be negative", duration, "use 0s for none")
        if part.key is not None and part.key not in {*fields, part.event_id}:
            self._problem(("key",), "`key` must be a field", part.key, _known(part.key, fields))
        for name, field in fields.items():
            if field.scale and field.type != "decimal":
                self._problem(("fields", name, "scale"), "only a decimal has a scale", field.scale, "remove it")
            if field.default is not None and not _default_fits(field):
                self._problem(
                    ("fields", name, "default"), f"the default must be a {field.type}", field.default, "correct it"
                )

    def _metric(self, part: _CatalogPart, fields: Mapping[str, Field], name: str, metric: _MetricPart) -> Metric | None:
        before = len(self._problems)
        path: Path = ("metrics", name)
        agg = self._aggregation((*path, "agg"), fields, metric.agg)
        condition = None
        if metric.where is not None:
            try:
                condition = Condition(metric.where, {field.name: field.type for field in fields.values()})
            except ValueError as error:
                rule, _, hint = str(error).partition(". ")
                self._problem((*path, "where"), rule, metric.where, hint or "correct the condition")
        self._check_dimensions((*path, "by"), fields, metric.by)
        windows: list[TumblingWindow] = []
        for text in metric.window:
            try:
                windows.append(parse_window(text))
            except ValueError as error:
                rule, _, hint = str(error).partition(". ")
                self._problem((*path, "window"), rule, text, hint)
        if len({window.grain for window in windows}) < len(windows):
            self._problem((*path, "window"), "a window is named once", ", ".join(metric.window), "remove the copy")
        if len(self._problems) > before or agg is None or not windows:
            return None
        used = {*metric.by, *({agg.field} if agg.field else ()), *(condition.fields if condition else ())}
        version = _digest(
            {
                "semantics": SEMANTICS_VERSION,
                "source": [part.topic, part.format, part.event_id, part.event_time.field, part.event_time.unit],
                "time": [str(part.out_of_orderness), str(part.allowed_lateness), part.dedup_horizon],
                "fields": [[f.name, f.type, f.scale, f.default] for f in map(fields.__getitem__, sorted(used))],
                "dead_letters": sorted([f.name, f.type, f.scale, f.required] for f in fields.values()),
                "metric": [agg.text, condition.canonical if condition else None, metric.by],
                "slices": format_duration(slice_width(windows)),
            }
        )
        return Metric(name, agg, metric.where, tuple(metric.by), tuple(windows), condition, version)

    def _aggregation(self, path: Path, fields: Mapping[str, Field], text: str) -> Aggregation | None:
        match = _AGGREGATION.fullmatch(text.strip())
        kind, argument = (match[1], match[2]) if match else (text, None)
        takes_field = kind in {"sum", "distinct"}
        if (kind != "count" and not takes_field) or (kind == "count" and argument) or (takes_field and not argument):
            self._problem(path, "unknown aggregation", text, f"the aggregations are: {AGGREGATIONS}")
            return None
        if kind == "count" or argument is None:
            return Count()
        if argument not in fields:
            self._problem(path, "unknown field", argument, _known(argument, fields))
            return None
        field = fields[argument]
        if kind == "distinct":
            if field.type == "float":
                self._problem(
                    path, "distinct of a float is not defined", argument, "declare the field a decimal or a string"
                )
            return Distinct(argument)
        if field.type not in {"int", "decimal"}:
            hint = "declare the field an int or a decimal, so that its sum is exact"
            self._problem(path, f"a sum needs an int or a decimal; `{argument}` is a {field.type}", text, hint)
        return Sum(argument, field.scale)

    def _check_dimensions(self, path: Path, fields: Mapping[str, Field], by: list[str]) -> None:
        if len(by) > MOST_DIMENSIONS or len(set(by)) < len(by):
            hint = f"name at most {MOST_DIMENSIONS}, each once"
            self._problem(path, f"a metric has at most {MOST_DIMENSIONS} dimensions", ", ".join(by), hint)
        for name in by:
            if name not in fields:
                self._problem(path, "unknown field", name, _known(name, fields))
            elif fields[name].type == "float":
                self._problem(path, "a float cannot be a dimension", name, "declare the field a decimal or a string")
            elif name in _RESERVED or not _IDENTIFIER.fullmatch(name):
                self._problem(
                    path, "a dimension must not have the name of a column of the views", name, "rename the field"
                )

    def _problem(self, path: Path, rule: str, value: object, hint: str) -> None:
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        shown = format_duration(value) if isinstance(value, timedelta) else str(value)
        self._problems.append(Problem(self._file, self._lines.get(known, 1), rule, shown, hint))


def _default_fits(field: Field) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "int": (int,),
        "float": (int, float),
        "decimal": (int, str),
        "bool": (bool,),
    }
    return isinstance(field.default, kinds[field.type]) and (field.type == "bool") == isinstance(field.default, bool)


def _known(name: str, fields: Mapping[str, Field]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    return (f"did you mean `{near[0]}`? " if near else "") + f"the fields are: {', '.join(fields)}"


def _suggested(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")[:63] or "shop"


def _digest(definition: object) -> str:
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
