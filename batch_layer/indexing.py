"""Brings the index of a log up to date: reads what has come since, once, in a few processes beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
from clickhouse_connect.driver.client import Client

from batch_layer.block_index import BLOCKS, HOUR_MS, blocks_of
from batch_layer.log_reader import in_blocks
from batch_layer.reading import LogReader
from batch_layer.tasks import Stretch, Told, carried_out
from infra.avro import unframe_of
from infra.clickhouse import connect, insert_frame, query_frame
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import LEDGER_BLOCK
from metrics.event import Decoder

BLOCKS_PER_TASK = 50
"""What a process reads at once: 500,000 offsets."""

_BLOCKS_PER_INSERT = 10
_REGISTRY_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Indexer:
    """Reads stretches of a log and writes their blocks; it is sent to other processes.

    Attributes:
        topic_id: Of the topic as it is now: one of the same name that was made anew has another log.
        reader: Of the topic.
    """

    settings: Settings
    catalog: Catalog
    topic_id: str
    reader: LogReader

    @property
    def named(self) -> dict[str, str]:
        """What every row of this index says."""
        return {"topic": self.catalog.topic, "topic_id": self.topic_id, "decoding": self.catalog.decoding_version}

    def client(self) -> Client:
        """A client of the source's database."""
        return connect(self.settings, self.settings.database(self.catalog.source))

    def known(self, client: Client) -> pl.DataFrame:
        """The index as it is: rows of `BLOCKS`."""
        columns = ", ".join(BLOCKS)
        where = " AND ".join(f"{name} = {{{name}:String}}" for name in self.named)
        sql = f"SELECT {columns} FROM log_blocks FINAL WHERE {where} ORDER BY topic_partition, block"
        return query_frame(client, sql, self.named).select(pl.col(name).cast(kind) for name, kind in BLOCKS.items())

    def in_former_logs(self, client: Client, span: tuple[int, int]) -> dict[str, int]:
        """By id, the events of a time (ms) in logs that the topic's name once meant, as the index counted them."""
        sql = (
            "SELECT topic_id, arraySum(mapValues(mapFilter((hour, n) -> hour >= {first:Int64} AND hour < {last:Int64},"
            " sumMap(events)))) AS events FROM (SELECT * FROM log_blocks FINAL WHERE topic = {topic:String}"
            " AND topic_id != {topic_id:String} AND decoding = {decoding:String}) GROUP BY topic_id HAVING events > 0"
        )
        first, last = span[0] // HOUR_MS, -(-span[1] // HOUR_MS)
        found = query_frame(client, sql, self.named | {"first": first, "last": last})
        return dict(found.select("topic_id", "events").rows())

    def write(self, stretch: Stretch) -> None:
        """Reads a stretch and writes its blocks."""
        client = self.client()
        unframe = unframe_of(self.settings, self.catalog, patience_s=_REGISTRY_PATIENCE_S)
        decoder = Decoder(self.catalog, unframe)
        read = self.reader.read(stretch.topic_partition, stretch.begin, stretch.end)
        for span, records in in_blocks(read, stretch.begin, stretch.end, _BLOCKS_PER_INSERT * LEDGER_BLOCK):
            decoded = decoder.decode(stretch.topic_partition, records.offsets, records.times, records.values)
            origins = records.origins(self.catalog.topic, stretch.topic_partition)
            blocks = blocks_of(stretch.topic_partition, span, records, decoded, origins)
            insert_frame(client, "log_blocks", blocks.with_columns(**{n: pl.lit(v) for n, v in self.named.items()}))


def bring_up_to_date(
    indexer: Indexer, offsets: Mapping[int, tuple[int, int]], told: Told = lambda *_: None, *, anew: bool = False
) -> pl.DataFrame:
    """Reads what the index lacks of a log, and returns it whole: rows of `BLOCKS`.

    Args:
        indexer: Of the topic.
        offsets: By topic partition the offsets ``[begin, end)`` that there are.
        told: Told of offsets that were read.
        anew: Whether all of the log is read, and not only what the index lacks.

    Raises:
        ExpiredError: Records expired while they were read.
        KafkaUnavailableError: No broker answered.
    """
    client = indexer.client()
    known = indexer.known(client)
    lacking = missing(known.clear() if anew else known, offsets)
    total = sum(each.end - each.begin for each in lacking)
    for done, _ in carried_out(indexer.write, lacking):
        told("indexing the log, offsets", done.end - done.begin, total)
    return indexer.known(client)


def missing(index: pl.DataFrame, offsets: Mapping[int, tuple[int, int]]) -> list[Stretch]:
    """What an index lacks of a log, whole blocks, in stretches of at most `BLOCKS_PER_TASK`.

    A block of which the log had only a part is read again, from where the log now begins.
    """
    reached = {(number, block): end for number, block, end in index.select("topic_partition", "block", "end").rows()}
    found: list[Stretch] = []
    for number, (begin, end) in sorted(offsets.items()):
        for block in range(begin // LEDGER_BLOCK, -(-end // LEDGER_BLOCK)):
            until = min(end, (block + 1) * LEDGER_BLOCK)
            if reached.get((number, block), -1) >= until:
                continue
            since = max(begin, block * LEDGER_BLOCK)
            last = found[-1] if found else None
            goes_on = last is not None and (last.topic_partition, last.end) == (number, since)
            if last is not None and goes_on and last.end - last.begin < BLOCKS_PER_TASK * LEDGER_BLOCK:
                found[-1] = Stretch(number, last.begin, until)
            else:
                found.append(Stretch(number, since, until))
    return found
