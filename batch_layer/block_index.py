"""The index of the log: for each block of offsets what it holds, and of which hours.

It is made by a reader of its own, beside Spark. So it says where the events of a day lie however late they came, and
its counts are a second opinion on what a run has read.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import polars as pl

from batch_layer.log_reader import Records
from metrics.disposition import LEDGER_BLOCK
from metrics.event import Decoded

HOUR_MS = 3_600_000

_COUNTS = pl.List(pl.Struct({"key": pl.Int64, "value": pl.UInt64}))
_TIMES = pl.List(pl.Struct({"key": pl.Int64, "value": pl.Int64}))
BLOCKS = {
    "topic_partition": pl.Int32(),
    "block": pl.Int64(),
    "begin": pl.Int64(),
    "end": pl.Int64(),
    "records": pl.UInt64(),
    "checksum": pl.UInt64(),
    "events": _COUNTS,
    "latest": _TIMES,
    "dead_letters": _COUNTS,
    "repairs": pl.List(pl.Int64),
}
"""Columns of the index, a row per topic partition and block of offsets.

Hours are counted from the epoch. `begin` and `end` are the offsets that were read, `checksum` is `checksum_of` their
records, `events` are counted by the hour in which they happened, `latest` is the greatest lateness of those in ms,
`dead_letters` are counted by the hour in which they were sent, `repairs` are the offsets that headers name as origins.
"""


def blocks_of(
    topic_partition: int, span: tuple[int, int], records: Records, decoded: Decoded, origins: Mapping[int, int]
) -> pl.DataFrame:
    """The index of a run of whole blocks; of the first and the last in the log what is there of them.

    Args:
        topic_partition: Whose.
        span: Offsets ``[begin, end)`` that were read, whether they hold a record or not.
        records: All of them.
        decoded: The same.
        origins: By offset of a record the one that it repairs.
    """
    begin, end = span
    numbers = range(begin // LEDGER_BLOCK, -(-end // LEDGER_BLOCK))
    cuts = np.searchsorted(records.offsets, [number * LEDGER_BLOCK for number in (*numbers, numbers.stop)]).tolist()
    blocks = pl.DataFrame(
        {
            "topic_partition": topic_partition,
            "block": list(numbers),
            "begin": [max(begin, number * LEDGER_BLOCK) for number in numbers],
            "end": [min(end, (number + 1) * LEDGER_BLOCK) for number in numbers],
            "records": np.diff(cuts),
            "checksum": [checksum_of(records, *cut) for cut in zip(cuts, cuts[1:], strict=False)],
            "repairs": [
                [origins[offset] for offset in records.offsets[start:stop] if offset in origins] if origins else []
                for start, stop in zip(cuts, cuts[1:], strict=False)
            ],
        },
        schema_overrides={
            name: BLOCKS[name] for name in ("topic_partition", "block", "records", "checksum", "repairs")
        },
    )
    events, dead = decoded.events, decoded.dead_letters
    late = pl.col("record_time") - pl.col("event_time")
    found = blocks.join(_by_hour(events, "event_time", events=pl.len(), latest=late.max()), on="block", how="left")
    found = found.join(_by_hour(dead, "record_time", dead_letters=pl.len()), on="block", how="left")
    hourly = [pl.col(name).fill_null([]).cast(BLOCKS[name]) for name in ("events", "latest", "dead_letters")]
    return found.with_columns(hourly).select(pl.col(name).cast(kind) for name, kind in BLOCKS.items())


def checksum_of(records: Records, start: int, stop: int) -> int:
    """64 bits of what stands at some places of the records: offsets, timestamps, keys, values and headers."""
    found = blake2b(digest_size=8)
    for numbers in (records.offsets, records.times):
        found.update(np.asarray(numbers[start:stop], np.int64).tobytes())
    for texts in (records.keys, records.values):
        chosen = texts[start:stop]
        found.update(np.asarray([-1 if text is None else len(text) for text in chosen], np.int64).tobytes())
        found.update(b"".join(filter(None, chosen)))
    found.update(repr([headers for headers in records.headers[start:stop] if headers]).encode())
    return int.from_bytes(found.digest(), "little")


def _by_hour(rows: pl.DataFrame, time: str, **values: pl.Expr) -> pl.DataFrame:
    """For each block, lists of hour and value."""
    hours = rows.group_by(block=pl.col("offset") // LEDGER_BLOCK, key=pl.col(time) // HOUR_MS).agg(**values)
    listed = {name: pl.struct("key", pl.col(name).alias("value")) for name in values}
    return hours.sort("block", "key").group_by("block", maintain_order=True).agg(**listed)


def extents(index: pl.DataFrame, spans: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """By topic partition the offsets ``[start, end)`` of the blocks that hold something of some times, or repair it.

    Args:
        index: Rows of `BLOCKS`, each block once.
        spans: Milliseconds ``[start, end)``; hours that they touch count whole.
    """
    found = {}
    for (number,), blocks in index.sort("block").partition_by("topic_partition", as_dict=True).items():
        held = blocks.filter((_within(blocks["events"], spans) + _within(blocks["dead_letters"], spans)) > 0)
        if held.height:
            start, end = held["begin"][0], held["end"][-1]
            origins = pl.element().is_between(start, end, closed="left")
            repairs = blocks.filter(pl.col("repairs").list.eval(origins).list.any())
            found[int(number)] = (start, max(end, *repairs["end"].to_list(), end))
    return found


def counted(index: pl.DataFrame, span: tuple[int, int]) -> tuple[int, int]:
    """Events that happened in a time of whole hours (ms), and dead letters sent in it."""
    return int(_within(index["events"], [span]).sum()), int(_within(index["dead_letters"], [span]).sum())


def latest_ms(index: pl.DataFrame, spans: Sequence[tuple[int, int]]) -> int:
    """The greatest lateness of an event of some times, in ms; 0 where there is none."""
    entries = index.explode("latest").filter(pl.col("latest").is_not_null()).select("latest").unnest("latest")
    chosen: list[int] = entries.filter(_inside(pl.col("key"), spans))["value"].to_list()
    return max([0, *chosen])


def _within(counts: pl.Series, spans: Sequence[tuple[int, int]]) -> pl.Series:
    """For each list the sum of the values whose hour lies in the spans."""
    entry = pl.element().struct
    taken = pl.when(_inside(entry.field("key"), spans)).then(entry.field("value")).otherwise(0)
    return counts.to_frame("n").select(pl.col("n").list.eval(taken).list.sum().fill_null(0))["n"]


def _inside(hour: pl.Expr, spans: Sequence[tuple[int, int]]) -> pl.Expr:
    """Whether an hour since the epoch touches one of the spans (ms)."""
    hours = [(start // HOUR_MS, -(-end // HOUR_MS)) for start, end in spans]
    return pl.any_horizontal([hour.is_between(*each, closed="left") for each in hours])
