"""Merged states that a worker process keeps beside Flink's state, so that it need not read them back."""

from collections import OrderedDict
from threading import Lock

import polars as pl

LARGEST_MEMORY_BYTES = 512 << 20

_MOST_CHUNKS = 64
"""Parts of a frame that grows by one with each bundle: of thousands, every operation goes through each."""


class Memory:
    """The last used states by key, each with the token of the history it is of.

    Args:
        largest_bytes: Beyond this the longest unused are dropped; they are read from Flink's state when asked for.
    """

    def __init__(self, largest_bytes: int = LARGEST_MEMORY_BYTES) -> None:
        self._largest = largest_bytes
        self._entries: OrderedDict[str, tuple[bytes, pl.DataFrame, int]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def get(self, key: str, token: bytes) -> pl.DataFrame | None:
        """The key's states, if they are of the history that the token names."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[0] != token:
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def put(self, key: str, token: bytes, frame: pl.DataFrame) -> None:
        """Keeps a key's states."""
        if frame.n_chunks() > _MOST_CHUNKS:
            frame = frame.rechunk()
        size = int(frame.estimated_size()) + 1000
        with self._lock:
            self._discard(key)
            self._entries[key] = (token, frame, size)
            self._size += size
            while self._size > self._largest:
                self._discard(next(iter(self._entries)))

    def drop(self, key: str) -> None:
        """Forgets a key."""
        with self._lock:
            self._discard(key)

    def _discard(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry[2]


_MEMORIES: OrderedDict[str, Memory] = OrderedDict()
_JOBS_AT_ONCE = 2


def memory_of(job: str, largest_bytes: int = LARGEST_MEMORY_BYTES) -> Memory:
    """This process's memory for a job, made with the size that is asked for first; those of older jobs are let go."""
    memory = _MEMORIES.get(job)
    if memory is None:
        memory = _MEMORIES.setdefault(job, Memory(largest_bytes))
        while len(_MEMORIES) > _JOBS_AT_ONCE:
            _MEMORIES.popitem(last=False)
    return memory
