"""Partials: what one chunk of a topic partition becomes, a few elements instead of one per event.

An element is a pair of text key and bytes. Keys gather what is merged together:

- ``<group>|<block>|<bucket>``: states of `SLICES_PER_KEY` neighbouring slices, split by a hash of the dimensions;
- ``<group>|session|<bucket>``: states of the instants of sessions, split by a hash of their key, whatever their time;
- ``ledger|<n>|<topic partition>``: counts of `LEDGER_BLOCKS_PER_KEY` neighbouring blocks of the ledger;
- ``beat|<topic partition>``: nothing but a watermark, from a partition that has nothing new.

The number at the end says which subtask a key is to lead to, modulo their number: see `speed_layer.spread`.

Every element carries the `Receipt` of its chunk; once the elements of a chunk are in the tables, so is the chunk.
"""

import io
from collections.abc import Iterable, Iterator

import msgspec
import polars as pl
import xxhash

from metrics.disposition import Chunk
from metrics.fold import SESSION_KEY, Group, partial_states
from speed_layer.sessions import arrivals, blocks_of

SLICES_PER_KEY = 64
"""Slices whose states share a key: replaying days of history must not make an element of every minute."""

LEDGER_BLOCKS_PER_KEY = 64
LARGEST_BATCH_BYTES = 4 << 20

Element = tuple[str, bytes]
_Part = tuple[str, bytes, dict[int, int]]


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """Which offsets an element came from.

    Attributes:
        topic_partition: The topic partition.
        origin: The first offset that this job read of it.
        start: First offset of the chunk.
        end: Offset after its last one; exclusive.
        parts: Elements that the chunk became; 0 for a beat.
        watermark: The partition's watermark after the chunk, in ms; None before its first record.
    """

    topic_partition: int
    origin: int
    start: int
    end: int
    parts: int
    watermark: int | None


class Partial(msgspec.Struct, frozen=True, array_like=True):
    """The value of an element.

    Attributes:
        receipt: Of its chunk.
        payload: Arrow IPC bytes (a group's states) or packed counts (the ledger).
        arrived: Of sessions, what `sessions.arrivals` says of the blocks that the states lie in.
    """

    receipt: Receipt
    payload: bytes
    arrived: dict[int, int] = {}


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Partial)


def decode(value: bytes) -> Partial:
    """The partial in an element's value."""
    return _DECODER.decode(value)


def elements(
    chunk: Chunk,
    groups: tuple[Group, ...],
    buckets: int,
    receipt: Receipt,
    reached: int | None = None,
    more: Iterable[tuple[str, bytes]] = (),
) -> list[Element]:
    """The elements of a chunk.

    Args:
        chunk: Records with their dispositions.
        groups: What is folded.
        buckets: Into how many elements neighbouring slices may be split.
        receipt: Of the chunk; its `parts` is ignored, as it is only known here.
        reached: The partition's watermark before the chunk, in ms.
        more: Keys and payloads of elements for others than the merge.
    """
    parts: list[_Part] = [(key, payload, {}) for key, payload in (*_ledger(chunk), *more)]
    counted = chunk.counted
    if not counted.is_empty():
        arrived = arrivals(counted, reached) if any(group.session for group in groups) else {}
        for group in groups:
            states = partial_states(group, counted)
            if group.session:
                parts.extend(_instants(group, states, buckets, arrived))
            else:
                parts.extend(_states(group, states, buckets))
    whole = msgspec.structs.replace(receipt, parts=len(parts))
    return [(key, _ENCODER.encode(Partial(whole, payload, more))) for key, payload, more in parts]


def beat(receipt: Receipt) -> Element:
    """An element that only moves the watermark of its partition."""
    whole = msgspec.structs.replace(receipt, parts=0)
    return f"beat|{receipt.topic_partition}", _ENCODER.encode(Partial(whole, b""))


def to_ipc(frame: pl.DataFrame) -> bytes:
    """The frame as an Arrow IPC stream."""
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compression="uncompressed")
    return buffer.getvalue()


def to_batches(frame: pl.DataFrame) -> Iterator[bytes]:
    """The frame as Arrow IPC streams of a few megabytes: Flink needs several times the room of each in its heap."""
    rows = max(1, frame.height * LARGEST_BATCH_BYTES // max(int(frame.estimated_size()), 1))
    yield from map(to_ipc, frame.iter_slices(rows))


def from_ipc(data: bytes) -> pl.DataFrame:
    """The frame in an Arrow IPC stream."""
    return pl.read_ipc_stream(io.BytesIO(data))


def _ledger(chunk: Chunk) -> Iterator[Element]:
    ledger = chunk.ledger
    if ledger.is_empty():
        return
    by_key = ledger.with_columns(_key=pl.col("block") // LEDGER_BLOCKS_PER_KEY)
    for (partition, number), rows in by_key.partition_by("topic_partition", "_key", as_dict=True).items():
        counts = {row[1]: row[2:] for row in rows.drop("_key").rows()}
        yield f"ledger|{number}|{partition}", _ENCODER.encode(counts)


def _instants(group: Group, states: pl.DataFrame, buckets: int, arrived: dict[int, int]) -> Iterator[_Part]:
    keys = states[SESSION_KEY].unique()
    bucket_of = {key: xxhash.xxh32_intdigest(key.encode()) % buckets for key in keys}
    keyed = states.with_columns(_bucket=pl.col(SESSION_KEY).replace_strict(bucket_of, return_dtype=pl.Int64))
    for (bucket,), rows in keyed.partition_by("_bucket", as_dict=True, include_key=False).items():
        own = {block: arrived[block] for block in blocks_of(rows)}
        yield f"{group.id}|session|{bucket}", to_ipc(rows), own


def _states(group: Group, states: pl.DataFrame, buckets: int) -> Iterator[_Part]:
    block = (pl.col("slice_start") // (group.slice_width_ms * SLICES_PER_KEY)).alias("_block")
    if group.by:
        texts = states.select(pl.concat_str(group.by, separator="\x1f")).to_series().to_list()
        hashed = pl.Series(
            "_bucket", [xxhash.xxh32_intdigest(text.encode()) % buckets for text in texts], dtype=pl.Int64
        )
    else:
        hashed = pl.Series("_bucket", [0], dtype=pl.Int64).new_from_index(0, states.height)
    keyed = states.with_columns(block, hashed)
    for (number, bucket), rows in keyed.partition_by("_block", "_bucket", as_dict=True, include_key=False).items():
        yield f"{group.id}|{number}|{bucket}", to_ipc(rows), {}
