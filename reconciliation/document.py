"""The report as one JSON object, made from results alone. The page is drawn from this object and from nothing else.

Times are ISO 8601 in UTC with `Z`, numbers that may be decimal are strings, missing values are null.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from metrics.catalog import Catalog, Metric, RatioMetric, ShownMetric
from metrics.window import SlidingWindow
from reconciliation.causes import CAUSES, Readings, Split, total
from reconciliation.certificate import Check
from reconciliation.diff import Bin, GrainDiff, MetricDiff, SliceRow, WindowRow
from reconciliation.evidence import NOT_COUNTED
from reconciliation.result import Examined, PartitionReconciliation
from reconciliation.tables import ExceptionRecord
from reconciliation.window_sql import by_item

KIND = "lockstep.reconciliation-report/2"
LARGEST_WORST = 10
_ADDITIVE = ("count", "sum")
_WORST_FIRST = ("not_published", "not_certified", "speed_defect", "not_yet_closed", "clean")


def document(
    catalog: Catalog,
    results: Sequence[PartitionReconciliation],
    exceptions: Mapping[date, Sequence[ExceptionRecord]],
    generated_at: datetime,
) -> dict[str, Any]:
    """The whole report.

    Args:
        catalog: the source's definitions.
        results: at least one day, in order.
        exceptions: the records that were not counted, by day.
        generated_at: aware, UTC.
    """
    days = [result.partition for result in results]
    return {
        "kind": KIND,
        "source": catalog.source,
        "topic": catalog.topic,
        "catalog_version": catalog.version,
        "from": min(days).isoformat(),
        "to": max(days).isoformat(),
        "generated_at": moment(generated_at),
        "headline": headline(results),
        "partitions": [_partition(result, exceptions.get(result.partition, ())) for result in results],
        "metrics": [shown for metric in catalog.shown if (shown := _metric(metric, results)) is not None],
    }


def headline(results: Sequence[PartitionReconciliation]) -> dict[str, Any]:
    """The figures of all days together, and the worst of their verdicts."""
    seen = [result.examined for result in results if result.examined]
    disposed = {name: sum(one.manifest.disposed(name) for one in seen) for name in ("counted", *NOT_COUNTED)}
    arrived = disposed["counted"] + disposed["late"]
    progress = next((result.progress for result in results if result.examined), None)
    return {
        "verdict": min((_standing(result) for result in results), key=_WORST_FIRST.index),
        "partitions": len(results),
        "certified": sum(result.certified for result in results),
        "residual": sum(result.residual for result in results),
        "slices_compared": sum(one.comparison.compared for one in seen),
        "slices_equal": sum(one.comparison.equal for one in seen),
        "not_yet_closed": sum(one.comparison.not_yet_closed for one in seen),
        "events": sum(one.manifest.events for one in seen),
        **disposed,
        "repaired": sum(result.repaired for result in results),
        "late_ratio": disposed["late"] / arrived if arrived else 0.0,
        "watermark": moment(progress.watermark if progress else None),
        "watermark_at": moment(progress.at if progress else None),
    }


def moment(value: datetime | None) -> str | None:
    """ISO 8601 in UTC with `Z`; None stays None."""
    return value.isoformat().replace("+00:00", "Z") if value else None


def _standing(result: PartitionReconciliation) -> str:
    """A day's verdict, in which a missing certificate outweighs what is said of the speed layer."""
    return "not_certified" if result.examined and not result.certified else result.verdict


def _partition(result: PartitionReconciliation, exceptions: Sequence[ExceptionRecord]) -> dict[str, Any]:
    shown = result.summary() | {"status": str(result.status), "standing": _standing(result), "message": result.message}
    seen = result.examined
    return shown | _seen(seen, exceptions) if seen else shown


def _seen(seen: Examined, exceptions: Sequence[ExceptionRecord]) -> dict[str, Any]:
    manifest = seen.manifest
    records = sum(one.records for one in seen.exceptions)
    return {
        "published_at": moment(seen.publication.published_at),
        "issued_at": moment(seen.issued_at),
        "fingerprint": seen.certificate.fingerprint,
        "events": manifest.events,
        "dispositions": {name: manifest.disposed(name) for name in ("counted", *NOT_COUNTED)},
        "late_ratio": manifest.late_ratio,
        "slices": {
            "compared": seen.comparison.compared,
            "equal": seen.comparison.equal,
            "not_yet_closed": seen.comparison.not_yet_closed,
            "residual": seen.comparison.residual,
        },
        "checks": [_check(check) for check in (*seen.certificate.checks, *seen.reported)],
        "ranges": [{name: getattr(read, name) for name in read.__struct_fields__} for read in manifest.ranges],
        "not_in_run": list(seen.not_in_run),
        "exceptions": {
            "total": records,
            "counts": [
                {"disposition": one.disposition, "reason": one.reason, "records": one.records, "repaired": one.repaired}
                for one in seen.exceptions
            ],
            "records": [_exception(one) for one in exceptions],
        },
    }


