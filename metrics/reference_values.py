"""Windows and aggregations of the oracle: for each metric, lists of events in, values out, one event at a time.

Slow and obvious on purpose, and without a line of the code that it judges.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import sqlglot
import xxhash

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DAY = _MS["d"]

Event = Mapping[str, Any]
"""`event_id`, `event_time` (ms), `place` (topic partition, offset) and `fields`."""

Evaluate = Callable[[Any, Mapping[str, Any]], Any]
"""The value of a parsed expression over an event's fields."""

Key = tuple[str, str, int, tuple[str, ...]]
"""Metric, grain, start of the window in milliseconds, dimensions; of a session its key before these."""


@dataclass
class Cell:
    """One window and its dimensions.

    Attributes:
        end: End of the window in ms, exclusive.
        events: How many were folded.
        value: What the metric says; None where it says nothing.
        registers: Of a distinct, its HyperLogLog registers.
        buckets: Of a quantile, the number of values per bucket.
        length: Of a session, ms from its first event to its last.
        magnitude: Of a float that was computed, what its rounding is judged against: the sum of the magnitudes of the
            terms, or their mean; of a standard deviation the root mean square; of a ratio the same of its quotient.
    """

    end: int = 0
    events: int = 0
    value: Any = 0
    registers: dict[int, int] = field(default_factory=dict)
    buckets: dict[int, int] = field(default_factory=dict)
    length: int = 0
    magnitude: float = 0.0


def fold(tree: Mapping[str, Any], events: Sequence[Event], evaluate: Evaluate) -> dict[Key, Cell]:
    """Every window of every metric."""
    cells: dict[Key, Cell] = {}
    for name, metric in tree["metrics"].items():
        if "agg" in metric:
            cells |= _metric(tree, name, metric, events, evaluate)
    for name, metric in tree["metrics"].items():
        if "ratio" in metric:
            cells |= _ratio(name, metric, cells)
    return cells


def _metric(
    tree: Mapping[str, Any], name: str, metric: Mapping[str, Any], events: Sequence[Event], evaluate: Evaluate
) -> dict[Key, Cell]:
    condition = sqlglot.parse_one(metric["where"]) if "where" in metric else None
    chosen = [e for e in events if condition is None or evaluate(condition, e["fields"]) is True]
    held: dict[tuple[str, int, int, tuple[str, ...]], list[Event]] = defaultdict(list)
    for window in _listed(metric["window"]):
        words = window.split()
        if words[0] == "session":
            for key, start, end, members in _sessions(tree, metric, words, chosen):
                held["session", start, end, key] += members
            continue
        for event in chosen:
            for start, end in _windows(words, event["event_time"], chosen):
                held[_grain(words), start, end, _dimensions(metric, event)].append(event)
    cells = {}
    for (grain, start, end, dimensions), members in held.items():
        cell = Cell(end, len(members), length=_length(members))
        _aggregate(cell, metric["agg"], members, evaluate)
        cells[name, grain, start, dimensions] = cell
    return cells


def _dimensions(metric: Mapping[str, Any], event: Event) -> tuple[str, ...]:
    return tuple(as_text(event["fields"][name]) for name in _listed(metric.get("by", [])))


def _listed(given: Any) -> list[Any]:  # noqa: ANN401
    return [given] if isinstance(given, str) else list(given)


def _length(members: Sequence[Event]) -> int:
    times = [event["event_time"] for event in members]
    length: int = max(times) - min(times)
    return length


def _ratio(name: str, metric: Mapping[str, Any], cells: Mapping[Key, Cell]) -> dict[Key, Cell]:
    numerator, denominator = metric["ratio"]
    wanted = {_grain(window.split()) for window in _listed(metric.get("window", []))}
    found = {}
    for (of, grain, start, dimensions), above in cells.items():
        below = cells.get((denominator, grain, start, dimensions))
        if of == numerator and (not wanted or grain in wanted):
            divisor = below.value if below else None
            cell = found[name, grain, start, dimensions] = Cell(above.end, above.events, None)
            if divisor and above.value is not None:
                cell.value = float(above.value) / float(divisor)
                scale = abs(float(divisor))
                cell.magnitude = max(above.magnitude, abs(float(above.value))) / scale
                cell.magnitude += abs(cell.value) * (below.magnitude if below else 0.0) / scale
    return found


def _grain(words: Sequence[str]) -> str:
    if words[0] == "sliding":
        return f"{_short(words[1])}_every_{_short(words[3])}"
    if words[0] in {"day", "week", "month"}:
        spelt = "".join(c if c.isalnum() else "_" for c in f"{words[0]}_{words[1]}".lower())
        return "_".join(part for part in spelt.split("_") if part)
    return words[0] if words[0] in {"global", "session"} else _short(words[1])


def _short(text: str) -> str:
    """A duration as its greatest whole unit."""
    ms = duration(text)
    unit = max((unit for unit, size in _MS.items() if ms % size == 0), key=_MS.__getitem__)
    return f"{ms // _MS[unit]}{unit}"


def duration(text: str) -> int:
    """A duration in ms."""
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * _MS[unit]


