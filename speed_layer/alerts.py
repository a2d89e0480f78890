"""Alerts in the speed layer: keyed state of what was watched lately, judged anew where events arrive.

State is kept by alert and bucket of keys: the watched events of the last `within` and the lateness; of a level, one row
per key for all that is older. Whatever arrives is judged with its neighbours in the log and in time:

- What was sent within the last minute is judged at once: somebody waits for it.
- History, which a job reads topic partition by topic partition at whatever pace, is judged when all partitions have
  been read as far as the record was sent, so that an alert sees what it would have seen then.
- What a former run has published is only remembered: its alerts were raised then.

A chunk's receipt is put out once its alerts are in their topics and in the table.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
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

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.aggregation import PLACE_BITS
from metrics.alert import Alert
from metrics.breach import FOLDED, breaches, folded, key_columns
from metrics.catalog import Catalog
from metrics.window import milliseconds
from speed_layer.alert_sink import AlertSink
from speed_layer.memory import memory_of
from speed_layer.partials import Element, Receipt, decode, from_ipc, to_batches
from speed_layer.published import frontier

FRESH_MS = 60_000
"""What was sent longer ago than this is history."""

_REWRITE_AFTER = 500
_FLUSH_S = 1.0
_REMEMBERED_ELEMENTS = 16
_SHORTEST_KEEP_MS = 60_000

_pack = msgspec.msgpack.encode


class Waiting(msgspec.Struct, array_like=True):
    """History that is not judged yet.

    Attributes:
        sent: The greatest record timestamp, in ms: it is due when all partitions have been read so far.
        first: The least event time, in ms.
        last: The greatest event time, in ms.
        receipt: Of its chunk.
    """

    sent: int
    first: int
    last: int
    receipt: Receipt


class Held(msgspec.Struct, array_like=True):
    """What is known of a bucket besides its rows.

    Attributes:
        token: Changes with every bundle; tells whether a memory is of the same history.
        batches: Number of Arrow batches in the state; a large frame that was written as several counts as one.
        waiting: What is not judged yet.
        firsts: The least event times of the last elements, in ms: what is near them stays, wherever the watermark is.
        prune_at: When old rows are dropped next, in event time; None where nothing is held.
    """

    token: bytes
    batches: int
    waiting: list[Waiting]
    firsts: list[int]
    prune_at: int | None


class Span(msgspec.Struct):
    """What is to be judged of a bucket: breaches from `first` on that events until `last` bear upon, all in ms.

    Attributes:
        sent: Events sent later are left aside; None for none.
        places: Where those events stand in the log, as ranges with an exclusive end; only their keys are judged.
    """

    first: int
    last: int
    sent: int | None
    places: list[tuple[int, int]]


_HELD = msgspec.msgpack.Decoder(Held)


class RaiseAlerts(beam.DoFn):
    """Elements for alerts in; alerts raised; receipts by topic partition out.

    Args:
        job: Names the submission; memories of other submissions are not used.
        settings: Where Kafka and ClickHouse are.
        catalog: The source.
        now_ms: The wall clock.
    """

    BATCHES = BagStateSpec("alert_batches", BytesCoder())
    HELD = ReadModifyWriteStateSpec("alert_held", BytesCoder())
    DUE = TimerSpec("alert_due", TimeDomain.WATERMARK)
    PRUNE = TimerSpec("alert_prune", TimeDomain.WATERMARK)
    FLUSH = TimerSpec("alert_flush", TimeDomain.REAL_TIME)

    def __init__(
        self,
        job: str,
        settings: Settings,
        catalog: Catalog,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._job = job
        self._settings = settings
        self._catalog = catalog
        self._now_ms = now_ms
        self._unordered_ms = milliseconds(catalog.out_of_orderness)
        self._published: dict[int, int] = {}
        self._alerts: dict[str, Alert] = {}
        self._sink: AlertSink | None = None
        self._bundle = _Bundle()

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline, and asks what was published before this worker began."""
        self._alerts = {alert.name: alert for alert in self._catalog.alerts}
        self._sink = AlertSink(self._settings, self._catalog)
        if self._alerts:
            self._sink.prepare()
        client = connect(self._settings, self._settings.database(self._catalog.source))
        self._published = frontier(client, self._catalog)
        client.close()

    def start_bundle(self) -> None:
        """Forgets a bundle that failed."""
        self._bundle = _Bundle()

    def process(
        self,
        element: Element,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: ANN401, B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: ANN401, B008
        prune: Any = beam.DoFn.TimerParam(PRUNE),  # noqa: ANN401, B008
        flush: Any = beam.DoFn.TimerParam(FLUSH),  # noqa: ANN401, B008
    ) -> None:
        """Takes an element into the state; the bundle's end judges it, or a timer if it is history."""
        key, value = element
        partial = decode(value)
        rows = from_ipc(partial.payload)
        now = self._known(key, batches, held) or self._begun(key)
        if now.batches >= _REWRITE_AFTER:
            batches.clear()
            for batch in to_batches(self._bundle.kept(key)):
                batches.add(batch)
            now.batches = 1
        batches.add(partial.payload)
        now.batches += 1
        self._bundle.add(key, rows)
        first, last, *_ = _bounds(rows)
        now.firsts = [*now.firsts, first][-_REMEMBERED_ELEMENTS:]
        receipt = partial.receipt
        fresh = rows.filter(pl.col("place") >= self._places(receipt)[0])
        if fresh.is_empty():
            self._bundle.receipts[receipt] += 1
        else:
            first, last, oldest, newest = _bounds(fresh)
            if oldest >= self._now_ms() - FRESH_MS:
                self._bundle.ask(key, Span(first, last, None, [self._places(receipt)]))
                self._bundle.receipts[receipt] += 1
            else:
                now.waiting.append(Waiting(newest, first, last, receipt))
                due.set(_moment(newest - self._unordered_ms - 1), dynamic_timer_tag=str(newest))
        _soon(flush)
        if now.prune_at is None:
            now.prune_at = last + self._keep_ms(key) + self._slack_ms(key)
            prune.set(_moment(now.prune_at))
        held.write(_pack(now))

    @on_timer(DUE)
    def on_due(
        self,
        key: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: ANN401, B008
        flush: Any = beam.DoFn.TimerParam(FLUSH),  # noqa: ANN401, B008
    ) -> None:
        """All partitions have been read as far as some history was sent."""
        now = self._known(key, batches, held)
        if now is None:
            return
        sent = timestamp.micros // 1000 + self._unordered_ms + 1
        for one in now.waiting:
            if one.sent <= sent:
                self._bundle.ask(key, Span(one.first, one.last, sent, [self._places(one.receipt)]))
                self._bundle.receipts[one.receipt] += 1
        now.waiting = [one for one in now.waiting if one.sent > sent]
        held.write(_pack(now))
        _soon(flush)

    @on_timer(FLUSH)
    def on_flush(self) -> None:
        """Begins a bundle: what a checkpoint put out at the end of another waits in Flink until one begins."""

    @on_timer(PRUNE)
    def on_prune(
        self,
        key: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        batches: Any = beam.DoFn.StateParam(BATCHES),  # noqa: ANN401, B008
        held: Any = beam.DoFn.StateParam(HELD),  # noqa: ANN401, B008
        prune: Any = beam.DoFn.TimerParam(PRUNE),  # noqa: ANN401, B008
    ) -> None:
        """Drops what no event can bear upon any more; a level's key keeps one row."""
        now = self._known(key, batches, held)
        if now is None or not self._bundle.frames[key]:
            return
        reached = timestamp.micros // 1000
        near = [*now.firsts, *(one.first for one in now.waiting)]
        before = min([reached, *near]) - self._keep_ms(key)
        rows = folded(self._alert(key), self._bundle.kept(key), before)
        self._bundle.pruned[key] = [rows]
        batches.clear()
        now.batches = 0
        if not rows.is_empty():
            for batch in to_batches(rows):
                batches.add(batch)
            now.batches = 1
        # Next when a quarter of the rows may go; where rows stay for being near others, the next element says when.
        earlier = rows.filter(pl.col("place") != FOLDED)["event_time"].quantile(0.25, "lower")
        next_at = reached if earlier is None else int(earlier) + self._keep_ms(key) + self._slack_ms(key)
        now.prune_at = next_at if next_at > reached else None
        if now.prune_at is not None:
            prune.set(_moment(now.prune_at))
        held.write(_pack(now))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Raises what is due, then puts out the receipts of what was judged."""
        bundle, memory = self._bundle, memory_of(self._job, self._settings.worker_memory_bytes)
        assert self._sink is not None
        candidates: dict[str, list[pl.DataFrame]] = defaultdict(list)
        for key, span in bundle.spans.items():
            alert = self._alert(key)
            if not (found := judged(alert, bundle.rows(key), span)).is_empty():
                candidates[alert.name].append(found)
        # an alert's keys together: each time asks ClickHouse and writes to it
        for name, frames in candidates.items():
            self._sink.raise_all(self._alerts[name], pl.concat(frames))
        for key, now in bundle.held.items():
            memory.put(key, now.token, bundle.kept(key))
        by_partition: dict[int, list[tuple[Receipt, int]]] = defaultdict(list)
        for receipt, count in bundle.receipts.items():
            by_partition[receipt.topic_partition].append((receipt, count))
        self._bundle = _Bundle()
        for partition, receipts in by_partition.items():
            pair = (partition, _pack(receipts))
            yield WindowedValue(pair, GlobalWindow().max_timestamp(), [GlobalWindow()])

    def _alert(self, key: str) -> Alert:
        return self._alerts[key.split("|")[1]]

    def _places(self, receipt: Receipt) -> tuple[int, int]:
        """Where the events of a chunk are that no former run has published."""
        begin = receipt.topic_partition << PLACE_BITS
        first = max(receipt.start, self._published.get(receipt.topic_partition, 0))
        return begin + first, begin + receipt.end

    def _keep_ms(self, key: str) -> int:
        """How far behind the watermark events still come, or bear upon those that do."""
        within = self._alert(key).within
        late = milliseconds(self._catalog.out_of_orderness + self._catalog.allowed_lateness)
        return late + (milliseconds(within) if within else 0)

    def _slack_ms(self, key: str) -> int:
        """Rows are dropped in turns, not one by one."""
        return max(self._keep_ms(key) // 4, _SHORTEST_KEEP_MS)

    def _begun(self, key: str) -> Held:
        now = self._bundle.held[key] = Held(secrets.token_bytes(8), 0, [], [], None)
        return now

    def _known(self, key: str, batches: Any, held: Any) -> Held | None:  # noqa: ANN401
        """What is held of a key, with its rows in the bundle; None if nothing is."""
        bundle = self._bundle
        if key in bundle.held:
            return bundle.held[key]
        packed = held.read()
        if packed is None:
            return None
        now = _HELD.decode(packed)
        rows = memory_of(self._job, self._settings.worker_memory_bytes).get(key, now.token)
        frames = [from_ipc(batch) for batch in batches.read()] if rows is None else [rows]
        bundle.frames[key] = [frame for frame in frames if not frame.is_empty()]
        bundle.held[key] = now
        now.token = secrets.token_bytes(8)
        return now


class _Bundle:
    """What a bundle has taken in so far.

    Attributes:
        held: By key.
        frames: All rows by key, those that were pruned meanwhile among them.
        pruned: The rows by key that stay, of keys that were pruned.
        spans: What is to be judged, by key.
        receipts: How many elements of each chunk are judged by the bundle's end.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.frames: dict[str, list[pl.DataFrame]] = defaultdict(list)
        self.pruned: dict[str, list[pl.DataFrame]] = {}
        self.spans: dict[str, Span] = {}
        self.receipts: dict[Receipt, int] = defaultdict(int)

    def add(self, key: str, rows: pl.DataFrame) -> None:
        """Takes in rows."""
        self.frames[key].append(rows)
        if key in self.pruned:
            self.pruned[key].append(rows)

    def rows(self, key: str) -> pl.DataFrame:
        """All rows of a key."""
        frames = self.frames[key]
        if len(frames) > 1:
            self.frames[key] = frames = [pl.concat(frames)]
        return frames[0] if frames else pl.DataFrame()

    def kept(self, key: str) -> pl.DataFrame:
        """The rows of a key that stay."""
        return pl.concat(self.pruned[key]) if key in self.pruned else self.rows(key)

    def ask(self, key: str, span: Span) -> None:
        """Asks for a span to be judged, together with those asked for before."""
        known = self.spans.get(key)
        if known is None:
            self.spans[key] = span
            return
        known.places += span.places
        known.first, known.last = min(known.first, span.first), max(known.last, span.last)
        known.sent = None if known.sent is None or span.sent is None else max(known.sent, span.sent)


