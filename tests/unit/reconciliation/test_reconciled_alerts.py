from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from metrics.catalog_build import parse_catalog
from reconciliation.alerts import Breach, Left, cause, judge, match

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = date(2026, 3, 1)
TREE = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "fields": {"user": "string"},
    "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    "alerts": {"fast": {"when": "count > 3", "by": ["user"], "within": "2m"}},
}
ALERT = parse_catalog(TREE, {}, "test").alerts[0]
TWO = timedelta(minutes=2)


def breach(name: str, seconds: int, user: str = "u1", evidence: tuple[str, ...] = ()) -> Breach:
    return Breach(name, (("user", user),), NOON + timedelta(seconds=seconds), 4.0, frozenset(evidence))


def test_a_breach_is_matched_once_and_the_closest_first() -> None:
    live = [breach("a", 0), breach("b", 60)]
    due = [breach("b", 60), breach("c", 100)]
    assert match(live, due, TWO) == {live[0]: due[1], live[1]: due[0]}


def test_other_keys_and_times_further_apart_do_not_match() -> None:
    live = [breach("a", 0)]
    assert match(live, [breach("b", 0, "u2"), breach("c", 121)], TWO) == {}
    assert match(live, [breach("b", 1)], timedelta(0)) == {}


def test_precision_and_recall_are_those_of_the_day() -> None:
    live = [breach("a", 0), breach("f", 600), breach("tomorrow", 86_400)]
    due = [breach("a", 0), breach("m", 1200), breach("n", 1800)]
    left = [Left("x", NOON + timedelta(seconds=1150), "late")]
    found = judge(ALERT, DAY, live, due, left, NOON + timedelta(hours=1))
    assert (found.live, found.due, found.matched) == (2, 3, 1)
    assert (found.precision, found.recall) == (1 / 2, 1 / 3)
    assert [(one.alert_id, why) for one, why in found.missed] == [("m", "late"), ("n", "unknown")]
    assert [(one.alert_id, why) for one, why in found.false] == [("f", "unknown")]
    shown = found.as_json()
    assert shown["missed"][0]["breached_at"] == "2026-03-01T12:20:00Z"


def test_a_day_without_alerts_has_neither() -> None:
    found = judge(ALERT, DAY, [], [], [], NOON)
    assert (found.precision, found.recall) == (None, None)


def test_what_was_due_of_an_alert_that_no_run_knows_is_unknown_and_the_report_says_so() -> None:
    found = judge(ALERT, DAY, [breach("a", 0), breach("tomorrow", 86_400)], None, [], NOON)
    assert (found.live, found.due, found.matched, found.precision, found.recall) == (1, None, None, None, None)
    assert found.false == found.missed == ()
    told = found.as_json()
    assert told["message"] == (
        "no published run of 2026-03-01 knows `fast` as it is defined now, so nothing says which alerts were due. run "
        "`lockstep batch --from 2026-03-01 --to 2026-03-01`"
    )
    assert judge(ALERT, DAY, [], [], [], NOON).as_json()["message"] == ""


def test_causes_come_from_what_was_not_counted() -> None:
    one = breach("a", 0, evidence=("e1", "e2"))
    after = NOON + timedelta(hours=1)
    late, copy = Left("e1", NOON, "late"), Left("e2", NOON, "duplicate")
    assert cause(one, [late], TWO, after) == "late"
    assert cause(one, [copy], TWO, after) == "duplicate"
    assert cause(one, [replace(copy, event_id="other", disposition="id_conflict")], TWO, after) == "duplicate"
    assert cause(one, [replace(late, event_id="other", event_time=NOON - timedelta(hours=1))], TWO, after) == "unknown"
    assert cause(one, [late], TWO, NOON) == "not_yet_closed"
    assert cause(one, [late], TWO, None) == "not_yet_closed"
