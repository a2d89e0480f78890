"""The dashboard page: one metric at a time, refreshed every second, on the same app as the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from pathlib import Path

from clickhouse_connect.driver.exceptions import ClickHouseError
from fastapi import FastAPI
from nicegui import run, ui

from infra.clickhouse import ClickHouseUnavailableError
from metrics.catalog import Catalog, ShownMetric
from metrics.window import GlobalWindow, SlidingWindow, TumblingWindow
from serving import alert_panel, boards, chart, figures, panels
from serving.alerts import Raised
from serving.api import explain
from serving.query import LARGEST_LIMIT, Query, Row
from serving.source import Source
from serving.sources import Sources
from serving.status import Status

REFRESH_SECONDS = 1.0
MOST_ROWS = 20_000
RECENT_ROWS = 9
DRIFTED_ROWS = 5

SPANS = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "90d": timedelta(days=90),
    "1y": timedelta(days=365),
}
FEWEST_WINDOWS = 60
"""The span first shown of a grain is the shortest that holds this many windows."""

_STYLE = Path(__file__).with_name("dashboard.css")
_LOGO = (
    '<svg class="ls-logo" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="#2563eb"/>'
    '<path d="M7 21.5l6-6 5 4 7-8" fill="none" stroke="#fff" stroke-width="2.6" stroke-linecap="round"'
    ' stroke-linejoin="round"/><path d="M7 14.5l6-6 5 4 3-3.4" fill="none" stroke="#fff" stroke-opacity=".55"'
    ' stroke-width="2.2" stroke-dasharray="2.6 3.2" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)
_KEY = (
    '<div class="ls-key"><span><i class="ls-solid"></i>certified, exact</span>'
    '<span><i class="ls-dashed"></i>provisional</span><span><i class="ls-band"></i>bounds</span></div>'
)


@dataclass(frozen=True)
class View:
    """What a reader looks at."""

    metric: ShownMetric
    grain: str
    span: str

    @property
    def address(self) -> str:
        """The page's address that shows this."""
        return f"/?metric={self.metric.name}&grain={self.grain}&span={self.span}"


@dataclass(frozen=True)
class Reading:
    """What one refresh has read for a view."""

    rows: list[Row]
    status: Status
    alerts: Sequence[Raised] = ()


def mount(app: FastAPI, *served: Source) -> None:
    """Put the dashboard at `/` of the app, a page per source; routes the app has already win."""
    sources = Sources(*served)

    @ui.page("/", title="Lockstep", favicon=_LOGO.replace(' class="ls-logo"', _XMLNS))
    def page(
        source: str | None = None, metric: str | None = None, grain: str | None = None, span: str | None = None
    ) -> None:
        chosen = first_source(sources, source, metric)
        ui.page_title(f"Lockstep · {chosen.catalog.source}")
        _Page(chosen, first_view(chosen.catalog, metric, grain, span), sources.names).build()

    ui.run_with(app, title="Lockstep", dark=None, show_welcome_message=False)


_XMLNS = ' xmlns="http://www.w3.org/2000/svg"'


def first_source(sources: Sources, name: str | None, metric: str | None) -> Source:
    """The source that an address asks for by name or by a metric, else the one with most to see."""
    by_name = [source for source in sources if source.catalog.source == name]
    by_metric = [source for source in sources if any(shown.name == metric for shown in source.catalog.shown)]
    return next(iter((*by_name, *by_metric)), sources.most())


def first_view(catalog: Catalog, metric: str | None, grain: str | None, span: str | None) -> View:
    """The view that an address asks for; what it leaves out, or asks for in vain, is chosen.

    Without a metric that is the one with most to see: lines first, then dimensions, then grains, then the catalog's
    order.
    """
    chosen = next((m for m in catalog.shown if m.name == metric), None) or max(
        catalog.shown, key=lambda m: (figures.has_line(m, first_grain(m)), bool(m.by), len(m.windows))
    )
    picked = grain if grain in chosen.grains else first_grain(chosen)
    return View(chosen, picked, span if span in SPANS else first_span(chosen, picked))


def first_grain(metric: ShownMetric) -> str:
    """The largest grain under a day, else the day: closed days and the running one are then both in view."""
    under = [window for window in metric.windows if window.size < timedelta(days=1)]
    return max(under, key=lambda window: window.size).grain if under else metric.grains[0]


def first_span(metric: ShownMetric, grain: str) -> str:
    """The shortest span with enough windows to see a line."""
    size = metric.window(grain).size
    return next((name for name, span in SPANS.items() if span >= FEWEST_WINDOWS * size), [*SPANS][-1])


