"""Copies: events that stand in the log more than once, wherever, and which of them is the first.

A pass tells the copies within the horizon of a topic partition from one another. The exact values take each event once
whatever lies between its copies, so all ids are compared here: by a hash of 64 bits first, and those few that share
one by themselves.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.rows import EVENT, IDS, ddl, from_bytes, to_bytes
from metrics.disposition import ID_CONFLICT
from metrics.fold import place

_PAYLOAD = {"payload": "binary"}
_CANDIDATE = ("topic_partition", "offset", "event_id", "event_time", "disposition")


def find_copies(rows: DataFrame) -> pl.Series:
    """The places of events that are not the first with their id and time, ascending; see `metrics.fold.place`.

    Args:
        rows: Of `rows.Pass`.
    """
    hashes = rows.filter(F.col("kind") == IDS).select("bucket", "payload").repartition("bucket")
    found = [np.frombuffer(row.payload, np.uint64) for row in hashes.mapInArrow(_repeated, ddl(_PAYLOAD)).collect()]
    repeated = pl.Series("identity", np.concatenate(found) if found else np.array([], np.uint64))
    if repeated.is_empty():
        return pl.Series("place", [], pl.Int64)
    events = rows.filter(F.col("kind") == EVENT).select("payload")
    candidates = events.mapInArrow(_Candidates(repeated), ddl(_PAYLOAD)).collect()
    return later_copies(pl.concat([from_bytes(bytes(row.payload)) for row in candidates]))


def later_copies(candidates: pl.DataFrame) -> pl.Series:
    """The places of events that are not the first with their id and time, ascending.

    An id_conflict is the first only of such.

    Args:
        candidates: Columns topic_partition, offset, event_id, event_time and disposition of all events that have a
            copy, and maybe of others.
    """
    ordered = candidates.sort(pl.col("disposition") == ID_CONFLICT, "topic_partition", "offset")
    later = ordered.filter(~pl.struct("event_id", "event_time").is_first_distinct())
    return later.select(place())["place"].sort()


def with_exact(events: pl.DataFrame, copies: pl.Series) -> pl.DataFrame:
    """Events with their `place`, and `exact`: whether the exact values take them.

    Args:
        events: Columns topic_partition, offset and disposition.
        copies: From `find_copies`.
    """
    placed = events.with_columns(place())
    again = pl.col("place").is_in(copies.implode()) if len(copies) else pl.lit(value=False)
    return placed.with_columns(exact=(pl.col("disposition") != ID_CONFLICT) & ~again)


def _repeated(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The hashes that stand more than once among those of a task, which are all of some buckets."""
    held = [np.frombuffer(payload.as_py(), np.uint64) for batch in batches for payload in batch["payload"]]
    if held:
        counted = pl.Series("identity", np.concatenate(held)).value_counts()
        repeated = counted.filter(pl.col("count") > 1)["identity"].to_numpy()
        if len(repeated):
            yield pa.record_batch({"payload": pa.array([repeated.tobytes()], pa.binary())})


@dataclass(frozen=True)
class _Candidates:
    """Events whose hash stands more than once."""

    repeated: pl.Series

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for payload in batch["payload"]:
                events = from_bytes(payload.as_py())
                found = events.filter(pl.col("identity").is_in(self.repeated.implode())).select(_CANDIDATE)
                if not found.is_empty():
                    yield pa.record_batch({"payload": pa.array([to_bytes(found)], pa.binary())})
