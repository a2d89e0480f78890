"""What a changed catalog means for what is stored and read: compatible, in need of a backfill, or breaking."""

from dataclasses import dataclass
from enum import StrEnum

from metrics.alert import Alert
from metrics.catalog import Catalog, Metric, ShownMetric


class Impact(StrEnum):
    """How much a change asks for, from least to most."""

    COMPATIBLE = "compatible"
    BACKFILL = "needs backfill"
    BREAKING = "breaking"


_ORDER = list(Impact)


@dataclass(frozen=True)
class Change:
    """One difference between two catalogs of a source.

    Attributes:
        subject: What changed, for example ``metric revenue``.
        change: How.
        impact: What it asks for.
        consequence: What follows and what to do.
    """

    subject: str
    change: str
    impact: Impact
    consequence: str


_BACKFILL = "its live values start over from the log; run `lockstep batch` for the days that must have it"


def compare(old: Catalog, new: Catalog) -> tuple[Change, ...]:
    """The changes from one catalog to another of the same source, in the order of the new one."""
    return (*_source(old, new), *_fields(old, new), *_lookups(old, new), *_metrics(old, new), *_alerts(old, new))


def worst(changes: tuple[Change, ...]) -> Impact:
    """The greatest impact; compatible where nothing changed."""
    return max((change.impact for change in changes), key=_ORDER.index, default=Impact.COMPATIBLE)


def _source(old: Catalog, new: Catalog) -> list[Change]:
    found = []
    breaking = {
        "source": "tables and views of the old name stay behind and are not read any more; keep the name",
        "topic": "the log begins anew and the old topic is not read any more; keep the topic",
        "format": "records that are in the log already become dead letters; write the new format to a new topic",
        "event_id": "copies are told apart by another field, over the whole log; use a new source",
        "event_time_field": "events move to other windows; use a new source",
        "event_time_unit": "events move to other windows; use a new source",
    }
    for name, consequence in breaking.items():
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            found.append(Change(name, f"{before} -> {after}", Impact.BREAKING, consequence))
    backfill = {
        "out_of_orderness": "which events are late changes",
        "allowed_lateness": "which events are late changes",
        "dedup_horizon": "which copies the speed layer knows changes",
    }
    for name, what in backfill.items():
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            consequence = f"{what}, so every metric gets a new version; run `lockstep batch` for published days"
            found.append(Change(name, f"{before} -> {after}", Impact.BACKFILL, consequence))
    return found


def _fields(old: Catalog, new: Catalog) -> list[Change]:
    found = []
    for name in dict.fromkeys([*old.fields, *new.fields]):
        before, after = old.fields.get(name), new.fields.get(name)
        if before == after:
            continue
        judged = "which records are dead letters changes, so every metric gets a new version; backfill published days"
        if before is None:
            found.append(Change(f"field {name}", "added", Impact.BACKFILL, judged))
        elif after is None:
            found.append(Change(f"field {name}", "removed", Impact.BACKFILL, judged))
        elif (before.type, before.scale, before.required) != (after.type, after.scale, after.required):
            stricter = after.required and not before.required
            impact = Impact.BREAKING if before.type != after.type or stricter else Impact.BACKFILL
            consequence = (
                "events in the log that have it otherwise become dead letters" if impact is Impact.BREAKING else judged
            )
            shown = f"{_field(before)} -> {_field(after)}"
            found.append(Change(f"field {name}", shown, impact, consequence))
        else:
            consequence = "metrics that use it get a new version; " + _BACKFILL
            shown = f"default {before.default} -> {after.default}"
            found.append(Change(f"field {name}", shown, Impact.BACKFILL, consequence))
    return found


def _lookups(old: Catalog, new: Catalog) -> list[Change]:
    before, after = ({lookup.name: lookup for lookup in one.lookups} for one in (old, new))
    found = []
    for name in dict.fromkeys([*before, *after]):
        subject = f"lookup {name}"
        if name not in before:
            consequence = "its versions are kept from now on; what the topic has forgotten by now is a gap"
            found.append(Change(subject, "added", Impact.COMPATIBLE, consequence))
        elif name not in after:
            consequence = "its versions are not kept any more; those that are stay"
            found.append(Change(subject, "removed", Impact.COMPATIBLE, consequence))
        elif before[name] != after[name]:
            consequence = "metrics that use it get a new version; " + _BACKFILL
            found.append(Change(subject, "definition changed", Impact.BACKFILL, consequence))
    return found


