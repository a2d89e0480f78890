"""From the plain values of a catalog file to a `Catalog`: the rules that go beyond types, each with its way out."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from metrics.aggregation import SEMANTICS_VERSION, Aggregation
from metrics.aggregation_text import parse_aggregation
from metrics.alert import Alert, check_when, parse_when
from metrics.catalog import MOST_DIMENSIONS, Catalog, CatalogError, Field, Lookup, Metric, Path, Problem, RatioMetric
from metrics.catalog_fields import field_problems, id_and_time_problems, read_field
from metrics.catalog_lookups import lookup_problems
from metrics.catalog_names import name_problems, topic_name_problems, topic_problems
from metrics.catalog_parts import NAME_RULE, OWNER_RULE, AlertPart, CatalogPart, MetricPart
from metrics.catalog_words import in_words, known_names
from metrics.expression import Condition, Expression, FieldType
from metrics.hashing import digest
from metrics.totals import check_total
from metrics.window import AnyWindow, SessionWindow, format_duration, parse_window, slice_width

_OWNER = re.compile(r"team:[A-Za-z0-9_]+|[^@\s]+@[^@\s]+\.[^@\s]+")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DIMENSION = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,62}")
"""No dimension begins with `_`, so that names which do are free for the SQL of the views."""

_RESERVED = frozenset(
    {"argument", "argument2", "as_of", "buckets", "chain_events", "changes", "count", "counts", "drift", "event_time"}
    | {"events", "grain", "is_deleted", "is_final", "item", "key", "latest", "latest_at", "latest_place", "layer"}
    | {"length_ms", "levels", "lower", "magnitude", "maximum", "mean", "metric_version", "minimum", "n", "number"}
    | {"pane", "partition", "place", "reading", "registers", "run_id", "session_key", "slice_start", "squares"}
    | {"final_ratio", "status", "total", "upper", "value", "window_end", "window_start", "written_at"}
)
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`")


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
        self._fields: dict[str, Field] = {}
        self._lookups: tuple[Lookup, ...] = ()
        self._columns: dict[str, Field] = {}
        self._types: dict[str, FieldType] = {}

    def build(self, tree: Any) -> Catalog:  # noqa: ANN401
        self._check_texts(tree)
        try:
            part = CatalogPart.model_validate(tree)
        except ValidationError as error:
            for item in error.errors():
                self._problem(*in_words(tuple(item["loc"]), item["type"], item["msg"], item["input"]))
            raise CatalogError(self._problems) from error
        self._fields = {name: read_field(name, one) for name, one in part.fields.items()}
        self._lookups = tuple(
            Lookup(name, one.topic, one.key, tuple(read_field(*field) for field in one.fields.items()))
            for name, one in part.lookups.items()
        )
        self._columns = self._fields | {f.name: f for lookup in self._lookups for f in lookup.joined}
        self._types = {f.name: FieldType(f.type, f.scale if f.type == "decimal" else 0) for f in self._columns.values()}
        self._check_source(part)
        for problem in (
            *id_and_time_problems(part.event_id, part.event_time, self._fields),
            *field_problems(("fields",), self._fields.values()),
            *(p for one in self._lookups for p in field_problems(("lookups", one.name, "fields"), one.fields)),
            *lookup_problems(part.topic, self._fields, self._lookups),
        ):
            self._problem(*problem)
        folded = {name: self._metric(part, name, m) for name, m in part.metrics.items() if m.ratio is None}
        metrics = {name: metric for name, metric in folded.items() if metric is not None}
        broken = {name for name in folded if name not in metrics}
        ratios = [self._ratio(name, m, metrics, broken) for name, m in part.metrics.items() if m.ratio is not None]
        alerts = [self._alert(part, name, alert, metrics) for name, alert in part.alerts.items()]
        grains = {one.name: one.grains for one in (*metrics.values(), *ratios) if one is not None}
        topics = {alert.name: alert.topic for alert in alerts if alert is not None}
        of_lookups = {name: one.topic for name, one in part.lookups.items()}
        of_alerts = {name: one.topic for name, one in part.alerts.items() if one.topic is not None}
        for problem in (
            *name_problems((n for n, m in part.metrics.items() if m.ratio is None), grains, part.lookups),
            *topic_name_problems(part.topic, of_lookups, of_alerts),
            *topic_problems(topics, part.topic, of_lookups),
        ):
            self._problem(*problem)
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
            self._fields,
            tuple(metrics.values()),
            tuple(ratio for ratio in ratios if ratio is not None),
            tuple(alert for alert in alerts if alert is not None),
            part.registry,
            tuple(part.metrics),
            self._lookups,
            tuple(part.owners),
        )

    def _check_texts(self, tree: Any) -> None:  # noqa: ANN401
        for path, text in _texts(tree):
            if _printable(text) != text:
                hint = r"write the character itself; of two \u escapes JSON makes one character, YAML does not"
                self._problem(path, "a text is of characters that UTF-8 can encode", text, hint)
        if self._problems:
            raise CatalogError(self._problems)

    def _check_source(self, part: CatalogPart) -> None:
        named = [((kind, name), name) for kind in ("lookups", "metrics", "alerts") for name in getattr(part, kind)]
        for path, name in [(("source",), part.source), *named]:
            if not _IDENTIFIER.fullmatch(name):
                self._problem(path, NAME_RULE, name, f"write for example `{_suggested(name)}`")
        if all(metric.ratio is not None for metric in part.metrics.values()):
            self._problem(("metrics",), "a catalog has a metric that is no ratio", part.source, "define one with `agg`")
        for option in ("out_of_orderness", "allowed_lateness"):
            if (duration := getattr(part, option)) < timedelta(0):
                self._problem((option,), f"`{option}` must not be negative", duration, "use 0s for none")
        for number, owner in enumerate(part.owners):
            if not _OWNER.fullmatch(owner):
                self._problem(("owners", number), OWNER_RULE, owner, "write for example team:shop or shop@example.org")
        if part.key is not None and part.key not in {*self._fields, part.event_id}:
            self._problem(("key",), "`key` must be a field", part.key, known_names(part.key, self._fields))
        if part.registry is not None and part.format != "avro":
            self._problem(("registry",), "only avro has a schema registry", part.registry, "remove it")

    def _metric(self, part: CatalogPart, name: str, metric: MetricPart) -> Metric | None:
        before = len(self._problems)
        path: Path = ("metrics", name)
        agg = None
        if metric.agg is None:
            self._problem(path, "a metric has `agg` or `ratio`", name, "write for example agg: count")
        else:
            with self._refusals((*path, "agg"), metric.agg):
                agg = parse_aggregation(metric.agg, self._types)
                for argument in agg.arguments if agg.name in {"sum", "mean", "level"} else ():
                    check_total(agg.name, argument)
        condition = self._condition((*path, "where"), metric.where)
        self._check_dimensions((*path, "by"), metric.by)
        windows = self._windows(path, metric.window, needed=True)
        if agg is not None:
            self._check_sessions(part, path, agg, windows)
        if len(self._problems) > before or agg is None or not windows:
            return None
        session = windows[0] if isinstance(windows[0], SessionWindow) else None
        used = {
            *metric.by,
            *(name for argument in agg.arguments for name in argument.fields),
            *(condition.fields if condition else ()),
            *((part.key,) if session and part.key in self._fields else ()),
        }
        version = digest(
            self._read_by(part, used)
            | {
                "metric": [agg.text, condition.canonical if condition else None, metric.by],
                "slices": str(session) if session else format_duration(slice_width(windows)),  # type: ignore[arg-type]
                "key": part.key if session else None,
            }
        )
        return Metric(
            name,
            agg,
            metric.where,
            tuple(metric.by),
            tuple(windows),
            condition,
            version,
            metric.description,
            metric.unit,
        )

    def _read_by(self, part: CatalogPart, used: set[str]) -> dict[str, object]:
        """Everything besides its own definition that decides what a metric or alert counts."""
        lookups = [one for one in self._lookups if used & {field.name for field in one.joined}]
        fields = sorted({*used, *(one.key for one in lookups if one.key in self._fields)})
        read: dict[str, object] = {
            "semantics": SEMANTICS_VERSION,
            "source": [part.topic, part.format, part.event_id, part.event_time.field, part.event_time.unit],
            "time": [str(part.out_of_orderness), str(part.allowed_lateness), part.dedup_horizon],
            "fields": [[f.name, f.type, f.scale, f.default] for f in map(self._columns.__getitem__, fields)],
            "dead_letters": sorted([f.name, f.type, f.scale, f.required] for f in self._fields.values()),
        }
        if lookups:
            read["lookups"] = [
                [one.name, one.topic, one.key, sorted([f.name, f.type, f.scale, f.required] for f in one.fields)]
                for one in lookups
            ]
        return read

    def _windows(self, path: Path, texts: list[str], *, needed: bool) -> list[AnyWindow]:
        windows: list[AnyWindow] = []
        for text in texts:
            with self._refusals((*path, "window"), text):
                windows.append(parse_window(text))
        if needed and not texts:
            self._problem(path, "a metric has a window", "none", "write for example window: tumbling 1m")
        if len({window.grain for window in windows}) < len(windows):
            self._problem((*path, "window"), "a window is named once", ", ".join(texts), "remove the copy")
        if len(windows) > 1 and any(isinstance(window, SessionWindow) for window in windows):
            hint = "define a second metric for the other windows"
            self._problem((*path, "window"), "a session window stands alone in its metric", ", ".join(texts), hint)
        return windows

    def _check_sessions(self, part: CatalogPart, path: Path, agg: Aggregation, windows: list[AnyWindow]) -> None:
        if not any(isinstance(window, SessionWindow) for window in windows):
            return
        if part.key is None:
            hint = "declare the field whose values have sessions, for example key: user_id"
            self._problem((*path, "window"), "sessions are of the catalog's `key`", "no key", hint)
        if not agg.allows_sessions:
            hint = "use another window, for example global"
            self._problem((*path, "window"), f"{agg.name} has no session window", agg.text, hint)

    def _ratio(  # noqa: PLR0912 - a branch for each rule
        self, name: str, part: MetricPart, metrics: Mapping[str, Metric], broken: set[str]
    ) -> RatioMetric | None:
        path: Path = ("metrics", name)
        before = len(self._problems)
        for key in ("agg", "where"):
            if getattr(part, key) is not None:
                self._problem((*path, key), f"a ratio has no `{key}`", getattr(part, key), "define it in its metrics")
        if part.by:
            self._problem((*path, "by"), "a ratio has the dimensions of its metrics", ", ".join(part.by), "remove `by`")
        operands = part.ratio or []
        if len(operands) != len({"numerator", "denominator"}):
            hint = "write for example ratio: [purchases, views]"
            self._problem((*path, "ratio"), "a ratio names two metrics", ", ".join(operands), hint)
        for operand in operands:
            if operand in broken:
                return None
            if operand not in metrics:
                self._problem((*path, "ratio"), "unknown metric", operand, known_names(operand, metrics, "metrics"))
            elif metrics[operand].agg.value_type.startswith("Array") or metrics[operand].agg.value_type == "String":
                self._problem(
                    (*path, "ratio"), "a ratio is of numbers", operand, "name metrics whose values are numbers"
                )
            elif metrics[operand].session:
                self._problem((*path, "ratio"), "a ratio has no session window", operand, "name another metric")
        if len(self._problems) > before:
            return None
        numerator, denominator = (metrics[operand] for operand in operands)
        if numerator.by != denominator.by:
            shown = f"{', '.join(numerator.by) or 'none'} and {', '.join(denominator.by) or 'none'}"
            hint = "give both metrics the same `by`"
            self._problem((*path, "ratio"), "both metrics of a ratio have the same dimensions", shown, hint)
        common = [window for window in numerator.windows if window.grain in denominator.grains]
        windows = self._windows(path, part.window, needed=False) or common
        missing = [window for window in windows if window.grain not in {one.grain for one in common}]
        if missing or not windows:
            shown = ", ".join(map(str, missing)) or "none in common"
            hint = "give both metrics that window"
            self._problem((*path, "window"), "both metrics of a ratio have its windows", shown, hint)
        if len(self._problems) > before:
            return None
        version = digest(["ratio", numerator.metric_version, denominator.metric_version])
        return RatioMetric(name, numerator, denominator, tuple(windows), version, part.description, part.unit)

    def _alert(self, part: CatalogPart, name: str, alert: AlertPart, metrics: Mapping[str, Metric]) -> Alert | None:
        path: Path = ("alerts", name)
        before = len(self._problems)
        condition = self._condition((*path, "where"), alert.where)
        self._check_dimensions((*path, "by"), alert.by)
        value, argument, operator, threshold = "", "", ">", None
        with self._refusals((*path, "when"), alert.when):
            value, argument, operator, threshold = parse_when(alert.when)
        if threshold is None:
            return None
        compiled: Expression | None = None
        metric: Metric | None = None
        kind = value
        if value == "sum":
            with self._refusals((*path, "when"), argument):
                compiled = Expression(argument, self._types)
                if compiled.type.kind not in {"int", "decimal"}:
                    self._problem(
                        (*path, "when"), "an alert's sum is of an int or a decimal", argument, "name such a field"
                    )
                check_total("an alert's sum", compiled)
        elif value == "share":
            compiled = self._condition((*path, "when"), argument)
        elif value != "count":
            kind, metric = "level", metrics.get(value)
            if metric is None or metric.agg.name != "level":
                levels = ", ".join(m.name for m in metrics.values() if m.agg.name == "level") or "none here"
                hint = f"write count, sum(E), share(CONDITION) or the name of a level metric: {levels}"
                self._problem((*path, "when"), "an alert watches count, sum, share or a level metric", value, hint)
            elif alert.where is not None or (alert.by and tuple(alert.by) != metric.by):
                hint = "remove `where` and `by`; they are the metric's"
                self._problem(path, "an alert of a level metric has its filter and dimensions", name, hint)
        if kind != "level" or metric is not None:
            with self._refusals((*path, "when"), alert.when):
                check_when(kind, value, argument, operator, threshold)
        if (alert.within is None) != (kind == "level"):
            rule = "an alert of a level metric has no `within`" if kind == "level" else "an alert needs `within`"
            self._problem(
                (*path, "within"),
                rule,
                alert.within or "none",
                "write for example within: 2m" * (kind != "level") or "remove it",
            )
        elif alert.within is not None and not timedelta(0) < alert.within <= timedelta(days=1):
            hint = "write for example within: 2m"
            self._problem((*path, "within"), "`within` lies above 0s and is at most 1d", alert.within, hint)
        if len(self._problems) > before:
            return None
        by = metric.by if metric else tuple(alert.by)
        used = {*by, *(compiled.fields if compiled else ()), *(condition.fields if condition else ())}
        if joined := sorted((used | (metric.fields if metric else set())) - self._fields.keys()):
            hint = "watch fields of the event itself, or define a metric over the joined ones"
            self._problem(path, "an alert watches no field of a lookup", ", ".join(joined), hint)
            return None
        watched = compiled.canonical if compiled else metric.metric_version if metric else None
        version = digest(
            self._read_by(part, used)
            | {
                "alert": [kind, watched, operator, str(threshold), condition.canonical if condition else None, by],
                "within": [str(alert.within), alert.at_least],
            }
        )
        return Alert(
            name,
            kind,
            operator,
            threshold,
            compiled,
            metric.name if metric else None,
            alert.where,
            by,
            condition,
            alert.within,
            alert.at_least,
            alert.topic or f"alerts.{part.source}.{name}",
            alert.description,
            version,
        )

    def _condition(self, path: Path, text: str | None) -> Condition | None:
        if text is None:
            return None
        with self._refusals(path, text):
            return Condition(text, self._types)
        return None

    def _check_dimensions(self, path: Path, by: list[str]) -> None:
        if len(by) > MOST_DIMENSIONS or len(set(by)) < len(by):
            hint = f"name at most {MOST_DIMENSIONS}, each once"
            self._problem(path, f"a metric has at most {MOST_DIMENSIONS} dimensions", ", ".join(by), hint)
        for name in by:
            if name not in self._columns:
                self._problem(path, "unknown field", name, known_names(name, self._columns))
            elif self._columns[name].type == "float":
                self._problem(path, "a float cannot be a dimension", name, "declare the field a decimal or a string")
            elif not _DIMENSION.fullmatch(name):
                rule = "a dimension's name is letters, digits and _, begins with a letter and has at most 63 characters"
                self._problem(path, rule, name, f"send the field under such a name, for example `{_suggested(name)}`")
            elif name.lower() in _RESERVED:
                rule = "a dimension must not have the name of a column of the views"
                self._problem(path, rule, name, "rename the field")

    @contextmanager
    def _refusals(self, path: Path, value: object) -> Iterator[None]:
        """Turns a `ValueError` whose text is a rule, then its way out, into a problem."""
        try:
            yield
        except ValueError as error:
            rule, _, hint = str(error).partition(". ")
            rule = rule.partition("; got ")[0]
            if unknown := _UNKNOWN_FIELD.fullmatch(rule):
                hint = known_names(unknown[1], self._columns)
            self._problem(path, rule, value, hint or "correct it")

    def _problem(self, path: Path, rule: str, value: object, hint: str) -> None:
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        shown = format_duration(value) if isinstance(value, timedelta) else str(value)
        texts = map(_printable, (rule, shown, hint))
        self._problems.append(Problem(self._file, self._lines.get(known, 1), *texts))


def _texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:  # noqa: ANN401
    """The texts among the values of a file, keys too, each with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), str(key)
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def _printable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot encode: halves of a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _suggested(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")[:63] or "shop"
