"""The oracle: a slow, obvious fold over a list of records, which both layers must match.

It reads the plain values of a catalog file and shares no code with what it judges.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

from metrics.reference_expression import evaluate, kinds
from metrics.reference_values import Cell, Key, duration, fold

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AHEAD = 5 * _MS["m"]
_LARGEST = 1_000_000
_LATEST = 7_258_118_400_000  # 2200-01-01T00:00:00Z
_INT64 = 2**63
_DIGITS = 10**18
_FLOAT = 1e100


@dataclass(frozen=True)
class Record:
    """One record of the log; `record_time` in milliseconds since the epoch."""

    topic_partition: int
    offset: int
    record_time: int
    value: bytes | None


@dataclass(frozen=True)
class Answer:
    """What the layers must say.

    Attributes:
        dispositions: By (topic partition, offset).
        exact: By key, over every well-formed event once, late ones included: what the batch layer serves.
        expected: By key, over counted events alone: what the speed layer publishes.
    """

    dispositions: dict[tuple[int, int], str]
    exact: dict[Key, Cell]
    expected: dict[Key, Cell]


def answer(tree: Mapping[str, Any], records: Sequence[Record]) -> Answer:
    """Folds all records of a log, each topic partition in offset order."""
    too_late = duration(tree.get("out_of_orderness", "10s")) + duration(tree.get("allowed_lateness", "1h"))
    horizon = tree.get("dedup_horizon", 500_000)
    dispositions: dict[tuple[int, int], str] = {}
    exact: list[dict[str, Any]] = []
    counted: list[dict[str, Any]] = []
    previous: dict[tuple[int, str], tuple[int, int]] = {}
    once: set[tuple[str, int]] = set()
    for record in sorted(records, key=lambda r: (r.topic_partition, r.offset)):
        place = (record.topic_partition, record.offset)
        event = parse(tree, record)
        if event is None:
            dispositions[place] = "dead_letter"
            continue
        event_id, event_time = event["event_id"], event["event_time"]
        earlier = previous.get((record.topic_partition, event_id))
        previous[record.topic_partition, event_id] = (record.offset, event_time)
        if earlier is not None and record.offset - earlier[0] <= horizon:
            dispositions[place] = "duplicate" if earlier[1] == event_time else "id_conflict"
        elif record.record_time - event_time > too_late:
            dispositions[place] = "late"
        else:
            dispositions[place] = "counted"
        if dispositions[place] == "counted":
            counted.append(event | {"place": place})
        if dispositions[place] != "id_conflict" and (event_id, event_time) not in once:
            once.add((event_id, event_time))
            exact.append(event | {"place": place})
    value = partial(evaluate, types=kinds(tree["fields"]))
    return Answer(dispositions, fold(tree, exact, value), fold(tree, counted, value))


def parse(tree: Mapping[str, Any], record: Record) -> dict[str, Any] | None:  # noqa: PLR0911 - a return a rule
    """The event of a record as `event_id`, `event_time` and `fields`, or None where it is a dead letter."""
    if record.value is None or len(record.value) > _LARGEST:
        return None
    try:
        body = json.loads(record.value.decode("utf-8"), parse_float=Decimal, parse_constant=_refuse)
        record.value.decode("utf-8")
        json.dumps(body, ensure_ascii=False, default=str).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    event_id, moment = body.get(tree["event_id"]), body.get(tree["event_time"]["field"])
    if not isinstance(event_id, str) or not isinstance(moment, int) or isinstance(moment, bool):
        return None
    unit = tree["event_time"].get("unit", "ms")
    event_time = {"us": moment // 1000, "ms": moment, "s": moment * 1000}[unit]
    if not 0 <= event_time < _LATEST or event_time - record.record_time > _AHEAD:
        return None
    fields: dict[str, Any] = {}
    for name, given in tree["fields"].items():
        option = {"type": given} if isinstance(given, str) else given
        value = body.get(name)
        if name not in body and option.get("required"):
            return None
        if value is None:
            if option.get("required"):
                return None
            value = option.get("default")
            fields[name] = Decimal(str(value)) if option["type"] == "decimal" and value is not None else value
            continue
        typed = _typed(value, option)
        if typed is None:
            return None
        fields[name] = typed
    return {"event_id": event_id, "event_time": event_time, "fields": fields}


def _refuse(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _typed(value: Any, option: Mapping[str, Any]) -> Any:  # noqa: ANN401, PLR0911 - a return a type
    """The value as the field's type has it, or None where it has another."""
    kind = option["type"]
    if kind == "string":
        return value if isinstance(value, str) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind == "int":
        return value if isinstance(value, int) and -_INT64 <= value < _INT64 else None
    if kind == "float":
        real = float(Decimal(value)) if isinstance(value, int | Decimal) else math.inf
        return real + 0.0 if abs(real) <= _FLOAT else None  # turns the negative zero into the positive one
    if not isinstance(value, str | int | Decimal):
        return None
    try:
        number = Decimal(value)
    except ArithmeticError:
        return None
    scale = option.get("scale", 0)
    with localcontext(prec=60, Emax=10_000, Emin=-10_000):
        if not number.is_finite() or abs(number) >= _DIGITS or number != (rounded := round(number, scale)):
            return None
        return rounded + 0  # turns the negative zero into the positive one
