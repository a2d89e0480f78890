"""Breaches against an evaluation that asks at every instant again, event by event."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.alert import OPERATORS, Alert
from metrics.breach import (
    MOST_EVIDENCE,
    MOST_EVIDENCE_BYTES,
    _in_units,
    alert_rows,
    breaches,
    folded,
    key_columns,
    table_rows,
)
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.event import event_schema

WITHIN = 10
TREE: dict[str, Any] = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "fields": {
        "kind": "string",
        "user": "string",
        "country": {"type": "string", "default": "unknown"},
        "amount": {"type": "decimal", "scale": 2},
        "counted": "int",
        "change": {"type": "decimal", "scale": 1},
    },
    "metrics": {
        "events": {"agg": "count", "window": "tumbling 1m"},
        "stock": {"agg": "level(counted, change)", "where": "kind = 'a'", "by": ["user"], "window": "global"},
    },
    "alerts": {
        "velocity": {"when": "count > 3", "where": "kind = 'a'", "by": ["user"], "within": "10ms"},
        "value": {"when": "sum(amount) >= 1.5", "by": ["user", "country"], "within": "10ms"},
        "refunds": {"when": "sum(amount) < -0.505", "by": ["user"], "within": "10ms"},
        "share": {"when": "share(kind = 'b') > 0.5", "where": "kind <> 'c'", "within": "10ms", "at_least": 3},
        "low": {"when": "stock < 2.05"},
        "high": {"when": "stock >= 4"},
    },
}
CATALOG: Catalog = parse_catalog(TREE, {}, "test")
Event = dict[str, Any]

few = st.sampled_from
events_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "event_time": st.integers(0, 60),
            "f_kind": few(["a", "a", "b", "c", None]),
            "f_user": few(["u1", "u2", None]),
            "f_country": few(["DE", "FR"]),
            "f_amount": st.none() | st.integers(-150, 150).map(lambda cents: Decimal(cents).scaleb(-2)),
            "f_counted": st.none() | st.none() | st.integers(-3, 6),
            "f_change": st.none() | st.integers(-30, 30).map(lambda tenths: Decimal(tenths).scaleb(-1)),
        }
    ),
    max_size=40,
)


def frame(events: list[Event]) -> pl.DataFrame:
    placed = [
        {"topic_partition": n % 3, "offset": n, "record_time": e["event_time"], "event_id": f"e{n}", **e}
        for n, e in enumerate(events)
    ]
    return pl.DataFrame(placed, schema=event_schema(CATALOG), orient="row")


def place_of(event: Event) -> int:
    return int(event["topic_partition"]) * 2**48 + int(event["offset"])


def selected(alert: Alert, event: Event) -> bool:
    match alert.name:
        case "velocity":
            return bool(event["f_kind"] == "a")
        case "share":
            return event["f_kind"] not in {"c", None}
        case "low" | "high":
            return event["f_kind"] == "a" and not (event["f_counted"] is None and event["f_change"] is None)
    return True


def value_of(alert: Alert, events: list[Event]) -> Fraction | None:
    """The alert's value over events; None where it is not judged."""
    match alert.kind:
        case "count":
            return Fraction(len(events))
        case "sum":
            return Fraction(sum((e["f_amount"] for e in events if e["f_amount"] is not None), Decimal(0)))
        case "share":
            hits = sum(e["f_kind"] == "b" for e in events)
            return Fraction(hits, len(events)) if len(events) >= alert.at_least else None
    if not events:
        return None
    sets = [(e["event_time"], e["f_counted"]) for e in events if e["f_counted"] is not None]
    at, level = max(sets, default=(-1, 0))
    return Fraction(level) + sum(
        (Fraction(e["f_change"]) for e in events if e["f_change"] is not None and e["event_time"] > at), Fraction(0)
    )


def slow(alert: Alert, events: list[Event]) -> list[tuple[Any, ...]]:
    """Keys, time, value, event and evidence of each breach, in order of key and time."""
    found = []
    keys = {tuple(e[f"f_{name}"] or "" for name in alert.by) for e in events if selected(alert, e)}
    for key in sorted(keys):
        mine = [e for e in events if selected(alert, e) and tuple(e[f"f_{n}"] or "" for n in alert.by) == key]
        for instant in sorted({e["event_time"] for e in mine}):
            since = -1 if alert.kind == "level" else instant - WITHIN
            inside = [e for e in mine if since < e["event_time"] <= instant]
            now, before = (
                value is not None and OPERATORS[alert.operator](value, Fraction(alert.threshold))
                for value in (
                    value_of(alert, inside),
                    value_of(alert, [e for e in inside if e["event_time"] < instant]),
                )
            )
            if now and not before:
                shown = [e for e in inside if alert.kind != "level" or e["event_time"] == instant]
                ordered = sorted(shown, key=lambda e: (e["event_time"], place_of(e)))
                first = next(e for e in ordered if e["event_time"] == instant)
                value = value_of(alert, inside)
                assert value is not None
                ids = [e["event_id"] for e in ordered]
                found.append((*key, instant, float(value), first["event_id"], ids))
    return found


