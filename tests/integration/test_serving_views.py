"""The views on the real engine: each window once, from the best layer that has it."""

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from serving_tables import Event, Tables, at

from infra.clickhouse import quote
from infra.settings import Settings
from serving import query, schema

DAY = date(2026, 3, 1)
NOON = at("2026-03-01T12:00:00")
NEXT = at("2026-03-02T00:00:00")
BUYS = [
    Event(NOON, "buy", "DE", "u1", Decimal("10.10")),
    Event(NOON + timedelta(minutes=50), "buy", "DE", "u2", Decimal("0.20")),
    Event(NOON + timedelta(hours=3), "buy", "FR", "u3", Decimal("5.00")),
    Event(NEXT, "buy", "DE", "u1", Decimal("7.00")),
]


@pytest.fixture
def tables(clickhouse: Settings, unique: str, tmp_path: Path) -> Tables:
    return Tables.create(clickhouse, unique, tmp_path)


def rows(tables: Tables, metric: str, grain: str, **asked: object) -> list[dict[str, object]]:
    found = query.build(tables.catalog, metric, grain, **asked)  # type: ignore[arg-type]
    return query.answer(tables.client, tables.database, found)["rows"]


def test_applying_the_schema_again_keeps_every_row(tables: Tables) -> None:
    tables.speed(BUYS)
    before = tables.read("revenue_1h")
    schema.apply(tables.client, tables.catalog, tables.database)
    assert tables.read("revenue_1h") == before
    assert len(before) == 3


def test_a_day_is_merged_from_the_slices_of_its_hours(tables: Tables) -> None:
    tables.speed(BUYS)
    assert tables.read("revenue_1d", "window_start, window_end, country, value, layer, status") == [
        (at("2026-03-01T00:00:00"), NEXT, "DE", Decimal("10.30"), "speed", "provisional"),
        (at("2026-03-01T00:00:00"), NEXT, "FR", Decimal("5.00"), "speed", "provisional"),
        (NEXT, at("2026-03-03T00:00:00"), "DE", Decimal("7.00"), "speed", "provisional"),
    ]


def test_a_replayed_less_complete_pane_changes_nothing(tables: Tables) -> None:
    tables.speed(BUYS)
    before = tables.read("revenue_1h", "window_start, country, value")
    tables.speed(BUYS[:1], pane="early")
    assert tables.read("revenue_1h", "window_start, country, value") == before


def test_slices_before_1970_fall_into_the_window_that_holds_them(tables: Tables) -> None:
    tables.speed([Event(at("1969-12-31T22:30:00"), "buy", "DE", "u1", Decimal(1))])
    assert tables.read("revenue_1d", "window_start") == [(at("1969-12-31T00:00:00"),)]


def test_another_version_of_the_definition_is_not_merged(tables: Tables) -> None:
    tables.speed(BUYS, version="0123456789abcdef")
    assert tables.read("revenue_1h") == []


def test_batch_is_shown_only_once_its_day_is_published_and_certified(tables: Tables) -> None:
    tables.speed(BUYS)
    tables.batch("run-1", [*BUYS[:3], Event(NOON, "buy", "DE", "u4", Decimal(1))])
    shown = "value, layer, status, is_final, drift"
    on_day = f"toDate(window_start) = '{DAY}' AND country = 'DE'"
    from_speed = [(Decimal("10.30"), "speed", "provisional", False, None)]

    assert tables.read("revenue_1d", shown, on_day) == from_speed
    tables.publish(DAY, "run-1")
    assert tables.read("revenue_1d", shown, on_day) == from_speed
    assert tables.read("revenue_1d__batch", shown, on_day) == [(Decimal("11.30"), "batch", "provisional", False, None)]
    tables.certify(DAY, "run-1")
    assert tables.read("revenue_1d", shown, on_day) == [(Decimal("11.30"), "batch", "certified", True, 1.0)]
    assert tables.read("revenue_1d", "layer", "country = 'DE'") == [("batch",), ("speed",)]


def test_a_certificate_of_another_run_does_not_count(tables: Tables) -> None:
    tables.speed(BUYS)
    tables.batch("run-2", BUYS[:2])
    tables.certify(DAY, "run-1")
    tables.publish(DAY, "run-2")
    assert tables.read("revenue_1d", "layer", f"toDate(window_start) = '{DAY}'") == [("speed",), ("speed",)]


def test_the_latest_certificate_of_a_run_decides(tables: Tables) -> None:
    tables.speed(BUYS)
    tables.batch("run-1", BUYS[:2])
    tables.publish(DAY, "run-1")
    tables.certify(DAY, "run-1")
    tables.certify(DAY, "run-1", certified=False)
    assert tables.read("revenue_1d", "layer", f"toDate(window_start) = '{DAY}'") == [("speed",), ("speed",)]


def test_a_publication_that_does_not_cover_the_metric_leaves_it_to_speed(tables: Tables) -> None:
    tables.speed(BUYS)
    tables.batch("run-1", BUYS[:2])
    tables.publish(DAY, "run-1", metrics=["events"])
    tables.certify(DAY, "run-1")
    assert tables.read("revenue_1d", "layer", f"toDate(window_start) = '{DAY}'") == [("speed",), ("speed",)]


