"""Drawings of what the benches found: SVG files of their own, readable on light and on dark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from reconciliation.plots import nice_ceiling, short
from speed_layer.bench.probes import TARGETS_MS

_MIB = 1 << 20
_WIDTH = 960
_MARGIN, _LABELS, _TITLE, _FOOT, _TALL = 12, 44, 40, 34, 150
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #444 }
.title { font-weight: 600; fill: #222 } .tick { font-size: 11px; fill: #777 }
.grid { stroke: #ddd } .axis { stroke: #999 } .target { stroke: #b3261e; stroke-dasharray: 4 3 }
.line { fill: none; stroke-width: 2 } .line.a { stroke: #1769aa } .line.b { stroke: #c77700 }
.dot.a, .bar.a, .name.a { fill: #1769aa } .dot.b, .bar.b, .name.b { fill: #c77700 } .bar { stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #c8c8c8 } .title { fill: #eee } .tick { fill: #999 } .grid { stroke: #3a3a3a } .axis { stroke: #777 }
  .target { stroke: #ff8a80 } .line.a { stroke: #6cb6ff } .line.b { stroke: #ffb454 }
  .dot.a, .bar.a, .name.a { fill: #6cb6ff } .dot.b, .bar.b, .name.b { fill: #ffb454 }
}
"""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of a panel: its name, the value of each case, and which of two colours it has."""

    name: str
    value: Callable[[Figures], float]
    tone: str = "a"


PANELS: Mapping[str, tuple[Line, ...]] = {
    "events per second": (Line("", lambda f: f["events_per_s"]),),
    "greatest memory, MiB": (
        Line("workers", lambda f: f["peak_bytes"]["workers"] / _MIB),
        Line("Flink", lambda f: f["peak_bytes"]["flink"] / _MIB, "b"),
    ),
    "state in a checkpoint, MiB": (
        Line("measured", lambda f: f["state_bytes"] / _MIB),
        Line("closed form", lambda f: f["state_bound_bytes"] / _MIB, "b"),
    ),
}

BATCH_PANELS: Mapping[str, tuple[Line, ...]] = {
    "seconds": (Line("", lambda f: f["seconds"]),),
    "processor seconds of a million": (
        Line("batch layer", lambda f: f["cpu_s_per_million"]["system"]),
        Line("ClickHouse", lambda f: f["cpu_s_per_million"]["clickhouse"], "b"),
    ),
    "greatest memory, MiB": (
        Line("batch layer", lambda f: f["peak_bytes"]["system"] / _MIB),
        Line("ClickHouse", lambda f: f["peak_bytes"]["clickhouse"] / _MIB, "b"),
    ),
}


def growth(result: Mapping[str, Any]) -> str:
    """A row of panels by the number of keys, and one by that of partitions, from what `bench growth` found."""
    found = [run["figures"] for run in result["runs"]]
    rows = [(by, _series(found, by, other)) for by, other in (("keys", "partitions"), ("partitions", "keys"))]
    return _panels([(by, cases) for by, cases in rows if len(cases) > 1], PANELS)


def batch_growth(result: Mapping[str, Any]) -> str:
    """A row of panels by the number of events of a day, from what `bench batch-growth` found."""
    return _panels([("events", [run["figures"] for run in result["runs"]])], BATCH_PANELS)


def freshness(result: Mapping[str, Any]) -> str:
    """How many probes took how long, those of the view above those of the alert, from what `bench freshness` found."""
    figures = result["runs"][0]["figures"]
    counts = figures["histogram"]
    most = max(len(counts["view"]), len(counts["alert"])) * counts["bin_ms"]
    end = nice_ceiling(max(most, *(limit for limits in TARGETS_MS.values() for limit in limits.values())))
    each = _TITLE + _TALL + _FOOT
    shapes = []
    for row, (name, tone) in enumerate((("view", "a"), ("alert", "b"))):
        shares = ", ".join(f"{share.removesuffix('_ms')} {ms:,.0f} ms" for share, ms in figures[name].items())
        top, base = row * each + _TITLE, row * each + _TITLE + _TALL
        plot = _WIDTH - 2 * _MARGIN - _LABELS
        left = _MARGIN + _LABELS
        highest = nice_ceiling(max(counts[name]))
        shapes.append(_text(left, top - 18, f"{name}: {shares}", "title"))
        shapes += _grid(left, left + plot, base, highest)
        for n, count in enumerate(counts[name]):
            if count:
                x, tall = left + plot * n * counts["bin_ms"] / end, _TALL * count / highest
                size = f'width="{plot * counts["bin_ms"] / end - 1:.1f}" height="{tall:.1f}"'
                shapes.append(f'<rect class="bar {tone}" x="{x:.1f}" y="{base - tall:.1f}" {size}/>')
        for share, limit in TARGETS_MS[name].items():
            x = left + plot * limit / end
            shapes.append(f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"/>')
            shapes.append(_text(x + 4, top - 4, f"target of {share.removesuffix('_ms')}", "tick"))
        for part in range(5):
            x = left + plot * part / 4
            shapes.append(_text(x, base + 16, f"{end * part / 4:,.0f} ms", "tick", "middle" if part < 4 else "end"))  # noqa: PLR2004
    return _document(2 * each, shapes)


def _series(found: Sequence[Figures], by: str, other: str) -> list[Figures]:
    """The cases that differ in `by` alone: those with the most usual value of the other."""
    values = [f[other] for f in found]
    usual = max(values, key=values.count) if values else None
    return sorted((f for f in found if f[other] == usual), key=lambda f: int(f[by]))


def _panels(rows: Sequence[tuple[str, Sequence[Figures]]], panels: Mapping[str, tuple[Line, ...]]) -> str:
    """A drawing of all panels in each row, which is by something that its cases differ in."""
    each = _TITLE + _TALL + _FOOT
    wide = (_WIDTH - 2 * _MARGIN) / len(panels)
    shapes = [
        shape
        for row, (by, cases) in enumerate(rows)
        for column, (title, drawn) in enumerate(panels.items())
        for shape in _panel((_MARGIN + column * wide, row * each), wide, f"{title}, by {by}", cases, by, drawn)
    ]
    return _document(each * len(rows), shapes)


def _panel(
    at: tuple[float, float], wide: float, title: str, cases: Sequence[Figures], by: str, drawn: Sequence[Line]
) -> list[str]:
    left, top = at[0] + _LABELS, at[1] + _TITLE
    right, base = at[0] + wide - 16, top + _TALL
    highest = nice_ceiling(max(line.value(f) for line in drawn for f in cases))
    step = (right - left) / len(cases)
    places = [left + step * (n + 0.5) for n in range(len(cases))]
    shapes = [_text(at[0] + 4, top - 18, title, "title"), *_grid(left, right, base, highest)]
    shapes += [_text(x, base + 16, short(f[by]), "tick", "middle") for x, f in zip(places, cases, strict=True)]
    for number, line in enumerate(drawn):
        points = [(x, base - _TALL * line.value(f) / highest) for x, f in zip(places, cases, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline class="line {line.tone}" points="{path}"/>')
        for (x, y), f in zip(points, cases, strict=True):
            dot = f'<circle class="dot {line.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            shapes.append(f"{dot}<title>{line.value(f):,.1f}</title></circle>")
        if line.name:
            shapes.append(_text(left + 6 + number * 80, top - 3, line.name, f"name {line.tone}"))
    return shapes


def _grid(left: float, right: float, base: float, highest: float) -> list[str]:
    shapes = []
    for part in (0.0, 0.5, 1.0):
        y, kind = base - _TALL * part, "grid" if part else "axis"
        shapes.append(f'<line class="{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(_text(left - 6, y + 4, short(highest * part), "tick", "end"))
    return shapes


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(height: float, shapes: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *shapes, "</svg>", ""])