def fast(alert: Alert, rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    columns = [*key_columns(alert), "breached_at", "value", "event_id", "evidence"]
    return breaches(alert, rows).select(columns).rows()


def close(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(pytest.approx(part) if isinstance(part, float) else part for part in row) for row in found]


@pytest.mark.parametrize("alert", CATALOG.alerts, ids=lambda alert: alert.name)
@given(events=events_strategy, seed=st.randoms())
def test_breaches_are_the_rising_edges_whatever_the_order_of_rows(alert: Alert, events: list[Event], seed: Any) -> None:
    all_events = frame(events)
    rows = alert_rows(alert, CATALOG, all_events)
    order = list(range(rows.height))
    seed.shuffle(order)
    assert fast(alert, rows[order]) == close(slow(alert, all_events.to_dicts()))


@pytest.mark.parametrize("alert", CATALOG.alerts, ids=lambda alert: alert.name)
@given(events=events_strategy, cut=st.integers(0, 60))
def test_folded_rows_lead_to_the_same_later_breaches(alert: Alert, events: list[Event], cut: int) -> None:
    rows = alert_rows(alert, CATALOG, frame(events))
    rest = folded(alert, folded(alert, rows, cut - 5), cut)
    later = cut if alert.kind == "level" else cut + WITHIN - 1
    whole = breaches(alert, rows).filter(pl.col("breached_at") >= later)
    assert breaches(alert, rest).filter(pl.col("breached_at") >= later).equals(whole)


@pytest.mark.parametrize("alert", CATALOG.alerts, ids=lambda alert: alert.name)
@given(events=events_strategy)
def test_a_breach_goes_on_until_the_condition_clears(alert: Alert, events: list[Event]) -> None:
    found = breaches(alert, alert_rows(alert, CATALOG, frame(events)))
    later = found.with_columns(following=pl.col("breached_at").shift(-1).over(key_columns(alert) or pl.lit(0)))
    assert found.filter(pl.col("until") < pl.col("breached_at")).is_empty()
    assert later.filter(pl.col("until") >= pl.col("following")).is_empty()


def test_evidence_is_bounded_to_the_latest() -> None:
    alert = next(alert for alert in CATALOG.alerts if alert.name == "value")
    events = [{"event_time": 5, "f_user": "u", "f_country": "DE", "f_amount": Decimal("0.01")} for _ in range(2000)]
    [row] = fast(alert, alert_rows(alert, CATALOG, frame(events)))
    assert len(row[-1]) == MOST_EVIDENCE
    assert row[3] == 20.0


@pytest.mark.parametrize(("length", "named"), [(MOST_EVIDENCE_BYTES // 4, 4), (MOST_EVIDENCE_BYTES + 1, 1)])
def test_evidence_is_bounded_by_the_length_of_its_ids(length: int, named: int) -> None:
    alert = next(alert for alert in CATALOG.alerts if alert.name == "value")
    ids = [f"{n:0{length}}" for n in range(9)]
    events = [{"event_time": n, "f_user": "u", "f_country": "DE", "f_amount": Decimal(n // 8 * 2)} for n in range(9)]
    rows = alert_rows(alert, CATALOG, frame(events).with_columns(pl.Series("event_id", ids)))

    [found] = breaches(alert, rows.reverse()).iter_rows(named=True)

    assert found["events"] == len(ids)
    assert found["evidence"] == ids[-named:]


def test_sums_beyond_64_bits_are_compared_exactly() -> None:
    tree = TREE | {"alerts": {"big": {"when": "sum(amount) > 4000000000000000000.01", "within": "10ms"}}}
    catalog = parse_catalog(tree, {}, "test")
    most = Decimal("999999999999999999.99")
    amounts = [*[most] * 4, Decimal("0.05"), Decimal("0.01")]
    events = [{"event_time": n, "f_amount": amount} for n, amount in enumerate(amounts)]
    found = breaches(catalog.alerts[0], alert_rows(catalog.alerts[0], catalog, frame(events)))
    assert found["breached_at"].to_list() == [5]


def test_a_breach_is_named_by_alert_version_key_and_time() -> None:
    alert = next(alert for alert in CATALOG.alerts if alert.name == "high")
    events = [{"event_time": 7, "f_kind": "a", "f_user": user, "f_counted": 5} for user in ("u1", "u2")]
    rows = table_rows(alert, breaches(alert, alert_rows(alert, CATALOG, frame(events))))
    assert rows["alert_id"].n_unique() == 2
    assert rows["dims"].to_list() == [[{"key": "user", "value": user}] for user in ("u1", "u2")]
    assert rows["threshold"].to_list() == [4.0, 4.0]


def test_two_alerts_of_one_definition_name_their_breaches_apart() -> None:
    part = {"when": "count > 0", "within": "10ms", "topic": "shared"}
    catalog = parse_catalog(TREE | {"alerts": {"one": part, "other": part}}, {}, "test")
    one, other = (
        table_rows(alert, breaches(alert, alert_rows(alert, catalog, frame([{"event_time": 7}]))))
        for alert in catalog.alerts
    )
    assert one["alert_version"].to_list() == other["alert_version"].to_list()
    assert one["alert_id"].to_list() != other["alert_id"].to_list()


@given(st.lists(st.integers(-(2**53), 2**53), min_size=2), st.integers(0, 6))
def test_a_value_is_its_decimal_rounded_once(digits: list[int], scale: int) -> None:
    found = _in_units(pl.Series(digits, dtype=pl.Int128), scale)

    assert found.to_list() == [float(Decimal(each).scaleb(-scale)) for each in digits]
