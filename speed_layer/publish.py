"""Publishing: panes into tables, then the receipts of what is in them, then how far the log is published.

A chunk of the log is published once all its elements are. `TrackProgress` joins the receipts of a topic partition to a
frontier: everything before it is in the tables, whichever workers put it there.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import polars as pl
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from infra.clickhouse import quote
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from metrics.fold import Group, groups, metric_rows
from speed_layer.cardinality import ALARMS_TABLE, Told, alarm_rows
from speed_layer.panes import EARLY, LEDGER_COLUMNS, PaneBatch
from speed_layer.partials import Receipt
from speed_layer.tables import TableWriter, as_time

PROGRESS_TABLE = "speed_progress"

_INSERTS_AT_ONCE = 4
"""ClickHouse takes about as long for ten rows as for ten thousand, and a bundle has a table for every metric."""

_TELL_EVERY_US = 500_000

_pack = msgspec.msgpack.encode
_RECEIPTS = msgspec.msgpack.Decoder(list[tuple[Receipt, int]])


class WritePanes(beam.DoFn):
    """Writes pane batches and puts out their receipts by topic partition, once the rows are stored."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._groups: dict[str, Group] = {}
        self._metrics: dict[str, Metric] = {}
        self._tables: TableWriter | None = None
        self._told: Told | None = None
        self._pool: ThreadPoolExecutor | None = None

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline."""
        self._told = Told()
        self._pool = ThreadPoolExecutor(_INSERTS_AT_ONCE, "insert")
        self._groups = {group.id: group for group in groups(self._catalog)}
        self._metrics = {metric.name: metric for metric in self._catalog.metrics}
        self._tables = TableWriter(self._settings, self._catalog)

    def process(self, batch: PaneBatch) -> Iterator[tuple[int, bytes]]:
        """Writes one bundle's rows, a batch per table."""
        assert self._tables is not None
        assert self._told is not None
        assert self._pool is not None
        inserts = [
            self._pool.submit(self._insert, metric, partial(speed_rows, self._groups[name], metric, rows))
            for name, rows in batch.panes.items()
            for metric in self._groups[name].metrics
        ]
        for name, rows in batch.sessions.items():
            metric = self._metrics[name]
            inserts.append(self._pool.submit(self._insert, metric, partial(speed_sessions, metric, rows)))
        for insert in inserts:
            insert.result()
        if batch.ledger:
            ledger = pl.DataFrame(batch.ledger, schema=_ledger_schema(), orient="row")
            self._tables.insert(
                quote("ledger"), ledger.select(pl.lit(self._catalog.topic).alias("topic"), *LEDGER_COLUMNS)
            )
        if told := self._told.fresh(batch.alarms):
            self._tables.insert(quote(ALARMS_TABLE), alarm_rows(told))
            self._told.note(told)
        by_partition: dict[int, list[tuple[Receipt, int]]] = {}
        for receipt, count in batch.receipts.items():
            by_partition.setdefault(receipt.topic_partition, []).append((receipt, count))
        for partition, receipts in by_partition.items():
            yield partition, _pack(receipts)

    def _insert(self, metric: Metric, rows: Callable[[], pl.DataFrame]) -> None:
        assert self._tables is not None
        # an on-time pane must follow the early one of a replay, whoever has written it before
        self._tables.insert(quote(f"speed_{metric.name}"), rows(), repeat=True)


def speed_rows(group: Group, metric: Metric, rows: pl.DataFrame) -> pl.DataFrame:
    """A metric's rows of a pane as `speed_<metric>` holds them."""
    parts = [
        metric_rows(group, metric, part).with_columns(pane=pl.lit(pane))
        for (pane,), part in rows.partition_by("pane", as_dict=True).items()
    ]
    if not parts:
        return pl.DataFrame()
    return pl.concat(parts).with_columns(as_time("slice_start"), metric_version=pl.lit(metric.metric_version))


