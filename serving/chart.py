"""From rows of a served view to the options of an ECharts line chart: values in, a plain dict out.

A line per combination of dimensions: solid where certified, dashed where provisional, with a band between its bounds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from metrics.catalog import ShownMetric
from metrics.window import AnyWindow, SlidingWindow, TumblingWindow, to_epoch_ms
from serving import figures
from serving.query import Number, Row
from serving.views import dimensions

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16")
MOST_LINES = len(COLORS)
MOST_FILLED = 3_000
"""Up to this many windows those without a row are drawn, as zero or a gap; a longer axis shows only those with rows."""

PERCENT = 100

FEW_POINTS = 80
"""Up to this many windows each is marked by a dot."""

# Legible on the light and on the dark page alike, since the server does not know which one a reader has.
INK = "#8390a5"
FAINT = "rgba(131, 144, 165, 0.18)"

FONT = 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

AXIS_LABELS = {
    "year": "{yyyy}",
    "month": "{d} {MMM}",
    "day": "{d} {MMM}",
    "hour": "{HH}:{mm}",
    "minute": "{HH}:{mm}",
    "second": "{HH}:{mm}:{ss}",
    "millisecond": "{HH}:{mm}:{ss}",
    "none": "{yyyy}-{MM}-{dd} {HH}:{mm}",
}

_TOOLTIP = """(items) => {
  const shown = new Map();
  for (const item of items) {
    const v = item.value;
    if (item.seriesName.startsWith('\\u0000') || v[1] === null || v[1] === undefined) continue;
    if (!shown.has(item.seriesName) || v[4] === 'batch') shown.set(item.seriesName, item);
  }
  if (!shown.size) return '';
  const text = (s) => String(s).replace(/[&<>"]/g, (c) => '&#' + c.charCodeAt(0) + ';');
  const number = (n) => Number(n).toLocaleString('en-US', {maximumFractionDigits: 2});
  const at = (ms) => new Date(ms).toISOString().slice(0, 16).replace('T', ' ');
  const sorted = [...shown.values()].sort((a, b) => b.value[1] - a.value[1]);
  const first = sorted[0].value;
  let html = `<div class="ls-tip-time">${at(first[0])} UTC <span class="ls-chip ls-${first[4]}">`
    + (first[4] === 'batch' ? 'certified' : 'provisional') + '</span></div>';
  for (const item of sorted) {
    const v = item.value;
    const bounds = v[2] === null ? '' : `<small>${number(v[2])} to ${number(v[3])}</small>`;
    html += `<div class="ls-tip-row"><i style="background:${item.color}"></i><span>${text(item.seriesName)}</span>`
      + `${bounds}<b>${number(v[1])}${text(UNIT)}</b></div>`;
  }
  return html;
}"""


@dataclass(frozen=True)
class Point:
    """A window on a line; a gap where there is no value. `layer` is speed or batch; an exact value has no bounds."""

    start: datetime
    value: Number | None
    lower: Number | None
    upper: Number | None
    layer: str

    @property
    def certified(self) -> bool:
        """Whether the line is solid here."""
        return self.layer == "batch"

    def datum(self) -> list[Any]:
        """What ECharts gets: time, value, bounds, layer."""
        numbers = [None if number is None else float(number) for number in (self.value, self.lower, self.upper)]
        return [to_epoch_ms(self.start), *numbers, self.layer]


@dataclass(frozen=True)
class Lines:
    """The lines of a chart by name, the largest first, and how many more there were than a chart can show."""

    points: Mapping[str, Sequence[Point]]
    left_out: int


def lines(metric: ShownMetric, grain: str, rows: Iterable[Row], filled_until: datetime | None) -> Lines:
    """The rows as lines.

    Args:
        metric: the metric; its name is the line's where there are no dimensions.
        grain: the rows' grain.
        rows: in order of time.
        filled_until: up to here, exclusive, a window without a row had no events and is drawn as zero, or as a gap
            where no events have no value: the data watermark, before which everything is published. None fills nothing.
    """
    found: dict[str, dict[datetime, Point]] = {}
    totals: dict[str, float] = {}
    certified_days = set()
    scale = PERCENT if figures.is_percent(metric) else 1
    empty = 0 if figures.is_zero_without_events(metric) else None
    for row in rows:
        name = label(metric, row)
        value = _number(row.value, scale)
        point = Point(row.window_start, value, _number(row.lower, scale), _number(row.upper, scale), row.layer)
        found.setdefault(name, {})[row.window_start] = point
        totals[name] = totals.get(name, 0.0) + abs(float(value or 0))
        if point.certified:
            certified_days.add(row.window_start.date())
    largest = sorted(totals, key=lambda name: (-totals[name], name))
    kept = sorted(largest[:MOST_LINES], key=largest.index)
    starts = {start for points in found.values() for start in points}
    for start in _windows(starts, _step(metric.window(grain)), filled_until):
        layer = "batch" if start.date() in certified_days else "speed"
        for name in kept:
            if start not in found[name]:
                found[name][start] = Point(start, empty, None, None, layer)
    return Lines(
        {name: [found[name][start] for start in sorted(found[name])] for name in kept},
        len(largest) - len(kept),
    )


def label(metric: ShownMetric, row: Row) -> str:
    """The name of a row's line: its dimensions' values, else the metric's name."""
    named = dimensions(metric)
    return " · ".join(row.dimensions[name] or "(none)" for name in named) if named else metric.name


def options(drawn: Lines, size: timedelta, unit: str = "") -> dict[str, Any]:
    """ECharts options of the lines, whose windows have this size and whose values this unit."""
    named = len(drawn.points) > 1
    series: list[dict[str, Any]] = []
    points_shown = max((len(points) for points in drawn.points.values()), default=0)
    for index, (name, points) in enumerate(drawn.points.items()):
        color = COLORS[index % len(COLORS)]
        series += _line(name, points, color, dots=points_shown <= FEW_POINTS)
        series += _band(index, points, color)
    if series:
        series[0]["markLine"] = _divider(drawn)
    return {
        "useUTC": True,
        # each refresh would else redraw every line
        "animation": False,
        "color": list(COLORS),
        "textStyle": {"fontFamily": FONT},
        "grid": {"left": 8, "right": 20, "top": 48 if named else 26, "bottom": 8, "containLabel": True},
        "legend": {
            "show": named,
            "type": "scroll",
            "top": 4,
            "left": 4,
            "icon": "roundRect",
            "itemWidth": 12,
            "itemHeight": 4,
            "itemGap": 18,
            "textStyle": {"color": INK, "fontSize": 12},
            "pageTextStyle": {"color": INK},
            "data": list(drawn.points),
        },
        "tooltip": {
            "trigger": "axis",
            "className": "ls-tip",
            "confine": True,
            "axisPointer": {"lineStyle": {"color": INK, "type": "solid", "opacity": 0.4}},
            ":formatter": _TOOLTIP.replace("UNIT", json.dumps(f" {unit}" if unit else "")),
        },
        "xAxis": {
            "type": "time",
            "minInterval": size // timedelta(milliseconds=1),
            "axisLine": {"lineStyle": {"color": FAINT}},
            "axisTick": {"show": False},
            "axisLabel": {"color": INK, "fontSize": 11, "hideOverlap": True, "formatter": AXIS_LABELS},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "axisLabel": {"color": INK, "fontSize": 11, **({"formatter": "{value} %"} if unit == "%" else {})},
            "splitLine": {"lineStyle": {"color": FAINT}},
        },
        "series": series,
    }


def _line(name: str, points: Sequence[Point], color: str, *, dots: bool) -> list[dict[str, Any]]:
    """Two series of one name: the certified part, solid, and the provisional, dashed, joined where they meet."""
    solid: list[list[Any]] = []
    dashed: list[list[Any]] = []
    for index, point in enumerate(points):
        beside = points[max(index - 1, 0) : index + 2]
        gap = [to_epoch_ms(point.start), None, None, None, point.layer]
        solid.append(point.datum() if point.certified else gap)
        joins = not point.certified or any(not other.certified for other in beside)
        dashed.append(point.datum() if joins else gap)
    common = {
        "type": "line",
        "name": name,
        "symbol": "circle",
        "symbolSize": 5,
        "showSymbol": dots,
        "emphasis": {"disabled": True},
        "itemStyle": {"color": color},
    }
    return [
        {**common, "data": solid, "lineStyle": {"color": color, "width": 2.2 if dots else 1.7}, "z": 4},
        {
            **common,
            "data": dashed,
            "lineStyle": {"color": color, "width": 1.8 if dots else 1.5, "type": [5, 4]},
            "z": 3,
        },
    ]


def _band(index: int, points: Sequence[Point], color: str) -> list[dict[str, Any]]:
    """A band between the bounds, as two stacked series: nothing up to the lower, colour from there to the upper."""
    if not any(point.lower is not None and point.upper is not None for point in points):
        return []
    floor: list[list[Any]] = []
    height: list[list[Any]] = []
    for point in points:
        at = to_epoch_ms(point.start)
        # an exact value is a band of no height, so that the band closes where the provisional part begins
        lower, upper = (float((point.value if edge is None else edge) or 0) for edge in (point.lower, point.upper))
        if point.value is None:
            floor.append([at, None])
            height.append([at, None])
            continue
        floor.append([at, lower])
        height.append([at, upper - lower])
    common = {
        # the first character keeps it out of the tooltip
        "name": f"\u0000bounds {index}",
        "type": "line",
        "stack": f"bounds {index}",
        "stackStrategy": "all",
        "symbol": "none",
        "silent": True,
        "emphasis": {"disabled": True},
        "lineStyle": {"opacity": 0},
        "z": 2,
    }
    return [
        {**common, "data": floor},
        {**common, "data": height, "areaStyle": {"color": color, "opacity": 0.2}},
    ]


def _divider(drawn: Lines) -> dict[str, Any]:
    """A vertical line where the certified part ends and the provisional begins; nothing if either is missing."""
    points = [point for line in drawn.points.values() for point in line]
    certified = [point.start for point in points if point.certified]
    provisional = [point.start for point in points if not point.certified]
    data = []
    if certified and provisional and max(certified) < max(provisional):
        begins = min(start for start in provisional if start > max(certified))
        midnight = datetime(begins.year, begins.month, begins.day, tzinfo=UTC)
        # windows that lie in two days are provisional before midnight
        data.append({"xAxis": to_epoch_ms(midnight if midnight > max(certified) else begins)})
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": INK, "type": "solid", "width": 1, "opacity": 0.7},
        "label": {"formatter": "certified  |  provisional", "color": INK, "fontSize": 11, "position": "end"},
        "data": data,
    }


def _number(value: object, scale: int) -> Number | None:
    """The number to draw, None where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return value if scale == 1 else float(value) * scale


def _step(window: AnyWindow) -> timedelta | None:
    """The time from the start of one window to that of the next; None where that varies."""
    if isinstance(window, SlidingWindow):
        return window.period
    return window.size if isinstance(window, TumblingWindow) else None


def _windows(starts: set[datetime], size: timedelta | None, until: datetime | None) -> list[datetime]:
    """Starts of all windows from the first to the last known, as far as `until`; none if they are too many."""
    if not starts or until is None or size is None:
        return []
    first, last = min(starts), min(max(starts), until - timedelta(milliseconds=1))
    count = (last - first) // size + 1
    return [first + number * size for number in range(count)] if count <= MOST_FILLED else []
