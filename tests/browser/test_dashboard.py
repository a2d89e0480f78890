"""The dashboard in a real browser, served by its own process over real tables.

`LOCKSTEP_SCREENSHOTS=DIR` saves a picture of the page per test.
"""

import os
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect
from serving_tables import CATALOG, OTHER_CATALOG, Event, Tables, at

from infra.service import Service, http_ready
from infra.services import clickhouse_services
from infra.settings import Settings
from infra.stack import down, up
from serving import panels, query

DAY = date(2026, 3, 1)
MIDNIGHT = at("2026-03-01T00:00:00")
LIVE = at("2026-03-02T09:30:00")
WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
REFRESH_MS = 15_000
MORE = """
  users:   {{agg: distinct(user), description: people who came, window: [tumbling 1h, global]}}
  pages:   {{agg: "top(page, 5)", by: [country], description: what is looked at most, window: tumbling 1h}}
  stock:   {{agg: "level(counted, change)", by: [country], unit: pieces, window: [tumbling 1h, global]}}
  state:   {{agg: last(page), by: [country], window: global}}
  open:    {{agg: last(flag), window: global}}
  visits:  {{agg: count, by: [country], description: bursts of events of one user, window: session 30m}}
  average: {{agg: mean(took), by: [country], unit: ms, window: [sliding 2h every 1h, day Europe/Berlin]}}
  buys:    {{agg: count, where: kind = 'buy', window: [tumbling 1h, global]}}
  all:     {{agg: count, window: [tumbling 1h, global]}}
  share:   {{ratio: [buys, all], description: part of the events that are purchases}}
"""
PAGES = ("/", "/shoes", "/shirts", "/checkout", "/help", "/about <us>")