def kind(metric: ShownMetric) -> str:
    """What the readings of a metric's windows are, and so what may be said of many windows together.

    `sum`: they may be added up. `value`: they may not, and a mean over windows is shown. `items`: a reading is that of
    an item of a window, and only windows can be counted.
    """
    if by_item(metric):
        return "items"
    return "sum" if isinstance(metric, Metric) and metric.agg.name in _ADDITIVE else "value"


def _metric(metric: ShownMetric, results: Sequence[PartitionReconciliation]) -> dict[str, Any] | None:
    diffs = [
        diff for result in results if result.examined for diff in result.examined.metrics if diff.metric == metric.name
    ]
    if not diffs:
        return None
    return {
        "metric": metric.name,
        "definition": {
            "agg": metric.text,
            "where": metric.where,
            "by": list(metric.by),
            "windows": [str(window) for window in metric.windows],
        },
        "metric_version": metric.metric_version,
        "kind": kind(metric),
        "additive": kind(metric) == "sum",
        "estimated": not metric.exact,
        "is_ratio": isinstance(metric, RatioMetric),
        "is_session": metric.session is not None,
        "unit": metric.unit,
        "slices_compared": sum(diff.slices.comparison.compared for diff in diffs),
        "residual": sum(diff.slices.comparison.residual for diff in diffs),
        "only_speed": sum(diff.slices.only_speed for diff in diffs),
        "only_expected": sum(diff.slices.only_expected for diff in diffs),
        "differing_slices": [_slice(row) for diff in diffs for row in diff.slices.samples],
        "grains": [_grain(metric, grain, diffs) for grain in metric.grains],
    }


def _grain(metric: ShownMetric, grain: str, diffs: Sequence[MetricDiff]) -> dict[str, Any]:
    parts: list[GrainDiff] = [one for diff in diffs for one in diff.grains if one.grain == grain]
    worst = sorted((row for part in parts for row in part.worst), key=_distance, reverse=True)
    return {
        "grain": grain,
        "overlapping": isinstance(metric.window(grain), SlidingWindow),
        "windows": sum(part.windows for part in parts),
        "differing": sum(part.differing for part in parts),
        "changed": {cause: sum(part.changed_by[cause] for part in parts) for cause in CAUSES},
        "sketched": sum(part.sketched for part in parts),
        "bounded": sum(part.bounded for part in parts),
        "covered": sum(part.covered for part in parts),
        "split": _parts(total(part.split for part in parts)),
        "readings": _readings(_sum([one.readings for part in parts for one in part.bins])),
        "bin_seconds": int(parts[0].bin_size.total_seconds()) if parts else 0,
        "bins": [_bin(one) for part in parts for one in part.bins],
        "worst": [_window(row) for row in worst[:LARGEST_WORST]],
    }


def _distance(row: WindowRow) -> Decimal:
    return sum((abs(part) for part in row.split.parts().values()), Decimal(0))


def _sum(readings: Sequence[Readings]) -> Readings:
    return sum(readings, start=Readings.of(0, 0, 0, 0, 0))


def _bin(one: Bin) -> dict[str, Any]:
    shown = {"start": moment(one.start), "closed": one.closed, "windows": one.windows}
    return shown | _readings(one.readings) | {"split": _parts(one.split), "changed": one.changed_by}


def _window(row: WindowRow) -> dict[str, Any]:
    return {
        "window_start": moment(row.window_start),
        "window_end": moment(row.window_end),
        "session_key": row.session_key,
        "length_ms": row.length_ms,
        "dimensions": dict(row.dimensions),
        "item": row.item,
        "closed": row.closed,
        **_readings(row.readings),
        "without_value": list(row.without_value),
        "lower": _text(row.lower),
        "upper": _text(row.upper),
        "difference": str(row.readings.difference),
        "split": _parts(row.split),
    }


def _slice(row: SliceRow) -> dict[str, Any]:
    return {
        "slice_start": moment(row.slice_start),
        "slice_end": moment(row.slice_end),
        "session_key": row.session_key,
        "dimensions": dict(row.dimensions),
        "closed": row.closed,
        "speed_events": row.speed_events,
        "expected_events": row.expected_events,
        "speed": dict(row.speed),
        "expected": dict(row.expected),
    }


def _exception(one: ExceptionRecord) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "topic_partition": one.topic_partition,
        "offset": one.offset,
        "record_time": moment(one.record_time),
        "event_id": one.event_id,
        "event_time": moment(one.event_time),
        "disposition": one.disposition,
        "reason": one.reason,
        "repaired_offset": one.repaired_offset,
    }


def _text(number: Decimal | None) -> str | None:
    return None if number is None else str(number)


def _readings(readings: Readings) -> dict[str, str]:
    return {name: str(getattr(readings, name)) for name in ("speed", "expected", "counted", "with_late", "exact")}


def _parts(parts: Split) -> dict[str, str]:
    return {cause: str(part) for cause, part in parts.parts().items()}


def _check(check: Check) -> dict[str, Any]:
    outcome = str(check.outcome)
    return {"name": check.name, "outcome": outcome, "detail": check.detail, "certifies": check.certifies}
