from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from serving import dashboard, panels
from serving.query import Row
from serving.status import Crowd, Day, LedgerCheck, PartitionLag, Status

START = datetime(2026, 3, 1, tzinfo=UTC)
LEDGER = dict.fromkeys(("records", "counted", "late", "duplicate", "id_conflict", "dead_letter"), 1)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "shop.yaml"
    path.write_text(
        "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\n"
        "fields: {country: string, amount: {type: decimal, scale: 2}}\n"
        "metrics:\n  events: {agg: count, window: [tumbling 1m, tumbling 1d]}\n"
        "  revenue: {agg: sum(amount), by: [country], window: [tumbling 1m, tumbling 1h, tumbling 1d]}\n",
        encoding="utf-8",
    )
    return load_catalog(path)


def status(*days: Day, freshness_s: float = 0.3) -> Status:
    return Status(START, 12.0, START, freshness_s, days, LEDGER)


def day(number: int, certified: bool, residual: int = 0) -> Day:
    return Day(date(2026, 3, number), "run-1", START, certified, "clean" if certified else "", residual)


def revenue(value: str, drift: float | None, country: str = "DE") -> Row:
    layer = "speed" if drift is None else "batch"
    end = START + timedelta(hours=1)
    return Row(START, end, {"country": country}, Decimal(value), None, None, layer, False, drift, "provisional")


def test_what_comes_from_data_is_escaped(catalog: Catalog) -> None:
    table = panels.recent(catalog.metric("revenue"), [revenue("1.00", None, country="<script>")], 5)
    assert "<script>" not in table
    assert "&lt;script&gt;" in table


def test_a_silent_speed_layer_is_not_called_live() -> None:
    assert "live" in panels.badges(status(freshness_s=1))
    assert "last update" in panels.badges(status(freshness_s=60))
    nothing = Status(None, None, None, None, (), LEDGER)
    assert "waiting for the speed layer" in panels.badges(nothing)


def test_an_alarm_of_many_values_names_its_dimension_and_no_alarm_says_nothing() -> None:
    alarm = Crowd(("events",), "<user>", 120_000, START, START, "events by <user>: about 120,000 rows")
    shown = panels.crowds(replace(status(), alarms=(alarm,)))
    assert "events by &lt;user&gt;: about 120,000 rows" in shown
    assert "<user>" not in shown
    assert panels.crowds(status()) == ""


def test_a_ledger_that_does_not_close_is_told_and_marks_its_tile(catalog: Catalog) -> None:
    text = "the ledger of orders does not close"
    alarm = Crowd(("events",), "", 1, START, START, text)
    check = LedgerCheck(False, START, START, 100, 90, 0, text)
    seen = replace(status(), alarms=(alarm,), check=check)
    assert f"<b>ledger</b><span>{text}</span>" in panels.crowds(seen)
    [*_, tile] = panels.tiles(catalog.metric("revenue"), [], seen)
    assert (tile.tone, tile.note[:15]) == ("ls-bad", "does not close:")
    [*_, tile] = panels.tiles(catalog.metric("revenue"), [], replace(seen, check=replace(check, closes=True)))
    assert tile.tone == ""


def test_lag_is_added_up_and_skew_is_the_greatest() -> None:
    lags = (PartitionLag(0, 1_200, 3_400, 0, START), PartitionLag(1, 34, None, 7_000, START))
    shown = panels.badges(replace(status(), lags=lags))
    assert "lag <b>1,234</b> skew <b>7.0 s</b>" in shown
    assert "partition 1: 34 offsets and – behind the log, watermark 7.0 s behind the greatest" in shown
    assert 'data-badge="lag"' not in panels.badges(status())


def test_days_are_certified_or_say_that_they_are_not() -> None:
    shown = panels.days(status(day(1, certified=True), day(2, certified=False)))
    assert shown.index("2026-03-02") < shown.index("2026-03-01")
    assert shown.count("not certified") == 1


def test_drift_keeps_the_decimals_of_its_value(catalog: Catalog) -> None:
    table = panels.drifted(catalog.metric("revenue"), [revenue("79362.06", 955.46)], 5)
    assert "78,406.60" in table
    assert "+955.46" in table


def test_totals_of_decimals_are_exact(catalog: Catalog) -> None:
    rows = [revenue("0.10", None), revenue("0.20", None, "FR")]
    assert panels.tiles(catalog.metric("revenue"), rows, status())[0].value == "0.30"


def test_a_residual_is_shown_as_a_problem(catalog: Catalog) -> None:
    tile = panels.tiles(catalog.metric("revenue"), [], status(day(1, certified=True, residual=3)))[3]
    assert (tile.value, tile.tone) == ("3", "ls-bad")


def test_an_empty_page_says_what_to_do(catalog: Catalog) -> None:
    assert "lockstep generate" in panels.nothing_yet(catalog.metric("events"), "1m")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "now"), (5.0, "5 s ago"), (130.0, "2 min ago"), (7_300.0, "2 h ago"), (2e5, "2 d ago")]
)
def test_ages_are_told_in_the_largest_unit(seconds: float, text: str) -> None:
    assert panels.ago(seconds) == text


def test_an_address_chooses_the_view_and_a_wrong_one_falls_back(catalog: Catalog) -> None:
    asked = dashboard.first_view(catalog, "events", "1d", "7d")
    assert (asked.metric.name, asked.grain, asked.span) == ("events", "1d", "7d")
    wrong = dashboard.first_view(catalog, "nothing", "5m", "10y")
    assert (wrong.metric.name, wrong.grain, wrong.span) == ("revenue", "1h", "7d")
    assert dashboard.first_view(catalog, None, None, None).address == "/?metric=revenue&grain=1h&span=7d"
