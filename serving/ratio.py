"""The SQL of a ratio: two metrics, window by window, read by one SELECT and never torn between layers."""

from datetime import timedelta

from infra.clickhouse import quote
from metrics.catalog import RatioMetric
from serving import layers
from serving.days import Days

_ZERO_WITHOUT_EVENTS = {"count", "sum", "distinct"}
"""Aggregations that are 0 over no events, where others are NULL, or like a level depend on other windows."""

_OPERANDS = ("above", "below")


def speed(metric: RatioMetric, grain: str, database: str, allowed_lateness: timedelta) -> str:
    """The ratio of what the speed layer shows of both metrics."""
    rows = [layers.speed(operand, grain, database, allowed_lateness) for operand in metric.operands]
    return _plain(metric, grain, rows)


def batch(metric: RatioMetric, grain: str, days: Days) -> str:
    """The ratio of the exact values of both metrics, over days whose publication covers both."""
    return _plain(metric, grain, [layers.batch(operand, grain, days) for operand in metric.operands])


def served(metric: RatioMetric, grain: str, days: Days, allowed_lateness: timedelta) -> str:
    """The ratio of what is served of both metrics where that has the same part from certified days, else of speed's.

    So a ratio never has its numerator from one layer and its denominator from the other. Columns are those of
    `layers.served`, without events.
    """
    rows = [layers.served(operand, grain, days, allowed_lateness) for operand in metric.operands]
    columns = (
        *("final_ratio", "is_final", "as_of", "_is_shown", "_from_batch", "_from_speed"),
        *(f"toFloat64({name}) AS {name}" for name in ("_speed_value", "_speed_lower", "_speed_upper")),
    )
    named = ["window_start", *map(quote, metric.by)]
    folded = [
        *_windows(metric, grain),
        *(text for side in _OPERANDS for text in _sides(metric, side, "u.", "_is_shown", "")),
        *(text for side in _OPERANDS for text in _sides(metric, side, "u._speed_", "_from_speed", "speed_")),
        "min(u.final_ratio) AS _least, max(u.final_ratio) AS _most",
        "max(u._is_shown) AS _is_shown, max(u._from_speed) AS _from_speed",
        "minIf(u.is_final, u._is_shown) AS _final, max(u.as_of) AS as_of",
    ]
    alike = "c._least = c._most"
    shown = [
        *(f"c.{name} AS {name}" for name in ("window_start", "window_end", *map(quote, metric.by))),
        *(
            f"if({alike}, {own}, {speeds}) AS {name}"
            for name, own, speeds in zip(("value", "lower", "upper"), _ratio(""), _ratio("speed_"), strict=True)
        ),
        f"if({alike}, c._least, 0) AS final_ratio",
        "final_ratio = 1 AS _from_batch",
        "c._final AS is_final",
        f"if({alike}, c._is_shown, c._from_speed) AS _is_shown",
        "c._from_speed AS _from_speed",
        *(f"{text} AS _speed_{name}" for name, text in zip(("value", "lower", "upper"), _ratio("speed_"), strict=True)),
        "c.as_of AS as_of",
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(folded)}\nFROM (\n"
        f"{_union(metric, rows, columns)}\n) AS u\nGROUP BY {', '.join(f'u.{name}' for name in named)}\n) AS c"
    )


def _plain(metric: RatioMetric, grain: str, rows: list[str]) -> str:
    folded = [
        *_windows(metric, grain),
        *(text for side in _OPERANDS for text in _sides(metric, side, "u.", "true", "")),
        "min(u.is_final) AS is_final, min(u.final_ratio) AS final_ratio, max(u.as_of) AS as_of",
    ]
    named = ["window_start", *map(quote, metric.by)]
    value, lower, upper = _ratio("")
    shown = [
        *(f"c.{name} AS {name}" for name in ("window_start", "window_end", *map(quote, metric.by))),
        *(f"{text} AS {name}" for name, text in (("value", value), ("lower", lower), ("upper", upper))),
        *(f"c.{name} AS {name}" for name in ("is_final", "final_ratio", "as_of")),
    ]
    union = _union(metric, rows, ("final_ratio", "is_final", "as_of"))
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(folded)}\nFROM (\n{union}\n) AS u\n"
        f"GROUP BY {', '.join(f'u.{name}' for name in named)}\n) AS c"
    )


def _union(metric: RatioMetric, rows: list[str], columns: tuple[str, ...]) -> str:
    """The rows of both metrics, told apart by `_operand`."""
    named = ["window_start", "window_end", *map(quote, metric.by)]
    values = [f"toFloat64(r.{name}) AS {name}" for name in ("value", "lower", "upper")]
    selected = [*named, *values, *columns]
    return "\nUNION ALL\n".join(
        f"SELECT {', '.join(selected)}, '{side}' AS _operand FROM (\n{sql}\n) AS r"
        for side, sql in zip(_OPERANDS, rows, strict=True)
    )


def _windows(metric: RatioMetric, grain: str) -> list[str]:
    # a global window ends with the day of the last slice, which the two may have on different days
    assert grain in metric.grains
    return [
        "u.window_start AS window_start",
        "max(u.window_end) AS window_end",
        *(f"u.{name} AS {name}" for name in map(quote, metric.by)),
    ]


def _sides(metric: RatioMetric, side: str, source: str, taken: str, prefix: str) -> list[str]:
    """Value and bounds of one operand, from the rows that are `taken`."""
    operand = metric.operands[_OPERANDS.index(side)]
    condition = f"u._operand = '{side}' AND {taken if taken == 'true' else 'u.' + taken}"
    value = f"anyIf({source}value, {condition})"
    if side == "above" and operand.agg.name in _ZERO_WITHOUT_EVENTS:
        value = f"if(countIf({condition}) = 0, 0, {value})"
    bounds = [f"anyIf({source}{name}, {condition}) AS _{prefix}{side}_{name}" for name in ("lower", "upper")]
    return [f"{value} AS _{prefix}{side}_value", *bounds]


def _ratio(prefix: str) -> tuple[str, str, str]:
    """Value and bounds: the least and the greatest quotient of the operands' bounds, NULL where both are exact."""

    def of(side: str, name: str) -> str:
        return f"c._{prefix}{side}_{name}"

    above, below = (of(side, "value") for side in _OPERANDS)
    value = f"if({below} = 0, NULL, {above} / {below})"
    edges = {
        (side, name): f"coalesce({of(side, name)}, {of(side, 'value')})"
        for side in _OPERANDS
        for name in ("lower", "upper")
    }
    low, high = edges["below", "lower"], edges["below", "upper"]
    quotients = ", ".join(f"{edges['above', name]} / {bound}" for name in ("lower", "upper") for bound in (low, high))
    # NULL too where the denominator may be 0: then the ratio has no bound
    known = f"coalesce({of('above', 'lower')}, {of('below', 'lower')}) IS NOT NULL AND {low} * {high} > 0"
    return (
        value,
        f"if({known}, least({quotients}), NULL)",
        f"if({known}, greatest({quotients}), NULL)",
    )
