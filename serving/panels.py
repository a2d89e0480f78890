"""The texts and HTML fragments of the dashboard: values in, strings out. Whatever comes from data is escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape

from metrics.catalog import ShownMetric
from metrics.window import DAY_MS
from serving import figures
from serving.figures import figure, number, signed, with_unit
from serving.query import Row, Value, iso
from serving.status import Status
from serving.views import dimensions

LIVE_WITHIN_S = 15.0
"""While events come the speed layer publishes every second; longer ago means an idle log, or a layer that is down."""

MOST_DAYS = 21
WORST_LAGS = 8


@dataclass(frozen=True)
class Tile:
    """A figure with its name and what qualifies it."""

    name: str
    value: str
    note: str
    tone: str = ""


def badges(status: Status) -> str:
    """Data watermark and freshness."""
    if status.watermark is None or status.freshness_s is None:
        return '<span class="ls-badge ls-idle"><i></i>waiting for the speed layer</span>'
    live = status.freshness_s <= LIVE_WITHIN_S
    fresh = "live" if live else "last update"
    return (
        f'<span class="ls-badge {"ls-live" if live else "ls-idle"}" data-badge="freshness"><i></i>{fresh}'
        f"<b>{ago(status.freshness_s)}</b></span>"
        f'<span class="ls-badge" data-badge="watermark" title="all events sent before this are in the numbers">'
        f"data watermark <b>{moment(status.watermark, 'second')} UTC</b></span>{_lag(status)}"
    )


def _lag(status: Status) -> str:
    """How far the topic is behind its log, and its slowest partition behind the others; the worst ones in the title."""
    if not status.lags:
        return ""
    worst = sorted(status.lags, key=lambda lag: (-lag.lag_offsets, -(lag.skew_ms or 0)))[:WORST_LAGS]
    each = "; ".join(
        f"partition {lag.topic_partition}: {lag.lag_offsets:,} offsets and {_seconds(lag.lag_ms)} behind the log, "
        f"watermark {_seconds(lag.skew_ms)} behind the greatest"
        for lag in worst
    )
    return (
        f'<span class="ls-badge" data-badge="lag" title="{escape(each)}">'
        f"lag <b>{sum(lag.lag_offsets for lag in status.lags):,}</b> "
        f"skew <b>{_seconds(max(lag.skew_ms or 0 for lag in status.lags))}</b></span>"
    )


def _seconds(ms: int | None) -> str:
    return "–" if ms is None else f"{ms / 1000:,.1f} s"


def tiles(metric: ShownMetric, rows: Sequence[Row], status: Status, grain: str | None = None) -> list[Tile]:
    """The figures above the chart; the grain is the metric's first if none is given."""
    first = _in_view(metric, grain or metric.grains[0], rows)
    return [first, _certified(status), _drift(rows), _residual(status), _ledger(status)]


def tile(figure: Tile, test_id: str) -> str:
    """A tile's HTML."""
    return (
        f'<div class="ls-tile {figure.tone}" data-tile="{test_id}"><div class="ls-name">{escape(figure.name)}</div>'
        f'<div class="ls-figure">{escape(figure.value)}</div><div class="ls-note">{escape(figure.note)}</div></div>'
    )


def days(status: Status) -> str:
    """A chip per published day, newest first, and one for the running day."""
    chips = []
    if status.watermark is not None and not any(d.partition >= status.watermark.date() for d in status.days):
        chips.append(_chip(iso(status.watermark.date()), "running", "speed", "from the speed layer so far"))
    for day in sorted(status.days, key=lambda day: day.partition, reverse=True)[:MOST_DAYS]:
        if day.certified:
            title = f"run {day.run_id}, published {moment(day.published_at, 'second')}"
            chips.append(_chip(iso(day.partition), "certified", "batch", title))
        else:
            why = (day.verdict or "no certificate yet").replace("_", " ")
            chips.append(_chip(iso(day.partition), "not certified", "warn", f"run {day.run_id}: {why}"))
    if not chips:
        return _hint("no day yet", "a day can be certified once it has closed:", "lockstep batch --from DAY --to DAY")
    return f'<div class="ls-days">{"".join(chips)}</div>'