def judged(alert: Alert, rows: pl.DataFrame, span: Span) -> pl.DataFrame:
    """The breaches that events of a span may have made: those in it and as long after as it is felt."""
    if rows.is_empty():
        return breaches(alert, rows)
    known = rows if span.sent is None else rows.filter(pl.col("record_time") <= span.sent)
    if alert.within is not None:
        within = milliseconds(alert.within)
        known = known.filter(pl.col("event_time").is_between(span.first - within, span.last + within))
    if keys := key_columns(alert):
        asked = pl.any_horizontal(pl.col("place").is_between(*place, closed="left") for place in span.places)
        known = known.join(known.filter(asked), on=keys, how="semi")
    return breaches(alert, known).filter(pl.col("breached_at") >= span.first)


def _bounds(rows: pl.DataFrame) -> tuple[int, int, int, int]:
    """Least and greatest event time, least and greatest record timestamp."""
    event, record = pl.col("event_time"), pl.col("record_time")
    first, last, oldest, newest = rows.select(
        event.min(), event.max().alias("last"), record.min(), record.max().alias("newest")
    ).row(0)
    return first, last, oldest, newest


def _soon(flush: Any) -> None:  # noqa: ANN401
    flush.set(Timestamp.now() + Duration(seconds=_FLUSH_S))


def _moment(time_ms: int) -> Timestamp:
    return Timestamp(micros=time_ms * 1000)
