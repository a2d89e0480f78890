"""The answers of the ground truth once more: event by event, from the JSON that was written, by the plainest loops."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

Event = dict[str, Any]
DAY_MS = 86_400_000
MINUTE_MS = 60_000


def day_of(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).date().isoformat()


def ranked(values: Iterable[Any], share: str) -> Any:
    found = sorted(values)
    return found[max(1, math.ceil(Fraction(share) * len(found))) - 1] if found else None


def rising(
    events: Sequence[Event], by: str, within: int, value: Callable[[list[Event]], Any], holds: Callable[[Any], bool]
) -> list[tuple[Any, int, Any]]:
    """(key, time, value, time until which it goes on) of each breach, by time and key."""
    found = []
    for key in {event[by] for event in events}:
        own = [event for event in events if event[by] == key]
        goes_on = False
        for t in sorted({event["ts"] for event in own}):
            now = [event for event in own if t - within < event["ts"] <= t]
            before = [event for event in now if event["ts"] < t]
            if not holds(value(now)):
                goes_on = False
            elif not (before and holds(value(before))):
                goes_on = True
                found.append((key, t, value(now), t))
            elif goes_on:
                found[-1] = (*found[-1][:3], t)
    return sorted(found, key=lambda each: (each[1], each[0]))


def sessions(moments: Iterable[int], gap: int, longest: int) -> list[list[int]]:
    found: list[list[int]] = []
    for moment in sorted(moments):
        if found and moment - found[-1][-1] < gap and moment - found[-1][0] < longest:
            found[-1].append(moment)
        else:
            found.append([moment])
    return found


def level(events: Iterable[Event]) -> int:
    """What is left of one product."""
    own = list(events)
    takes = [(event["ts"], event["stock_level"]) for event in own if event["event_type"] == "stock_take"]
    since, stock = max(takes, default=(-1, 0))
    for event in own:
        if event["event_type"] != "stock_take" and event["ts"] >= since:
            stock += -event["quantity"] if event["event_type"] == "purchase" else event["quantity"]
    return stock


def shop_answers(events: list[Event]) -> dict[str, Any]:
    """The answers that need only the events of the day or of all days themselves."""
    kind: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        kind[event["event_type"]].append(event)
    bought = [Decimal(event["amount"]) for event in kind["purchase"]]
    countries: dict[str, dict[str, Any]] = {}
    names = {"views": "page_view", "clicks": "click", "carts": "add_to_cart", "purchases": "purchase"}
    for country in sorted({event["country"] for name in names.values() for event in kind[name]}):
        done: dict[str, Any] = {
            label: sum(event["country"] == country for event in kind[name]) for label, name in names.items()
        }
        done["conversion"] = done["purchases"] / done["views"] if done["views"] else None
        countries[country] = done
    revenue: Counter[str] = Counter()
    for event in kind["purchase"]:
        revenue[event["country"]] += Decimal(event["amount"])  # type: ignore[assignment]
    stock = defaultdict(list)
    for event in events:
        if "product" in event:
            stock[event["product"]].append(event)
    pages = Counter(event["page"] for event in kind["page_view"])
    quantiles = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
    requests = defaultdict(list)
    for event in kind["request"]:
        requests[event["service"]].append(event)
    failed = Counter(event["service"] for event in kind["request"] if event["status"] >= 500)
    return {
        "events": len(events),
        "events_by_type": {name: len(found) for name, found in sorted(kind.items()) if found},
        "revenue_by_country": {country: str(total) for country, total in sorted(revenue.items())},
        "distinct_users": len({event["user_id"] for event in events if "user_id" in event}),
        "actions_by_country": countries,
        "orders": len(bought),
        "revenue": str(sum(bought, Decimal("0.00"))),
        "order_value": {
            "mean": float(sum(bought)) / len(bought) if bought else None,
            **{name: None if not bought else str(ranked(bought, share)) for name, share in quantiles.items()},
        },
        "top_pages": [list(each) for each in sorted(pages.items(), key=lambda each: (-each[1], each[0].encode()))[:10]],
        "stock": {product: level(found) for product, found in stock.items()},
        "requests_by_service": {name: len(found) for name, found in sorted(requests.items())},
        "errors_by_service": dict(sorted(failed.items())),
        "latency_ms_by_service": {
            name: {label: ranked((event["latency_ms"] for event in found), share) for label, share in quantiles.items()}
            for name, found in requests.items()
        },
    }


def shop_sessions(events: list[Event]) -> list[tuple[str, list[int]]]:
    """The user and the times of the events of each session, by user and time."""
    moments = defaultdict(list)
    for event in events:
        if "user_id" in event:
            moments[event["user_id"]].append(event["ts"])
    return [(user, each) for user, own in sorted(moments.items()) for each in sessions(own, 30 * MINUTE_MS, DAY_MS)]


def last_moment(session: tuple[str, list[int]]) -> int:
    return session[1][-1] + 30 * MINUTE_MS - 1


def session_totals(found: list[tuple[str, list[int]]]) -> dict[str, int]:
    return {
        "number": len(found),
        "events": sum(len(each) for _, each in found),
        "length_ms": sum(each[-1] - each[0] for _, each in found),
    }


def shop_hour(events: list[Event], begin: int) -> dict[str, Any]:
    """What the windows that begin within an hour say, each from its events alone."""
    end = begin + 60 * MINUTE_MS
    found: dict[str, list[Any]] = {"revenue_by_country": [], "top_pages": [], "distinct_users": []}
    for start in range(begin, end, MINUTE_MS):
        minute = shop_answers([event for event in events if start <= event["ts"] < start + MINUTE_MS])
        five = [event for event in events if start <= event["ts"] < start + 5 * MINUTE_MS]
        answers = shop_answers(five)
        if minute["orders"]:
            found["revenue_by_country"].append([start, minute["revenue_by_country"]])
        if answers["top_pages"]:
            found["top_pages"].append([start, answers["top_pages"]])
        if five and start % (5 * MINUTE_MS) == 0:
            found["distinct_users"].append([start, answers["distinct_users"]])
    return found | {
        "sessions": [
            [user, each[0], each[-1] - each[0], len(each)]
            for user, each in shop_sessions(events)
            if begin <= last_moment((user, each)) < end
        ]
    }


def shop_alerts(events: list[Event]) -> dict[str, list[dict[str, Any]]]:
    bought = [event for event in events if event["event_type"] == "purchase"]
    cards = [event for event in bought if event["method"] == "card"]
    requests = [event for event in events if event["event_type"] == "request"]
    low = []
    for product in {event["product"] for event in events if "product" in event}:
        own = [event for event in events if event.get("product") == product]
        above = True
        for t in sorted({event["ts"] for event in own}):
            stock = level(event for event in own if event["ts"] <= t)
            if stock < 10:
                low = [*low, (product, t, stock, t)] if above else [*low[:-1], (*low[-1][:3], t)]
            above = stock >= 10

    def total(own: list[Event]) -> Decimal:
        return sum((Decimal(event["amount"]) for event in own), Decimal("0.00"))

    def share(own: list[Event]) -> tuple[int, float]:
        return len(own), sum(event["status"] >= 500 for event in own) / len(own)

    found = {
        "card_velocity": ("user_id", rising(cards, "user_id", 2 * MINUTE_MS, len, lambda count: count > 3)),
        "high_value": ("user_id", [
            (user, t, str(value), until)
            for user, t, value, until in rising(bought, "user_id", 10 * MINUTE_MS, total, lambda value: value > 10_000)
        ]),
        "low_stock": ("product", sorted(low, key=lambda each: (each[1], int(each[0][1:])))),
        "service_errors": ("service", [
            (service, t, value[1], until)
            for service, t, value, until in rising(
                requests, "service", 5 * MINUTE_MS, share, lambda value: value[0] >= 20 and value[1] > 0.05
            )
        ]),
    }  # fmt: skip
    return {
        name: [{by: key, "breached_at": at, "until": until, "value": value} for key, at, value, until in raised]
        for name, (by, raised) in found.items()
    }


def device_answers(events: list[Event]) -> dict[str, Any]:
    own: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        own[event["device"]].append(event)
    devices, batteries = {}, {}
    for device, found in own.items():
        temperatures = [Decimal(event["temperature"]) for event in found]
        newest = max(event["ts"] for event in found)
        devices[device] = {
            "site": found[0]["site"],
            "min": str(min(temperatures)),
            "max": str(max(temperatures)),
            "mean": float(sum(temperatures)) / len(temperatures),
            "last": [event["temperature"] for event in found if event["ts"] == newest][-1],
        }
        charges = [event["battery"] for event in found if "battery" in event]
        if charges:
            batteries[device] = min(charges)
    return {
        "events": len(events),
        "readings_by_site": dict(sorted(Counter(event["site"] for event in events).items())),
        "failures_by_site": dict(sorted(Counter(event["site"] for event in events if not event["ok"]).items())),
        "temperature_by_device": devices,
        "lowest_battery_by_device": batteries,
    }


def device_alerts(events: list[Event]) -> dict[str, list[dict[str, Any]]]:
    failed = [event for event in events if not event["ok"]]
    sites = {event["device"]: event["site"] for event in events}
    raised = rising(failed, "device", 10 * MINUTE_MS, len, lambda count: count > 3)
    return {
        "device_failing": [
            {"device": device, "site": sites[device], "breached_at": at, "until": until, "value": value}
            for device, at, value, until in raised
        ]
    }
