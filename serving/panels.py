"""The texts and HTML fragments of the dashboard: values in, strings out. Whatever comes from data is escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from typing import Any

from metrics.catalog import Metric
from metrics.window import DAY_MS
from serving.query import Row, Value, iso
from serving.status import Status

LIVE_WITHIN_S = 15.0
"""While events come the speed layer publishes every second; longer ago means an idle log, or a layer that is down."""

MOST_DAYS = 21


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
        f"data watermark <b>{moment(status.watermark, 'second')} UTC</b></span>"
    )


def tiles(metric: Metric, rows: Sequence[Row], status: Status) -> list[Tile]:
    """The figures above the chart."""
    return [_in_view(metric, rows), _certified(status), _drift(rows), _residual(status), _ledger(status)]


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


def recent(metric: Metric, rows: Sequence[Row], most: int) -> str:
    """A table of the latest windows."""
    if not rows:
        return '<p class="ls-quiet">none yet</p>'
    # an aggregation that speed computes exactly has no bounds to show
    head = ["window, UTC", *metric.by, "value", *(() if metric.agg.exact else ("bounds",)), "layer"]
    body = []
    for row in sorted(rows, key=lambda row: (row.window_start, row.value), reverse=True)[:most]:
        bounds = "exact" if row.lower is None or row.upper is None else f"{number(row.lower)} to {number(row.upper)}"
        layer = "batch" if row.layer == "batch" else "speed"
        body.append(
            _row(
                [window(row), *(escape(row.dimensions[name] or "(none)") for name in metric.by)],
                [f"<b>{number(row.value)}</b>", *(() if metric.agg.exact else (f"<small>{bounds}</small>",))],
                f'<span class="ls-chip ls-{layer}">{escape(row.status)}</span>',
            )
        )
    return _table(head, len(metric.by) + 1, body)


def drifted(metric: Metric, rows: Iterable[Row], most: int) -> str:
    """A table of the certified windows that differ most from what the speed layer showed."""
    compared = [row for row in rows if row.drift is not None]
    apart = sorted((row for row in compared if row.drift), key=lambda row: -abs(row.drift or 0))
    if not compared:
        return '<p class="ls-quiet">no certified window in view yet</p>'
    if not apart:
        return '<p class="ls-quiet">no certified window in view differs from what the speed layer showed</p>'
    head = ["window, UTC", *metric.by, "speed", "certified", "drift"]
    body = [
        _row(
            [window(row), *(escape(row.dimensions[name] or "(none)") for name in metric.by)],
            [number(row.value - _like(row.value, row.drift)), f"<b>{number(row.value)}</b>"],
            f'<b class="ls-drift">{signed(_like(row.value, row.drift))}</b>',
        )
        for row in apart[:most]
    ]
    return _table(head, len(metric.by) + 1, body)


def nothing_yet(metric: Metric, grain: str) -> str:
    """What to do when a metric has no windows."""
    return _hint(
        f"no windows of {metric.name} yet",
        "they appear within seconds once events flow. start the stack, then send some:",
        "lockstep up\nlockstep ingest FILE --catalog CATALOG   # or, for the demo's shop: lockstep generate\n"
        f"lockstep query {metric.name} --grain {grain}",
    )


def failure(text: str) -> str:
    """A banner that says what is wrong; the page goes on trying."""
    return (
        f'<div class="ls-alert" role="alert"><b>no fresh numbers</b><span>{escape(text)}</span><em>retrying</em></div>'
    )


def number(value: Value) -> str:
    """A number for people: thousands separated, decimals of a decimal kept, floats with at most two."""
    if isinstance(value, float):
        text = f"{value:,.2f}"
        return text.rstrip("0").rstrip(".")
    return f"{value:,}"


def signed(value: Value) -> str:
    """A number that always has its sign."""
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return sign + number(-value if value < 0 else value)


def _like(value: Value, drift: float | None) -> Any:  # noqa: ANN401 - the type of `value`
    """A drift as a number of the value's kind: a decimal of the same scale, else whole."""
    return Decimal(drift or 0).quantize(value) if isinstance(value, Decimal) else round(drift or 0)


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
    """A window's start; of a whole day only the day."""
    whole_day = row.window_end - row.window_start == timedelta(milliseconds=DAY_MS)
    text = row.window_start.strftime("%d %b" if whole_day else "%d %b %H:%M")
    return f'<time datetime="{iso(row.window_start)}">{text}</time>'


def _in_view(metric: Metric, rows: Sequence[Row]) -> Tile:
    if not rows:
        return Tile("In view", "none", "no windows")
    if metric.agg.exact:
        zero = Decimal(0) if isinstance(rows[0].value, Decimal) else 0
        total = sum((row.value for row in rows), start=zero)
        count = len({row.window_start for row in rows})
        return Tile("Total in view", number(total), f"{metric.agg.text}, {count:,} windows")
    latest = max(row.window_start for row in rows)
    row = max((row for row in rows if row.window_start == latest), key=lambda row: row.value)
    about = "" if row.lower is None else "≈ "
    bounds = "exact" if row.lower is None or row.upper is None else f"{number(row.lower)} to {number(row.upper)}"
    where = f", {' · '.join(row.dimensions.values())}" if row.dimensions else ""
    return Tile("Latest window", f"{about}{number(row.value)}", f"{bounds}{where}")


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
    exact = sum(abs(float(row.value)) for row in compared)
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
