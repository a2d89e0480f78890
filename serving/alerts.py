"""Alerts as readers see them: what was raised live, latest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.alert import Alert
from metrics.catalog import Catalog
from serving.alert_tables import ALERTS
from serving.query import LARGEST_LIMIT, QueryError, UnknownMetricError, iso, parse_time

DEFAULT_LIMIT = 100


class UnknownAlertError(UnknownMetricError):
    """The catalog defines no such alert."""


@dataclass(frozen=True)
class Raised:
    """A breach that was raised.

    Attributes:
        alert: the alert's name.
        alert_id: names the breach; the key of its message.
        dims: dimension -> value.
        breached_at: the event time at which the condition began to hold.
        value: the alert's value then.
        threshold: what it was compared with.
        evidence: ids of the events behind it.
        topic: where the message is.
        raised_at: when it was written, by ClickHouse's clock.
    """

    alert: str
    alert_id: str
    dims: dict[str, str]
    breached_at: datetime
    value: float
    threshold: float
    evidence: tuple[str, ...]
    topic: str
    raised_at: datetime

    def as_json(self) -> dict[str, Any]:
        """The breach as the API prints it."""
        return vars(self) | {
            "breached_at": iso(self.breached_at),
            "raised_at": iso(self.raised_at),
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True)
class AlertQuery:
    """What is asked for: of which alerts, breached in ``[start, end)``, at most `limit`, the latest."""

    alerts: tuple[Alert, ...]
    start: datetime | None = None
    end: datetime | None = None
    limit: int = DEFAULT_LIMIT


def build(
    catalog: Catalog,
    name: str | None = None,
    start: str | None = None,
    end: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> AlertQuery:
    """The query that texts ask for.

    Raises:
        UnknownAlertError: the catalog has no alert of that name; the message lists those there are.
        QueryError: a time or the limit is none.
    """
    chosen = [alert for alert in catalog.alerts if name in {None, alert.name}]
    if name is not None and not chosen:
        known = ", ".join(alert.name for alert in catalog.alerts) or "none"
        msg = f"unknown alert `{name}`. the alerts of source `{catalog.source}` are: {known}"
        raise UnknownAlertError(msg)
    if not 1 <= limit <= LARGEST_LIMIT:
        msg = f"`limit` must lie between 1 and {LARGEST_LIMIT}; got {limit}. ask for a shorter time instead"
        raise QueryError(msg)
    since, until = parse_time(start, "from") if start else None, parse_time(end, "to") if end else None
    return AlertQuery(tuple(chosen), since, until, limit)


def raised(client: Client, database: str, query: AlertQuery) -> list[Raised]:
    """What was raised by the present definitions, latest first."""
    if not query.alerts:
        return []
    conditions = ["(alert, alert_version) IN {alerts:Array(Tuple(String, String))}"]
    parameters: dict[str, Any] = {
        "alerts": [(alert.name, alert.alert_version) for alert in query.alerts],
        "most": query.limit,
    }
    for name, moment, sign in (("start", query.start, ">="), ("end", query.end, "<")):
        if moment is not None:
            conditions.append(f"breached_at {sign} {{{name}:DateTime64(3, 'UTC')}}")
            parameters[name] = moment
    sql = (
        "SELECT alert, alert_id, dims, breached_at, value, threshold, evidence, topic, raised_at "
        f"FROM {quote(database)}.{quote(ALERTS)} FINAL WHERE {' AND '.join(conditions)} "
        "ORDER BY breached_at DESC, alert, alert_id LIMIT {most:UInt64}"
    )
    return [
        Raised(alert, identity, dict(dims), at, value, threshold, tuple(evidence), topic, written)
        for alert, identity, dims, at, value, threshold, evidence, topic, written in client.query(
            sql, parameters=parameters
        ).result_rows
    ]


def answer(client: Client, database: str, query: AlertQuery) -> dict[str, Any]:
    """The JSON object of a query: the alerts asked for, and what was raised."""
    return {
        "definitions": definitions(query.alerts),
        "alerts": [one.as_json() for one in raised(client, database, query)],
    }


def definitions(alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """Alerts as their catalog defines them."""
    return [
        {
            "name": alert.name,
            "when": alert.when,
            "where": alert.where,
            "by": list(alert.by),
            "within_seconds": alert.within.total_seconds() if alert.within else None,
            "topic": alert.topic,
            "description": alert.description,
            "alert_version": alert.alert_version,
        }
        for alert in alerts
    ]
