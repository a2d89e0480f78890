"""Runs `MergeStates` without Beam: keyed state and timers as a runner has them, and what a table then holds."""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import polars as pl
from apache_beam.utils.timestamp import Timestamp

from metrics.catalog import Catalog
from metrics.disposition import PartitionReader
from metrics.fold import Group, groups
from speed_layer import partials
from speed_layer.cardinality import Limits
from speed_layer.memory import memory_of
from speed_layer.merge import MergeStates
from speed_layer.panes import PaneBatch
from speed_layer.partials import Receipt

_JOBS = count()
Row = dict[str, Any]


class _Bag:
    def __init__(self) -> None:
        self.items: list[bytes] = []

    def add(self, item: bytes) -> None:
        self.items.append(item)

    def read(self) -> list[bytes]:
        return list(self.items)

    def clear(self) -> None:
        self.items.clear()


class Value:
    def __init__(self) -> None:
        self.item: bytes | None = None

    def write(self, item: bytes) -> None:
        self.item = item

    def read(self) -> bytes | None:
        return self.item

    def clear(self) -> None:
        self.item = None


class Timers:
    def __init__(self) -> None:
        self.pending: dict[str, int] = {}

    def set(self, moment: Timestamp, dynamic_timer_tag: str = "") -> None:
        self.pending[dynamic_timer_tag] = moment.micros // 1000


@dataclass
class Cell:
    batches: _Bag = field(default_factory=_Bag)
    meta: Value = field(default_factory=Value)
    pane: Timers = field(default_factory=Timers)
    clear: Timers = field(default_factory=Timers)


class Job:
    """One job over one catalog; `bundle` takes records, `advance` moves the watermark.

    Attributes:
        tables: By metric, the rows of its table by their key: of rows with one key that of the greatest version.
    """

    def __init__(self, catalog: Catalog, buckets: int = 2, limits: Limits | None = None) -> None:
        self.catalog = catalog
        self.groups: tuple[Group, ...] = groups(catalog)
        self.cells: dict[str, Cell] = {}
        self.tables: dict[str, dict[tuple[Any, ...], Row]] = {metric.name: {} for metric in catalog.metrics}
        self._buckets = buckets
        self._limits = limits or Limits(buckets=buckets)
        self._reader = PartitionReader(catalog)
        self._offset = 0
        self._greatest: int | None = None
        self._merge = self._fresh()

    def _fresh(self) -> MergeStates:
        merge = MergeStates(f"harness {next(_JOBS)}", self.catalog, self._limits)
        merge.setup()
        return merge

    def restart(self) -> None:
        """Loses the worker's memory, not the state."""
        self._merge = self._fresh()

    def bundle(self, events: Iterable[Row], *, fails_first: bool = False) -> PaneBatch:
        """Reads events, each with the record time `sent` or that of its `ts`, as one chunk and one bundle."""
        rows = list(events)
        offsets = list(range(self._offset, self._offset + len(rows)))
        self._offset += len(rows)
        times = [row.get("sent", row["ts"]) for row in rows]
        values = [json.dumps({"id": str(o)} | row).encode() for o, row in zip(offsets, rows, strict=True)]
        chunk = self._reader.read(0, offsets, times, values)
        before = self._greatest
        self._greatest = max([*times, *([] if before is None else [before])])
        receipt = Receipt(0, 0, offsets[0], offsets[-1] + 1, 0, self._greatest)
        elements = partials.elements(chunk, self.groups, self._buckets, receipt, before)
        if fails_first:
            cells = copy.deepcopy(self.cells)
            self._process(elements)
            list(self._merge.finish_bundle())
            self.cells = cells
        self._process(elements)
        return self._finish()

    def advance(self, watermark: int) -> None:
        """Fires the timers up to a watermark in the order of their times, in one bundle."""
        self._merge.start_bundle()
        due = [
            (at, key, tag)
            for key, cell in self.cells.items()
            for tag, at in cell.pane.pending.items()
            if at <= watermark
        ]
        for at, key, tag in sorted(due):
            cell = self.cells[key]
            del cell.pane.pending[tag]
            self._merge.on_pane(key, Timestamp(micros=at * 1000), cell.batches, cell.meta)
        self._finish()

    def lapse(self) -> None:
        """Fires the timers of processing time, in one bundle."""
        self._merge.start_bundle()
        for key, cell in self.cells.items():
            if cell.clear.pending:
                cell.clear.pending.clear()
                self._merge.on_clear(key, cell.batches, cell.meta, cell.clear)
        self._finish()

    @property
    def state_rows(self) -> int:
        """Rows in the state of all keys."""
        return sum(partials.from_ipc(batch).height for cell in self.cells.values() for batch in cell.batches.items)

    @property
    def memory_rows(self) -> int:
        """States that the worker's memory holds."""
        return sum(frame.height for frame in self._memory)

    @property
    def states(self) -> pl.DataFrame:
        """The merged states of a catalog's one group."""
        return pl.concat(self._memory)

    @property
    def _memory(self) -> list[pl.DataFrame]:
        entries = memory_of(self._merge._job)._entries
        # beside the states of a key there are chains of its sessions, by metric
        return [frame for name, (_, frame, _) in entries.items() if name.count("|") == 2]

    def sessions(self, metric: str) -> list[Row]:
        """The rows of a metric's table that are no tombstones, in order."""
        rows = [row for row in self.tables[metric].values() if not row["is_deleted"]]
        return sorted(rows, key=lambda row: (row["session_key"], row["window_start"]))

    def _process(self, elements: list[partials.Element]) -> None:
        self._merge.start_bundle()
        for key, value in elements:
            cell = self.cells.setdefault(key, Cell())
            self._merge.process((key, value), cell.batches, cell.meta, cell.pane, cell.clear)

    def _finish(self) -> PaneBatch:
        batches = [windowed.value for windowed in self._merge.finish_bundle()]
        for batch in batches:
            for name, rows in batch.sessions.items():
                self._upsert(name, rows)
        return batches[0] if batches else PaneBatch()

    def _upsert(self, name: str, rows: pl.DataFrame) -> None:
        [group] = [group for group in self.groups if any(metric.name == name for metric in group.metrics)]
        table = self.tables[name]
        for row in rows.iter_rows(named=True):
            key = tuple(row[column] for column in ("window_start", *group.dimensions))
            if key not in table or row["chain_events"] >= table[key]["chain_events"]:
                table[key] = row
