"""The truth about the shop and the devices against plain loops over the JSON that was written for them."""

import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_truth
from slow_truth import Event, day_of

from infra.catalog_file import load_catalog
from orchestration import catalogs
from orchestration.generator import GenerateOptions, Generation
from orchestration.truth_rules import breaches, levels, quantile, sessions

CATALOGS = Path(catalogs.__path__[0])
NOON = round(datetime(2025, 3, 5, 12, tzinfo=UTC).timestamp() * 1000)
OPTIONS = GenerateOptions(
    events=12_000, seed=3, days=2, rate=50, live=60, late=80, duplicates=60, out_of_order=150, bad=24, id_conflicts=6
)  # fmt: skip
READINGS = ("exact", "counted")
Answers = Callable[[list[Event]], dict[str, Any]]
CASES: dict[str, tuple[Answers, Answers]] = {
    "shop": (slow_truth.shop_answers, slow_truth.shop_alerts),
    "devices": (slow_truth.device_answers, slow_truth.device_alerts),
}


@cache
def made(source: str, options: GenerateOptions = OPTIONS) -> tuple[dict[str, Any], dict[str, list[Event]]]:
    """The truth, and the well-formed events of each reading in the order in which they were sent."""
    generation = Generation(load_catalog(CATALOGS / f"{source}.yaml"), options, NOON)
    log: list[tuple[int, int, bytes]] = []
    ends: Counter[int] = Counter()
    for batch in [*generation.history(), *generation.live(NOON + 3_000)]:
        for record in generation.outgoing(batch):
            partition = zlib.crc32(record.key or b"") % 4
            if record.placed is not None:
                record.placed(partition, ends[partition])
            log.append((partition, ends[partition], record.value))
            ends[partition] += 1
    truth = generation.document(source)
    odd = {(each["topic_partition"], each["offset"]): each["disposition"] for each in truth["exceptions"]}
    events: dict[str, list[Event]] = {"exact": [], "counted": []}
    for partition, offset, value in log:
        disposition = odd.get((partition, offset))
        if disposition in {None, "late"}:
            event = json.loads(value)
            events["exact"].append(event)
            if disposition is None:
                events["counted"].append(event)
    return truth, events


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("source", CASES)
def test_the_answers_of_every_day_and_of_all_days_are_those_of_plain_loops(source: str, reading: str) -> None:
    truth, found = made(source)
    answers, alerts = CASES[source]
    raised = alerts(found[reading])
    visits = slow_truth.shop_sessions(found[reading]) if source == "shop" else None
    for day, part in {"": truth["total"], **truth["by_day"]}.items():
        expected = answers([event for event in found[reading] if not day or day_of(event["ts"]) == day])
        expected["alerts"] = {
            name: [each for each in all_ if not day or day_of(each["breached_at"]) == day]
            for name, all_ in raised.items()
        }
        if visits is not None:
            expected["sessions"] = slow_truth.session_totals(
                [each for each in visits if not day or day_of(slow_truth.last_moment(each)) == day]
            )
            if day:
                midnight = round(datetime.fromisoformat(f"{day}T00:00Z").timestamp() * 1000)
                expected["hour"] = slow_truth.shop_hour(found[reading], midnight - 1_800_000)
        assert part[reading] == expected


def test_late_events_change_the_answers_so_that_the_two_readings_differ() -> None:
    for source in CASES:
        total = made(source)[0]["total"]
        assert total["exact"]["events"] == total["counted"]["events"] + OPTIONS.late


@pytest.mark.parametrize("source", CASES)
def test_every_sort_of_alert_is_raised_on_every_day_of_history(source: str) -> None:
    truth, _ = made(source, replace(OPTIONS, events=60_000))
    for day in truth["by_day"].values():
        for reading in READINGS:
            assert all(day[reading]["alerts"].values()), day[reading]["alerts"]


def test_alerts_are_raised_within_the_first_minutes_of_live_events() -> None:
    truth, _ = made("shop", GenerateOptions(events=0, days=0, users=20_000, rate=50, live=600))
    raised = truth["total"]["exact"]["alerts"]
    assert all(raised.values())
    assert max(len(each) for each in raised.values()) <= 20


@pytest.mark.parametrize("source", CASES)
def test_the_same_seed_gives_the_same_truth_and_another_does_not(source: str) -> None:
    first, again, other = (
        made.__wrapped__(source, replace(OPTIONS, events=2_000, live=0, seed=seed))[0] for seed in (7, 7, 8)
    )
    assert first == again
    assert first["total"]["exact"] != other["total"]["exact"]


