"""Sessions of the batch layer: found from all events of a key, in each reading from the events that it takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
from pyspark.sql import DataFrame

from batch_layer.exact import READINGS, SESSION_TIMES, dimension_column
from batch_layer.rows import arrow_schema, ddl, to_batches
from metrics.fold import SESSION_KEY, Group
from metrics.session import assign_sessions
from metrics.window import SessionWindow

OfKeys = Callable[[pl.DataFrame], pl.DataFrame]
"""From all rows of some keys to what is made of them."""


@dataclass(frozen=True)
class _Whole:
    """Hands all rows of a Spark partition to a function at once; for `mapInArrow`."""

    made: OfKeys
    schema: Mapping[str, str]

    def __call__(self, parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held = [part for part in parts if part.num_rows]
        if held:
            rows = pl.from_arrow(pa.Table.from_batches(held))
            assert isinstance(rows, pl.DataFrame)
            yield from to_batches(self.made(rows), arrow_schema(self.schema))


def over_keys(frame: DataFrame, keys: Sequence[str], made: OfKeys, schema: Mapping[str, str]) -> DataFrame:
    """Calls a function with all rows of some keys together, those whose keys have a hash in common.

    Args:
        frame: Rows of many keys.
        keys: The columns of a key.
        made: Called in the executors; it must not depend on which keys it is given together, nor on the order of rows.
        schema: Names and Spark types of the columns that it returns.
    """
    return frame.repartition(*keys).mapInArrow(_Whole(made, schema), ddl(schema))


@dataclass(frozen=True)
class SessionCut:
    """Gives events their sessions; keeps those of sessions that belong to the days asked for.

    A session belongs to the day of its last millisecond. One that goes on when the day is over ends on a later day.

    Attributes:
        spans: Milliseconds ``[start, end)`` of the days.
    """

    spans: tuple[tuple[int, int], ...]

    def __call__(self, prepared: DataFrame, group: Group) -> DataFrame:
        """The events with `SESSION_TIMES`; an event of a key whose readings differ stands once for each of them."""
        assert group.session is not None
        schema = {field.name: field.dataType.simpleString() for field in prepared.schema}
        assign = _Assign(tuple(map(dimension_column, group.dimensions)), group.session, self.spans)
        found = schema | dict.fromkeys(SESSION_TIMES, "bigint")
        return over_keys(prepared, [dimension_column(SESSION_KEY)], assign, found)


@dataclass(frozen=True)
class _Assign:
    keys: tuple[str, ...]
    window: SessionWindow
    spans: tuple[tuple[int, int], ...]

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Where all readings take every event of a key its sessions are found once, else once for each reading."""
        alike = pl.all_horizontal(*READINGS).all().over(self.keys)
        marked = rows.with_columns(alike.alias("_alike"))
        parts = [self._of(marked.filter("_alike"))]
        for reading in READINGS:
            only = {name: pl.lit(value=name == reading) for name in READINGS}
            parts.append(self._of(marked.filter(~pl.col("_alike") & pl.col(reading)).with_columns(**only)))
        return pl.concat(parts)

    def _of(self, rows: pl.DataFrame) -> pl.DataFrame:
        counted = rows.drop("_alike").with_columns(events=pl.lit(1, pl.UInt64))
        assigned = assign_sessions(counted, self.keys, self.window)
        return assigned.filter(of_days(self.spans)).drop("events", "chain_events")


def of_days(spans: Sequence[tuple[int, int]]) -> pl.Expr:
    """Whether a session belongs to the days of these spans: where its last millisecond lies."""
    last = pl.col("window_end") - 1
    return pl.any_horizontal([last.is_between(start, end, closed="left") for start, end in spans])
