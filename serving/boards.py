"""What stands in place of a chart where values are no line over time: tables with bars. HTML fragments, escaped."""

import math
from collections.abc import Sequence
from datetime import timedelta
from html import escape
from statistics import median

from metrics.catalog import ShownMetric
from serving import figures
from serving.query import Row
from serving.views import dimensions

MOST_GROUPS = 6
MOST_BARS = 20
LENGTHS = (
    ("under 1 min", timedelta(minutes=1)),
    ("1 to 5 min", timedelta(minutes=5)),
    ("5 to 15 min", timedelta(minutes=15)),
    ("15 to 30 min", timedelta(minutes=30)),
    ("30 to 60 min", timedelta(hours=1)),
    ("1 h and more", timedelta.max),
)


def board(metric: ShownMetric, grain: str, rows: Sequence[Row]) -> str:
    """The board of a metric whose grain has no line, or a table beside one; empty where lines say it all."""
    if not rows:
        return ""
    if metric.session:
        return _sessions(metric, rows)
    name = figures.aggregation(metric)
    if name == "top":
        return _top(metric, rows)
    if name in {"last", "level"} or not figures.has_line(metric, grain):
        return _latest(metric, rows)
    return ""


def _latest(metric: ShownMetric, rows: Sequence[Row]) -> str:
    """The latest window's values by dimension, the greatest first."""
    newest = _newest(metric, rows)
    if not dimensions(metric):
        (row,) = newest
        return f'<div class="ls-big">{escape(figures.with_unit(metric, figures.figure(metric, row.value)))}</div>'
    if not figures.is_number(metric):
        texts = [_plain(label(row), figures.figure(metric, row.value)) for row in sorted(newest, key=label)[:MOST_BARS]]
        return _bars(texts) + _more(len(newest) - MOST_BARS, "more in the API")
    ordered = sorted(newest, key=lambda row: -figures.rank(row.value))
    greatest = max((abs(rank) for rank in map(_finite, ordered)), default=0.0)
    lines = [
        _bar(label(row), figures.with_unit(metric, figures.figure(metric, row.value)), abs(_finite(row)), greatest)
        for row in ordered[:MOST_BARS]
    ]
    return _bars(lines) + _more(len(ordered) - MOST_BARS, "more in the API")


def _top(metric: ShownMetric, rows: Sequence[Row]) -> str:
    """The items of the latest window that has any, with their counts, a table per combination of dimensions."""
    filled = [row for row in rows if row.value]
    newest = sorted(_newest(metric, filled or rows), key=lambda row: -sum(entry["count"] for entry in _items(row)))
    parts = []
    for row in newest[:MOST_GROUPS]:
        entries = _items(row)
        greatest = max((entry["count"] for entry in entries), default=0)
        lines = [
            _bar(str(entry["item"]) or "(empty)", f"{entry['count']:,}", entry["count"], greatest)
            for entry in entries[:MOST_BARS]
        ]
        title = f"<h4>{escape(label(row))}</h4>" if row.dimensions else ""
        parts.append(f"<div>{title}{_bars(lines) if lines else '<p>no values</p>'}</div>")
    return f'<div class="ls-groups">{"".join(parts)}</div>' + _more(len(newest) - MOST_GROUPS, "more in the API")


def _sessions(metric: ShownMetric, rows: Sequence[Row]) -> str:
    """How many sessions there are, how long they last, and the distribution of their lengths."""
    lengths = [_length(row) for row in rows]
    middle = timedelta(seconds=median(length.total_seconds() for length in lengths))
    facts = [
        ("sessions", f"{len(rows):,}"),
        ("median length", figures.duration(middle)),
        ("longest", figures.duration(max(lengths))),
        ("keys", f"{len({row.dimensions['session_key'] for row in rows}):,}"),
    ]
    shown = "".join(f"<div><span>{name}</span><b>{escape(value)}</b></div>" for name, value in facts)
    counts, least = [], timedelta(0)
    for name, below in LENGTHS:
        counts.append((name, sum(least <= length < below for length in lengths)))
        least = below
    greatest = max(count for _, count in counts)
    lines = [_bar(name, f"{count:,}", count, greatest) for name, count in counts]
    return f'<div class="ls-facts">{shown}</div>{_bars(lines)}'


def label(row: Row) -> str:
    """A row's dimensions in one line."""
    return " · ".join(value or "(none)" for value in row.dimensions.values())


def _newest(metric: ShownMetric, rows: Sequence[Row]) -> list[Row]:
    """The rows of the latest window; of what holds on, a last or a level, the latest of each dimension."""
    if figures.aggregation(metric) in {"last", "level"}:
        return list({tuple(row.dimensions.values()): row for row in rows}.values())
    latest = max(row.window_start for row in rows)
    return [row for row in rows if row.window_start == latest]


def _items(row: Row) -> list[dict[str, int]]:
    return row.value if isinstance(row.value, list) else []


def _length(row: Row) -> timedelta:
    return timedelta(milliseconds=row.length_ms or 0)


def _finite(row: Row) -> float:
    rank = figures.rank(row.value)
    return rank if math.isfinite(rank) else 0.0


def _bar(name: str, text: str, size: float, greatest: float) -> str:
    bar = f'<i class="ls-bar" style="width:{100 * size / greatest:.1f}%"></i>' if size and greatest else ""
    return (
        f'<tr><td title="{escape(name)}">{escape(name)}</td>'
        f'<td class="ls-barcell">{bar}</td>'
        f'<td class="ls-num"><b>{escape(text)}</b></td></tr>'
    )


def _plain(name: str, text: str) -> str:
    return f'<tr><td>{escape(name)}</td><td class="ls-num" colspan="2"><b>{escape(text)}</b></td></tr>'


def _bars(lines: Sequence[str]) -> str:
    return f'<table class="ls-bars"><tbody>{"".join(lines)}</tbody></table>'


def _more(count: int, text: str) -> str:
    return f"<p>{count:,} {text}</p>" if count > 0 else ""
