"""How figures and verdicts are put into words and digits on the report's pages."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from html import escape
from typing import Any

from markupsafe import Markup

VERDICTS = {
    "clean": ("good", "in step"),
    "not_yet_closed": ("warn", "not yet closed"),
    "speed_defect": ("bad", "unexplained"),
    "not_certified": ("bad", "not certified"),
    "not_published": ("warn", "not published"),
    "residual": ("bad", "residual"),
}
"""Verdict to tone and words."""

DEFINITIONS = (
    ("Live, speed", "", "What the speed layer published while events streamed in, merged to windows."),
    (
        "Expected live",
        "",
        "What the speed layer had to publish: the batch layer folds the same counted events into the same states,"
        " sketches included.",
    ),
    ("Exact", "", "Every well-formed event of the log once, late ones included. This is what a certified day serves."),
    (
        "Residual",
        "residual",
        "Slices, or sessions, whose published state differs from the expected one although the speed layer has read all"
        " that the run read. Not explained by any cause; a defect until shown otherwise. Sums of floats may differ by"
        " what the order of their terms explains.",
    ),
    (
        "Not yet closed",
        "not_yet_closed",
        "Slices that differ while the speed layer still has to publish offsets that the run read, or whose lateness has"
        " not passed.",
    ),
    ("Sketch", "sketch", "The live number is an estimate with bounds; this is how far it lies from the same events."),
    (
        "Lookup lag",
        "lookup_lag",
        "A version of what events are joined with came after the speed layer had read them. Live they were joined with"
        " the version known then, in the exact values with the one valid when they happened.",
    ),
    (
        "Late",
        "late",
        "Sent too long after it happened (by its record timestamp). Left out live, counted by batch.",
    ),
    (
        "Duplicate",
        "duplicate",
        "The same event id and event time again. Left out by both; batch also finds copies beyond the live horizon and"
        " across topic partitions, and only those change a number.",
    ),
    ("Id conflict", "id_conflict", "The same event id with another event time. The first is counted, the other named."),
    (
        "Dead letter",
        "dead_letter",
        "Not readable as an event. Kept with its raw bytes in the dead-letter topic. One that was repaired was produced"
        " again as another record, which is counted or late like any other; so no number lacks it.",
    ),
    (
        "Order of causes",
        "",
        "Live to expected (residual or not yet closed), expected to counted (sketch; lookup lag where the value is no"
        " estimate or lies beyond its bounds), counted to late included (late), then to exact (duplicate). The parts"
        " add up to the whole difference.",
    ),
    (
        "Windows of a day",
        "",
        "A window that reaches into other days is read as this day's share of it, in all readings alike, so that each"
        " difference is shown in the day that it came from. A session is whole, in the day in which it ends.",
    ),
    (
        "Windows changed",
        "",
        "Means, extremes, estimates and ratios do not add up over windows. For them the report says how many windows a"
        " cause changes, and what the mean over all windows is. A value that is missing reads as 0.",
    ),
    (
        "Item",
        "",
        "A list of the most frequent values is taken apart by value: its count where it is in the list, 0 where not."
        " So is a last value that is no number: 1 for the value that was last.",
    ),
    (
        "Certified",
        "",
        "The run's manifest is complete, every record has one disposition, and a second count of the rows arrives at"
        " the same number of events. Agreement with the live numbers is never a condition.",
    ),
)
"""Term, the cause whose colour it has, and what it means."""


def tone(verdict: str) -> str:
    """The colour in which a verdict is shown."""
    return VERDICTS[verdict][0]


def verdict_words(verdict: str) -> str:
    """A verdict as people say it."""
    return VERDICTS[verdict][1]


_HUGE = Decimal(10) ** 21
_TINY = Decimal("0.0001")
_DECIMALS = 6


def num(value: str | int | None) -> str:
    """Digits in groups of three; a missing number is a dash."""
    if value is None:
        return "–"
    return figure(Decimal(value))


def figure(number: Decimal) -> str:
    """A number in full up to six decimals; of longer ones, as floats are, six; a huge or tiny one by its power."""
    longer = -int(number.normalize().as_tuple().exponent) > _DECIMALS
    if abs(number) >= _HUGE or (longer and abs(number) < _TINY):
        mantissa, _, power = f"{number:.2e}".partition("e")
        return f"{Decimal(mantissa).normalize():f}e{int(power)}".replace("-", "−")
    if longer:
        number = Decimal(f"{number:.{_DECIMALS}f}").normalize()
    return f"{number:,f}".replace("-", "−")


def many(number: int, noun: str) -> str:
    """How many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(milliseconds: int) -> str:
    """A duration as `1 h 2 m 5 s`; of less than a second as `250 ms`."""
    seconds, rest = divmod(milliseconds, 1000)
    if not seconds:
        return f"{rest} ms"
    parts = ((seconds // 3600, "h"), (seconds % 3600 // 60, "m"), (seconds % 60, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def signed(value: str | int) -> str:
    """A difference with its sign."""
    return f"{'+' if Decimal(value) > 0 else ''}{num(value)}"


def nonzero(value: str) -> bool:
    """Whether a part is there at all."""
    return bool(Decimal(value))


def pct(ratio: float) -> str:
    """A share in per cent, with more digits where it is small; never rounded to none or to all."""
    if not ratio or ratio == 1:
        return f"{ratio * 100:.0f} %"
    percent = ratio * 100
    smallest, largest = 0.001, 99.99
    if percent < smallest:
        return f"< {smallest} %"
    if percent > largest:
        return f"> {largest} %"
    return f"{percent:.3f} %" if percent < 0.1 else f"{percent:.2f} %"  # noqa: PLR2004 - two digits that say something


def when(text: str | None) -> str:
    """A moment as `2026-03-01 12:00:05`, with fractions only where there are some."""
    if text is None:
        return "–"
    moment = datetime.fromisoformat(text)
    fraction = f".{moment.microsecond // 1000:03d}" if moment.microsecond else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction}"


def clock(text: str) -> str:
    """The time of day of a moment."""
    return f"{datetime.fromisoformat(text):%H:%M:%S}"


def day(text: str) -> str:
    """The day of a moment, as people say it."""
    return long_day(datetime.fromisoformat(text).date())


def long_day(value: date) -> str:
    """A day as `1 March 2026`."""
    return f"{value.day} {value:%B %Y}"


def period(first: str, last: str) -> str:
    """The days of a report in words, both included."""
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    if start == end:
        return long_day(start)
    if (start.year, start.month) == (end.year, end.month):
        return f"{start.day} to {long_day(end)}"
    return f"{long_day(start)} to {long_day(end)}"


def words(name: str) -> str:
    """`id_conflict` as words."""
    return name.replace("_", " ")


def dims(dimensions: Mapping[str, str]) -> str:
    """Dimensions as `country=DE`."""
    return ", ".join(f"{name}={value}" for name, value in dimensions.items()) or "–"


def state(columns: Mapping[str, str]) -> str:
    """A state in a line, shortened; a side that has no row shows a dash."""
    longest = 44
    text = ", ".join(f"{name} {value}" for name, value in columns.items()) or "–"
    return text if len(text) <= longest else text[:longest] + "…"


def head(text: str) -> str:
    """The beginning of an identifier."""
    longest = 13
    return text if len(text) <= longest else text[:longest] + "…"


def ticks(text: str) -> Markup:
    """Escaped text whose parts in backticks are set as code."""
    pieces = escape(text).split("`")
    return Markup("".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces)))