def speed_sessions(metric: Metric, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of sessions as `speed_<metric>` holds them."""
    return rows.with_columns(
        as_time("window_start"),
        as_time("window_end"),
        pl.col("length_ms").cast(pl.UInt64),
        pane=pl.lit(EARLY),
        metric_version=pl.lit(metric.metric_version),
    )


class Progress(NamedTuple):
    """How far a topic partition is published: every offset before `next_offset`; the watermark is in ms."""

    topic_partition: int
    next_offset: int
    watermark: int | None


class Frontier(msgspec.Struct, array_like=True):
    """What is published of a topic partition, with the chunks beyond it that are complete or on their way.

    Attributes:
        next_offset: Everything before it is published.
        watermark: The partition's watermark there, in ms.
        ahead: By first offset: end, elements, elements published, watermark.
    """

    next_offset: int
    watermark: int | None
    ahead: dict[int, list[int | None]]

    def take(self, receipt: Receipt, count: int) -> None:
        """Takes note of published elements of a chunk."""
        if receipt.parts == 0 and receipt.start <= self.next_offset:
            if receipt.end >= self.next_offset:
                self._reach(receipt.end, receipt.watermark)
        elif receipt.parts or receipt.end > receipt.start:  # a beat at one offset will be followed by others
            chunk = self.ahead.setdefault(receipt.start, [receipt.end, receipt.parts, 0, receipt.watermark])
            chunk[2] = (chunk[2] or 0) + (count if receipt.parts else 0)
        while (first := self.ahead.get(self.next_offset)) and first[1] == first[2]:
            del self.ahead[self.next_offset]
            self._reach(first[0] or 0, first[3])

    def _reach(self, end: int, watermark: int | None) -> None:
        self.next_offset = end
        if watermark is not None:
            self.watermark = watermark if self.watermark is None else max(self.watermark, watermark)


_FRONTIER = msgspec.msgpack.Decoder(Frontier)


class TrackProgress(beam.DoFn):
    """Joins receipts, keyed by topic partition, to a frontier; puts out now and then where it stands.

    Nobody's numbers wait for it, so all partitions of a subtask are told of together: a bundle has two inserts less.
    """

    FRONTIER = ReadModifyWriteStateSpec("frontier", BytesCoder())
    TELL = TimerSpec("tell", TimeDomain.REAL_TIME)

    def __init__(self) -> None:
        self._reached: dict[int, Progress] = {}

    def start_bundle(self) -> None:
        """Forgets a bundle that failed."""
        self._reached = {}

    def process(
        self,
        element: tuple[int, bytes],
        state: Any = beam.DoFn.StateParam(FRONTIER),  # noqa: ANN401, B008
        tell: Any = beam.DoFn.TimerParam(TELL),  # noqa: ANN401, B008
    ) -> None:
        """Takes receipts into the frontier."""
        receipts = _RECEIPTS.decode(element[1])
        known = state.read()
        frontier = _FRONTIER.decode(known) if known else Frontier(receipts[0][0].origin, None, {})
        for receipt, count in receipts:
            frontier.take(receipt, count)
        state.write(_pack(frontier))
        tell.set(Timestamp(micros=-(-Timestamp.now().micros // _TELL_EVERY_US) * _TELL_EVERY_US))

    @on_timer(TELL)
    def on_tell(
        self,
        partition: int = beam.DoFn.KeyParam,
        state: Any = beam.DoFn.StateParam(FRONTIER),  # noqa: ANN401, B008
    ) -> None:
        """It is time to say where a partition stands."""
        frontier = _FRONTIER.decode(state.read())
        self._reached[partition] = Progress(partition, frontier.next_offset, frontier.watermark)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Puts out where each partition stands that it is time to tell of."""
        if self._reached:
            reached = list(self._reached.values())
            self._reached = {}
            yield WindowedValue(reached, GlobalWindow().max_timestamp(), [GlobalWindow()])


class WriteProgress(beam.DoFn):
    """Writes progress into `watermarks`, and into `speed_progress` by catalog version."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._tables: TableWriter | None = None

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline."""
        self._tables = TableWriter(self._settings, self._catalog)

    def process(self, reached: list[Progress]) -> None:
        """Writes where partitions stand; one without any record has no watermark yet, and is not in `watermarks`."""
        assert self._tables is not None
        known = [p for p in reached if p.watermark is not None]
        begun = [Progress(p.topic_partition, p.next_offset, p.watermark or 0) for p in reached]
        version = pl.lit(self._catalog.version).alias("catalog_version")
        self._tables.insert(quote(PROGRESS_TABLE), self._rows(begun).with_columns(version), repeat=True)
        self._tables.insert(quote("watermarks"), self._rows(known), repeat=True)

    def _rows(self, reached: list[Progress]) -> pl.DataFrame:
        schema = {"topic_partition": pl.Int32, "next_offset": pl.Int64, "watermark": pl.Int64}
        return pl.DataFrame(reached, schema=schema, orient="row").select(
            pl.lit(self._catalog.topic).alias("topic"), "topic_partition", "next_offset", as_time("watermark")
        )


def progress_ddl(database: str) -> str:
    """The table of what is published by catalog version: a changed catalog begins at nothing."""
    return (
        f"CREATE TABLE IF NOT EXISTS {quote(database)}.{quote(PROGRESS_TABLE)} "
        "(catalog_version String, topic String, topic_partition Int32, next_offset Int64, "
        "watermark DateTime64(3, 'UTC'), at DateTime64(3, 'UTC') DEFAULT now64(3)) "
        "ENGINE = ReplacingMergeTree(next_offset) ORDER BY (catalog_version, topic, topic_partition)"
    )


def _ledger_schema() -> dict[str, Any]:
    return {name: pl.UInt64 for name in LEDGER_COLUMNS} | {"topic_partition": pl.Int32, "block": pl.Int64}
