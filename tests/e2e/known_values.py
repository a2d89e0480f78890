"""What the generator's truth says of the demo's metrics, in the shape in which `lockstep query` answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from metrics.catalog import ShownMetric

Answers = dict[str, Any]
Values = dict[tuple[str, ...], Any]
"""Values by the dimensions of their row."""

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BEGINNING = "1970-01-01T00:00:00Z"


def _all(name: str) -> Callable[[Answers], Values]:
    return lambda answers: {(): answers[name]}


def _by(name: str) -> Callable[[Answers], Values]:
    return lambda answers: {(key,): value for key, value in answers[name].items()}


def _actions(name: str, *there: str) -> Callable[[Answers], Values]:
    """What countries did, of those that did it or any of `there`."""
    return lambda answers: {
        (country,): done[name]
        for country, done in answers["actions_by_country"].items()
        if any(done[each] for each in there or (name,))
    }


def _if_any(count: str, values: Callable[[Answers], Values]) -> Callable[[Answers], Values]:
    """Nothing where nothing was counted: there is no window without an event."""
    return lambda answers: values(answers) if answers[count] else {}


def _order_value(name: str) -> Callable[[Answers], Values]:
    return _if_any("orders", lambda answers: {(): answers["order_value"][name]})


def _share(part: str, whole: str) -> Callable[[Answers], Values]:
    return lambda answers: {(key,): answers[part].get(key, 0) / count for key, count in answers[whole].items()}


def _temperature(name: str) -> Callable[[Answers], Values]:
    return lambda answers: {
        (device, found["site"]): found[name] for device, found in answers["temperature_by_device"].items()
    }


TOLD: dict[str, Callable[[Answers], Values]] = {
    "events": _all("events"),
    "events_by_type": _by("events_by_type"),
    "revenue": _by("revenue_by_country"),
    "unique_visitors": _all("distinct_users"),
    "top_pages": lambda answers: {(): [{"item": page, "count": count} for page, count in answers["top_pages"]]},
    "views": _actions("views"),
    "clicks": _actions("clicks"),
    "carts": _actions("carts"),
    "purchases": _actions("purchases"),
    "conversion": _actions("conversion", "views", "purchases"),
    "orders": _if_any("orders", _all("orders")),
    "turnover": _if_any("orders", _all("revenue")),
    "order_value_mean": _order_value("mean"),
    "order_value_p50": _order_value("p50"),
    "order_value_p95": _order_value("p95"),
    "order_value_p99": _order_value("p99"),
    "stock": lambda answers: {(product,): str(level) for product, level in answers["stock"].items()},
    "requests": _by("requests_by_service"),
    "failed_requests": _by("errors_by_service"),
    "error_rate": _share("errors_by_service", "requests_by_service"),
    "latency_p95": lambda answers: {
        (service,): found["p95"] for service, found in answers["latency_ms_by_service"].items()
    },
    "readings": _by("readings_by_site"),
    "failures": _by("failures_by_site"),
    "failure_share": _share("failures_by_site", "readings_by_site"),
    "lowest_temperature": _temperature("min"),
    "highest_temperature": _temperature("max"),
    "mean_temperature": _temperature("mean"),
    "last_temperature": _temperature("last"),
    "lowest_battery": lambda answers: {
        (device, answers["temperature_by_device"][device]["site"]): lowest
        for device, lowest in answers["lowest_battery_by_device"].items()
    },
}
"""By metric, its values for a day from the truth's answers about that day; sessions are told one by one."""

OF_AN_HOUR = {
    "revenue": ("1m", "revenue_by_country"),
    "top_pages": ("5m_every_1m", "top_pages"),
    "unique_visitors": ("5m", "distinct_users"),
}
"""By metric, the grain of which the truth knows every window of an hour, and its name there."""


@dataclass(frozen=True)
class Known:
    """All windows of a grain that begin in [start, end): a value by the window's start and the dimensions."""

    grain: str
    start: datetime
    end: datetime
    values: Values


def known(metric: ShownMetric, truth: Answers, reading: str) -> Iterator[Known]:
    """What a metric must say in a reading: of the closed days, of the hours in which they begin, and of all there is.

    What there is goes on after the closed days, which the exact reading cannot know yet.
    """
    told, days = TOLD[metric.name], [midnight(day) for day in truth["closed_days"]]
    parts = [truth["by_day"][day][reading] for day in truth["closed_days"]]
    daily = {
        (iso(day), *dims): value for day, part in zip(days, parts, strict=True) for dims, value in told(part).items()
    }
    yield Known("1d", days[0], days[-1] + DAY, daily)
    if metric.name in OF_AN_HOUR:
        grain, name = OF_AN_HOUR[metric.name]
        for day, part in zip(days, parts, strict=True):
            start = max(day - HOUR / 2, days[0])  # a window that begins before the closed days is not final
            windows = {
                (iso(moment(at)), *dims): value
                for at, answer in part["hour"][name]
                if moment(at) >= start
                for dims, value in told({name: answer}).items()
            }
            yield Known(grain, start, day + HOUR / 2, windows)
    if reading == "counted" and "global" in metric.grains:
        everything = {(BEGINNING, *dims): value for dims, value in told(truth["total"][reading]).items()}
        yield Known("global", moment(0), days[-1] + DAY, everything)


def midnight(day: str) -> datetime:
    """The beginning of a UTC day."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def moment(ms: int) -> datetime:
    """The time so many milliseconds after the epoch."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def milliseconds(text: str) -> int:
    """A time in ISO 8601 as milliseconds since the epoch."""
    return (datetime.fromisoformat(text) - moment(0)) // timedelta(milliseconds=1)


def iso(time: datetime) -> str:
    """A whole second as `lockstep query` writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
