"""What the speed layer does not count, put where someone finds it: dead-letter topic, late topic, exceptions table.

A replay may repeat a record in these topics; its key, the origin's topic/partition/offset, tells. Offsets that a former
run has already published are not repeated.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import polars as pl
from confluent_kafka import KafkaException, Producer

from infra import kafka
from infra.clickhouse import quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import Chunk
from metrics.window import milliseconds
from speed_layer.log import Records
from speed_layer.tables import TableWriter, as_time

LARGEST_BYTES = 16 << 20
"""Of a message: dead letters hold the raw bytes of what may have been too large, and headers; alerts many ids."""

ROOMY = {"max.message.bytes": str(LARGEST_BYTES)}
"""Configuration of topics that take such messages."""

_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class SideOutputs:
    """Publishes dead letters, late events and exceptions of chunks; returns only when all are stored.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: The source.
        published: By topic partition, the offset before which all of this was done by a former run.
    """

    def __init__(self, settings: Settings, catalog: Catalog, published: dict[int, int]) -> None:
        self._settings = settings
        self._catalog = catalog
        self._published = published
        self._producer: Producer | None = None
        self._tables = TableWriter(settings, catalog)
        sliced = [metric for metric in catalog.metrics if not metric.session]
        self._finest_ms = min((milliseconds(metric.slice_width) for metric in sliced), default=1)

    def publish(self, chunk: Chunk, records: Records) -> None:
        """Stores what the chunk holds of them; waits for Kafka and ClickHouse as long as it takes."""
        exceptions = chunk.exceptions
        if exceptions.is_empty():
            return
        new = pl.col("offset") >= self._published.get(exceptions.item(0, "topic_partition"), 0)
        values = dict(zip(records.offsets, records.values, strict=True))
        self._produce(self._catalog.dlq_topic, list(self._dead_letters(chunk.dead_letters.filter(new), values)))
        self._produce(self._catalog.late_topic, list(self._late(chunk.late.filter(new), values)))
        rows = exceptions.filter(new).select(
            pl.lit(self._catalog.topic).alias("topic"),
            "topic_partition",
            "offset",
            as_time("record_time"),
            "event_id",
            as_time("event_time"),
            "disposition",
            "reason",
        )
        self._tables.insert(quote("exceptions"), rows)

    def _dead_letters(self, rows: pl.DataFrame, values: dict[int, bytes | None]) -> Iterator[dict[str, Any]]:
        for row in rows.iter_rows(named=True):
            headers = {"reason": row["reason"], "detail": row["detail"], "record_time": row["record_time"]}
            yield self._record(row, values, headers)

    def _late(self, rows: pl.DataFrame, values: dict[int, bytes | None]) -> Iterator[dict[str, Any]]:
        for row in rows.iter_rows(named=True):
            headers = {
                "slice_start": row["event_time"] // self._finest_ms * self._finest_ms,
                "lateness_ms": row["record_time"] - row["event_time"],
            }
            yield self._record(row, values, headers)

    def _record(self, row: dict[str, Any], values: dict[int, bytes | None], headers: dict[str, Any]) -> dict[str, Any]:
        place = {"topic": self._catalog.topic, "partition": row["topic_partition"], "offset": row["offset"]}
        return {
            "key": "/".join(map(str, place.values())),
            "value": values[row["offset"]],
            "headers": [(name, str(value).encode()) for name, value in (headers | place).items()],
            "timestamp": max(row["record_time"], 0),
        }

    def _produce(self, topic: str, records: list[dict[str, Any]]) -> None:
        while records:
            try:
                if self._producer is None:
                    self._producer = kafka.producer(self._settings, {"message.max.bytes": LARGEST_BYTES})
                kafka.produce_all(self._producer, topic, records)
                return
            except KafkaException as error:
                logger.warning("cannot produce to `%s`: %s; waiting", topic, error)
                self._producer = None
                time.sleep(_RETRY_S)
