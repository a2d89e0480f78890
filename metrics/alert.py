"""Alerts: what is raised when an aggregate over the last minutes of a key crosses a threshold.

At each instant t (ms) that has a matching event, an alert's value is its aggregate over the events of
``(t - within, t]``. A **breach** is a rising edge: the condition holds at t and did not hold just before, when the
window held the events of ``(t - within, t)``. So an alert is raised once per breach and re-armed when its condition
clears, and what is due depends on the events alone, never on their order of arrival.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from metrics.expression import Condition, Expression

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

_WHEN = re.compile(r"\s*(?P<value>\w+|\w+\(.*\))\s*(?P<operator>>=|<=|>|<)\s*(?P<threshold>-?\d+(\.\d+)?)\s*")
_CALL = re.compile(r"(\w+)\((.*)\)")
_SHARE_DIGITS = 18
_COUNT_FROM = {">": 0, ">=": 1}
"""The least threshold that a count can begin to exceed or to reach."""

_SHARE_EDGES = {">": 1, ">=": 0, "<": 0, "<=": 1}
"""The end of [0, 1] that no share crosses, by operator."""


@dataclass(frozen=True)
class Alert:
    """An alert as its catalog defines it.

    Attributes:
        name: Its name.
        kind: ``count`` of events; ``sum`` of `argument`; ``share`` of events for which `argument` holds; or ``level``,
            the present value of the level metric `metric`, which has no `within`.
        operator: A key of `OPERATORS`.
        threshold: What the value is compared with.
        argument: Of a sum its expression, of a share its condition.
        metric: Of a level, the metric's name.
        where: The text of `condition`.
        by: The fields whose values name a key.
        condition: Which events count; None for all.
        within: The sliding time.
        at_least: Events that a share needs before it is judged.
        topic: Where alerts are sent.
        description: What a person should know.
        alert_version: Hash of the definition.
    """

    name: str
    kind: str
    operator: str
    threshold: Decimal
    argument: Expression | None
    metric: str | None
    where: str | None
    by: tuple[str, ...]
    condition: Condition | None
    within: timedelta | None
    at_least: int
    topic: str
    description: str
    alert_version: str

    @property
    def when(self) -> str:
        """The canonical text of what is watched, for example ``count > 3``."""
        inside = self.argument.canonical if self.argument else ""
        value = {"count": "count", "level": self.metric}.get(self.kind) or f"{self.kind}({inside})"
        return f"{value} {self.operator} {self.threshold}"

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it is computed from, those of lookups among them, without those of a level's metric."""
        expressions = [each for each in (self.condition, self.argument) if each is not None]
        return frozenset(self.by).union(*(each.fields for each in expressions))


def parse_when(text: str) -> tuple[str, str, str, Decimal]:
    """Takes ``sum(amount) > 10000`` apart: value, argument (empty without one), operator, threshold.

    Raises:
        ValueError: The text is not of this form.
    """
    match = _WHEN.fullmatch(text)
    if match is None:
        msg = (
            f"`when` is a value, an operator of > >= < <= and a number; got `{text}`. "
            "write for example count > 3, sum(amount) > 10000, share(status >= 500) > 0.05 or stock < 10"
        )
        raise ValueError(msg)
    call = _CALL.fullmatch(match["value"])
    value, argument = (call[1], call[2].strip()) if call else (match["value"], "")
    return value, argument, match["operator"], Decimal(match["threshold"])


def check_when(kind: str, value: str, argument: str, sign: str, threshold: Decimal) -> None:
    """Checks that a condition says all that it is given, and that it can begin to hold.

    Args:
        kind: As of an `Alert`.
        value: What stands before the operator, without its argument.
        argument: In parentheses; empty without one.
        sign: A key of `OPERATORS`.
        threshold: What the value is compared with.

    Raises:
        ValueError: An argument would be dropped, or no event can make the condition true.
    """
    when = f"{value} {sign} {threshold}"
    if argument and kind not in {"sum", "share"}:
        inside = ", and say in `where` which events count" if kind == "count" else ""
        msg = f"only sum and share have an argument; got `{argument}`. write {when}{inside}"
        raise ValueError(msg)
    if kind == "count" and not (sign in _COUNT_FROM and threshold >= _COUNT_FROM[sign]):
        msg = (
            f"an alert rises when an event makes its condition true, and an event only raises a count; got `{when}`. "
            "write count > N with N from 0, or count >= N with N from 1"
        )
        raise ValueError(msg)
    if kind == "share":
        _check_share(threshold, sign)


def _check_share(threshold: Decimal, sign: str) -> None:
    if not 0 <= threshold <= 1 or threshold == _SHARE_EDGES[sign]:
        msg = (
            "an alert rises when an event makes its condition true, and a share goes from 0 to 1; "
            f"got `share {sign} {threshold}`. write a part of 1 that a share can cross, for example > 0.05 for 5 %"
        )
        raise ValueError(msg)
    if -threshold.as_tuple().exponent > _SHARE_DIGITS:  # type: ignore[operator]
        msg = f"the threshold of a share has at most {_SHARE_DIGITS} decimals; got {threshold}. write fewer digits"
        raise ValueError(msg)
