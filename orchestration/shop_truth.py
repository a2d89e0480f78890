"""The truth about the shop: what its metrics and alerts must say, from the plan of the events.

Each answer follows a rule of `truth_rules`. Amounts are exact text, shares and means floats, times milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestration.happenings import ABSENT, DAY_MS, Columns, Flags, Ints, Records, decimal_text, taken
from orchestration.shop import (
    CART,
    CLICK,
    COUNTRIES,
    EVENT_TYPES,
    METHODS,
    PURCHASE,
    REQUEST,
    RESTOCK,
    RETURN,
    SERVICES,
    STOCK_TAKE,
    VIEW,
    page_name,
    product_id,
    user_id,
)
from orchestration.truth_rules import Breaches, Levels, Sessions, breaches, levels, quantile, sessions
from orchestration.truth_table import Table, by_day, counts, windows

SESSION_GAP_MS = 1_800_000
LONGEST_SESSION_MS = DAY_MS
TOP_PAGES = 10
CARD_PURCHASES, CARD_WITHIN_MS = 3, 120_000
HIGH_VALUE_CENTS, HIGH_VALUE_WITHIN_MS = 1_000_000, 600_000
LOW_STOCK = 10
ERRORS_AT_LEAST, ERRORS_WITHIN_MS = 20, 300_000
FAILED_STATUS = 500

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
PAGES_WITHIN_MS, VISITORS_WITHIN_MS = 300_000, 300_000

_ACTIONS = {"views": VIEW, "clicks": CLICK, "carts": CART, "purchases": PURCHASE}
_STOCK_EVENTS = (PURCHASE, STOCK_TAKE, RESTOCK, RETURN)
_LATENCIES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}


@dataclass(frozen=True)
class _Whole:
    """The tables, with or without the late events, and what follows from all of them together."""

    actions: Columns
    orders: Columns
    stock: Columns
    requests: Columns
    sessions: Sessions
    alerts: dict[str, list[dict[str, Any]]]


class ShopAnswers:
    """Keeps the shop's well-formed events and answers from them."""

    def __init__(self) -> None:
        who = {"user": np.int32}
        self._actions = Table(who | {"event_type": np.int8, "country": np.int8, "page": np.int32})
        self._orders = Table(who | {"country": np.int8, "cents": np.int64, "method": np.int8})
        self._stock = Table({"event_type": np.int8, "product": np.int32, "units": np.int32, "level": np.int32})
        self._requests = Table({"service": np.int8, "status": np.int16, "latency_us": np.int64})

    def add(self, records: Records, late: Flags) -> None:
        """Take note of well-formed events, each of them once; `late` says which are late."""
        kind = records.columns["event_type"]
        self._actions.add(records, late)
        self._orders.add(records, late, kind == PURCHASE)
        self._stock.add(records, late, np.isin(kind, _STOCK_EVENTS) & (records.columns["product"] > 0))
        self._requests.add(records, late, kind == REQUEST)

    def total(self, *, with_late: bool) -> dict[str, Any]:
        """The answers over all events, as plain values."""
        whole = self._whole(with_late=with_late)
        answers = _answers(whole.actions, whole.orders, whole.stock, whole.requests)
        return answers | {"sessions": _sessions(whole.sessions), "alerts": whole.alerts}

    def by_day(self, days: Iterable[int], *, with_late: bool) -> dict[int, dict[str, Any]]:
        """The answers over each day's events; a session is of the day its gap ends in, an alert of its breach's.

        `hour` is about the hour in whose middle the day begins.
        """
        whole = self._whole(with_late=with_late)
        wanted = list(days)
        parts = [by_day(rows, wanted) for rows in (whole.actions, whole.orders, whole.stock, whole.requests)]
        ended = _ends(whole.sessions) // DAY_MS
        return {
            day: _answers(*(part[day] for part in parts))
            | {
                "sessions": _sessions(_chosen(whole.sessions, ended == day)),
                "alerts": {
                    name: [each for each in raised if each["breached_at"] // DAY_MS == day]
                    for name, raised in whole.alerts.items()
                },
                "hour": _hour(whole, day * DAY_MS - HOUR_MS // 2),
            }
            for day in wanted
        }

    def _whole(self, *, with_late: bool) -> _Whole:
        tables = (self._actions, self._orders, self._stock, self._requests)
        actions, orders, stock, requests = (table.rows(with_late=with_late) for table in tables)
        seen = taken(actions, actions["user"] != ABSENT)
        found = sessions(seen["user"], seen["event_time"], SESSION_GAP_MS, LONGEST_SESSION_MS)
        return _Whole(actions, orders, stock, requests, found, _alerts(orders, stock, requests))


def _answers(actions: Columns, orders: Columns, stock: Columns, requests: Columns) -> dict[str, Any]:
    return {
        "events": len(actions["user"]),
        "events_by_type": counts(actions["event_type"], EVENT_TYPES),
        "revenue_by_country": _revenue(orders),
        "distinct_users": _users(actions),
        "actions_by_country": _by_country(actions),
        "orders": len(orders["cents"]),
        "revenue": decimal_text(int(orders["cents"].sum())),
        "order_value": _order_value(orders["cents"]),
        "top_pages": _top_pages(actions["page"][actions["event_type"] == VIEW]),
        "stock": {product_id(product): level for product, level in sorted(_levels(stock).last().items())},
        "requests_by_service": counts(requests["service"], SERVICES),
        "errors_by_service": counts(requests["service"][requests["status"] >= FAILED_STATUS], SERVICES),
        "latency_ms_by_service": {
            SERVICES[service]: {
                name: _thousandth(quantile(requests["latency_us"][requests["service"] == service], share))
                for name, share in _LATENCIES.items()
            }
            for service in np.unique(requests["service"]).tolist()
        },
    }


def _hour(whole: _Whole, start: int) -> dict[str, Any]:
    """What the windows say that begin within the hour from `start`, and the sessions whose gap ends in it.

    Pairs of a window's start and its value, of windows that have any event; of a session the user, the time of its
    first event, the milliseconds from that to the last, and the number of events.
    """
    minutes = range(start, start + HOUR_MS, MINUTE_MS)
    views = taken(whole.actions, whole.actions["event_type"] == VIEW)
    ended = _ends(whole.sessions)
    closed = _chosen(whole.sessions, (ended >= start) & (ended < start + HOUR_MS))
    return {
        "revenue_by_country": [[at, _revenue(rows)] for at, rows in windows(whole.orders, minutes, MINUTE_MS)],
        "top_pages": [[at, _top_pages(rows["page"])] for at, rows in windows(views, minutes, PAGES_WITHIN_MS)],
        "distinct_users": [
            [at, _users(rows)]
            for at, rows in windows(whole.actions, minutes[:: VISITORS_WITHIN_MS // MINUTE_MS], VISITORS_WITHIN_MS)
        ],
        "sessions": [
            [user_id(user), first, last - first, events]
            for user, first, last, events in zip(*map(np.ndarray.tolist, closed), strict=True)
        ],
    }


def _ends(found: Sessions) -> Ints:
    """The last millisecond in which another event would still have been of the session."""
    return found.last + SESSION_GAP_MS - 1


def _chosen(found: Sessions, mask: Flags) -> Sessions:
    return Sessions(*(column[mask] for column in found))


def _sessions(found: Sessions) -> dict[str, int]:
    """How many sessions there are, and in all their events and their milliseconds from first to last event."""
    length = int((found.last - found.first).sum())
    return {"number": len(found.key), "events": int(found.events.sum()), "length_ms": length}


def _users(actions: Columns) -> int:
    return int((np.unique(actions["user"]) != ABSENT).sum())


def _revenue(orders: Columns) -> dict[str, str]:
    found = np.unique(orders["country"]).tolist()
    cents = {COUNTRIES[each]: int(orders["cents"][orders["country"] == each].sum()) for each in found}
    return {name: decimal_text(each) for name, each in sorted(cents.items())}


def _by_country(actions: Columns) -> dict[str, dict[str, Any]]:
    """Views, clicks, carts and purchases, and purchases per view; None without a view."""
    done = {
        name: counts(actions["country"][actions["event_type"] == kind], COUNTRIES) for name, kind in _ACTIONS.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for country in sorted(set().union(*done.values())):
        each: dict[str, Any] = {name: by_country.get(country, 0) for name, by_country in done.items()}
        found[country] = each | {"conversion": each["purchases"] / each["views"] if each["views"] else None}
    return found


def _order_value(cents: Ints) -> dict[str, Any]:
    found = {name: quantile(cents, share) for name, share in _LATENCIES.items()}
    mean = int(cents.sum()) / 100 / len(cents) if len(cents) else None
    return {"mean": mean} | {name: None if each is None else decimal_text(each) for name, each in found.items()}


def _top_pages(pages: Ints) -> list[list[Any]]:
    """The pages seen most often, with how often; of equals the first by its bytes."""
    found, times = np.unique(pages, return_counts=True)
    named = [
        (-count, page_name(page).encode(), count) for page, count in zip(found.tolist(), times.tolist(), strict=True)
    ]
    return [[name.decode(), count] for _, name, count in sorted(named)[:TOP_PAGES]]


def _levels(stock: Columns) -> Levels:
    gone = stock["event_type"] == PURCHASE
    change = np.where(gone, -stock["units"], stock["units"])
    return levels(stock["product"], stock["event_time"], stock["level"], change)


def _alerts(orders: Columns, stock: Columns, requests: Columns) -> dict[str, list[dict[str, Any]]]:
    """Every breach of the shop's alerts, in order of time."""
    by_card = taken(orders, orders["method"] == METHODS.index("card"))
    cards = breaches(
        by_card["user"], by_card["event_time"], by_card["cents"], CARD_WITHIN_MS,
        lambda _, events: events > CARD_PURCHASES,
    )  # fmt: skip
    large = breaches(
        orders["user"], orders["event_time"], orders["cents"], HIGH_VALUE_WITHIN_MS,
        lambda cents, _: cents > HIGH_VALUE_CENTS,
    )  # fmt: skip
    low = _levels(stock).falls_below(LOW_STOCK)
    failed = (requests["status"] >= FAILED_STATUS).astype(np.int64)
    ill = breaches(
        requests["service"], requests["event_time"], failed, ERRORS_WITHIN_MS,
        lambda errors, events: (errors * 20 > events) & (events >= ERRORS_AT_LEAST),
    )  # fmt: skip
    return {
        "card_velocity": [
            {"user_id": user_id(user), "breached_at": at, "until": until, "value": events}
            for user, at, _, events, until in _rows(cards)
        ],
        "high_value": [
            {"user_id": user_id(user), "breached_at": at, "until": until, "value": decimal_text(cents)}
            for user, at, cents, _, until in _rows(large)
        ],
        "low_stock": [
            {"product": product_id(product), "breached_at": at, "until": until, "value": level}
            for product, at, level, _, until in _rows(low)
        ],
        "service_errors": [
            {"service": SERVICES[service], "breached_at": at, "until": until, "value": errors / events}
            for service, at, errors, events, until in _rows(ill)
        ],
    }


def _rows(found: Breaches) -> Iterator[tuple[int, ...]]:
    return zip(*map(np.ndarray.tolist, found), strict=True)


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000