def sentence(head_figures: Mapping[str, Any]) -> str:
    """The report in one sentence."""
    days, certified, residual = (head_figures[name] for name in ("partitions", "certified", "residual"))
    subject = "The day is" if days == 1 else f"All {days} days are"
    match head_figures["verdict"]:
        case "clean":
            return f"{subject} certified, and every difference between live and exact is explained"
        case "not_yet_closed":
            return f"{subject} certified; the live numbers are still catching up"
        case "speed_defect":
            many = "s" if residual != 1 else ""
            return f"{num(residual)} published slice{many} differ{'' if many else 's'} from the log without a reason"
        case "not_certified":
            return "The day is not certified" if days == 1 else f"{certified} of {days} days certified, the rest not"
        case _:
            return "Nothing is published for this day" if days == 1 else "Not every day is published"


def subline(head_figures: Mapping[str, Any]) -> str:
    """What the sentence rests upon."""
    if not head_figures["slices_compared"]:
        return "There is nothing to compare yet."
    left = head_figures["late"] + head_figures["duplicate"] + head_figures["id_conflict"] + head_figures["dead_letter"]
    return (
        f"{num(head_figures['events'])} events. {num(head_figures['slices_compared'])} published slices were compared"
        f" with what the log says they had to be, state by state: {num(head_figures['slices_equal'])} are equal."
        f" {num(left)} records were not counted live, and each is named below."
    )


def signoff(doc: Mapping[str, Any]) -> str:
    """What is certified, in the words that a person signs."""
    certified = [part for part in doc["partitions"] if part["certified"]]
    if not certified:
        return "No day of this report is certified. Its exact values are not served."
    days = ", ".join(f"{part['partition']} (certificate {part['fingerprint']})" for part in certified)
    return (
        f"The exact values of source {doc['source']} are certified for {days}, from runs whose manifests are complete"
        " and whose counts close. A day that later gets new events needs a new run and a new certificate."
    )


FILTERS = {
    "tone": tone,
    "verdict": verdict_words,
    "num": num,
    "signed": signed,
    "nonzero": nonzero,
    "pct": pct,
    "when": when,
    "duration": duration,
    "many": many,
    "clock": clock,
    "day": day,
    "words": words,
    "dims": dims,
    "state": state,
    "head": head,
    "ticks": ticks,
}
