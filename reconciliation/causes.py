"""Why a live number differs from the exact one, in parts that add up to the whole difference.

A window has five readings. Each differs from the next by one cause, or two that part the step between them, so the
causes, in this order, telescope:

    speed -> expected      residual, or not_yet_closed while the speed layer has not read what the run read
    expected -> counted    sketch: the live number is an estimate; lookup_lag: a version of what events were joined
                           with came after the speed layer had read them
    counted -> with_late   late: events sent too long after they happened, which the speed layer does not count
    with_late -> exact     duplicate: copies beyond the horizon, or in another topic partition

`id_conflict` and `dead_letter` change no exact value as long as neither is counted by the batch layer; they are carried
as zero so that every split has the same parts. A dead letter that was repaired changes none either: what was produced
again is a record of its own, `counted` or `late` in both layers alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from decimal import Context, Decimal, Inexact, InvalidOperation

Number = int | float | Decimal

CAUSES = ("residual", "not_yet_closed", "sketch", "lookup_lag", "late", "duplicate", "id_conflict", "dead_letter")
"""The fixed order in which a difference is explained."""

_EXACT = Context(prec=1000, Emax=99_999, Emin=-99_999, traps=[Inexact, InvalidOperation])
"""Wide enough for any two floats or 38-digit decimals: a digit that would be lost raises instead."""


@dataclass(frozen=True)
class Readings:
    """What five readers say of one window, or of a sum of windows. A reader that has no row for it says zero.

    Attributes:
        speed: what the speed layer published.
        expected: what it had to publish, presented from states that the batch layer folded from the same events.
        counted: the exact value of the events that the speed layer had to count.
        with_late: the exact value of those and the late ones.
        exact: the exact value, every well-formed event once.
        lagged: the part of counted minus expected that is there because versions of lookups came late.
    """

    speed: Decimal
    expected: Decimal
    counted: Decimal
    with_late: Decimal
    exact: Decimal
    lagged: Decimal = Decimal(0)

    @classmethod
    def of(cls, speed: Number, expected: Number, counted: Number, with_late: Number, exact: Number) -> "Readings":
        """Readings from numbers of any kind; a float is taken at its shortest exact writing."""
        return cls(*(_decimal(value) for value in (speed, expected, counted, with_late, exact)))

    def lagging(self, part: Decimal | None = None) -> "Readings":
        """The same where so much of counted minus expected is because versions came late; None: all of it."""
        return replace(self, lagged=_minus(self.counted, self.expected) if part is None else part)

    @property
    def difference(self) -> Decimal:
        """Exact minus speed: what has to be explained."""
        return _minus(self.exact, self.speed)

    def __add__(self, other: "Readings") -> "Readings":
        """Readings of two windows together, no digit lost."""
        return Readings(*(_EXACT.add(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Split:
    """Signed parts of exact minus speed, one per cause; their sum is the difference."""

    residual: Decimal = Decimal(0)
    not_yet_closed: Decimal = Decimal(0)
    sketch: Decimal = Decimal(0)
    lookup_lag: Decimal = Decimal(0)
    late: Decimal = Decimal(0)
    duplicate: Decimal = Decimal(0)
    id_conflict: Decimal = Decimal(0)
    dead_letter: Decimal = Decimal(0)

    @property
    def total(self) -> Decimal:
        """The sum of the parts."""
        return _sum(self.parts().values())

    def parts(self) -> dict[str, Decimal]:
        """Cause to signed part, in the fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "Split") -> "Split":
        """Parts of two windows together."""
        return Split(**{cause: _EXACT.add(part, getattr(other, cause)) for cause, part in self.parts().items()})


def split(readings: Readings, *, closed: bool) -> Split:
    """Explain exact minus speed.

    Args:
        readings: the window, or the sum over windows that are all closed or all open.
        closed: whether the speed layer has read all that the run read and its watermark has passed the window and the
            lateness. Then speed must equal expected and any remainder is a residual.
    """
    lag = _minus(readings.expected, readings.speed)
    return Split(
        residual=lag if closed else Decimal(0),
        not_yet_closed=Decimal(0) if closed else lag,
        sketch=_minus(_minus(readings.counted, readings.expected), readings.lagged),
        lookup_lag=readings.lagged,
        late=_minus(readings.with_late, readings.counted),
        duplicate=_minus(readings.exact, readings.with_late),
    )


def total(splits: Iterable[Split]) -> Split:
    """Parts of many windows together; no windows make no difference."""
    whole = Split()
    for part in splits:
        whole = whole + part
    return whole


def _decimal(value: Number) -> Decimal:
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _minus(left: Decimal, right: Decimal) -> Decimal:
    return _EXACT.subtract(left, right)


def _sum(values: Iterable[Decimal]) -> Decimal:
    result = Decimal(0)
    for value in values:
        result = _EXACT.add(result, value)
    return result