def test_one_publication_switches_every_grain_to_a_newer_run(tables: Tables) -> None:
    for run, value in (("run-1", 10), ("run-2", 12)):
        tables.batch(run, [Event(NOON, "buy", amount=Decimal(value))])
        tables.close(DAY, run)
        assert tables.read("revenue_1d", "value") == [(Decimal(value),)]
        assert tables.read("revenue_1h", "value") == [(Decimal(value),)]


def test_a_window_that_speed_alone_has_is_not_shown_on_a_certified_day(tables: Tables) -> None:
    tables.speed(BUYS)
    tables.batch("run-1", BUYS[:2])
    tables.close(DAY, "run-1")
    assert tables.read("revenue_1d", "country", f"toDate(window_start) = '{DAY}'") == [("DE",)]


def test_drift_is_null_where_speed_has_no_such_window(tables: Tables) -> None:
    tables.batch("run-1", BUYS[:2])
    tables.publish(DAY, "run-1")
    tables.certify(DAY, "run-1")
    assert tables.read("revenue_1d", "drift") == [(None,)]


def test_a_speed_window_is_final_once_every_partition_has_passed_its_end_and_the_lateness(tables: Tables) -> None:
    tables.speed(BUYS[:1])
    end = NOON + timedelta(hours=1)
    tables.watermark(end + timedelta(hours=2), topic_partition=0)
    tables.watermark(end + timedelta(minutes=59), topic_partition=1)
    assert tables.read("revenue_1h", "is_final") == [(False,)]
    tables.watermark(end + timedelta(hours=1), topic_partition=1, next_offset=2)
    assert tables.read("revenue_1h", "is_final") == [(True,)]


def test_distinct_is_estimated_over_merged_slices_within_its_bounds(tables: Tables) -> None:
    users = 3_000
    tables.speed(Event(NOON + timedelta(seconds=i), user=f"u{i % users}") for i in range(2 * users))
    ((value, lower, upper),) = tables.read("visitors_1d", "value, lower, upper")
    assert lower <= users <= upper  # type: ignore[operator]
    assert lower <= value <= upper  # type: ignore[operator]
    assert abs(value - users) < users * 0.06  # type: ignore[operator]


def test_a_query_answers_with_decimals_as_text_and_times_in_utc(tables: Tables) -> None:
    tables.speed(BUYS)
    assert rows(tables, "revenue", "1h", by=["country=FR"]) == [
        {
            "window_start": "2026-03-01T15:00:00Z",
            "window_end": "2026-03-01T16:00:00Z",
            "dimensions": {"country": "FR"},
            "value": "5.00",
            "lower": None,
            "upper": None,
            "layer": "speed",
            "is_final": False,
            "drift": None,
            "status": "provisional",
            "final_ratio": 0.0,
        }
    ]


def test_from_is_inclusive_and_to_is_exclusive(tables: Tables) -> None:
    tables.speed(BUYS)
    found = rows(tables, "revenue", "1h", start="2026-03-01T12:00Z", end="2026-03-01T15:00:00Z")
    assert [row["window_start"] for row in found] == ["2026-03-01T12:00:00Z"]


def test_of_more_rows_than_the_limit_the_latest_are_given_in_order(tables: Tables) -> None:
    tables.speed(BUYS)
    found = rows(tables, "revenue", "1h", limit=2)
    assert [row["window_start"] for row in found] == ["2026-03-01T15:00:00Z", "2026-03-02T00:00:00Z"]


def test_a_filter_is_bound_and_not_pasted(tables: Tables) -> None:
    country = "D'E\\` OR 1=1"
    tables.speed([*BUYS, Event(NOON, "buy", country, "u9", Decimal(3))])
    assert [row["dimensions"] for row in rows(tables, "revenue", "1d", by=[f"country={country}"])] == [
        {"country": country}
    ]


@pytest.mark.parametrize("layer", query.LAYERS)
def test_every_layer_answers_with_the_same_columns(tables: Tables, layer: str) -> None:
    tables.speed(BUYS)
    tables.batch("run-1", BUYS[:2])
    tables.publish(DAY, "run-1")
    found = rows(tables, "revenue", "1d", layer=layer)
    assert found
    assert {row["layer"] for row in found} == {"batch" if layer == "batch" else "speed"}


def test_a_reader_cannot_write(tables: Tables) -> None:
    with pytest.raises(Exception, match="readonly"):
        tables.source.client.command(f"DROP TABLE {quote(tables.database)}.ledger")


def test_status_tells_watermark_days_and_certificates(tables: Tables) -> None:
    assert tables.source.status().as_json()["watermark"] is None
    tables.watermark(NOON, topic_partition=0)
    tables.watermark(NOON + timedelta(hours=1), topic_partition=1)
    tables.publish(DAY, "run-1")
    tables.certify(DAY, "run-1", residual=2)
    status = tables.source.status().as_json()
    assert status["watermark"] == "2026-03-01T12:00:00Z"
    assert [(d["partition"], d["certified"], d["verdict"], d["residual"]) for d in status["partitions"]] == [
        ("2026-03-01", True, "speed_defect", 2)
    ]


def test_an_insert_repeated_with_its_token_counts_once(tables: Tables) -> None:
    options = {"insert_deduplication_token": "block-1"}
    name = f"{quote(tables.database)}.batch_runs"
    for _ in range(2):
        tables.client.insert(name, [["run-1", DAY]], column_names=["run_id", "partition"], settings=options)
    assert tables.read("batch_runs", "run_id") == [("run-1",)]