def read(source: Source, view: View) -> Reading:
    """The rows of the view's span, which ends with the data and not with the clock, and the source's status."""
    status, raised = source.status(), alert_panel.latest(source)
    latest = source.latest(view.metric)
    if latest is None:
        return Reading([], status, raised)
    start, end = shown_time(view, latest)
    query = Query(view.metric, view.grain, start, end, limit=min(MOST_ROWS, LARGEST_LIMIT))
    return Reading(source.rows(query), status, raised)


def shown_time(view: View, latest: datetime) -> tuple[datetime | None, datetime]:
    """Which windows are in view, by their start: as many as the span has, up to the latest. A global one always is."""
    window = view.metric.window(view.grain)
    step = timedelta(milliseconds=1)
    if isinstance(window, TumblingWindow | SlidingWindow):
        step = window.period if isinstance(window, SlidingWindow) else window.size
    epoch = datetime.fromtimestamp(0, UTC)
    end = epoch + ((latest - epoch) // step + 1) * step
    return (None if isinstance(window, GlobalWindow) else end - max(SPANS[view.span], window.size)), end


class _Page:
    """One reader's page: builds its elements once, then only changes what differs."""

    def __init__(self, source: Source, view: View, sources: Sequence[str]) -> None:
        self._source = source
        self._sources = sources
        self._view = view
        self._dark = ui.dark_mode(None)

    def build(self) -> None:
        ui.add_css(_STYLE.read_text(encoding="utf-8"))
        with ui.element("div").classes("ls-page"):
            self._header()
            self._alert = _fragment("ls-alerts")
            self._controls()
            with ui.element("section").classes("ls-tiles"):
                self._tiles = [_fragment("ls-cell") for _ in range(5)]
            with ui.element("section").classes("ls-card ls-chartcard"):
                with ui.element("div").classes("ls-cardhead"):
                    self._title = _fragment("ls-titles")
                    self._key = _fragment("ls-keys")
                self._empty = _fragment("ls-emptyslot")
                self._board = _fragment("ls-board")
                self._chart = ui.echart(chart.options(chart.Lines({}, 0), timedelta(0))).classes("ls-chart")
            with ui.element("section").classes("ls-columns"):
                with ui.element("div").classes("ls-card"):
                    _heading("Latest windows", "each shown once, from the best layer that has it")
                    self._recent = _fragment("ls-recent")
                with ui.element("div").classes("ls-stack"):
                    if self._source.catalog.alerts:
                        with ui.element("div").classes("ls-card"):
                            _heading("Alerts", "the latest that were raised")
                            self._raised = _fragment("ls-raised")
                    with ui.element("div").classes("ls-card"):
                        _heading("Days", "certified days are exact")
                        self._days = _fragment("ls-dayslot")
                    with ui.element("div").classes("ls-card"):
                        _heading("Largest drift", "certified value less what the speed layer showed")
                        self._drifted = _fragment("ls-driftslot")
        ui.timer(REFRESH_SECONDS, self._refresh)

    def _header(self) -> None:
        with ui.element("header").classes("ls-header"):
            _fragment("ls-brand").set_content(
                f"{_LOGO}<div><b>Lockstep</b>{_links(self._sources, self._source.catalog.source)}</div>"
            )
            self._badges = _fragment("ls-badges")
            self._theme = ui.button(icon="contrast", color="lsplain", on_click=self._next_theme).props(
                "flat round dense"
            )
            self._theme.tooltip("theme: as the system, light, dark")

    def _controls(self) -> None:
        metrics = [metric.name for metric in self._source.catalog.shown]
        with ui.element("nav").classes("ls-controls"):
            select = ui.select(metrics, value=self._view.metric.name, on_change=lambda e: self._choose(metric=e.value))
            select.props('outlined dense options-dense behavior=menu aria-label="metric"').classes("ls-metric")
            self._grain = _toggle([self._view.grain], "grain")
            self._grain.on_value_change(lambda e: self._choose(grain=e.value))
            self._span = _toggle(list(SPANS), "span")
            self._span.on_value_change(lambda e: self._choose(span=e.value))
        self._show_choice()

    def _show_choice(self) -> None:
        self._grain.set_options(list(self._view.metric.grains), value=self._view.grain)
        self._span.set_value(self._view.span)

    async def _choose(self, metric: str | None = None, grain: str | None = None, span: str | None = None) -> None:
        now = self._view
        if metric is not None and metric != now.metric.name:
            chosen = first_view(self._source.catalog, metric, None, None)
        elif grain is not None and grain != now.grain:
            chosen = View(now.metric, grain, first_span(now.metric, grain))
        elif span is not None and span != now.span:
            chosen = View(now.metric, now.grain, span)
        else:
            return
        self._view = chosen
        self._show_choice()
        ui.navigate.history.replace(chosen.address)
        await self._refresh()

    def _next_theme(self) -> None:
        following: dict[bool | None, bool | None] = {None: False, False: True, True: None}
        self._dark.value = following[self._dark.value]

    async def _refresh(self) -> None:
        view = self._view
        try:
            reading = await run.io_bound(partial(read, self._source, view))
        except (ClickHouseError, ClickHouseUnavailableError) as error:
            _set(self._alert, panels.failure(explain(error, self._source)))
            return
        # the reader may have gone on to another view, or away, while this one was read
        if reading is not None and view == self._view:
            self._show(view, reading)

    def _show(self, view: View, reading: Reading) -> None:
        rows, status = reading.rows, reading.status
        _set(self._alert, panels.crowds(status))
        _set(self._badges, panels.badges(status))
        names = ("view", "certified", "drift", "residual", "ledger")
        for slot, figure, name in zip(
            self._tiles, panels.tiles(view.metric, rows, status, view.grain), names, strict=True
        ):
            _set(slot, panels.tile(figure, name))
        lined = bool(rows) and figures.has_line(view.metric, view.grain)
        drawn = chart.lines(view.metric, view.grain, rows if lined else [], status.watermark)
        _set(self._title, _title(view, drawn.left_out))
        _set(self._key, _KEY if lined else "")
        _set(self._board, boards.board(view.metric, view.grain, rows))
        _set(self._empty, "" if rows else panels.nothing_yet(view.metric, view.grain))
        self._chart.set_visibility(lined)
        unit = "%" if figures.is_percent(view.metric) else view.metric.unit
        options = chart.options(drawn, view.metric.window(view.grain).size, unit)
        if options != self._drawn:
            self._drawn = options
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()
        _set(self._recent, panels.recent(view.metric, rows, RECENT_ROWS))
        _set(self._drifted, panels.drifted(view.metric, rows, DRIFTED_ROWS))
        _set(self._days, panels.days(status))
        if self._source.catalog.alerts:
            _set(self._raised, alert_panel.panel(reading.alerts))

    _drawn: dict[str, object] | None = None


def _title(view: View, left_out: int) -> str:
    metric = view.metric
    parts = [metric.text, f"where {metric.where}" if metric.where else "", f"by {', '.join(metric.by)}"]
    definition = " ".join(part for part in (parts if metric.by else parts[:2]) if part)
    more = f" <em>the {chart.MOST_LINES} largest; {left_out:,} more in the API</em>" if left_out else ""
    unit = f' <span class="ls-unit">in {escape(metric.unit)}</span>' if metric.unit else ""
    about = f'<p class="ls-about">{escape(metric.description)}</p>' if metric.description else ""
    return f"<h2>{escape(metric.name)}{unit}</h2>{about}<p><code>{escape(definition)}</code>{more}</p>"


def _links(sources: Sequence[str], shown: str) -> str:
    """The name of the source that is shown; of several, each, and the others lead to their pages."""
    links = [
        f"<span>{escape(name)}</span>"
        if len(sources) == 1
        else f'<a href="/?source={escape(name)}"{" aria-current=page" if name == shown else ""}>{escape(name)}</a>'
        for name in sources
    ]
    return "".join(links)


def _heading(title: str, note: str) -> None:
    _fragment("ls-cardhead").set_content(f"<h3>{title}</h3><p>{note}</p>")


def _toggle(names: list[str], label: str) -> ui.toggle:
    # colours by class: Quasar's own come in a cascade layer whose `!important` beats the style sheet
    colors = "color=lsplain text-color=lsplain toggle-color=lspicked toggle-text-color=lspicked"
    toggle = ui.toggle(names).props(f'unelevated no-caps dense {colors} aria-label="{label}"')
    return toggle.classes(f"ls-toggle ls-{label}s")


def _fragment(name: str) -> ui.html:
    # what comes from data is escaped where the fragment is made
    return ui.html("", sanitize=False).classes(name)


def _set(slot: ui.html, content: str) -> None:
    if slot.content != content:
        slot.set_content(content)
