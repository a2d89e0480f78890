"""How large the merge's state may get: a closed form of what `speed_layer.merge` holds.

Of each block of slices and bucket of dimension values it holds one batch of merged rows, and less than `REWRITE_AFTER`
batches that were appended since that was written. So the rows that it holds are at most

    merged    of each slice its distinct dimension values
    appended  what the last `REWRITE_AFTER - 1` chunks became, and never more than events were folded

The watermark adds nothing to it and takes nothing away: a slice is held for the lateness and `KEEP_MARGIN` after its
last event. As buckets are a hash, a chunk is taken to be dealt out evenly.
"""

from dataclasses import dataclass

import polars as pl

from metrics.fold import Group, state_schema
from speed_layer.log import _STEP as STEP
from speed_layer.log import LARGEST_CHUNK
from speed_layer.merge import _REWRITE_AFTER as REWRITE_AFTER
from speed_layer.partials import SLICES_PER_KEY

LARGEST_READ = LARGEST_CHUNK + STEP - 1
"""Records in a chunk: it is full when a step takes it to `LARGEST_CHUNK` or beyond."""

_VIEW_BYTES = 16
"""A text of up to 12 bytes in Arrow; a longer one lies beside it."""

_NUMBER_BYTES = 8
_BATCH_BYTES = 1024
"""Schema, headers and padding of an Arrow batch of few columns, at most."""


@dataclass(frozen=True)
class Shape:
    """Events that come in the order of their times, dimension values in turn.

    Attributes:
        events: How many.
        keys: Distinct dimension values of at most 12 bytes.
        slices: Over which the events are spread evenly, from the beginning of a block of slices on.
        partitions: Of the topic, over which they are spread evenly too.
        chunk: The most records of a chunk.
    """

    events: int
    keys: int
    slices: int
    partitions: int
    chunk: int = LARGEST_READ

    @property
    def rows(self) -> int:
        """Rows of states: distinct pairs of slice and dimension value."""
        return self.slices * min(self.keys, self.events // self.slices)

    @property
    def rows_of_chunk(self) -> int:
        """The most rows that a chunk becomes."""
        read = min(self.chunk, -(-self.events // self.partitions))
        touched = min(self.slices, -(-read * self.partitions * self.slices // self.events) + 1)
        return min(read, touched * self.keys)


def row_bytes(group: Group) -> int:
    """Bytes of a row in a batch, if its texts are short."""
    return sum(_VIEW_BYTES if kind == pl.String else _NUMBER_BYTES for kind in state_schema(group).values())


def state_bound(shape: Shape, group: Group, buckets: int) -> int:
    """The most bytes of batches that the merge holds of a group, whose state columns are numbers.

    Args:
        shape: Of the events.
        group: What is folded of them.
        buckets: Into which dimension values are dealt.
    """
    appended = min(shape.events, (REWRITE_AFTER - 1) * shape.rows_of_chunk)
    keys = -(-shape.slices // SLICES_PER_KEY) * buckets
    return (shape.rows + appended) * row_bytes(group) + keys * REWRITE_AFTER * _BATCH_BYTES
