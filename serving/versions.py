"""Versions of metrics side by side: which one readers see, which one is being filled, and the switch between them.

A metric whose definition changed has a new `metric_version`. Its rows stand beside those of the old one, which stays
active: the views of the metric's name go on showing it, and the new version has views of its own, named by its first
digits (`<m>__<digits>_<grain>`). `switch` gives the name to the new version in one statement; the old one keeps views
under its own digits, and can be switched back to.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.clickhouse import insert_frame, quote
from metrics.catalog import Catalog, ShownMetric
from serving.days import Days
from serving.table import INSTANT, Table

VERSIONS_TABLE = "metric_versions"
ACTIVE, LIVE, KNOWN = "active", "live", "known"
DIGITS = 8


class SwitchError(ValueError):
    """A version that cannot become active; the text says why and the way out."""


@dataclass(frozen=True)
class Standing:
    """What is on record of a source's metric versions.

    Attributes:
        active: metric -> the version that its name shows.
        known: metric -> all its versions, oldest first.
        live: versions that a speed layer has been started with.
    """

    active: dict[str, str]
    known: dict[str, tuple[str, ...]]
    live: frozenset[str]

    def is_active(self, metric: ShownMetric) -> bool:
        """Whether the metric's name shows the catalog's version; a metric without any active version takes it."""
        return self.active.get(metric.name, metric.metric_version) == metric.metric_version


@dataclass(frozen=True)
class ShownView:
    """A view in the database, by its comment: whose it is, and what ends its name; see `views.View`."""

    name: str
    metric: str
    metric_version: str
    ending: str


def versions_table() -> Table:
    """One row per thing that happened to a version: it became known, was started live, or became active."""
    columns = (
        ("metric", "String"),
        ("metric_version", "String"),
        ("definition", "String"),
        ("happened", "LowCardinality(String)"),
        ("at", f"{INSTANT} DEFAULT now64(6)"),
    )
    return Table(VERSIONS_TABLE, columns, ("metric", "at"))


def standing(client: Client, database: str) -> Standing:
    """What is on record."""
    rows = client.query(
        f"SELECT metric, metric_version, happened FROM {quote(database)}.{VERSIONS_TABLE} ORDER BY at, metric"
    ).result_rows
    active = {metric: version for metric, version, happened in rows if happened == ACTIVE}
    known: dict[str, dict[str, None]] = {}
    for metric, version, _ in rows:
        known.setdefault(metric, {})[version] = None
    live = frozenset(version for _, version, happened in rows if happened == LIVE)
    return Standing(active, {metric: tuple(versions) for metric, versions in known.items()}, live)


def record(client: Client, database: str, catalog: Catalog, replaced: Collection[ShownMetric] = ()) -> Standing:
    """Notes versions that are new; a metric that has no active version gets the catalog's. Returns what then holds.

    Args:
        client: a client that may write.
        database: of the source.
        catalog: the source's.
        replaced: metrics whose old version has no tables any more, so that the new one is active.
    """
    now = standing(client, database)
    fresh = [metric for metric in catalog.shown if metric.metric_version not in now.known.get(metric.name, ())]
    _note(client, database, fresh, KNOWN)
    first = [metric for metric in catalog.shown if metric.name not in now.active or metric in replaced]
    _note(client, database, [m for m in first if now.active.get(m.name) != m.metric_version], ACTIVE)
    return standing(client, database)


def note_live(client: Client, database: str, metrics: Iterable[ShownMetric]) -> None:
    """Notes that a speed layer computes these versions."""
    known = standing(client, database).live
    _note(client, database, [metric for metric in metrics if metric.metric_version not in known], LIVE)


def view_name(metric: ShownMetric, ending: str, version: str | None = None) -> str:
    """Unquoted name of a view: of the metric's name, or of one of its versions; it ends with the grain and layer."""
    return f"{metric.name}_{ending}" if version is None else f"{metric.name}__{version[:DIGITS]}_{ending}"


