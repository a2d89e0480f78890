"""The report from values alone: what the JSON says, and a page that needs nothing but itself."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from infra.catalog_file import load_catalog
from metrics.window import parse_window
from reconciliation import plots, wording
from reconciliation.causes import CAUSES, Readings
from reconciliation.certificate import Comparison, Counts, decide
from reconciliation.diff import NO_SLICES, Bin, GrainDiff, MetricDiff, SliceDiff, SliceRow, WindowRow, bin_width
from reconciliation.document import document
from reconciliation.evidence import Manifest, OffsetRange, Position, Progress, Publication
from reconciliation.page import index_page, report_page
from reconciliation.result import Examined, PartitionReconciliation, Status
from reconciliation.tables import ExceptionCount, ExceptionRecord

DAY = date(2026, 3, 1)
START = datetime(2026, 3, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 4, 2, tzinfo=UTC)
CATALOG = """
source: shop
topic: events.shop
format: json
event_id: id
event_time: {field: ts, unit: ms}
key: user_id
out_of_orderness: 10s
allowed_lateness: 1h
dedup_horizon: 1000
fields: {user_id: string, country: string}
metrics:
  events: {agg: count, by: [country], window: [tumbling 1h]}
  visitors: {agg: distinct(user_id), window: [tumbling 1d]}
  visitors_an_event: {ratio: [daily_visitors, daily_events]}
  daily_visitors: {agg: distinct(user_id), window: [tumbling 1d]}
  daily_events: {agg: count, window: [tumbling 1d]}
  places: {agg: "top(country, 3)", window: session 30m}
