import dataclasses
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.alert import Alert
from metrics.breach import alert_rows, breaches, key_columns, table_rows
from metrics.catalog_build import parse_catalog
from metrics.event import event_schema
from speed_layer.alert_elements import alert_payloads, is_for_alerts
from speed_layer.alert_sink import messages, not_raised
from speed_layer.alerts import Span, judged
from speed_layer.partials import from_ipc

CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"user": "string", "counted": "int", "change": "int"},
        "metrics": {"stock": {"agg": "level(counted, change)", "by": ["user"], "window": "tumbling 1h"}},
        "alerts": {
            "fast": {"when": "count > 2", "by": ["user"], "within": "10s"},
            "busy": {"when": "count > 4", "within": "10s"},
            "low": {"when": "stock < 0"},
        },
    },
    {},
    "test",
)
ALERT = CATALOG.alerts[0]


def events(*times: int, user: str = "u1", sent: int = 0) -> pl.DataFrame:
    rows = [
        {
            "topic_partition": 0,
            "offset": n,
            "record_time": max(t, sent),
            "event_id": f"e{t}",
            "event_time": t,
            "f_user": user,
        }
        for n, t in enumerate(times)
    ]
    return pl.DataFrame(rows, schema=event_schema(CATALOG), orient="row")


def rows(*times: int, user: str = "u1") -> pl.DataFrame:
    return alert_rows(ALERT, CATALOG, events(*times, user=user))


def test_all_events_of_a_key_are_in_one_element() -> None:
    many = pl.concat([events(1, 2, 3, user=f"u{n}") for n in range(20)])
    parts = [part for part in alert_payloads(CATALOG, many, 4) if part[0].startswith("alert|fast")]
    assert all(is_for_alerts((key, payload)) for key, payload in parts)
    assert len({key for key, _ in parts}) == len(parts) <= 4
    users = [set(from_ipc(payload)["f_user"]) for _, payload in parts]
    assert sum(map(len, users)) == len(set.union(*users)) == 20


def test_a_chunk_without_watched_events_has_no_element() -> None:
    assert list(alert_payloads(CATALOG, events(), 4)) == []


def test_a_breach_is_left_out_if_any_part_of_it_was_raised() -> None:
    found = breaches(ALERT, rows(0, 1000, 2000, 3000))
    assert found.select("breached_at", "until").rows() == [(2000, 3000)]

    def raised(*times: int, user: str = "u1") -> pl.DataFrame:
        return pl.DataFrame(
            {"f_user": [user] * len(times), "raised": list(times)}, {"f_user": pl.String, "raised": pl.Int64}
        )

    assert not_raised(ALERT, found, raised()).height == 1
    assert not_raised(ALERT, found, raised(2000)).is_empty()
    assert not_raised(ALERT, found, raised(3000)).is_empty()
    assert not_raised(ALERT, found, raised(1999, 3001)).height == 1
    assert not_raised(ALERT, found, raised(2000, user="u2")).height == 1


def test_as_many_raised_as_candidates_of_one_key_are_told_apart_without_their_pairs() -> None:
    many = 40_000
    times = pl.DataFrame({"f_user": ["u1"] * many, "breached_at": range(0, 10 * many, 10)})
    found = times.with_columns(until=pl.col("breached_at") + 5).sample(fraction=1.0, shuffle=True, seed=1)
    raised = times.select("f_user", raised=pl.col("breached_at") + pl.Series([0, 6] * (many // 2)))

    assert not_raised(ALERT, found, raised)["breached_at"].to_list() == list(range(10, 10 * many, 20))


def test_of_an_alert_without_keys_every_raised_breach_counts() -> None:
    alert = dataclasses.replace(ALERT, by=())
    found = pl.DataFrame({"breached_at": [0, 10, 20], "until": [5, 15, 25]})

    assert not_raised(alert, found, pl.DataFrame({"raised": [12, 26]}))["breached_at"].to_list() == [0, 20]


def test_only_what_events_of_the_span_bear_upon_is_judged() -> None:
    known = rows(0, 1, 2, 50_000, 50_001, 50_002, 90_000, 90_001, 90_002)
    at = judged(ALERT, known, Span(50_000, 50_002, None, [(3, 6)]))["breached_at"].to_list()
    assert at == [50_002]


@pytest.mark.parametrize("alert", CATALOG.alerts, ids=lambda alert: alert.name)
@given(
    drawn=st.lists(st.tuples(st.integers(0, 30_000), st.sampled_from("abc"), st.integers(-3, 3)), max_size=60),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), min_size=1, max_size=3),
)
def test_only_keys_that_have_events_in_the_span_are_judged(
    alert: Alert, drawn: list[tuple[int, str, int]], spans: list[tuple[int, int]]
) -> None:
    schema = event_schema(CATALOG)
    log = [(0, n, t, f"e{n}", t, user, None, change) for n, (t, user, change) in enumerate(drawn)]
    names = ["topic_partition", "offset", "record_time", "event_id", "event_time", "f_user", "f_counted", "f_change"]
    known = alert_rows(alert, CATALOG, pl.DataFrame(log, {name: schema[name] for name in names}, orient="row"))
    places = [(begin, begin + count) for begin, count in spans]
    asked = [one for n, one in enumerate(drawn) if any(begin <= n < end for begin, end in places)]
    span = Span(min((t for t, *_ in asked), default=0), max((t for t, *_ in asked), default=0), None, places)

    found = judged(alert, known, span)

    every = breaches(alert, known).filter(pl.col("breached_at") >= span.first)
    if alert.within is not None:
        every = every.filter(pl.col("breached_at") <= span.last + 10_000)
    if alert.by:
        every = every.filter(pl.col("f_user").is_in([user for _, user, _ in asked]))
    columns = [*key_columns(alert), "breached_at", "value", "event_id", "evidence"]
    assert found.select(columns).rows() == every.select(columns).rows()


def test_history_leaves_aside_what_was_sent_later() -> None:
    early, later = events(0, 1), events(2, sent=100)
    known = alert_rows(ALERT, CATALOG, pl.concat([early, later]))
    assert judged(ALERT, known, Span(0, 2, 50, [(0, 2)])).is_empty()
    assert judged(ALERT, known, Span(0, 2, 100, [(0, 1)])).height == 1


def test_a_message_says_what_was_breached_and_by_what() -> None:
    found = breaches(ALERT, rows(0, 1000, 2000))
    [message] = messages(CATALOG, ALERT, table_rows(ALERT, found).with_columns(found["events"]))
    body = json.loads(message["value"])
    assert message["key"] == body.pop("alert_id")
    assert body == {
        "alert": "fast",
        "alert_version": ALERT.alert_version,
        "source": "shop",
        "when": "count > 2",
        "dims": {"user": "u1"},
        "breached_at": "1970-01-01T00:00:02.000Z",
        "value": 3.0,
        "threshold": 2.0,
        "events": 3,
        "evidence": ["e0", "e1000", "e2000"],
    }
