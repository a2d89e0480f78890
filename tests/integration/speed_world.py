"""The speed layer without Beam and Kafka, at the mercy of chance: chunks, bundles, workers, checkpoints and kills.

Reading, judging, folding, merging, writing and the frontier are the real ones, and so are the tables. Played is what
Flink does: channels that keep their order, watermarks, timers, and a state that goes back to the last checkpoint.
"""

import copy
import random
import sys
import zlib
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
from apache_beam.utils.timestamp import Timestamp
from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import PartitionReader
from metrics.fold import groups
from metrics.window import milliseconds
from serving import schema
from speed_layer import partials
from speed_layer.cardinality import Limits
from speed_layer.displaced import Sweeper
from speed_layer.merge import MergeStates
from speed_layer.partials import Receipt
from speed_layer.publish import Progress, TrackProgress, WritePanes, WriteProgress, progress_ddl
from speed_layer.published import Goal, is_drained
from speed_layer.tables import TableWriter

sys.path.append(str(Path(__file__).parents[1] / "unit" / "speed_layer"))

from merge_harness import Cell, Timers, Value

START = 1_780_000_000_000 // 3_600_000 * 3_600_000
HISTORY_MS = 2_000_000
KINDS = ("view", "cart", "buy", "visit")
FROM_CHECKPOINT, FROM_THE_START, SECOND_COPY = "from a checkpoint", "from the start", "second copy"
_JOBS = count()


class Killed(Exception):
    """A process died."""


@dataclass(frozen=True)
class Written:
    """The records of a topic partition, the first of them at offset 0."""

    times: list[int]
    values: list[bytes | None]