def _field(field: object) -> str:
    text = str(getattr(field, "type", ""))
    text += f"({getattr(field, 'scale', 0)})" if text == "decimal" else ""
    return text + (" required" if getattr(field, "required", False) else "")


def _metrics(old: Catalog, new: Catalog) -> list[Change]:
    before: dict[str, ShownMetric] = {metric.name: metric for metric in old.shown}
    after: dict[str, ShownMetric] = {metric.name: metric for metric in new.shown}
    found = []
    for name in dict.fromkeys([*after, *before]):
        subject = f"metric {name}"
        if name not in before:
            found.append(Change(subject, "added", Impact.BACKFILL, _BACKFILL + "; the others go on"))
        elif name not in after:
            consequence = "its views and dashboard page go; its rows stay. readers must stop asking for it first"
            found.append(Change(subject, "removed", Impact.BREAKING, consequence))
        else:
            found += _metric(subject, before[name], after[name])
    return found


def _metric(subject: str, before: ShownMetric, after: ShownMetric) -> list[Change]:
    found = []
    if before.by != after.by or _columns(before) != _columns(after):
        shown = f"{_shape(before)} -> {_shape(after)}"
        consequence = "readers see other columns; give the new metric another name, and remove this one later"
        found.append(Change(subject, shown, Impact.BREAKING, consequence))
    elif before.metric_version != after.metric_version:
        shown = f"version {before.metric_version} -> {after.metric_version}"
        if isinstance(before, Metric) and isinstance(after, Metric) and _text(before) != _text(after):
            shown = f"{_text(before)} -> {_text(after)}"
        found.append(Change(subject, shown, Impact.BACKFILL, _BACKFILL))
    for grain in before.grains:
        if grain not in after.grains:
            consequence = "its view goes; readers must stop asking for it first"
            found.append(Change(subject, f"window {before.window(grain)} removed", Impact.BREAKING, consequence))
    for grain in after.grains:
        if grain not in before.grains:
            same = before.metric_version == after.metric_version
            consequence = "a view more, over the slices that are there" if same else "the slices have another width"
            impact = Impact.COMPATIBLE if same else Impact.BACKFILL
            found.append(Change(subject, f"window {after.window(grain)} added", impact, consequence))
    for name in ("description", "unit"):
        if getattr(before, name) != getattr(after, name):
            found.append(Change(subject, f"{name} changed", Impact.COMPATIBLE, "only what people read changes"))
    return found


def _columns(metric: ShownMetric) -> list[str]:
    """What readers and tables see of a metric."""
    states = [f"{c.name} {c.clickhouse_type}" for operand in metric.operands for c in operand.agg.state]
    return [metric.value_type, str(metric.session is not None), *states]


def _text(metric: Metric) -> str:
    return metric.text + (f" where {metric.condition.canonical}" if metric.condition else "")


def _shape(metric: ShownMetric) -> str:
    return f"{metric.text} as {metric.value_type}" + (f" by {', '.join(metric.by)}" if metric.by else "")


def _alerts(old: Catalog, new: Catalog) -> list[Change]:
    before: dict[str, Alert] = {alert.name: alert for alert in old.alerts}
    after: dict[str, Alert] = {alert.name: alert for alert in new.alerts}
    found = []
    for name in dict.fromkeys([*after, *before]):
        subject = f"alert {name}"
        if name not in before:
            found.append(Change(subject, "added", Impact.COMPATIBLE, "it is raised from now on"))
        elif name not in after:
            found.append(Change(subject, "removed", Impact.BREAKING, "nobody is told any more"))
        elif before[name].alert_version != after[name].alert_version:
            shown = f"{before[name].when} -> {after[name].when}" if before[name].when != after[name].when else "changed"
            found.append(Change(subject, shown, Impact.COMPATIBLE, "alerts of the new version are told apart by it"))
        elif before[name].topic != after[name].topic:
            shown = f"topic {before[name].topic} -> {after[name].topic}"
            found.append(Change(subject, shown, Impact.BREAKING, "who reads the old topic hears nothing any more"))
    return found
