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
VIEW_SUFFIXES = ("", "__speed", "__batch")


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


def view_name(metric: ShownMetric, grain: str, version: str | None = None) -> str:
    """Unquoted name of a served view: of the metric's name, or of one of its versions."""
    return f"{metric.name}_{grain}" if version is None else f"{metric.name}__{version[:DIGITS]}_{grain}"


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


def lacking(client: Client, database: str, metric: ShownMetric, active: str) -> list[date]:
    """Days that the active version has published and the metric's version has not."""
    old, new = (Days(database, versions).published for versions in ((active,), metric.versions))
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
    renames = []
    views = _views(client, database)
    for metric in waiting:
        old = now.active[metric.name]
        for name in sorted(views):
            grain = _grain(name, f"{metric.name}_", metric, views)
            if grain is not None:
                renames.append((name, f"{metric.name}__{old[:DIGITS]}_{grain}"))
        own = f"{metric.name}__{metric.metric_version[:DIGITS]}_"
        renames += [(name, f"{metric.name}_{name.removeprefix(own)}") for name in sorted(views) if name.startswith(own)]
    if renames:
        target = quote(database)
        pairs = ", ".join(f"{target}.{quote(old)} TO {target}.{quote(new)}" for old, new in renames)
        client.command(f"RENAME TABLE {pairs}")
        _note(client, database, waiting, ACTIVE)
    return waiting


def _grain(name: str, prefix: str, metric: ShownMetric, views: set[str]) -> str | None:
    """What follows a metric's name in the name of one of its views; None for another metric's view.

    Views of a metric come in threes; `orders_per_user_1m` is none of `orders`, whose grains have no such name.
    """
    if not name.startswith(prefix) or name.startswith(f"{metric.name}__"):
        return None
    rest = name.removeprefix(prefix)
    grain = rest.removesuffix("__speed").removesuffix("__batch")
    whole = all(f"{prefix}{grain}{suffix}" in views for suffix in VIEW_SUFFIXES)
    return rest if whole and (grain in metric.grains or grain[:1].isdigit()) else None


def _require_published(client: Client, database: str, waiting: Iterable[ShownMetric], now: Standing) -> None:
    faults = []
    for metric in waiting:
        days = lacking(client, database, metric, now.active[metric.name])
        if days:
            faults.append(f"`{metric.name}` lacks {len(days)} days, {days[0]} to {days[-1]}")
    if faults:
        msg = (
            f"a version is switched to once it has every day that the old one has published; {'; '.join(faults)}. run "
            "`lockstep batch` and `lockstep reconcile` for these days, or switch with --force"
        )
        raise SwitchError(msg)


def _views(client: Client, database: str) -> set[str]:
    sql = "SELECT name FROM system.tables WHERE database = {database:String} AND engine = 'View'"
    return {name for (name,) in client.query(sql, parameters={"database": database}).result_rows}


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
