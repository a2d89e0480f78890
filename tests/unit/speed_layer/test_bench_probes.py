import json

import pytest

from speed_layer.bench.load import TYPES, USERS, event
from speed_layer.bench.probes import BREACH_EVENTS, Probe, histogram, latencies, schedule, spread, steps

START = 1_780_000_000.0


def test_probes_are_due_at_times_that_nothing_changes_one_of_a_kind_in_each_period() -> None:
    probes = schedule(50, 5, START)

    assert probes == schedule(50, 5, START)
    assert [p.due for p in probes] == sorted(p.due for p in probes)
    for breach in (True, False):
        own = [p for p in probes if p.breach is breach]
        assert [int((p.due - START) * 5) for p in own] == list(range(50))
    assert len({p.name for p in probes}) == 100


def test_a_breach_is_as_many_events_of_its_user_as_the_alert_takes_the_last_of_them_when_it_is_due() -> None:
    events = Probe("breach-1", START, breach=True).events()

    assert [at for at, _ in events] == [round(START * 1000) - n for n in reversed(range(BREACH_EVENTS))]
    bodies = [json.loads(value) for _, value in events]
    assert {(body["user_id"], body["event_type"]) for body in bodies} == {("breach-1", "purchase")}
    assert len({body["event_id"] for body in bodies}) == BREACH_EVENTS


def test_a_probe_is_seen_as_long_after_it_was_due_as_it_took_and_one_unseen_no_sooner_than_now() -> None:
    probes = [Probe("a", START, breach=False, seen=START + 0.25), Probe("b", START + 1, breach=False)]

    assert latencies(probes, START + 31) == [0.25, 30.0]


def test_percentiles_are_in_ms() -> None:
    assert spread([n / 1000 for n in range(101)]) == {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "max_ms": 100.0}


def test_the_steps_of_a_probe_add_up_to_its_latency() -> None:
    probes = [
        Probe("a", START, breach=False, acked=START + 0.01, stored=START + 0.2, seen=START + 0.25) for _ in range(2)
    ]

    found = steps([*probes, Probe("unseen", START, breach=False)])

    assert {name: step["p50_ms"] for name, step in found.items()} == pytest.approx(
        {"due_to_broker": 10, "broker_to_stored": 190, "stored_to_seen": 50}
    )
    assert steps(probes[:1]) == {}


def test_a_bin_of_the_histogram_holds_what_is_from_its_beginning_to_before_its_end() -> None:
    assert histogram([0.0, 0.05, 0.06, 0.21], 0.05) == [1, 2, 0, 0, 1]


def test_no_user_of_the_load_breaches_the_alert_within_two_minutes_at_its_rate() -> None:
    assert 120 * 20_000 / USERS <= BREACH_EVENTS - 1
    body = json.loads(event(USERS + 3, 1_780_000_000_000))
    assert (body["user_id"], body["event_id"], body["event_type"]) == ("u3", f"load-{USERS + 3}", TYPES[3])
