"""How a metric's values look to people, and which of lines, sums and zeros make sense of them."""

from datetime import timedelta
from decimal import Decimal

from metrics.catalog import RatioMetric, ShownMetric
from metrics.window import CalendarWindow, GlobalWindow, SessionWindow, TumblingWindow
from serving.query import Item, Number, Value

NONE = "–"
FEW_ITEMS = 3


def aggregation(metric: ShownMetric) -> str:
    """The name of its aggregation; `ratio` for a ratio."""
    return "ratio" if isinstance(metric, RatioMetric) else metric.agg.name


def is_number(metric: ShownMetric) -> bool:
    """Whether its values are numbers."""
    return not metric.value_type.startswith("Array") and metric.value_type not in {"String", "Bool"}


def is_percent(metric: ShownMetric) -> bool:
    """Whether its values are shares; a ratio with a unit of its own is none."""
    return isinstance(metric, RatioMetric) and metric.unit in {"", "%"}


def has_line(metric: ShownMetric, grain: str) -> bool:
    """Whether its windows make a line over time."""
    return is_number(metric) and not isinstance(metric.window(grain), SessionWindow | GlobalWindow)


def adds_up(metric: ShownMetric, grain: str) -> bool:
    """Whether the sum of its windows means something."""
    apart = isinstance(metric.window(grain), TumblingWindow | CalendarWindow | SessionWindow)
    return apart and aggregation(metric) in {"count", "sum"}


def is_zero_without_events(metric: ShownMetric) -> bool:
    """Whether a window without events has the value zero rather than none."""
    return aggregation(metric) in {"count", "sum", "distinct"}


def rank(value: Value) -> float:
    """A number by which values can be sorted; what is none comes last."""
    return float(value) if isinstance(value, int | float | Decimal) else float("-inf")


def figure(metric: ShownMetric, value: Value) -> str:
    """A value for people, not escaped, without its unit."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or "(empty)"
    if isinstance(value, list):
        return items(value)
    if is_percent(metric):
        return f"{number(float(value) * 100)} %"
    return number(value)


def items(value: list[Item]) -> str:
    """The first few of a top, in one line."""
    if not value:
        return NONE
    shown = ", ".join(f"{entry['item'] or '(empty)'} {entry['count']:,}" for entry in value[:FEW_ITEMS])
    return f"{shown}, …" if len(value) > FEW_ITEMS else shown


def number(value: Number) -> str:
    """A number for people: thousands separated, decimals of a decimal kept, floats with two, small ones with four."""
    if isinstance(value, float):
        digits = 2 if value == 0 or abs(value) >= 1 else 4
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".")
    return f"{value:,}"


def signed(text: str) -> str:
    """The text of a number so that it always has its sign."""
    if text.startswith("-"):
        return f"−{text[1:]}"
    return text if text in {"0", NONE} or not text.strip("0. %") else f"+{text}"


def with_unit(metric: ShownMetric, text: str) -> str:
    """A figure with the metric's unit behind it, unless that is part of it."""
    return text if not metric.unit or is_percent(metric) or text == NONE else f"{text} {metric.unit}"


def duration(length: timedelta) -> str:
    """A length of time in its two largest units."""
    seconds = round(length.total_seconds())
    for size, unit, smaller, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit} {rest} {below}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"