def recent(metric: ShownMetric, rows: Sequence[Row], most: int) -> str:
    """A table of the latest windows."""
    if not rows:
        return '<p class="ls-quiet">none yet</p>'
    # what speed computes exactly has no bounds to show
    bounded = not metric.exact
    named = dimensions(metric)
    lengths = ("length",) if metric.session else ()
    head = ["window, UTC", *named, *lengths, "value", *(("bounds",) if bounded else ()), "layer"]
    body = []
    for row in sorted(rows, key=lambda row: (row.window_start, figures.rank(row.value)), reverse=True)[:most]:
        length = [escape(figures.duration(timedelta(milliseconds=row.length_ms or 0)))] if metric.session else []
        layer = "batch" if row.layer == "batch" else "speed"
        body.append(
            _row(
                [window(row), *(escape(row.dimensions[name] or "(none)") for name in named), *length],
                [f"<b>{escape(figure(metric, row.value))}</b>", *([_bounds(metric, row)] if bounded else [])],
                f'<span class="ls-chip ls-{layer}">{escape(row.status)}</span>',
            )
        )
    return _table(head, len(named) + len(lengths) + 1, body)


def drifted(metric: ShownMetric, rows: Iterable[Row], most: int) -> str:
    """A table of the certified windows that differ most from what the speed layer showed."""
    compared = [row for row in rows if row.drift is not None]
    apart = sorted((row for row in compared if row.drift), key=lambda row: -abs(row.drift or 0))
    if not figures.is_number(metric):
        return '<p class="ls-quiet">values that are no numbers have no drift</p>'
    if not compared:
        return '<p class="ls-quiet">no certified window in view yet</p>'
    if not apart:
        return '<p class="ls-quiet">no certified window in view differs from what the speed layer showed</p>'
    named = dimensions(metric)
    head = ["window, UTC", *named, "speed", "certified", "drift"]
    body = [
        _row(
            [window(row), *(escape(row.dimensions[name] or "(none)") for name in named)],
            [escape(figure(metric, _before(row))), f"<b>{escape(figure(metric, row.value))}</b>"],
            f'<b class="ls-drift">{escape(signed(figure(metric, _like(row.value, row.drift))))}</b>',
        )
        for row in apart[:most]
    ]
    return _table(head, len(named) + 1, body)


def nothing_yet(metric: ShownMetric, grain: str) -> str:
    """What to do when a metric has no windows."""
    return _hint(
        f"no windows of {metric.name} yet",
        "they appear within seconds once events flow. start the stack, then send some:",
        "lockstep up\nlockstep ingest FILE --catalog CATALOG   # or, for the demo's shop: lockstep generate\n"
        f"lockstep query {metric.name} --grain {grain}",
    )


def crowds(status: Status) -> str:
    """A banner per group of metrics with very many rows, naming the dimension, and one for a ledger that is open."""
    return "".join(
        f'<div class="ls-alert ls-crowd" role="status" data-crowd="{escape(alarm.dimension)}">'
        f"<b>{'many values' if alarm.dimension else 'ledger'}</b><span>{escape(alarm.text)}</span>"
        f"<em>{moment(alarm.at, 'minute')}</em></div>"
        for alarm in status.alarms
    )


def failure(text: str) -> str:
    """A banner that says what is wrong; the page goes on trying."""
    return (
        f'<div class="ls-alert" role="alert"><b>no fresh numbers</b><span>{escape(text)}</span><em>retrying</em></div>'
    )


def _bounds(metric: ShownMetric, row: Row) -> str:
    if row.value is None:
        return ""
    exact = row.lower is None or row.upper is None
    text = "exact" if exact else f"{figure(metric, row.lower)} to {figure(metric, row.upper)}"
    return f"<small>{escape(text)}</small>"


def _like(value: Value, drift: float | None) -> Value:
    """A drift as a number of the value's kind: a decimal of the same scale, a float, else whole."""
    if isinstance(value, Decimal):
        return Decimal(drift or 0).quantize(value)
    return drift if isinstance(value, float) else round(drift or 0)


def _before(row: Row) -> Value:
    """What the speed layer showed."""
    drift = _like(row.value, row.drift)
    if isinstance(row.value, Decimal) and isinstance(drift, Decimal):
        return row.value - drift
    if isinstance(row.value, int | float) and isinstance(drift, int | float):
        return row.value - drift
    return None


def ago(seconds: float) -> str:
    """How long ago, in the largest unit that fits; below two seconds it does not flicker."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit} ago"
    return "now" if seconds < 2 else f"{int(seconds)} s ago"  # noqa: PLR2004


def moment(at: datetime, precision: str) -> str:
    """A UTC time without its zone, to the second or minute."""
    return at.strftime("%Y-%m-%d %H:%M:%S" if precision == "second" else "%Y-%m-%d %H:%M")


def window(row: Row) -> str:
    """A window's start; of a whole day only the day; of all time that."""
    if row.window_start.timestamp() == 0:
        return "all time"
    length = row.window_end - row.window_start
    whole_days = length >= timedelta(milliseconds=DAY_MS) and row.window_start.hour == row.window_start.minute == 0
    text = row.window_start.strftime("%d %b" if whole_days else "%d %b %H:%M")
    return f'<time datetime="{iso(row.window_start)}">{text}</time>'