def kept_beside(client: Client, database: str, metric: str, version: str) -> str | None:
    """The version that some digits begin, to be read by its own views; None for the one that the name shows.

    Raises:
        SwitchError: The metric has no such version.
    """
    now = standing(client, database)
    known = now.known.get(metric, ())
    found = [one for one in known if one.startswith(version)]
    if len(found) != 1:
        msg = f"`{metric}` has no version `{version}`. its versions are: {', '.join(known) or 'none'}"
        raise SwitchError(msg)
    return None if found[0] == now.active.get(metric) else found[0]


def lacking(client: Client, database: str, metric: ShownMetric, active: tuple[str, ...]) -> list[date]:
    """Days that were published with all of the active versions and not with those that the metric is made of."""
    old, new = (Days(database, versions).published for versions in (active, metric.versions))
    sql = f"SELECT partition FROM ({old}) WHERE partition NOT IN (SELECT partition FROM ({new})) ORDER BY partition"
    return [day for (day,) in client.query(sql).result_rows]


def switch(client: Client, database: str, metrics: Iterable[ShownMetric], *, force: bool = False) -> list[ShownMetric]:
    """Gives metrics' names to the catalog's versions, all in one statement; returns those that changed.

    Args:
        client: a client that may write.
        database: of the source.
        metrics: of the catalog; those whose version is active already are passed over.
        force: whether days that the new version lacks are accepted.

    Raises:
        SwitchError: a new version lacks days that the old one has published; nothing was switched.
    """
    now = standing(client, database)
    waiting = [metric for metric in metrics if not now.is_active(metric)]
    if not force:
        _require_published(client, database, waiting, now)
    if waiting:
        rename(client, database, waiting)
        _note(client, database, waiting, ACTIVE)
    return waiting


def rename(client: Client, database: str, metrics: Iterable[ShownMetric]) -> None:
    """Gives the metrics' names to the views of their versions, and names with digits to those of other versions."""
    shown = _shown(client, database)
    pairs = [pair for metric in metrics for pair in renames(shown, metric)]
    if pairs:
        target = quote(database)
        texts = ", ".join(f"{target}.{quote(old)} TO {target}.{quote(new)}" for old, new in pairs)
        client.command(f"RENAME TABLE {texts}")


def renames(shown: Iterable[ShownView], metric: ShownMetric) -> list[tuple[str, str]]:
    """Old and new names of a metric's views; those that leave the metric's name first, to make room for the others."""
    found = []
    own = (view for view in shown if view.metric == metric.name)
    for view in sorted(own, key=lambda view: view.metric_version == metric.metric_version):
        beside = None if view.metric_version == metric.metric_version else view.metric_version
        found.append((view.name, view_name(metric, view.ending, beside)))
    return [(old, new) for old, new in found if old != new]


def _require_published(client: Client, database: str, waiting: Iterable[ShownMetric], now: Standing) -> None:
    faults = []
    for metric in waiting:
        # a ratio is not published itself, but the metrics that it divides are
        active = tuple(now.active.get(one.name, one.metric_version) for one in metric.operands)
        days = lacking(client, database, metric, active)
        if days:
            faults.append(f"`{metric.name}` lacks {len(days)} days, {days[0]} to {days[-1]}")
    if faults:
        msg = (
            f"a version is switched to once it has every day that the old one has published; {'; '.join(faults)}. run "
            "`lockstep batch` and `lockstep reconcile` for these days, or switch with --force"
        )
        raise SwitchError(msg)


def _shown(client: Client, database: str) -> list[ShownView]:
    """The views that say what they show; a table, or a view that somebody else made, has no such comment."""
    rows = client.query(
        "SELECT name, JSONExtractString(comment, 'metric') AS metric, JSONExtractString(comment, 'metric_version'),"
        " JSONExtractString(comment, 'ending') FROM system.tables"
        " WHERE database = {database:String} AND engine = 'View' AND metric != '' ORDER BY name",
        parameters={"database": database},
    ).result_rows
    return [ShownView(*row) for row in rows]


def _note(client: Client, database: str, metrics: Iterable[ShownMetric], happened: str) -> None:
    rows = [
        {
            "metric": metric.name,
            "metric_version": metric.metric_version,
            "definition": metric.text + (f" where {metric.where}" if metric.where else ""),
            "happened": happened,
        }
        for metric in metrics
    ]
    if rows:
        insert_frame(client, f"{quote(database)}.{quote(VERSIONS_TABLE)}", pl.DataFrame(rows))
