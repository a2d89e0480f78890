"""What every engine must say of a catalog and a log: all windows, each once, as the reference has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from metrics import sketch
from metrics.catalog import Catalog, Metric, RatioMetric, ShownMetric
from metrics.reference_values import Cell, Key
from metrics.window import format_duration

Tree = dict[str, Any]
"""A catalog as its file has it."""

Place = tuple[int, tuple[str, ...]]
"""Start of a window in ms, and its dimensions; of a session its key before these."""

ROUNDING = 1e-12
"""What a float may differ by for the order in which floats are added up, relative to `Cell.magnitude`.

The catalog reference promises 1e-9. A sum of n terms is within n / 2**53 of the magnitudes, and no window here has a
thousand events.
"""


@dataclass(frozen=True)
class Said:
    """What an engine says of a window.

    Attributes:
        end: in ms, exclusive.
        value: as JSON has it, as are `lower` and `upper`.
        events: how many it folded; None where rows do not say so, as those of ratios.
        length: of a session, in ms.
        states: of a sketch or of counts, the merged map; None where it is not asked for.
    """

    end: int
    value: Any
    lower: Any
    upper: Any
    events: int | None
    length: int | None = None
    states: Mapping[Any, int] | None = None


def judge(
    metric: ShownMetric,
    grain: str,
    rows: Sequence[tuple[Place, Said]],
    expected: Mapping[Key, Cell],
    *,
    exact: bool,
) -> None:
    """Asserts that rows are all windows of a metric and grain, each once, and say what the reference says.

    Args:
        metric: the metric.
        grain: its grain.
        rows: of the metric and grain.
        expected: the reference's cells.
        exact: whether values must be equal, or lie within their bounds.
    """
    wanted = {key[2:]: cell for key, cell in expected.items() if key[:2] == (metric.name, grain)}
    found = dict(rows)
    assert len(found) == len(rows), _told(metric.name, grain, "a window stands there twice")
    assert set(found) == set(wanted), _told(metric.name, grain, "windows", set(found) ^ set(wanted))
    for place, cell in wanted.items():
        said = found[place]
        assert said.end == cell.end, _told(metric.name, grain, place, said, cell)
        assert said.events == (None if isinstance(metric, RatioMetric) else cell.events), _told(
            metric, grain, place, said, cell
        )
        assert not metric.session or said.length == cell.length, _told(metric.name, grain, place, said, cell)
        assert said.states is None or said.states == states_of(metric, cell), _told(
            metric.name, grain, place, said, cell
        )
        if exact:
            bounds = [said.lower, said.upper]
            fits = _same(metric, said.value, cell) and bounds == [None, None]
        elif isinstance(metric, RatioMetric):
            fits = _within_quotients(metric, said, expected[metric.numerator.name, grain, *place])
        else:
            fits = _within(metric, said, cell)
        assert fits, _told(metric.name, grain, place, said, cell)


def _told(*what: Any) -> str:
    """The parts of a message, none of them endless."""
    return " | ".join(text if len(text := str(part)) < 600 else f"{text[:300]} ... {text[-300:]}" for part in what)


def _same(metric: ShownMetric, value: Any, cell: Cell) -> bool:
    wanted = cell.value
    if value is None or wanted is None:
        return value is wanted
    if metric.text.startswith("top"):
        return [(one["item"], one["count"]) for one in value] == wanted
    if metric.value_type == "Float64":
        # a negative zero is equal to zero, and yet is one that nobody may see
        signed = value == 0 and math.copysign(1, value) < 0
        return not signed and abs(value - wanted) <= ROUNDING * cell.magnitude
    return Decimal(value) == wanted if metric.value_type.startswith("Decimal") else value == wanted


def _within(metric: ShownMetric, said: Said, cell: Cell) -> bool:
    """Whether a quantile lies in its narrow bounds, or a distinct count and its bounds are those of its registers."""
    if cell.value is None:
        return said.value is said.lower is said.upper is None
    if not metric.text.startswith("quantile"):
        return _near([said.value, said.lower, said.upper], distinct_of(cell.registers))
    value, lower, upper, wanted = map(Decimal, (said.value, said.lower, said.upper, cell.value))
    unit = Decimal(0) if metric.value_type == "Float64" else Decimal(1).scaleb(-_scale(metric))
    allowed = Decimal(sketch.RELATIVE_ERROR) * abs(wanted) * Decimal("1.000000001")
    narrow = upper - lower <= 2 * allowed + 2 * unit
    return lower <= wanted <= upper and narrow and abs(value - wanted) <= allowed + unit / 2


def _within_quotients(metric: RatioMetric, said: Said, above: Cell) -> bool:
    """Whether a distinct count divided by a number of events has the bounds of that count."""
    assert metric.numerator.agg.name == "distinct"
    assert metric.denominator.agg.name == "count"
    shown = [quotient * above.events for quotient in (said.value, said.lower, said.upper)]
    return _near(shown, distinct_of(above.registers))


def _near(shown: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(abs(one - other) <= 0.5 + 1e-6 for one, other in zip(shown, wanted, strict=True))


def distinct_of(registers: Mapping[int, int]) -> tuple[float, float, float]:
    """Estimate, lower and upper bound of a distinct count, each half a unit from every number that it rounds to.

    Source:
        Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), algorithm 6.
    """
    if not registers:
        return 0.0, 0.0, 0.0
    count, filled = 4096, len(registers)
    power, factor, sigma = 1 - filled / count, 1.0, 1 - filled / count
    while (grown := sigma + (power := power * power) * factor) != sigma:
        sigma, factor = grown, factor * 2
    harmonic = count * sigma + sum(2.0**-rank for rank in registers.values())
    estimate = count * count / (2 * math.log(2)) / harmonic
    error = 3 * 1.04 / math.sqrt(count)
    lower, upper = math.floor(estimate / (1 + error)), math.ceil(estimate / (1 - error))
    return max(filled, estimate), max(filled, lower), max(filled, upper)


def _scale(metric: ShownMetric) -> int:
    _, comma, scale = metric.value_type.rstrip(")").partition(", ")
    return int(scale) if comma else 0


STATES = ("distinct", "quantile", "top")
"""Aggregations whose state is a map that the reference has too."""


def states_of(metric: ShownMetric, cell: Cell) -> dict[Any, int]:
    """The registers, buckets or counts of a cell; counts only where its metric shows all of them."""
    return {"distinct": cell.registers, "quantile": cell.buckets}.get(metric.text.partition("(")[0]) or dict(
        cell.value if metric.text.startswith("top") else ()
    )


def state_tree(catalog: Catalog, tree: Tree) -> Tree:
    """A catalog whose windows are the slices, and the sessions, of the metrics of `STATES`, under their names."""
    metrics = {}
    for metric in catalog.metrics:
        if metric.agg.name in STATES:
            given = tree["metrics"][metric.name]
            window = given["window"] if metric.session else f"tumbling {slice_grain(metric)}"
            agg = "top(user, 1000000)" if metric.agg.name == "top" else given["agg"]
            metrics[metric.name] = given | {"agg": agg, "window": window}
    return tree | {"metrics": metrics}


def slice_grain(metric: Metric) -> str:
    """The grain of a metric's slices."""
    return format_duration(metric.slice_width)


def judge_states(
    metric: Metric, rows: Sequence[tuple[Place, int, Mapping[Any, int]]], expected: Mapping[Key, Cell]
) -> None:
    """Asserts that the states of a metric's slices or sessions are those of the reference, to the last register.

    Args:
        metric: of `STATES`.
        rows: place, number of events and map of each slice or session.
        expected: the reference's cells of the `state_tree`.
    """
    grain = "session" if metric.session else slice_grain(metric)
    wanted = {key[2:]: cell for key, cell in expected.items() if key[:2] == (metric.name, grain)}
    found = {place: (events, dict(states)) for place, events, states in rows}
    assert len(found) == len(rows), _told(metric.name, "a slice stands there twice")
    assert set(found) == set(wanted), _told(metric.name, "slices", set(found) ^ set(wanted))
    for place, cell in wanted.items():
        assert found[place] == (cell.events, states_of(metric, cell)), _told(metric.name, place, found[place], cell)
