from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from serving import boards, chart, figures
from serving.query import Row, Value

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "shop.yaml"
    path.write_text(
        "source: shop\ntopic: t\nevent_id: id\nevent_time: {field: ts}\nkey: user\n"
        "fields: {page: string, user: string, took: float}\nmetrics:\n"
        "  n:     {agg: count, window: [tumbling 1h, sliding 2h every 1h, global]}\n"
        "  mean:  {agg: mean(took), window: tumbling 1h, unit: ms}\n"
        "  pages: {agg: 'top(page, 3)', window: tumbling 1h}\n"
        "  page:  {agg: last(page), by: [user], window: global}\n"
        "  seen:  {agg: count, window: session 30m}\n"
        "  m:     {agg: count, where: page = 'a', window: [tumbling 1h, global]}\n"
        "  share: {ratio: [m, n]}\n",
        encoding="utf-8",
    )
    return load_catalog(path)


def row(hours: int, value: Value, length: int | None = None, **dimensions: str) -> Row:
    start = START + hours * HOUR
    return Row(
        start, start + HOUR, dimensions, value, None, None, "speed", False, None, "provisional", length_ms=length
    )


def test_what_is_no_line_has_a_board(catalog: Catalog) -> None:
    lined = {(m.name, grain) for m in catalog.shown for grain in m.grains if figures.has_line(m, grain)}
    assert lined == {("n", "1h"), ("n", "2h_every_1h"), ("mean", "1h"), ("m", "1h"), ("share", "1h")}


def test_only_windows_that_do_not_overlap_add_up(catalog: Catalog) -> None:
    n = catalog.metric("n")
    assert figures.adds_up(n, "1h")
    assert not figures.adds_up(n, "2h_every_1h")
    assert not figures.adds_up(catalog.metric("mean"), "1h")


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("n", 1234, "1,234"),
        ("mean", None, "–"),
        ("mean", 0.01234, "0.0123"),
        ("share", 0.125, "12.5 %"),
        ("page", "a", "a"),
        ("page", True, "yes"),
        ("pages", [{"item": "a", "count": 2}, {"item": "", "count": 1}], "a 2, (empty) 1"),
        ("pages", [], "–"),
        ("n", Decimal("10.50"), "10.50"),
    ],
)
def test_a_value_is_written_as_what_it_is(catalog: Catalog, metric: str, value: Value, text: str) -> None:
    assert figures.figure(catalog.metric(metric), value) == text


@pytest.mark.parametrize(
    ("text", "shown"), [("5", "+5"), ("-5", "−5"), ("0", "0"), ("0.00", "0.00"), ("–", "–"), ("1 %", "+1 %")]
)
def test_a_drift_has_its_sign(text: str, shown: str) -> None:
    assert figures.signed(text) == shown


def test_a_missing_mean_is_a_gap_and_a_missing_count_is_zero(catalog: Catalog) -> None:
    until = START + 4 * HOUR
    for metric, empty in (("mean", None), ("n", 0)):
        drawn = chart.lines(catalog.metric(metric), "1h", [row(0, 5), row(2, 7)], until)
        assert [point.value for point in drawn.points[metric]] == [5, empty, 7]
    drawn = chart.lines(catalog.metric("mean"), "1h", [row(0, 5.0), row(1, None), row(2, 7.0)], None)
    _, dashed = chart.options(drawn, HOUR, "ms")["series"]
    assert [datum[1] for datum in dashed["data"]] == [5.0, None, 7.0]


def test_sliding_windows_are_a_period_apart(catalog: Catalog) -> None:
    drawn = chart.lines(catalog.metric("n"), "2h_every_1h", [row(0, 5), row(3, 7)], START + 9 * HOUR)
    assert [point.value for point in drawn.points["n"]] == [5, 0, 0, 7]


def test_a_ratio_is_drawn_in_percent(catalog: Catalog) -> None:
    drawn = chart.lines(catalog.metric("share"), "1h", [row(0, 0.25), row(1, None)], None)
    assert [point.value for point in drawn.points["share"]] == [25.0, None]


def test_a_top_shows_the_latest_window_that_has_any(catalog: Catalog) -> None:
    rows = [row(0, [{"item": "old", "count": 9}]), row(1, [{"item": "<new>", "count": 2}]), row(2, [])]
    board = boards.board(catalog.metric("pages"), "1h", rows)
    assert "&lt;new&gt;" in board
    assert "old" not in board


def test_sessions_have_a_median_length_and_a_distribution(catalog: Catalog) -> None:
    rows = [row(n, 1, length, session_key="<u>") for n, length in enumerate((0, 120_000, 5_400_000))]
    board = boards.board(catalog.metric("seen"), "session", rows)
    assert "<span>sessions</span><b>3</b>" in board
    assert "<span>median length</span><b>2 min</b>" in board
    assert "<span>longest</span><b>1 h 30 min</b>" in board
    assert "<u>" not in board


def test_a_last_of_each_dimension_is_listed(catalog: Catalog) -> None:
    board = boards.board(catalog.metric("page"), "global", [row(0, "<a>", user="u1"), row(0, None, user="u2")])
    assert board.index("u1") < board.index("&lt;a&gt;") < board.index("u2")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (3_600, "1 h"), (90_000, "1 d 1 h")])
def test_a_length_is_told_in_two_units(seconds: int, text: str) -> None:
    assert figures.duration(timedelta(seconds=seconds)) == text