def _windows(words: Sequence[str], moment: int, chosen: Sequence[Event]) -> Iterator[tuple[int, int]]:
    if words[0] == "tumbling":
        size = duration(words[1])
        yield moment // size * size, moment // size * size + size
    elif words[0] == "sliding":
        size, period = duration(words[1]), duration(words[3])
        start = moment // period * period
        while start + size > moment:
            yield start, start + size
            start -= period
    elif words[0] == "global":
        yield 0, max(event["event_time"] for event in chosen) // _DAY * _DAY + _DAY
    else:
        zone = ZoneInfo(words[1])
        today = datetime.fromtimestamp(moment / 1000, UTC).astimezone(zone).date()
        first = {"day": today, "week": today - timedelta(days=today.weekday()), "month": today.replace(day=1)}[words[0]]
        after = {"day": first + timedelta(days=1), "week": first + timedelta(days=7)}.get(
            words[0], (first + timedelta(days=32)).replace(day=1)
        )
        yield _begin(first, zone), _begin(after, zone)


@cache
def _begin(day: date, zone: ZoneInfo) -> int:
    """The first instant of a local day, in ms, found quarter of an hour by quarter of an hour."""
    instant = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=30)
    while instant.astimezone(zone).date() < day:
        instant += timedelta(minutes=15)
    return round(instant.timestamp() * 1000)


def _sessions(
    tree: Mapping[str, Any], metric: Mapping[str, Any], words: Sequence[str], chosen: Sequence[Event]
) -> Iterator[tuple[tuple[str, ...], int, int, list[Event]]]:
    gap = duration(words[1])
    longest = duration(words[3]) if len(words) > len(["session", "gap"]) else max(gap, _DAY)
    by_key: dict[tuple[str, ...], list[Event]] = defaultdict(list)
    for event in chosen:
        own = event["event_id"] if tree["key"] == tree["event_id"] else event["fields"][tree["key"]]
        by_key[as_text(own), *_dimensions(metric, event)].append(event)
    for key, events in by_key.items():
        found: list[list[Event]] = []
        for event in sorted(events, key=lambda e: e["event_time"]):
            moment = event["event_time"]
            apart = not found or moment - found[-1][-1]["event_time"] >= gap
            if apart or moment - found[-1][0]["event_time"] >= longest:
                found.append([])
            found[-1].append(event)
        for members, following in zip(found, [*found[1:], None], strict=True):
            end = members[-1]["event_time"] + gap
            if following is not None:
                end = min(end, following[0]["event_time"])
            yield key, members[0]["event_time"], end, members


def _aggregate(cell: Cell, agg: str, members: Sequence[Event], evaluate: Evaluate) -> None:
    name, parenthesis, _ = agg.partition("(")
    if not parenthesis:
        cell.value = len(members)
        return
    # a name that SQL does not know, so that only the arguments are parsed
    arguments = list(sqlglot.parse_one("of" + agg[len(name) :]).args["expressions"])
    given = [(e, value) for e in members if (value := evaluate(arguments[0], e["fields"])) is not None]
    values = [value + 0.0 if isinstance(value, float) else value for _, value in given]
    match name.strip().lower():
        case "sum":
            cell.value = math.fsum(values) if values and isinstance(values[0], float) else sum(values)
            cell.magnitude = float(sum(map(abs, values)))
        case "min":
            cell.value = min(values, default=None)
        case "max":
            cell.value = max(values, default=None)
        case "mean":
            cell.value = float(sum(map(Fraction, values)) / len(values)) if values else None
            cell.magnitude = float(sum(abs(Fraction(value)) for value in values)) / max(len(values), 1)
        case "stddev":
            cell.value = _stddev([Fraction(float(value)) for value in values])
            cell.magnitude = math.sqrt(sum(Fraction(float(value)) ** 2 for value in values) / max(len(values), 1))
        case "distinct":
            texts = {as_text(value) for value in values}
            cell.value = len(texts)
            cell.registers = _registers(texts)
        case "quantile":
            q = Fraction(str(arguments[1].this))
            rank = max(1, math.ceil(q * len(values)))
            cell.value = sorted(values)[rank - 1] if values else None
            cell.buckets = dict(Counter(_bucket(float(value)) for value in values))
        case "top":
            counts = Counter(as_text(value) for value in values)
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))
            cell.value = ordered[: int(arguments[1].this)]
        case "last":
            latest = max(given, key=lambda pair: (pair[0]["event_time"], pair[0]["place"]), default=(None, None))
            cell.value = latest[1]
        case "level":
            cell.value = _level(members, arguments, evaluate)


def _stddev(values: Sequence[Fraction]) -> float | None:
    if len(values) < 2:  # noqa: PLR2004 - a sample's deviation needs two
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _level(members: Sequence[Event], arguments: Sequence[Any], evaluate: Evaluate) -> Any:  # noqa: ANN401
    at, level = -1, 0
    for event in members:
        counted = evaluate(arguments[0], event["fields"])
        if counted is not None and (event["event_time"], counted) > (at, level if at >= 0 else counted - 1):
            at, level = event["event_time"], counted
    for event in members:
        change = evaluate(arguments[1], event["fields"])
        if change is not None and event["event_time"] > at:
            level += change
    return level


def _registers(texts: set[str]) -> dict[int, int]:
    registers: dict[int, int] = {}
    for text in texts:
        bits = f"{xxhash.xxh3_64_intdigest(text.encode()):064b}"
        register, rest = int(bits[:12], 2), bits[12:]
        rank = len(rest) - len(rest.lstrip("0")) + 1
        registers[register] = max(rank, registers.get(register, 0))
    return registers


def _bucket(value: float) -> int:
    """Sixty-four equal parts of each power of two, numbered from the smallest normal one."""
    if abs(value) < 2.0**-1022:
        return 0
    mantissa, exponent = math.frexp(abs(value))
    number = (exponent + 1022) * 64 + int((mantissa * 2 - 1) * 64)
    return -number if value < 0 else number


def as_text(value: Any) -> str:  # noqa: ANN401
    """A value as a dimension or an item."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