def test_an_event_says_only_what_applies_to_it() -> None:
    browsing = {"event_id", "ts", "event_type", "user_id", "country", "page", "amount"}
    stock = {"event_id", "ts", "event_type", "product"}
    fields = {
        "page_view": browsing, "click": browsing, "add_to_cart": browsing, "checkout": browsing,
        "purchase": browsing | {"product", "quantity", "method"},
        "stock_take": stock | {"stock_level"}, "restock": stock | {"quantity"},
        "return": stock | {"quantity", "user_id", "country"},
        "request": {"event_id", "ts", "event_type", "user_id", "service", "status", "latency_ms"},
    }  # fmt: skip
    seen = {(event["event_type"], frozenset(event)) for event in made("shop")[1]["exact"]}
    assert seen == {(name, frozenset(found)) for name, found in fields.items()}


def test_quantities_levels_and_latencies_are_plausible() -> None:
    events = made("shop")[1]["exact"]
    assert all(event["quantity"] > 0 for event in events if "quantity" in event)
    assert {event["method"] for event in events if "method" in event} == {"card", "wallet", "transfer"}
    assert {event["status"] for event in events if "status" in event} == {200, 404, 500, 503}
    assert len({event["service"] for event in events if "service" in event}) == 6
    assert all(0 < event["latency_ms"] < 60_000 for event in events if "latency_ms" in event)
    assert min(made("shop")[0]["total"]["exact"]["stock"].values()) >= 0


def test_nothing_but_an_episode_empties_a_shelf() -> None:
    truth, _ = made("shop", replace(OPTIONS, events=60_000, late=0, out_of_order=0, bad=0))
    low = truth["total"]["exact"]["alerts"]["low_stock"]
    assert 10 <= len(low) <= 15


def test_some_devices_have_no_battery_and_the_others_have_one() -> None:
    events = made("devices")[1]["exact"]
    with_one = {event["device"] for event in events if "battery" in event}
    without = {event["device"] for event in events if "battery" not in event}
    assert with_one
    assert without
    assert not with_one & without
    assert all(10 <= event["battery"] <= 100 for event in events if "battery" in event)


def test_the_hour_around_a_midnight_has_windows_of_every_sort_and_sessions() -> None:
    _, *later = made("shop")[0]["by_day"].values()
    assert all(all(day[reading]["hour"].values()) for day in later for reading in READINGS)


def test_sessions_are_cut_at_the_gap_and_greedily_at_their_greatest_length() -> None:
    rng = np.random.default_rng(1)
    for turn in range(50):
        key, at = rng.integers(0, 3, 200), rng.integers(0, 600 + 40 * turn, 200)
        expected = [
            (number, each[0], each[-1], len(each))
            for number in range(3)
            for each in slow_truth.sessions(at[key == number].tolist(), gap=12, longest=60)
        ]
        found = sessions(key, at, 12, 60)
        assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == expected


def test_breaches_are_rising_edges_also_where_events_share_a_millisecond() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        key, at, amount = rng.integers(0, 3, 80), rng.integers(0, 150, 80), rng.integers(0, 10, 80)
        events = [
            {"key": k, "ts": t, "n": n} for k, t, n in zip(*map(np.ndarray.tolist, (key, at, amount)), strict=True)
        ]
        found = breaches(key, at, amount, 20, lambda total, _: total > 25)
        expected = slow_truth.rising(
            events, "key", 20, lambda own: sum(event["n"] for event in own), lambda total: total > 25
        )
        columns = (found.key, found.at, found.total, found.until)
        assert list(zip(*map(np.ndarray.tolist, columns), strict=True)) == expected
        assert expected


def test_a_level_is_the_last_count_and_the_changes_since_those_of_its_millisecond_among_them() -> None:
    key = np.array([1, 1, 1, 1, 1, 2, 2])
    at = np.array([10, 20, 20, 20, 30, 5, 6])
    counted = np.array([-1, 50, 60, -1, -1, -1, -1])
    change = np.array([5, 0, 0, -3, 2, -4, 1])
    found = levels(key, at, counted, change)
    assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == [
        (1, 10, 5), (1, 20, 57), (1, 30, 59), (2, 5, -4), (2, 6, -3),
    ]  # fmt: skip
    assert found.last() == {1: 59, 2: -3}
    low = found.falls_below(10)
    assert (low.at.tolist(), low.until.tolist()) == ([5, 10], [6, 10])


@pytest.mark.parametrize(("share", "expected"), [("0", 1), ("0.5", 2), ("0.51", 3), ("0.95", 4), ("1", 4)])
def test_a_quantile_is_a_value_and_never_between_two(share: str, expected: int) -> None:
    assert quantile(np.array([4, 1, 3, 2]), share) == expected
    assert quantile(np.array([], dtype=np.int64), share) is None
