"""The serving views: slices merged into windows, and one layer chosen for what is served.

Per metric and grain there are three views. `<m>_<grain>__speed` is what the speed layer published, `<m>_<grain>__batch`
is what the batch layer currently publishes, and `<m>_<grain>` shows every window once: from batch as far as the UTC
days of the window are published and certified for this metric version, else from speed.

Columns: `window_start, window_end, [session_key], <dimensions>, [length_ms], value, lower, upper, [events], layer,
is_final, status, drift, metric_version, as_of, final_ratio`. Those of sessions alone are `session_key` and `length_ms`;
a ratio has no `events`.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from infra.clickhouse import quote
from metrics.catalog import Catalog, RatioMetric, ShownMetric
from serving import layers, ratio
from serving.days import Days, text
from serving.presented import dimensions, keys, presented, presented_items
from serving.versions import view_name

__all__ = ["View", "dimensions", "presented", "presented_items", "view_name", "views"]

DRIFT_TOLERANCE = 1e-9
"""Floats that differ by less, relative to the greater, are the same: only the order of their sums differs."""

_WHOLE = ("UInt64", "Int64")


@dataclass(frozen=True)
class View:
    """A view as a value: its unquoted name, the SELECT that it stands for, and what it shows.

    Attributes:
        metric: the metric's name.
        metric_version: the version that it shows.
        ending: what stands behind the metric, or its version, in the view's name: the grain, and the layer if any.
    """

    name: str
    body: str
    metric: str
    metric_version: str
    ending: str

    @property
    def comment(self) -> str:
        """JSON of what the view shows, since its name does not tell, and a digest, the same for the same SELECT."""
        digest = hashlib.sha256(self.body.encode()).hexdigest()[:16]
        shows = {"metric": self.metric, "metric_version": self.metric_version, "ending": self.ending}
        return json.dumps(shows | {"digest": digest})

    def create(self, database: str) -> str:
        """`CREATE OR REPLACE VIEW` with every identifier quoted."""
        target = f"{quote(database)}.{quote(self.name)}"
        return f"CREATE OR REPLACE VIEW {target} AS\n{self.body}\nCOMMENT {text(self.comment)}"


def views(catalog: Catalog, database: str, beside: Collection[str] = ()) -> list[View]:
    """The views of each metric and grain: speed, batch, then the served view.

    Args:
        catalog: the source's.
        database: its database.
        beside: metrics whose name shows another version, so that these views are named by their version.
    """
    found = []
    for metric in catalog.shown:
        version = metric.metric_version if metric.name in beside else None
        for grain in metric.grains:
            bodies = {
                f"{grain}__speed": speed_sql(metric, grain, database, catalog.allowed_lateness),
                f"{grain}__batch": batch_sql(metric, grain, Days(database, metric.versions)),
                grain: served_sql(metric, grain, database, catalog.allowed_lateness),
            }
            found += [
                View(view_name(metric, ending, version), body, metric.name, metric.metric_version, ending)
                for ending, body in bodies.items()
            ]
    return found


def speed_sql(metric: ShownMetric, grain: str, database: str, allowed_lateness: timedelta) -> str:
    """What the speed layer shows: see `layers.speed`."""
    rows = (
        ratio.speed(metric, grain, database, allowed_lateness)
        if isinstance(metric, RatioMetric)
        else layers.speed(metric, grain, database, allowed_lateness)
    )
    return _view(metric, rows, "'speed'", "'provisional'", "CAST(NULL AS Nullable(Float64))")


def batch_sql(metric: ShownMetric, grain: str, days: Days) -> str:
    """What the batch layer publishes of some days: see `layers.batch`."""
    rows = ratio.batch(metric, grain, days) if isinstance(metric, RatioMetric) else layers.batch(metric, grain, days)
    status = "if(v.is_final, 'certified', 'provisional')"
    return _view(metric, rows, "'batch'", status, "CAST(NULL AS Nullable(Float64))")


def served_sql(metric: ShownMetric, grain: str, database: str, allowed_lateness: timedelta) -> str:
    """Each window once; `drift` is the certified value less what the speed layer shows for it.

    The layers are grouped by window and dimensions, so that a window cannot appear twice whatever the tables hold. On a
    certified day only the windows that batch has are shown: a window that speed alone has there is a defect, not data.
    """
    days = Days(database, metric.versions)
    rows = (
        ratio.served(metric, grain, days, allowed_lateness)
        if isinstance(metric, RatioMetric)
        else layers.served(metric, grain, days, allowed_lateness)
    )
    layer = "if(v._from_batch, 'batch', 'speed')"
    status = "if(v._from_batch, 'certified', 'provisional')"
    return _view(metric, rows, layer, status, _drift(metric)) + "\nWHERE v._is_shown"


def _view(metric: ShownMetric, rows: str, layer: str, status: str, drift: str) -> str:
    events = () if isinstance(metric, RatioMetric) else ("events",)
    shown = [
        *(f"v.{name} AS {name}" for name in (*keys(metric), "value", "lower", "upper", *events)),
        f"{layer} AS layer",
        "v.is_final AS is_final",
        f"{status} AS status",
        f"{drift} AS drift",
        f"{text(metric.metric_version)} AS metric_version",
        "v.as_of AS as_of",
        "v.final_ratio AS final_ratio",
    ]
    return f"SELECT {', '.join(shown)}\nFROM (\n{rows}\n) AS v"


def _drift(metric: ShownMetric) -> str:
    """The certified value less speed's; NULL where there are not both, or where values are no numbers."""
    kind = metric.value_type
    if kind.startswith("Array") or kind in {"String", "Bool"}:
        return "CAST(NULL AS Nullable(Float64))"
    apart = "v.value - v._speed_value"
    if kind in _WHOLE:
        apart = "toInt128(v.value) - toInt128(v._speed_value)"
    if kind == "Float64":
        near = f"abs({apart}) < {DRIFT_TOLERANCE} * greatest(abs(v.value), abs(v._speed_value))"
        apart = f"if({near}, 0, {apart})"
    return f"CAST(if(v._from_batch AND v._from_speed, toFloat64({apart}), NULL) AS Nullable(Float64))"
