"""The merge: partial states of many chunks become the whole states of slices, and the panes that publish them.

Keyed state holds what was folded, as a list of Arrow batches that is appended to and now and then rewritten as one.
What is merged already stays in memory as well, so that a bundle costs a few columnar operations per group, however many
keys it touched, and the state is read back only after a failure or a move. A token in the state tells whether the
memory is of the same history. Of sessions state and memory hold the same instants, merged only where a bundle touches
their session keys and when the state is rewritten; what is published are the rows that a bundle changes. See
`speed_layer.sessions`.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import apache_beam as beam
import msgspec
import polars as pl
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from metrics.catalog import Catalog
from metrics.fold import Group, groups, merge_states
from metrics.window import milliseconds
from speed_layer.cardinality import Limits, alarms
from speed_layer.chains import chains_of
from speed_layer.memory import Memory, memory_of
from speed_layer.panes import PaneBatch, panes
from speed_layer.partials import Element, Partial, Receipt, decode, from_ipc, to_batches
from speed_layer.sessions import (
    BLOCK_MS,
    beyond,
    merge_instants,
    published_sessions,
    together,
    unsettled,
)

KEEP_MARGIN = timedelta(days=1)
"""How much longer than lateness a state is kept after its last event; that of slices in processing time.

A state that were cleared when the watermark passes would be gone when the log goes back in time, as it does when an
older file is ingested. Such events count: what is late is decided by each record alone.
That of sessions goes by event time and holds what goes back in time by other means: see `sessions.arrivals`.
"""

_WORTH_DROPPING = 4
"""Settled instants are dropped once they may be one in so many: dropping rewrites the state."""

_REWRITE_AFTER = 24
"""Appended batches after which a key's state is rewritten as one."""

_INSTANTS_PER_BATCH = 1000
"""What a batch of instants must hold on average, so that its state is not rewritten: most instants never change."""


class Meta(msgspec.Struct, array_like=True):
    """What is known of a key besides its states.

    Attributes:
        token: Changes with every bundle; tells whether a memory is of the same history.
        batches: Number of Arrow batches in the state; a large frame that was written as several counts as one.
        open: Starts of slices that have not had their on-time pane, in ms.
        closed: Starts of slices that have.
        held: Of sessions, by block of event time and topic partition that its events came from: where the watermark
            must be for its instants to go, in ms.
        marks: Of sessions, by topic partition: its watermark after its last chunk with events of this key, in ms.
        reached: Of sessions, what the watermark is known to have passed, in ms.
    """

    token: bytes
    batches: int
    open: list[int]
    closed: list[int]
    held: dict[int, dict[int, int]] = {}
    marks: dict[int, int] = {}
    reached: int = 0

    def settled(self) -> list[int]:
        """Blocks that are held no more: the watermark has passed them, and so have those partitions by themselves.

        A watermark that runs ahead of a partition, as it may when a job starts, must not cut its sessions in two.
        """
        passed = {partition: min(mark, self.reached) for partition, mark in self.marks.items()}
        return [block for block, until in self.held.items() if all(at <= passed[p] for p, at in until.items())]


_META = msgspec.msgpack.Decoder(Meta)
_COUNTS = msgspec.msgpack.Decoder(dict[int, list[int]])
_pack = msgspec.msgpack.encode