"""


@pytest.fixture
def catalog(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(CATALOG)
    return load_catalog(path)


def day_of(catalog, day=DAY, residual=0, country="<DE & co>"):
    readings = Readings.of(90 + residual, 90, 90, 98, 98)
    manifest = Manifest(
        run_id="run-1", source="shop", topic="events.shop", partition=day, catalog_version="c1", events=98,
        ranges=(OffsetRange(topic_partition=0, start=0, end=99, log_begin=0, log_end=99, records=99, counted=90, late=8,
                            dead_letter=1),),
        dispositions={"counted": 90, "late": 8, "dead_letter": 1},
    )  # fmt: skip
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    hour = start + timedelta(hours=1)
    window = WindowRow(start, hour, {"country": country}, True, readings, None, None)
    differing = tuple(
        SliceRow(start, hour, {"country": country}, True, 90 + residual, 90, {"count": "91"}, {"count": "90"})
        for _ in range(residual)
    )
    events = MetricDiff(
        "events",
        catalog.metric("events").metric_version,
        SliceDiff(Comparison(1, 1 - residual, 0, residual), 0, 0, differing),
        (
            GrainDiff(
                "1h", timedelta(hours=1), (Bin(start, True, 1, readings, 1, (residual, 0, 1, 0), 0, 0),), (window,)
            ),
        ),
    )
    sketch = Readings.of(52, 52, 50, 51, 51)
    visitors = MetricDiff(
        "visitors",
        catalog.metric("visitors").metric_version,
        SliceDiff(Comparison(24, 24, 0, 0), 0, 0, ()),
        (
            GrainDiff(
                "1d",
                timedelta(days=1),
                (Bin(start, True, 1, sketch, 1, (0, 1, 1, 0), 1, 1),),
                (WindowRow(start, start + timedelta(days=1), {}, True, sketch, Decimal(50), Decimal(55)),),
            ),
        ),
    )
    share = Readings.of(0.1, 0.1, 0.1, 1 / 3, 1 / 3)
    none = WindowRow(start, start + timedelta(days=1), {}, True, share, None, None, without_value=("speed", "expected"))
    ratio = MetricDiff(
        "visitors_an_event",
        catalog.metric("visitors_an_event").metric_version,
        NO_SLICES,
        (GrainDiff("1d", timedelta(days=1), (Bin(start, True, 1, share, 1, (0, 0, 1, 0), 0, 0),), (none,)),),
        is_ratio=True,
    )
    items = Readings.of(0, 0, 0, 2, 2)
    visit = WindowRow(
        start, hour, {}, True, items, None, None, item="<item>", session_key="<u7>", length_ms=3_723_000
    )  # fmt: skip
    places = MetricDiff(
        "places",
        catalog.metric("places").metric_version,
        SliceDiff(
            Comparison(1, 0, 1, 0),
            0,
            1,
            (SliceRow(start, hour, {}, False, None, 2, {}, {"length_ms": "5", "counts": "{}"}, session_key="<u7>"),),
        ),
        (GrainDiff("session", timedelta(minutes=15), (Bin(start, True, 4, items, 1, (0, 0, 1, 0), 0, 0),), (visit,)),),
    )
    comparison = Comparison(25, 25 - residual, 0, residual)
    counts = Counts("events", 98, 90, 90)
    return PartitionReconciliation(
        partition=day,
        status=Status.RECONCILED,
        examined=Examined(
            publication=Publication(day, "run-1", (), NOW),
            manifest=manifest,
            certificate=decide(manifest, counts, comparison, 1),
            counts=counts,
            comparison=comparison,
            reported=(),
            metrics=(events, visitors, ratio, places),
            not_in_run=(),
            exceptions=(ExceptionCount("late", "late", 8), ExceptionCount("dead_letter", "not_json", 1)),
            issued_at=NOW,
        ),
        progress=Progress({0: Position(0, NOW - timedelta(hours=2), 99, NOW)}),
    )


def records():
    return [
        ExceptionRecord("events.shop", 0, 40 + n, START, f"e{n}<script>", START, "late", "late") for n in range(8)
    ] + [ExceptionRecord("events.shop", 0, 77, START, None, None, "dead_letter", "not_json")]


def page(catalog, *results):
    doc = document(catalog, results, {DAY: records()}, NOW)
    return report_page(json.loads(json.dumps(doc)), "2026-03-01")


class Outline(HTMLParser):
    """Collects what a page would load and whether its elements are closed."""

    VOID = frozenset({"meta", "br", "line", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_json_holds_the_headline_in_plain_values(catalog):
    doc = document(catalog, [day_of(catalog)], {DAY: records()}, NOW)
    assert doc["headline"] == {
        "verdict": "clean", "partitions": 1, "certified": 1, "residual": 0, "slices_compared": 25, "slices_equal": 25,
        "not_yet_closed": 0, "events": 98, "counted": 90, "late": 8, "duplicate": 0, "id_conflict": 0, "dead_letter": 1,
        "repaired": 0,
        "late_ratio": pytest.approx(8 / 98),
        "watermark": "2026-03-04T00:00:00Z", "watermark_at": "2026-03-04T02:00:00Z",
    }  # fmt: skip
    assert json.loads(json.dumps(doc)) == doc


def test_the_json_names_every_record_that_was_not_counted(catalog):
    (part,) = document(catalog, [day_of(catalog)], {DAY: records()}, NOW)["partitions"]
    assert [(r["offset"], r["disposition"]) for r in part["exceptions"]["records"]] == [
        *((40 + n, "late") for n in range(8)),
        (77, "dead_letter"),
    ]
    assert part["exceptions"]["total"] == 9


def test_a_dead_letter_that_was_repaired_names_the_offset_of_its_repair(catalog):
    day = day_of(catalog)
    counts = (ExceptionCount("late", "late", 8), ExceptionCount("dead_letter", "not_json", 1, repaired=1))
    day = replace(day, examined=replace(day.examined, exceptions=counts))
    told = [*records()[:-1], replace(records()[-1], repaired_offset=1_234)]
    doc = document(catalog, [day], {DAY: told}, NOW)
    assert doc["headline"]["repaired"] == doc["partitions"][0]["repaired"] == 1
    assert [r["repaired_offset"] for r in doc["partitions"][0]["exceptions"]["records"]] == [*[None] * 8, 1_234]
    text = report_page(json.loads(json.dumps(doc)), "2026-03-01")
    assert text.count("repaired at offset 1234") == 1
    assert '<div class="v">1</div><div class="s">1 repaired</div>' in text


def test_the_parts_in_the_json_add_up_to_the_difference(catalog):
    doc = document(catalog, [day_of(catalog, residual=1)], {}, NOW)
    for metric in doc["metrics"]:
        for grain in metric["grains"]:
            for row in (*grain["bins"], *grain["worst"], grain | grain["readings"]):
                assert sum(map(Decimal, row["split"].values())) == Decimal(row["exact"]) - Decimal(row["speed"])


def test_the_page_loads_nothing_and_closes_what_it_opens(catalog):
    outline = Outline()
    html = page(catalog, day_of(catalog))
    outline.feed(html)
    assert outline.open == []
    assert set(outline.loads) == {"index.html", "2026-03-01.json"}
    assert not re.search(r"https?://|<script|url\(|@import", html)


def test_text_from_events_is_escaped(catalog):
    html = page(catalog, day_of(catalog))
    assert "e0&lt;script&gt;" in html
    assert "&lt;DE &amp; co&gt;" in html


def test_a_clean_report_says_so_and_a_residual_is_the_headline(catalog):
    assert "every difference between live and exact is explained" in page(catalog, day_of(catalog))
    html = page(catalog, day_of(catalog, residual=1))
    assert "1 published slice differs from the log without a reason" in html
    assert "Slices that differ" in html


def test_a_day_that_is_not_published_shows_the_way_out(catalog):
    message = "2026-03-02 of `shop` is not published. run `lockstep batch` first"
    missing = PartitionReconciliation(date(2026, 3, 2), Status.NOT_PUBLISHED, message)
    alone = report_page(document(catalog, [missing], {}, NOW), "x")
    assert "Nothing is published for this day" in alone
    assert "run <code>lockstep batch</code> first" in alone
    assert "Not every day is published" in page(catalog, day_of(catalog), missing)


def test_the_index_shows_each_day_once_as_its_latest_report_saw_it(catalog):
    first = document(catalog, [day_of(catalog, residual=1)], {}, NOW)
    second = document(catalog, [day_of(catalog), day_of(catalog, date(2026, 3, 2))], {}, NOW + timedelta(hours=1))
    html = index_page({"2026-03-01": first, "2026-03-01_2026-03-02": second})
    assert "2 of 2 days certified" in html
    assert html.count("<b>2026-03-01</b>") == 1
    assert 'href="2026-03-01_2026-03-02.html">open</a>' in html
    assert "unexplained" in html.split("<h2>Reports</h2>")[1]


def test_a_series_draws_levels_and_parts_and_says_when_there_is_no_difference():
    column = plots.Column(START, 10.0, 12.0, {"late": 3.0, "residual": -1.0})
    drawn = plots.series([column], timedelta(hours=1), START, START + timedelta(days=1))
    assert drawn.count('class="exact"') == drawn.count('class="c-late"') == drawn.count('class="c-residual"') == 1
    same = plots.Column(START, 10.0, 10.0, dict.fromkeys(CAUSES, 0.0))
    quiet = plots.series([same], timedelta(hours=1), START, START + timedelta(days=1))
    assert "no difference in any window" in quiet


def test_no_values_at_all_can_be_drawn():
    assert "</svg>" in plots.series([], timedelta(hours=1), START, START + timedelta(days=9))
    assert "</svg>" in plots.stacked_rows([("2026-03-01", {}, "")], ("late",))
    assert "none" in plots.bars([("2026-03-01", 0.0, "0")], "c-late")


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0, 1), (0.7, 0.8), (1, 1), (11, 12), (99, 100), (101, 120), (2_400_000, 2_500_000)]
)
def test_an_axis_ends_at_a_round_number_that_is_not_below_the_values(value, ceiling):
    assert plots.nice_ceiling(value) == pytest.approx(ceiling)


@pytest.mark.parametrize(
    ("window", "minutes"),
    [
        *((f"tumbling {size}m", least) for size, least in [(1, 15), (5, 15), (15, 15), (30, 30), (60, 60), (9, 18)]),
        *((f"tumbling {size}", 1440) for size in ("1d", "3d", "36h")),
        ("tumbling 7m", 15),
        ("tumbling 100m", 120),
        ("sliding 1h every 5m", 15),
        ("sliding 1d every 20m", 20),
        ("session 30m", 15),
        ("month Europe/Berlin", 1440),
        ("global", 1440),
    ],
)
def test_a_bin_divides_the_day_and_holds_whole_windows_if_any_does(window, minutes):
    assert bin_width(parse_window(window)) == minutes * 60_000


def test_a_part_of_a_metric_that_does_not_add_up_is_a_number_of_windows(catalog):
    html = page(catalog, day_of(catalog))
    visitors = html.split("<h3>visitors</h3>")[1].split("</section>")[0]
    assert "mean of all windows" in visitors
    assert "</i>1 window</span>" in visitors
    assert "all windows added up" not in visitors
    assert "all windows added up" in html.split("<h3>events</h3>")[1].split("</section>")[0]


def test_a_ratio_has_no_residual_of_its_own_and_a_missing_value_is_a_dash(catalog):
    ratio = page(catalog, day_of(catalog)).split("<h3>visitors_an_event</h3>")[1].split("</section>")[0]
    assert "residual" not in ratio
    assert "daily_visitors / daily_events" in ratio
    assert '<td class="n">–</td><td class="n">–</td><td class="n">0.333333</td>' in ratio


def test_a_session_is_shown_with_its_key_and_length_and_a_list_by_item(catalog):
    places = page(catalog, day_of(catalog)).split("<h3>places</h3>")[1].split("</section>")[0]
    assert "Windows that a cause changes" in places
    assert "&lt;u7&gt;" in places
    assert "1 h 2 m 3 s" in places
    assert "</i>1 session</span>" in places
    assert "&lt;item&gt;" in places
    assert "Sessions that differ" in places


def test_levels_below_zero_hang_from_the_axis():
    columns = [plots.Column(START, -3.0, -4.0, {}), plots.Column(START + timedelta(hours=1), 2.0, 2.0, {})]
    for shown in (columns, columns[:1]):
        drawn = plots.series(shown, timedelta(hours=1), START, START + timedelta(days=1))
        assert 'height="-' not in drawn
        assert "−4" in drawn


def test_figures_are_written_for_people():
    assert wording.num("-1234567.50") == "−1,234,567.50"
    assert wording.signed("0") == "0"
    assert wording.signed(7) == "+7"
    assert wording.num("0.30000000000000004") == "0.3"
    assert wording.num("-0.00000123456789") == "−1.23e−6"
    assert wording.num("0.00000001") == "1e−8"
    assert wording.num("0.0123456789") == "0.012346"
    assert wording.num("1234.123456789") == "1,234.123457"
    assert wording.num("99999999999999.123456") == "99,999,999,999,999.123456"
    assert wording.num("1E+300") == "1e300"
    assert [wording.duration(ms) for ms in (0, 250, 1000, 3_600_000, 90_061_000)] == [
        "0 ms", "250 ms", "1 s", "1 h", "25 h 1 m 1 s",
    ]  # fmt: skip
    assert [wording.pct(ratio) for ratio in (0, 1e-9, 0.00042, 0.0142, 0.99999, 1.0)] == [
        "0 %", "< 0.001 %", "0.042 %", "1.42 %", "> 99.99 %", "100 %",
    ]  # fmt: skip
    assert wording.period("2026-03-01", "2026-03-03") == "1 to 3 March 2026"
    assert str(wording.ticks("run `a<b`")) == "run <code>a&lt;b</code>"
