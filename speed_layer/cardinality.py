"""Alarms of very many dimension values: what makes the speed layer slow, before it is slow, by the dimension's name.

Nothing is cut off. The merge sees of a slice the rows of one bucket of dimensions; a hash deals them out evenly, so one
bucket tells how many rows there are in all.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from metrics.fold import Group
from speed_layer.memory import LARGEST_MEMORY_BYTES

ALARMS_TABLE = "speed_alarms"
ALARM_ROWS = 100_000

_GROWTH = 2
"""An alarm is repeated when its slice has grown by this factor."""

_LOGGED_EVERY_S = 60.0
_REMEMBERED = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a worker may hold and from when it complains.

    Attributes:
        memory_bytes: Merged states kept beside Flink's.
        alarm_rows: Rows of one slice and group.
        buckets: Into how many the rows of a slice are dealt.
    """

    memory_bytes: int = LARGEST_MEMORY_BYTES
    alarm_rows: int = ALARM_ROWS
    buckets: int = 1


@dataclass(frozen=True)
class Alarm:
    """A slice with very many rows.

    Attributes:
        group_id: Of the group of metrics.
        metrics: Their names.
        by: Their dimensions.
        dimension: The one with the most distinct values.
        rows: About how many rows the slice has.
        slice_start: In ms.
    """

    group_id: str
    metrics: tuple[str, ...]
    by: tuple[str, ...]
    dimension: str
    rows: int
    slice_start: int

    @property
    def text(self) -> str:
        """What a reader is told, with the way out."""
        names = ", ".join(f"`{name}`" for name in self.metrics)
        start = datetime.fromtimestamp(self.slice_start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return (
            f"{names} by {', '.join(self.by)}: about {self.rows:,} rows in the slice of {start} UTC; most distinct "
            f"values: `{self.dimension}`. all rows are counted, but more slowly. take `{self.dimension}` out of `by`, "
            "or raise `LOCKSTEP_ALARM_ROWS`"
        )


def alarms(group: Group, rows: pl.DataFrame, changed: pl.DataFrame, limits: Limits) -> list[Alarm]:
    """The slices of a bundle that have too many rows.

    Sessions raise none: their instants grow with the events, not with the dimensions.

    Args:
        group: The group of metrics.
        rows: Whole states of some keys, with a column `_key`; a key is a bucket of some slices.
        changed: Those of them that the bundle changed.
        limits: From when a slice has too many.
    """
    if group.session or not group.by or rows.height * limits.buckets < limits.alarm_rows:
        return []
    place = ["_key", "slice_start"]
    counts = rows.join(changed.select(place).unique(), on=place, how="semi").group_by(place).len("_rows")
    fullest = counts.sort("_rows", *place).unique("slice_start", keep="last", maintain_order=True)
    found = []
    for key, start, share in fullest.sort("slice_start").select(*place, "_rows").rows():
        if share * limits.buckets >= limits.alarm_rows:
            own = rows.filter((pl.col("_key") == key) & (pl.col("slice_start") == start))
            dimension = max(group.by, key=lambda name: own[name].n_unique())
            names = tuple(metric.name for metric in group.metrics)
            found.append(Alarm(group.id, names, group.by, dimension, share * limits.buckets, start))
    return found


class Told:
    """Which alarms were given: one is repeated when its slice has grown much, and logged once a minute per group.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._logged: dict[str, float] = {}

    def fresh(self, found: Iterable[Alarm]) -> list[Alarm]:
        """Those that say something new."""
        return [a for a in found if a.rows >= _GROWTH * self._rows.get((a.group_id, a.slice_start), 0)]

    def note(self, told: Iterable[Alarm]) -> None:
        """Remembers alarms that are in the table, and logs them."""
        for alarm in told:
            place = (alarm.group_id, alarm.slice_start)
            self._rows[place] = alarm.rows
            self._rows.move_to_end(place)
            now = self._clock()
            if now - self._logged.get(alarm.group_id, float("-inf")) >= _LOGGED_EVERY_S:
                self._logged[alarm.group_id] = now
                logger.warning("%s", alarm.text)
        while len(self._rows) > _REMEMBERED:
            self._rows.popitem(last=False)


def alarm_rows(found: Iterable[Alarm]) -> pl.DataFrame:
    """Alarms as `speed_alarms` holds them."""
    schema: dict[str, Any] = {
        "group_id": pl.String,
        "metrics": pl.List(pl.String),
        "dimension": pl.String,
        "rows": pl.UInt64,
        "slice_start": pl.Int64,
        "text": pl.String,
    }
    listed = [(a.group_id, list(a.metrics), a.dimension, a.rows, a.slice_start, a.text) for a in found]
    frame = pl.DataFrame(listed, schema=schema, orient="row")
    return frame.with_columns(pl.col("slice_start").cast(pl.Datetime("ms", "UTC")))