def _in_view(metric: ShownMetric, grain: str, rows: Sequence[Row]) -> Tile:
    if not rows:
        return Tile("In view", "none", "no windows")
    if figures.adds_up(metric, grain):
        zero = Decimal(0) if isinstance(rows[0].value, Decimal) else 0
        total = sum((row.value for row in rows if isinstance(row.value, int | float | Decimal)), start=zero)
        windows = len({row.window_start for row in rows})
        count = f"{len(rows):,} sessions" if metric.session else f"{windows:,} windows"
        return Tile("Total in view", with_unit(metric, number(total)), f"{metric.text}, {count}")
    # of a top, the latest window that has any values
    rows = [row for row in rows if row.value != []] or rows
    latest = max(row.window_start for row in rows)
    row = max((row for row in rows if row.window_start == latest), key=lambda row: figures.rank(row.value))
    about = "" if row.lower is None else "≈ "
    exact = row.lower is None or row.upper is None
    bounds = "exact" if exact else f"{figure(metric, row.lower)} to {figure(metric, row.upper)}"
    where = f", {' · '.join(row.dimensions.values())}" if row.dimensions else ""
    if isinstance(row.value, list):
        first = row.value[0] if row.value else {"item": figures.NONE, "count": 0}
        return Tile("Most frequent", str(first["item"]), f"{first['count']:,} in the latest window{where}")
    name = "Latest session" if metric.session else "All time" if grain == "global" else "Latest window"
    return Tile(name, f"{about}{with_unit(metric, figure(metric, row.value))}", f"{bounds}{where}")


def _certified(status: Status) -> Tile:
    certified = sum(day.certified for day in status.days)
    if not status.days:
        return Tile("Certified days", "0", "the batch layer has published none yet")
    waiting = len(status.days) - certified
    note = "all published days" if not waiting else f"of {len(status.days)} published"
    return Tile("Certified days", str(certified), note, "ls-good" if not waiting else "ls-warn")


def _drift(rows: Sequence[Row]) -> Tile:
    compared = [row for row in rows if row.drift is not None]
    if not compared:
        return Tile("Drift in view", "–", "no certified window in view")
    exact = sum(abs(float(row.value)) for row in compared if isinstance(row.value, int | float | Decimal))
    drift = sum(row.drift or 0 for row in compared)
    differing = sum(bool(row.drift) for row in compared)
    share = drift / exact if exact else 0.0
    text = "0 %" if not share else f"{'+' if share > 0 else '−'}{abs(share):.2%}".replace("%", " %")
    return Tile("Drift in view", text, f"{differing:,} of {len(compared):,} certified rows moved")


def _residual(status: Status) -> Tile:
    judged = [day for day in status.days if day.verdict]
    if not judged:
        return Tile("Unexplained", "–", "no day reconciled yet")
    residual = sum(day.residual for day in judged)
    note = f"differences, {len(judged)} {'day' if len(judged) == 1 else 'days'} reconciled"
    return Tile("Unexplained", number(residual), note, "ls-bad" if residual else "ls-good")


def _ledger(status: Status) -> Tile:
    ledger = status.ledger
    note = f"{ledger['late']:,} late · {ledger['duplicate']:,} duplicate · {ledger['dead_letter']:,} bad"
    if status.check is not None and not status.check.closes:
        return Tile("Events read", number(ledger["records"]), f"does not close: {note}", "ls-bad")
    return Tile("Events read", number(ledger["records"]), note)


def _chip(text: str, word: str, tone: str, title: str) -> str:
    return (
        f'<span class="ls-day ls-{tone}" data-day="{text}" title="{escape(title)}"><b>{text}</b>'
        f"<span>{escape(word)}</span></span>"
    )


def _hint(title: str, text: str, command: str) -> str:
    return f'<div class="ls-empty"><b>{escape(title)}</b><span>{escape(text)}</span><pre>{escape(command)}</pre></div>'


def _row(texts: Sequence[str], numbers: Sequence[str], last: str) -> str:
    cells = [f"<td>{cell}</td>" for cell in texts]
    cells += [f'<td class="ls-num">{cell}</td>' for cell in (*numbers, last)]
    return f"<tr>{''.join(cells)}</tr>"


def _table(head: Sequence[str], texts: int, body: Sequence[str]) -> str:
    cells = "".join(
        f"<th{'' if index < texts else ' class=ls-num'}>{escape(name)}</th>" for index, name in enumerate(head)
    )
    return f'<div class="ls-scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