class MergeIntoPanes(beam.PTransform):
    """Elements in, a `PaneBatch` per bundle out.

    An early pane per bundle holds the rows that changed. When the watermark passes the end of a slice, an on-time pane
    holds all its rows; what comes later is in late panes. Rows are always whole states of their slice. Sessions have
    only early panes.
    """

    def __init__(self, job: str, catalog: Catalog, limits: Limits = Limits()) -> None:  # noqa: B008 - it is frozen
        super().__init__()
        self._job = job
        self._catalog = catalog
        self._limits = limits

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Applies the transform."""
        merge = MergeStates(self._job, self._catalog, self._limits)
        return pcoll | "Merge" >> beam.ParDo(merge).with_input_types(tuple[str, bytes])


class MergeStates(beam.DoFn):
    """The keyed, stateful part of `MergeIntoPanes`."""

    BATCHES = BagStateSpec("batches", BytesCoder())
    META = ReadModifyWriteStateSpec("meta", BytesCoder())
    PANE = TimerSpec("pane", TimeDomain.WATERMARK)
    CLEAR = TimerSpec("clear", TimeDomain.REAL_TIME)

    def __init__(self, job: str, catalog: Catalog, limits: Limits = Limits()) -> None:  # noqa: B008 - it is frozen
        self._job = job
        self._catalog = catalog
        self._limits = limits
        self._keep = catalog.out_of_orderness + catalog.allowed_lateness + KEEP_MARGIN
        self._groups: dict[str, Group] = {}
        self._bundle = _Bundle()

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline."""
        self._groups = {group.id: group for group in groups(self._catalog)}

    def start_bundle(self) -> None:
        """Forgets a bundle that failed."""
        self._bundle = _Bundle()

    def process(
        self,
        element: Element,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        meta: Any = beam.DoFn.StateParam(META),  # noqa: ANN401, B008
        pane: Any = beam.DoFn.TimerParam(PANE),  # noqa: ANN401, B008
        clear: Any = beam.DoFn.TimerParam(CLEAR),  # noqa: ANN401, B008
    ) -> None:
        """Takes an element into the state and the bundle; the bundle's end merges it."""
        key, value = element
        partial = decode(value)
        self._bundle.receipts[partial.receipt] += 1
        name = key.partition("|")[0]
        if name == "ledger":
            self._count(partial.receipt.topic_partition, partial.payload, meta)
        elif name != "beat":
            group = self._groups[name]
            self._append(group, key, partial.payload, batches, meta)
            now = self._bundle.metas[key]
            if group.session:
                self._hold(group.session.gap_ms, partial, now, pane)
                self._release(group, key, now, batches)
            else:
                self._open(group, self._bundle.added[key][-1], now, pane)
                self._keep_on(clear)
            meta.write(_pack(now))

    @on_timer(PANE)
    def on_pane(
        self,
        key: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        meta: Any = beam.DoFn.StateParam(META),  # noqa: ANN401, B008
    ) -> None:
        """The watermark has passed the end of a slice, whose rows are due, or that of what a block was held for."""
        group = self._groups[key.partition("|")[0]]
        now = self._known(key, batches, meta)
        if now is None:
            return
        reached = timestamp.micros // 1000
        if group.session:
            now.reached = max(now.reached, reached)
            self._bundle.due[key].add(reached)
            self._release(group, key, now, batches)
            if now.batches:
                meta.write(_pack(now))
            else:
                meta.clear()
                self._bundle.cleared.add(key)
            return
        due = [start for start in now.open if start + group.slice_width_ms <= reached]
        if not due:  # a timer that fired before was of a later slice
            return
        now.open = [start for start in now.open if start + group.slice_width_ms > reached]
        now.closed += due
        self._bundle.due[key].update(due)
        meta.write(_pack(now))

    @on_timer(CLEAR)
    def on_clear(
        self,
        key: str = beam.DoFn.KeyParam,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        meta: Any = beam.DoFn.StateParam(META),  # noqa: ANN401, B008
        clear: Any = beam.DoFn.TimerParam(CLEAR),  # noqa: ANN401, B008
    ) -> None:
        """The state goes, unless the log has stood still so that slices still await their on-time pane."""
        if (packed := meta.read()) and _META.decode(packed).open:
            self._keep_on(clear)
            return
        batches.clear()
        meta.clear()
        self._bundle.cleared.add(key)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Merges what the bundle took in and puts out its panes."""
        bundle, memory = self._bundle, memory_of(self._job, self._limits.memory_bytes)
        batch = PaneBatch(receipts=dict(bundle.receipts), ledger=bundle.ledger_rows())
        by_group: dict[str, list[str]] = defaultdict(list)
        for key in {**bundle.added, **bundle.due}:
            by_group[key.partition("|")[0]].append(key)
        for name, keys in by_group.items():
            bundle.merge(self._groups[name], keys, memory, batch, self._limits)
        for key in bundle.cleared:
            for name in (key, *(f"{key}|{metric.name}" for metric in self._groups[key.partition("|")[0]].metrics)):
                memory.drop(name)
        self._bundle = _Bundle()
        if batch.receipts or batch.panes:
            yield WindowedValue(batch, GlobalWindow().max_timestamp(), [GlobalWindow()])

    def _known(self, key: str, batches: Any, meta: Any) -> Meta | None:  # noqa: ANN401
        """The key's meta, with its merged states in the bundle; None if the key has no state."""
        bundle = self._bundle
        if key in bundle.metas:
            return bundle.metas[key]
        packed = meta.read()
        if packed is None:
            return None
        now = _META.decode(packed)
        frame = memory_of(self._job, self._limits.memory_bytes).get(key, now.token)
        if frame is None:
            group = self._groups[key.partition("|")[0]]
            frames = [from_ipc(batch) for batch in batches.read()]
            frame = together(frames) if group.session else merge_states(group, pl.concat(frames))
        bundle.bases[key] = frame
        bundle.formers[key] = now.token
        bundle.metas[key] = now
        now.token = secrets.token_bytes(8)
        return now

    def _append(self, group: Group, key: str, payload: bytes, batches: Any, meta: Any) -> None:  # noqa: ANN401
        bundle = self._bundle
        now = self._known(key, batches, meta)
        if now is None:
            now = bundle.metas[key] = Meta(secrets.token_bytes(8), 0, [], [])
        elif key in bundle.cleared:
            for frame in [*([bundle.bases[key]] if key in bundle.bases else []), *bundle.added.get(key, ())]:
                for batch in to_batches(frame):
                    batches.add(batch)
        elif key not in bundle.added and now.batches >= self._most_batches(group, key):
            if group.session:
                bundle.bases[key] = merge_instants(group, [bundle.bases[key]])
            batches.clear()
            for batch in to_batches(bundle.bases[key]):
                batches.add(batch)
            now.batches = 1
        bundle.cleared.discard(key)
        batches.add(payload)
        now.batches += 1
        bundle.added[key].append(from_ipc(payload))

    def _most_batches(self, group: Group, key: str) -> int:
        if not group.session:
            return _REWRITE_AFTER
        return max(_REWRITE_AFTER, self._bundle.bases[key].height // _INSTANTS_PER_BATCH)

    def _open(self, group: Group, states: pl.DataFrame, now: Meta, pane: Any) -> None:  # noqa: ANN401
        """Sets timers for the ends of slices that are new."""
        fresh = set(states["slice_start"].unique()).difference(now.open, now.closed)
        now.open += fresh
        for start in fresh:
            end = Timestamp(micros=(start + group.slice_width_ms) * 1000)
            pane.set(end, dynamic_timer_tag=str(start))

    def _keep_on(self, clear: Any) -> None:  # noqa: ANN401
        clear.set(Timestamp.now() + Duration(seconds=self._keep.total_seconds()))

    def _hold(self, gap_ms: int, partial: Partial, now: Meta, pane: Any) -> None:  # noqa: ANN401
        """Holds blocks until nothing that comes can be near their events any more."""
        partition, mark = partial.receipt.topic_partition, partial.receipt.watermark
        now.marks[partition] = max(now.marks.get(partition, 0), mark or 0)
        for block, stood in partial.arrived.items():
            until = -(-(stood + gap_ms + milliseconds(self._keep)) // BLOCK_MS) * BLOCK_MS
            held = now.held.setdefault(block, {})
            if until > max(held.values(), default=0):
                pane.set(Timestamp(micros=until * 1000), dynamic_timer_tag=str(block))
            held[partition] = max(until, held.get(partition, 0))

    def _release(self, group: Group, key: str, now: Meta, batches: Any) -> None:  # noqa: ANN401
        """Drops the instants of sessions that are settled, if they may be many."""
        bundle = self._bundle
        settled = now.settled()
        if not settled:
            return
        for block in settled:
            del now.held[block]
        base, added = bundle.bases.get(key), bundle.added.get(key, [])
        if base is not None and _WORTH_DROPPING * beyond(base, now.held) >= max(base.height, 1):
            bundle.formers.pop(key, None)  # the chains are others now
            kept = bundle.bases[key] = unsettled(group, merge_instants(group, [base]), added, now.held)
            batches.clear()
            now.batches = 0
            for frame in [kept, *added]:
                if not frame.is_empty():
                    for batch in to_batches(frame):
                        batches.add(batch)
                    now.batches += 1

    def _count(self, topic_partition: int, payload: bytes, meta: Any) -> None:  # noqa: ANN401
        packed = meta.read()
        counts = _COUNTS.decode(packed) if packed else {}
        for block, more in _COUNTS.decode(payload).items():
            have = counts.get(block, [0] * len(more))
            counts[block] = [a + b for a, b in zip(have, more, strict=True)]
            self._bundle.ledger[topic_partition, block] = counts[block]
        meta.write(_pack(counts))


class _Bundle:
    """What a bundle has taken in so far."""

    def __init__(self) -> None:
        self.receipts: dict[Receipt, int] = defaultdict(int)
        self.ledger: dict[tuple[int, int], list[int]] = {}
        self.metas: dict[str, Meta] = {}
        self.bases: dict[str, pl.DataFrame] = {}
        self.formers: dict[str, bytes] = {}
        self.added: dict[str, list[pl.DataFrame]] = defaultdict(list)
        self.due: dict[str, set[int]] = defaultdict(set)
        self.cleared: set[str] = set()

    def ledger_rows(self) -> list[tuple[int, ...]]:
        return [(*place, *counts) for place, counts in self.ledger.items()]

    def merge(self, group: Group, keys: list[str], memory: Memory, batch: PaneBatch, limits: Limits) -> None:
        """Merges one group's keys in one pass, renews the memory, and adds the rows to publish to the batch."""
        if group.session:
            self._merge_sessions(group, keys, memory, batch)
        else:
            self._merge_slices(group, keys, memory, batch, limits)

    def _merge_sessions(self, group: Group, keys: list[str], memory: Memory, batch: PaneBatch) -> None:
        published: dict[str, list[pl.DataFrame]] = defaultdict(list)
        for key in keys:
            base, added, token = self.bases.get(key), self.added.get(key, []), self.metas[key].token
            for metric in group.metrics:
                name = f"{key}|{metric.name}"
                chains = memory.get(name, self.formers[key]) if key in self.formers else None
                if added:
                    if chains is None and base is not None:
                        chains = chains_of(group, metric, base)
                    rows, chains = published_sessions(group, metric, chains, base, added)
                    if not rows.is_empty():
                        published[metric.name].append(rows)
                if chains is None:
                    memory.drop(name)
                else:
                    memory.put(name, token, chains)
            memory.put(key, token, together([*([] if base is None else [base]), *added]))
        batch.sessions |= {name: pl.concat(rows) for name, rows in published.items()}

    def _merge_slices(self, group: Group, keys: list[str], memory: Memory, batch: PaneBatch, limits: Limits) -> None:
        number = {key: index for index, key in enumerate(keys)}
        added = [_numbered(frame, number[key]) for key in keys for frame in self.added.get(key, ())]
        # most slices of a key are as they were: their rows are set aside before those of the others are looked through
        aside = {key: self._apart(key) for key in keys if key in self.bases}
        bases = [_numbered(asked, number[key]) for key, (asked, _) in aside.items()]
        base = pl.concat(bases) if bases else None
        if added:
            fresh = pl.concat(added)
            touched = fresh.select(*group.keys, "_key").unique()
            old = [] if base is None else [base.join(touched, on=group.keys, how="semi")]
            rest = [] if base is None else [base.join(touched, on=group.keys, how="anti")]
            merged = merge_states(group, pl.concat([fresh, *old]))
            changed = merged.join(touched, on=group.keys, how="left", maintain_order="left")
            whole = pl.concat([changed, *rest])
        elif base is not None:
            whole, changed = base, base.clear()
        else:
            return
        parts = whole.partition_by("_key", as_dict=True, include_key=False)
        for key in keys:
            own = [part for part in (parts.get((number[key],)), aside.get(key, (None, None))[1]) if part is not None]
            memory.put(key, self.metas[key].token, pl.concat(own))
        batch.alarms += alarms(group, whole, changed, limits)
        due = [self.due.get(key, set()) for key in keys]
        closed = [self.metas[key].closed for key in keys]
        if not (rows := panes(whole, changed, due, closed)).is_empty():
            batch.panes[group.id] = rows

    def _apart(self, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of a key's slices that the bundle adds to or that are due, and the other rows."""
        starts = self.due.get(key, set()).union(*(frame["slice_start"].unique() for frame in self.added.get(key, ())))
        base = self.bases[key]
        asked = base["slice_start"].is_in(sorted(starts))
        return base.filter(asked), base.filter(~asked)


def _numbered(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    return frame.with_columns(_key=pl.lit(number, pl.Int32))
