"""Inline SVG from values: no library, no script, colours by CSS variable so that one drawing serves light and dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape

from reconciliation.causes import CAUSES

WIDTH = 960
_LEFT, _RIGHT = 62, 8
_TOP, _LEVELS, _GAP, _PARTS, _BOTTOM = 10, 150, 26, 78, 24
_TICK_HOURS = {1: 3, 2: 6, 3: 6, 4: 12, 5: 12}
_DENSE = 150
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Column:
    """One bin of a series: its start, the two levels and the signed parts of their difference by cause."""

    start: datetime
    speed: float
    exact: float
    parts: Mapping[str, float]


def series(columns: Sequence[Column], width: timedelta, start: datetime, end: datetime, *, levels: bool = True) -> str:
    """Levels above, their difference by cause below, over one time axis `[start, end)`.

    Exact is a bar per bin, speed a stepped line over it; where the line runs along the tops there is no difference.

    Args:
        columns: the bins, in order.
        width: of a bin.
        start: of the axis.
        end: of the axis, exclusive.
        levels: whether the two levels are numbers to be compared; if not, no line is drawn over the bars.
    """
    height = _TOP + _LEVELS + _GAP + _PARTS + _BOTTOM
    span = (end - start) / timedelta(seconds=1)
    plot = WIDTH - _LEFT - _RIGHT

    def across(moment: datetime) -> float:
        return _LEFT + plot * ((moment - start) / timedelta(seconds=1)) / span

    top = nice_ceiling(max([max(c.exact, c.speed) for c in columns], default=0.0))
    lowest = min([min(c.exact, c.speed) for c in columns], default=0.0)
    bottom = -nice_ceiling(-lowest) if lowest < 0 else 0.0
    if bottom and not any(max(c.exact, c.speed) > 0 for c in columns):
        top = 0.0
    per_level = _LEVELS / (top - bottom)
    up, down = _reach(columns)
    base = _TOP + _LEVELS
    zero = base + bottom * per_level
    unit = _PARTS / (up + down)
    middle = base + _GAP + up * unit
    shapes = [f'<svg viewBox="0 0 {WIDTH} {height}" class="plot" role="img" aria-label="speed and exact over time">']
    marks = [0.0, *((bottom,) if bottom else ()), *((top,) if top else ())]
    marks += [] if bottom else [top / 2]
    shapes += _grid([(value, zero - value * per_level) for value in marks])
    far = [(value, middle - value * unit) for value in (up, -down) if value]
    shapes += _grid([*far, (0.0, middle)], signed=True)
    shapes += _time_axis(start, end, across, height)
    bar = max(0.8, plot * (width / timedelta(seconds=1)) / span)
    inset = min(1.5, bar * 0.12)
    steps: list[str] = []
    last: datetime | None = None
    for column in columns:
        left = across(column.start)
        tip = _tip(column)
        rise = per_level * column.exact
        shapes.append(_rect(left + inset, zero - max(rise, 0), bar - 2 * inset, abs(rise), "exact", tip))
        y = zero - per_level * column.speed
        steps.append(f"{'L' if last == column.start else 'M'}{left:.1f} {y:.1f}H{left + bar:.1f}")
        last = column.start + width
        above = below = 0.0
        for cause in CAUSES:
            part = column.parts.get(cause, 0.0)
            if not part:
                continue
            size = abs(part) * unit
            top = middle - above - size if part > 0 else middle + below
            above, below = (above + size, below) if part > 0 else (above, below + size)
            # a part too small to see is drawn a pixel high: that there is one matters more than how large it is
            shapes.append(_rect(left + inset, top, max(bar - 2 * inset, 1.2), max(size, 1.0), f"c-{cause}", tip))
    kind = "speed thin" if len(columns) > _DENSE else "speed"
    if levels:
        shapes.append(f'<path d="{"".join(steps)}" class="{kind}"/>')
    if not any(part for column in columns for part in column.parts.values()):
        shapes.append(f'<text x="{_LEFT + plot / 2}" y="{middle - 8}" class="quiet">no difference in any window</text>')
    return "".join([*shapes, "</svg>"])


def stacked_rows(rows: Sequence[tuple[str, Mapping[str, int], str]], order: Sequence[str]) -> str:
    """One bar per row, divided by cause in `order`, with the note at its end; all rows share one scale."""
    label, note, tall, pitch = 96, 210, 18, 32
    plot = WIDTH - label - note
    most = max([sum(parts.values()) for _, parts, _ in rows], default=0) or 1
    height = pitch * len(rows) + 6
    shapes = [f'<svg viewBox="0 0 {WIDTH} {height}" class="plot rows" role="img" aria-label="records left out">']
    for index, (name, parts, text) in enumerate(rows):
        y = index * pitch + 6
        shapes.append(f'<text x="0" y="{y + 13.5}" class="label">{escape(name)}</text>')
        shapes.append(f'<rect x="{label}" y="{y}" width="{plot}" height="{tall}" rx="4" class="track"/>')
        left = float(label)
        for cause in order:
            number = parts.get(cause, 0)
            if not number:
                continue
            size = plot * number / most
            tip = f"{name}: {cause.replace('_', ' ')} {number:,}"
            shapes.append(_rect(left, y, max(size - 1.5, 1.5), tall, f"c-{cause}", tip, radius=2.5))
            left += size
        shapes.append(f'<text x="{WIDTH - note + 14}" y="{y + 13.5}" class="note">{escape(text)}</text>')
    return "".join([*shapes, "</svg>"])


def bars(values: Sequence[tuple[str, float, str]], tone: str) -> str:
    """A small bar per value, with its label beneath the first and last: the trend on the index page."""
    width, height, foot = 460, 96, 18
    most = max([value for _, value, _ in values], default=0.0) or 1.0
    pitch = width / max(len(values), 8)
    shapes = [f'<svg viewBox="0 0 {width} {height}" class="plot" role="img">']
    base = height - foot
    shapes.append(f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" class="axis"/>')
    if not any(value for _, value, _ in values):
        shapes.append(f'<text x="{width / 2}" y="{base / 2 + 6}" class="quiet">none</text>')
    for index, (label, value, tip) in enumerate(values):
        size = (base - 6) * value / most
        shapes.append(_rect(index * pitch + 2, base - size, pitch - 4, size, tone, f"{label}: {tip}", radius=2))
        if index in (0, len(values) - 1):
            anchor = "start" if index == 0 else "end"
            x = 2 if index == 0 else (index + 1) * pitch
            if index == 0 or len(values) > 2:  # noqa: PLR2004 - two labels need room between them
                shapes.append(f'<text x="{x:.1f}" y="{height - 4}" class="tick" text-anchor="{anchor}">{label}</text>')
    return "".join([*shapes, "</svg>"])


def nice_ceiling(value: float) -> float:
    """The least round number that is not below the value; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in _ROUND if step * power >= value * 0.999999), 10 * power)


