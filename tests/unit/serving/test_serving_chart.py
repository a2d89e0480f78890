from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog, Metric
from metrics.window import to_epoch_ms
from serving import chart
from serving.query import Row

HOUR = timedelta(hours=1)
START = datetime(2026, 3, 1, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "shop.yaml"
    path.write_text(
        "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\nfields: {country: string, user: string}\n"
        "metrics:\n  visits: {agg: count, by: [country], window: tumbling 1h}\n"
        "  users: {agg: distinct(user), window: tumbling 1h}\n",
        encoding="utf-8",
    )
    return load_catalog(path)


@pytest.fixture
def visits(catalog: Catalog) -> Metric:
    return catalog.metric("visits")


def row(hours: int, value: int, layer: str = "speed", country: str | None = "DE", spread: int | None = None) -> Row:
    start = START + hours * HOUR
    bounds = (None, None) if spread is None else (value - spread, value + spread)
    dimensions = {} if country is None else {"country": country}
    status = "certified" if layer == "batch" else "provisional"
    return Row(start, start + HOUR, dimensions, value, *bounds, layer, layer == "batch", None, status)


def values(series: dict[str, object]) -> list[object]:
    return [datum[1] for datum in series["data"]]  # type: ignore[attr-defined]


def test_the_certified_part_is_solid_and_the_provisional_part_dashed_and_they_meet(visits: Metric) -> None:
    drawn = chart.lines(visits, "1h", [row(0, 5, "batch"), row(1, 6, "batch"), row(2, 7), row(3, 8)], None)
    solid, dashed = chart.options(drawn, HOUR)["series"]
    assert values(solid) == [5.0, 6.0, None, None]
    assert values(dashed) == [None, 6.0, 7.0, 8.0]
    assert "type" not in solid["lineStyle"]
    assert dashed["lineStyle"]["type"] != "solid"


def test_a_line_marks_where_the_certified_part_ends(visits: Metric) -> None:
    drawn = chart.lines(visits, "1h", [row(0, 5, "batch"), row(1, 6, "batch"), row(2, 7)], None)
    marks = chart.options(drawn, HOUR)["series"][0]["markLine"]["data"]
    assert marks == [{"xAxis": to_epoch_ms(START + 2 * HOUR)}]


def test_bounds_are_a_band_that_closes_where_a_value_is_exact(catalog: Catalog) -> None:
    users = catalog.metric("users")
    rows = [row(1, 100, "batch", country=None), row(2, 110, country=None, spread=5)]
    _, _, floor, height = chart.options(chart.lines(users, "1h", rows, None), HOUR)["series"]
    assert values(floor) == [100.0, 105.0]
    assert values(height) == [0.0, 10.0]


def test_a_published_window_without_events_is_zero(visits: Metric) -> None:
    rows = [row(0, 5), row(0, 1, country="FR"), row(2, 7)]
    drawn = chart.lines(visits, "1h", rows, START + 10 * HOUR)
    assert [point.value for point in drawn.points["DE"]] == [5, 0, 7]
    assert [point.value for point in drawn.points["FR"]] == [1, 0, 0]


def test_nothing_is_said_of_windows_that_start_after_the_watermark(visits: Metric) -> None:
    drawn = chart.lines(visits, "1h", [row(0, 5), row(0, 1, country="FR"), row(2, 7)], START + 2 * HOUR)
    assert [point.start for point in drawn.points["FR"]] == [START, START + HOUR]


def test_an_empty_window_of_a_certified_day_is_certified_too(visits: Metric) -> None:
    rows = [row(-2, 5, "batch"), row(0, 5, "batch")]
    drawn = chart.lines(visits, "1h", rows, START + HOUR)
    assert [point.certified for point in drawn.points["DE"]] == [True, True, True]


def test_the_largest_lines_are_drawn_and_the_others_counted(visits: Metric) -> None:
    drawn = chart.lines(visits, "1h", [row(0, index, country=f"c{index}") for index in range(12)], None)
    assert list(drawn.points) == [f"c{index}" for index in range(11, 3, -1)]
    assert drawn.left_out == 4


def test_decimals_become_numbers_only_for_drawing() -> None:
    point = chart.Point(START, Decimal("10.25"), None, None, "speed")
    assert point.datum() == [to_epoch_ms(START), 10.25, None, None, "speed"]