@pytest.fixture(scope="module")
def tables(chromium: str, clickhouse: Settings, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Two days: the first certified, the second running."""
    made = Tables.create(clickhouse, "browser_shop", tmp_path_factory.mktemp("browser"), CATALOG + MORE)
    made.speed(events())
    made.batch("run-1", [event for event in events() if event.time.date() == DAY])
    made.close(DAY, "run-1")
    made.watermark(LIVE)
    return made


def events() -> list[Event]:
    hours = range(int((LIVE - MIDNIGHT) / timedelta(hours=1)))
    found = []
    for hour in hours:
        for number, country in enumerate(("DE", "FR")):
            start, user = MIDNIGHT + timedelta(hours=hour, minutes=1), f"u{hour % 7}"
            found.append(Event(start, "buy", country, f"u{hour}", Decimal(100 + hour), change=-2, took=40.0 + hour))
            for view in range(1 + (hour + number) % 5):
                at_minute = start + timedelta(minutes=4 * view)
                page = PAGES[(hour + view * view) % len(PAGES)]
                # one hour in seven nothing is measured, so that its mean has no value
                took = None if hour % 7 == 3 else 20.0 + view  # noqa: PLR2004
                found.append(Event(at_minute, "view", country, user, page=page, took=took, flag=hour % 2 == 0))
            if hour % 9 == 0:
                found.append(Event(start, "count", country, "clerk", counted=50 + 10 * number))
    return found


@pytest.fixture(scope="module")
def address(tables: Tables, clickhouse: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("serving")
    (directory / "shop.yaml").write_text((CATALOG + MORE).format(source=tables.catalog.source), encoding="utf-8")
    (directory / "other.yaml").write_text(OTHER_CATALOG.format(source="browser_other"), encoding="utf-8")
    return serve(clickhouse, directory)


def serve(settings: Settings, catalog: Path) -> str:
    """Start the API and dashboard; they end with this process."""
    url = f"http://{settings.host}:{settings.api_port}"
    service = Service(
        name="api",
        argv=(sys.executable, "-m", "serving", "--catalog", str(catalog)),
        address=url,
        ready=http_ready(f"{url}/healthz"),
        ports={"api_port": settings.api_port},
    )
    up(settings, [service], owner_pid=os.getpid())
    return url


@pytest.fixture
def open_page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """`open_page(path, size, scheme)`: a page of its own; fails the test if anything is loaded from elsewhere."""
    foreign: list[str] = []
    opened: list[Page] = []

    def open_one(path: str = "/", size: ViewportSize = WIDE, scheme: str = "light", base: str = address) -> Page:
        context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.on(
            "request", lambda r: foreign.append(r.url) if urlsplit(r.url).hostname not in {"127.0.0.1", None} else 0
        )
        page.goto(base + path)
        opened.append(page)
        return page

    yield open_one
    directory = os.environ.get("LOCKSTEP_SCREENSHOTS")
    for number, page in enumerate(opened):
        if directory:
            page.screenshot(path=Path(directory) / f"{request.node.name}-{number}.png", full_page=True)
        page.context.close()
    assert not foreign


def chart_series(page: Page) -> list[dict[str, object]]:
    """What ECharts holds in the browser: name, line type and y values of each series."""
    return page.evaluate(
        """() => {
          const chart = getElement(Number(document.querySelector('.ls-chart').id.slice(1))).chart;
          return chart.getOption().series.map((s) => (
            {name: s.name, dashed: s.lineStyle.type !== undefined && s.lineStyle.type !== 'solid',
             band: s.areaStyle !== undefined, values: s.data.map((d) => d[1])}));
        }"""
    )


def served(tables: Tables, metric: str, grain: str) -> list[query.Row]:
    return tables.source.rows(query.build(tables.catalog, metric, grain))


def test_the_page_shows_the_values_of_the_view(open_page: Callable[..., Page], tables: Tables) -> None:
    page = open_page("/?metric=revenue&grain=1h&span=7d")
    rows = served(tables, "revenue", "1h")
    total = panels.number(sum((row.value for row in rows), start=Decimal(0)))  # type: ignore[arg-type]
    expect(page.locator("[data-tile=view] .ls-figure")).to_have_text(total, timeout=REFRESH_MS)
    latest = sorted(rows, key=lambda row: (row.window_start, row.value), reverse=True)
    shown = page.locator(".ls-recent tbody tr")
    for index in range(shown.count()):
        expect(shown.nth(index)).to_contain_text(panels.number(latest[index].value))
        expect(shown.nth(index)).to_contain_text(latest[index].status)
    assert shown.count() > 3


def test_certified_windows_are_solid_and_provisional_ones_dashed(
    open_page: Callable[..., Page], tables: Tables
) -> None:
    page = open_page("/?metric=revenue&grain=1h&span=7d")
    expect(page.locator("[data-tile=view]")).to_be_visible(timeout=REFRESH_MS)
    page.wait_for_function("() => document.querySelector('.ls-chart canvas') !== null")
    rows = [row for row in served(tables, "revenue", "1h") if row.dimensions["country"] == "DE"]
    solid, dashed = (s for s in chart_series(page) if s["name"] == "DE")
    assert [v for v in solid["values"] if v is not None] == [float(r.value) for r in rows if r.layer == "batch"]  # type: ignore[attr-defined]
    provisional = [float(r.value) for r in rows if r.layer == "speed"]
    assert [v for v in dashed["values"] if v is not None][-len(provisional) :] == provisional  # type: ignore[attr-defined]
    assert (solid["dashed"], dashed["dashed"]) == (False, True)


def test_bounds_are_drawn_as_a_band(open_page: Callable[..., Page]) -> None:
    page = open_page("/?metric=visitors&grain=5m&span=7d")
    expect(page.locator(".ls-recent tbody tr").first).to_contain_text(" to ", timeout=REFRESH_MS)
    assert [s["band"] for s in chart_series(page)].count(True) == 1


def test_days_and_watermark_are_badges(open_page: Callable[..., Page]) -> None:
    page = open_page()
    expect(page.locator("[data-badge=watermark]")).to_contain_text("2026-03-02 09:30:00 UTC", timeout=REFRESH_MS)
    expect(page.locator("[data-day='2026-03-01']")).to_contain_text("certified")
    expect(page.locator("[data-day='2026-03-02']")).to_contain_text("running")
    expect(page.locator("[data-tile=certified] .ls-figure")).to_have_text("1")


def test_the_page_refreshes_when_rows_arrive(open_page: Callable[..., Page], tables: Tables) -> None:
    page = open_page("/?metric=events&grain=1d&span=90d")
    before = sum(int(row.value) for row in served(tables, "events", "1d"))
    figure = page.locator("[data-tile=view] .ls-figure")
    expect(figure).to_have_text(panels.number(before), timeout=REFRESH_MS)
    page.evaluate("window.stillTheSamePage = true")
    tables.speed([Event(LIVE + timedelta(minutes=n), user=f"n{n}") for n in range(7)])
    tables.watermark(LIVE + timedelta(minutes=10), next_offset=2)
    expect(figure).to_have_text(panels.number(before + 7), timeout=REFRESH_MS)
    expect(page.locator("[data-badge=watermark]")).to_contain_text("09:40:00")
    assert page.evaluate("window.stillTheSamePage") is True


def test_metric_and_grain_are_picked_and_kept_in_the_address(open_page: Callable[..., Page]) -> None:
    page = open_page("/?metric=revenue&grain=1h")
    expect(page.locator(".ls-titles h2")).to_have_text("revenue", timeout=REFRESH_MS)
    page.locator(".ls-metric").click()
    page.get_by_role("option", name="visitors").click()
    expect(page.locator(".ls-titles h2")).to_have_text("visitors", timeout=REFRESH_MS)
    page.locator(".ls-grains").get_by_role("button", name="1d").click()
    page.wait_for_url("**/?metric=visitors&grain=1d&span=90d")
    expect(page.locator(".ls-recent tbody tr").last).to_contain_text("certified", timeout=REFRESH_MS)


def test_the_most_frequent_values_are_a_table_of_the_latest_window(
    open_page: Callable[..., Page], tables: Tables
) -> None:
    page = open_page("/?metric=pages&grain=1h")
    rows = [row for row in served(tables, "pages", "1h") if row.value]
    latest = [row for row in rows if row.window_start == rows[-1].window_start]
    expect(page.locator(".ls-groups > div")).to_have_count(len(latest), timeout=REFRESH_MS)
    for row in latest:
        board = page.locator(".ls-groups > div", has_text=row.dimensions["country"])
        for index, entry in enumerate(row.value):  # type: ignore[arg-type]
            expect(board.locator("tr").nth(index)).to_contain_text(entry["item"])  # type: ignore[index]
            expect(board.locator("tr").nth(index)).to_contain_text(str(entry["count"]))  # type: ignore[index]
    expect(page.locator(".ls-chart")).to_be_hidden()
    expect(page.locator(".ls-about")).to_have_text("what is looked at most")


def test_sessions_are_counted_and_their_lengths_told(open_page: Callable[..., Page], tables: Tables) -> None:
    page = open_page("/?metric=visits&span=7d")
    rows = served(tables, "visits", "session")
    facts = page.locator(".ls-facts")
    expect(facts).to_contain_text(f"sessions{len(rows):,}", timeout=REFRESH_MS)
    expect(facts).to_contain_text("median length")
    expect(page.locator(".ls-recent tbody tr").first).to_contain_text(rows[-1].dimensions["session_key"])


def test_a_level_is_drawn_and_listed_by_dimension(open_page: Callable[..., Page], tables: Tables) -> None:
    page = open_page("/?metric=stock&grain=1h")
    latest = {row.dimensions["country"]: row.value for row in served(tables, "stock", "1h")}
    for country, value in latest.items():
        line = page.locator(".ls-bars tr", has_text=country)
        expect(line).to_contain_text(f"{value} pieces", timeout=REFRESH_MS)
    expect(page.locator(".ls-chart")).to_be_visible()


def test_a_ratio_is_a_line_of_percents(open_page: Callable[..., Page], tables: Tables) -> None:
    page = open_page("/?metric=share&grain=1h&span=7d")
    rows = served(tables, "share", "1h")
    expect(page.locator(".ls-recent tbody tr").first).to_contain_text(" %", timeout=REFRESH_MS)
    drawn = [value for series in chart_series(page) for value in series["values"] if value is not None]  # type: ignore[attr-defined]
    assert {round(value, 6) for value in drawn} == {round(100 * row.value, 6) for row in rows}  # type: ignore[operator]


@pytest.mark.parametrize("metric", ["users", "open"])
def test_all_time_is_one_figure(open_page: Callable[..., Page], tables: Tables, metric: str) -> None:
    (row,) = served(tables, metric, "global")
    page = open_page(f"/?metric={metric}&grain=global")
    expect(page.locator(".ls-big")).to_have_text(
        panels.figure(tables.catalog.metric(metric), row.value), timeout=REFRESH_MS
    )
    expect(page.locator(".ls-recent tbody tr")).to_contain_text("all time")


def test_a_window_without_a_value_is_a_gap(open_page: Callable[..., Page]) -> None:
    page = open_page("/?metric=average&grain=2h_every_1h&span=7d")
    expect(page.locator(".ls-recent tbody tr").first).to_be_visible(timeout=REFRESH_MS)
    expect(page.locator(".ls-titles h2")).to_contain_text("in ms")


@pytest.mark.parametrize("metric", ["pages", "visits", "state", "stock"])
def test_boards_fit_a_phone(open_page: Callable[..., Page], metric: str) -> None:
    page = open_page(f"/?metric={metric}", PHONE, "dark")
    expect(page.locator(".ls-board tr").first).to_be_visible(timeout=REFRESH_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_either_scheme(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page("/?metric=revenue&grain=1h", PHONE, scheme)
    expect(page.locator(".ls-recent tbody tr").first).to_be_visible(timeout=REFRESH_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(13, 18, 25)") is (scheme == "dark")


def test_without_rows_it_says_what_to_do_and_without_clickhouse_what_is_wrong(
    open_page: Callable[..., Page], new_settings: Callable[..., Settings], tmp_path: Path, tables: Tables
) -> None:
    own = new_settings(tmp_path / "engine")
    apart = own.model_copy(update={"data_dir": tmp_path / "api"})
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG.format(source=tables.catalog.source), encoding="utf-8")
    try:
        up(own, clickhouse_services(own), owner_pid=os.getpid())
        page = open_page("/?metric=events&grain=1m", base=serve(apart, path))
        expect(page.locator(".ls-emptyslot")).to_contain_text("lockstep generate", timeout=REFRESH_MS)
        expect(page.locator(".ls-badges")).to_contain_text("waiting for the speed layer")
        down(own)
        expect(page.locator(".ls-alert")).to_contain_text("lockstep up", timeout=REFRESH_MS)
        up(own, clickhouse_services(own), owner_pid=os.getpid())
        expect(page.locator(".ls-alert")).to_have_count(0, timeout=2 * REFRESH_MS)
    finally:
        down(apart)
        down(own)


def test_every_source_has_a_page_and_the_way_to_the_others(open_page: Callable[..., Page]) -> None:
    page = open_page()
    expect(page).to_have_title("Lockstep · browser_shop")
    page.get_by_role("link", name="browser_other").click()
    expect(page).to_have_title("Lockstep · browser_other")
    expect(page.locator(".ls-titles h2")).to_have_text("readings")
    assert open_page("/?metric=readings").title() == "Lockstep · browser_other"