def short(value: float) -> str:
    """A number in few characters: 1.2k, 3M."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.3g}"


def _reach(columns: Sequence[Column]) -> tuple[float, float]:
    """How far the parts reach above and below zero, rounded up; a side that has none takes no room."""
    up = max([sum(part for part in c.parts.values() if part > 0) for c in columns], default=0.0)
    down = max([-sum(part for part in c.parts.values() if part < 0) for c in columns], default=0.0)
    if up and down:
        # neither side so thin that its label meets the other's
        least = 0.25 * max(up, down)
        return nice_ceiling(max(up, least)), nice_ceiling(max(down, least))
    return (nice_ceiling(up), 0.0) if up or not down else (0.0, nice_ceiling(down))


def _grid(lines: Sequence[tuple[float, float]], *, signed: bool = False) -> list[str]:
    shapes = []
    for value, y in lines:
        text = f"{'+' if signed and value > 0 else ''}{short(value)}".replace("-", "−")
        kind = "axis" if not value else "grid"
        shapes.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="{kind}"/>')
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 3.5:.1f}" class="tick" text-anchor="end">{text}</text>')
    return shapes


def _time_axis(start: datetime, end: datetime, across: Callable[[datetime], float], height: int) -> list[str]:
    days = max(1, (end - start) // timedelta(days=1))
    every = timedelta(hours=_TICK_HOURS[days]) if days in _TICK_HOURS else timedelta(days=-(-days // 12))
    shapes = []
    moment = start
    while moment < end:
        x = across(moment)
        midnight = moment.hour == 0
        text = f"{moment:%d %b}" if midnight and days > 1 else f"{moment:%H:%M}"
        kind = "tick strong" if midnight and days > 1 else "tick"
        shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" class="hour"/>')
        shapes.append(f'<text x="{x + 3:.1f}" y="{height - 8}" class="{kind}">{text}</text>')
        moment += every
    return shapes


def _tip(column: Column) -> str:
    parts = "".join(f"\n{cause.replace('_', ' ')} {part:+,.10g}" for cause, part in column.parts.items() if part)
    return f"{column.start:%Y-%m-%d %H:%M} UTC\nspeed {column.speed:,.10g}\nexact {column.exact:,.10g}{parts}"


def _rect(x: float, y: float, width: float, height: float, kind: str, tip: str, radius: float = 0) -> str:
    corner = f' rx="{radius}"' if radius else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{corner} class="{kind}">'
        f"<title>{escape(tip)}</title></rect>"
    )