def written(catalog: Catalog, events: int, seed: int) -> list[Written]:
    """A log with every disposition, and with events that are repeated within the horizon and beyond it."""
    partitions = catalog.topic_partitions
    return [_partition(catalog, events // partitions, number, seed) for number in range(partitions)]


def _partition(catalog: Catalog, rows: int, number: int, seed: int) -> Written:
    draw = np.random.default_rng([seed, number])
    sent, place = START + np.arange(rows) * (HISTORY_MS // rows), np.arange(rows)
    behind = draw.integers(0, 3_000, rows)
    for share, least, most in ((0.02, 0, 60_000), (0.002, 75_000, 500_000), (0.0005, -900_000, -600_000)):
        behind = np.where(draw.random(rows) < share, draw.integers(least, most, rows), behind)
    chance, happened = draw.random(rows), sent - behind
    repeated = np.maximum(place - draw.integers(1, 2 * catalog.dedup_horizon, rows), 0)
    origin = np.where(chance < 0.02, repeated, place)
    cents = draw.integers(0, 1_000_000, rows)[origin]
    bodies = pl.DataFrame(
        {
            "id": [f"{number}-{each}" for each in origin.tolist()],
            "ts": np.where(chance < 0.018, happened[origin], happened),  # the rest of them are conflicts
            "user": [f"u{each}" for each in draw.integers(0, max(rows // 170, 1), rows)[origin].tolist()],
            "kind": np.array(KINDS)[draw.choice(len(KINDS), rows, p=[0.6, 0.25, 0.1, 0.05])[origin]],
            "amount": [f"{each // 100}.{each % 100:02d}" for each in cents.tolist()],
        }
    )
    values = bodies.select(pl.struct(pl.all()).struct.json_encode().cast(pl.Binary)).to_series().to_list()
    for broken in draw.choice(rows, rows // 500, replace=False).tolist():
        values[broken] = random.Random(broken).choice([None, b"\xff{", values[broken][:-1]])
    return Written(sent.tolist(), values)


class Tables:
    """A source's tables, what its side outputs hold, and the writer's death.

    Attributes:
        client: Of the source's database.
        exceptions: By topic partition and offset, what the exceptions table is told.
        inserts_left: After so many inserts the next one kills the writer; None: it lives.
        stored: Whether that one is stored, its answer lost.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        database = settings.database(catalog.source)
        schema.apply(connect(settings), catalog, database)
        self.client: Client = connect(settings, database)
        self.client.command(progress_ddl(database))
        self.exceptions: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.inserts_left: int | None = None
        self.stored = False
        self._lock = Lock()

    def strikes(self) -> bool:
        """Whether the insert that begins is the one."""
        with self._lock:
            if self.inserts_left is not None:
                self.inserts_left -= 1
                if self.inserts_left < 0:
                    self.inserts_left = None
                    return True
            return False

    def note(self, exceptions: pl.DataFrame) -> None:
        """Takes exceptions; one that was told before was the same."""
        for row in exceptions.iter_rows():
            assert self.exceptions.setdefault(row[:2], row) == row


class _Writer(TableWriter):
    """Writes until its process dies."""

    def __init__(self, settings: Settings, catalog: Catalog, tables: Tables) -> None:
        super().__init__(settings, catalog)
        self._fate, self._dead = tables, False

    def insert(self, table: str, rows: pl.DataFrame, *, repeat: bool = False) -> None:
        if self._dead:
            raise Killed
        dies = not rows.is_empty() and self._fate.strikes()
        self._dead |= dies
        if not dies or self._fate.stored:
            super().insert(table, rows, repeat=repeat)
        if dies:
            raise Killed


@dataclass
class _State:
    """What a checkpoint holds.

    Attributes:
        places: By topic partition, the offset to read next and the watermark before it.
        channels: By topic partition and worker, elements and watermarks that the worker has not taken yet.
        cells: Keyed state and timers of the merge.
        frontiers: State of `TrackProgress`.
        marks: By worker and topic partition, the last watermark taken.
    """

    places: dict[int, tuple[int, int | None]]
    channels: dict[tuple[int, int], deque[partials.Element | int]] = field(default_factory=lambda: defaultdict(deque))
    cells: dict[str, Cell] = field(default_factory=dict)
    frontiers: dict[int, Value] = field(default_factory=lambda: defaultdict(Value))
    marks: dict[tuple[int, int], int] = field(default_factory=dict)


class Attempt:
    """A job over a log, one step after another, until `over`.

    Args:
        settings: Where ClickHouse is.
        catalog: The source.
        log: Its topic partitions.
        tables: Where it publishes.
        chance: Decides everything.
        sizes: The least and the greatest chunk.
        workers: How many share the keys of the merge.
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        settings: Settings,
        catalog: Catalog,
        log: Sequence[Written],
        tables: Tables,
        chance: random.Random,
        sizes: tuple[int, int],
        workers: int,
    ) -> None:
        self._catalog, self._log, self._tables, self._chance, self._sizes = catalog, log, tables, chance, sizes
        self._groups = groups(catalog)
        self._workers = workers
        self._state = _State({number: (0, None) for number in range(len(log))})
        self._checkpoint = copy.deepcopy(self._state)
        self._settings = settings
        self._writer = WritePanes(settings, catalog)
        self._progress = WriteProgress(settings, catalog)
        self._readers: dict[int, PartitionReader] = {}
        self._merges: list[MergeStates] = []
        self.read = 0
        self._start_workers()

    @property
    def over(self) -> bool:
        """Whether everything is read and nothing is on its way."""
        return self._all_read and not any(self._state.channels.values())

    @property
    def _all_read(self) -> bool:
        return all(at == len(self._log[number].times) for number, (at, _) in self._state.places.items())

    def step(self) -> None:
        """One turn of a reader or one bundle of a worker, perhaps a checkpoint."""
        busy = [channel for channel, waiting in self._state.channels.items() if waiting]
        if self._chance.random() < 0.05:
            self._checkpoint = copy.deepcopy(self._state)
        if not self._all_read and (not busy or self._chance.random() < 0.4):
            self._turn()
        else:
            self._bundle(self._chance.choice(busy)[1])

    def die(self) -> None:
        """What its process had begun beside the insert that killed it ends as well."""
        self._writer._pool.shutdown()

    def fall_back(self) -> None:
        """Every process died: back to the last checkpoint, and nothing is remembered besides."""
        self._state = copy.deepcopy(self._checkpoint)
        self._start_workers()

    def _start_workers(self) -> None:
        self._readers = {}
        for each in (self._writer, self._progress):
            each.setup()
            each._tables = _Writer(self._settings, self._catalog, self._tables)
        memory = Limits(memory_bytes=self._chance.choice([0, 1 << 20, 512 << 20]), buckets=2 * self._workers)
        self._merges = [MergeStates(f"world {next(_JOBS)}", self._catalog, memory) for _ in range(self._workers)]
        for merge in self._merges:
            merge.setup()

    def _reader(self, number: int, offset: int) -> PartitionReader:
        """As `PartitionLog.seek` does it: a reader remembers the horizon before the place at which it begins."""
        if number not in self._readers:
            reader = self._readers[number] = PartitionReader(self._catalog)
            at = max(0, offset - self._catalog.dedup_horizon)
            while at < offset:
                end = min(offset, at + self._size())
                reader.remember(number, *self._records(number, at, end))
                at = end
        return self._readers[number]

    def _records(self, number: int, start: int, end: int) -> tuple[range, list[int], list[bytes | None]]:
        log = self._log[number]
        return range(start, end), log.times[start:end], log.values[start:end]

    def _size(self) -> int:
        least, most = self._sizes
        return round(least * (most / least) ** self._chance.random())

    def _turn(self) -> None:
        left = [number for number, (at, _) in self._state.places.items() if at < len(self._log[number].times)]
        number = self._chance.choice(left)
        start, before = self._state.places[number]
        end = min(start + self._size(), len(self._log[number].times))
        reader = self._reader(number, start)
        records = self._records(number, start, end)
        chunk = reader.read(number, *records)
        assert reader.remembered <= 2 * (self._catalog.dedup_horizon + self._sizes[1])
        self._tables.note(chunk.exceptions)
        reached = max(records[1]) - milliseconds(self._catalog.out_of_orderness)
        after = max(reached, before if before is not None else reached)
        receipt = Receipt(number, 0, start, end, 0, after)
        for element in partials.elements(chunk, self._groups, 2 * self._workers, receipt, before):
            self._state.channels[number, self._worker(element[0])].append(element)
        self.read += end - start
        self._state.places[number] = (end, after)
        if before is not None:
            self._mark(number, before)
        if self._all_read:  # partitions at their head follow the greatest watermark
            greatest = max(mark for _, mark in self._state.places.values() if mark is not None)
            for each in self._state.places:
                self._mark(each, greatest)
                beat = partials.beat(
                    Receipt(each, 0, self._state.places[each][0], self._state.places[each][0], 0, greatest)
                )
                self._state.channels[each, 0].append(beat)

    def _worker(self, key: str) -> int:
        return zlib.crc32(key.encode()) % self._workers

    def _mark(self, number: int, watermark: int) -> None:
        for worker in range(self._workers):
            self._state.channels[number, worker].append(watermark)

    def _bundle(self, worker: int) -> None:
        """A worker takes some of what waits for it; a watermark that moves ends the bundle and fires timers."""
        state, merge = self._state, self._merges[worker]
        merge.start_bundle()
        for _ in range(self._chance.randint(1, 60)):
            waiting = [n for n in state.places if state.channels[n, worker]]
            if not waiting:
                break
            number = self._chance.choice(waiting)
            item = state.channels[number, worker].popleft()
            if isinstance(item, tuple):
                cell = state.cells.setdefault(item[0], Cell())
                merge.process(item, cell.batches, cell.meta, cell.pane, cell.clear)
            elif self._moves(worker, number, item):
                break
        self._finish(merge)
        marks = [state.marks.get((worker, number)) for number in state.places]
        if None not in marks:
            self._fire(worker, min(marks))

    def _moves(self, worker: int, number: int, mark: int) -> bool:
        before = self._state.marks.get((worker, number))
        self._state.marks[worker, number] = max(mark, before if before is not None else mark)
        return before is None or mark > before

    def _fire(self, worker: int, watermark: int) -> None:
        due = [
            (at, key, tag)
            for key, cell in self._state.cells.items()
            if self._worker(key) == worker
            for tag, at in cell.pane.pending.items()
            if at <= watermark
        ]
        if not due:
            return
        merge = self._merges[worker]
        merge.start_bundle()
        for at, key, tag in sorted(due):
            cell = self._state.cells[key]
            del cell.pane.pending[tag]
            merge.on_pane(key, Timestamp(micros=at * 1000), cell.batches, cell.meta)
        self._finish(merge)

    def _finish(self, merge: MergeStates) -> None:
        track = TrackProgress()
        track.start_bundle()
        for windowed in merge.finish_bundle():
            for number, packed in self._writer.process(windowed.value):
                track.process((number, packed), self._state.frontiers[number], Timers())
                track.on_tell(number, self._state.frontiers[number])
        for windowed in track.finish_bundle():
            reached: list[Progress] = windowed.value
            if self._chance.random() < 0.1 or self._all_read:
                self._progress.process(reached)


def settle(settings: Settings, catalog: Catalog, log: Sequence[Written], tables: Tables) -> bool:
    """What `lockstep speed --until-drained` waits for: all published, slices on time, displaced sessions taken back."""
    greatest = max(part.times[-1] for part in log) - milliseconds(catalog.out_of_orderness)
    goal = Goal({number: len(part.times) for number, part in enumerate(log)}, greatest)
    Sweeper(tables.client, catalog).sweep()
    return is_drained(tables.client, catalog, goal)
