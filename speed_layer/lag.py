"""Lag and skew of topic partitions: how far each is behind its log, and its watermark behind the greatest one."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import polars as pl
from clickhouse_connect.driver.client import Client

from infra import kafka
from infra.clickhouse import insert_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.window import milliseconds
from speed_layer.log import greatest_stamps, latest
from speed_layer.published import frontier

LAGS_TABLE = "partition_lags"
EVERY_S = 5.0


class Lag(NamedTuple):
    """Of one topic partition.

    Attributes:
        topic_partition: Its number.
        lag_offsets: Offsets of the log that are not published yet.
        lag_ms: Time from the latest record that is published to the latest in the log, by their timestamps; 0 if all
            are published, None before any is.
        skew_ms: How far its watermark is behind the greatest of all partitions; None before it has one.
    """

    topic_partition: int
    lag_offsets: int
    lag_ms: int | None
    skew_ms: int | None


def lags(
    offsets: Mapping[int, tuple[int, int]],
    reached: Mapping[int, int],
    latest_ms: Mapping[int, int],
    watermarks: Mapping[int, int],
) -> list[Lag]:
    """The lag of each topic partition.

    Args:
        offsets: Begin and end (exclusive) of its log.
        reached: The offset before which all is published.
        latest_ms: The watermark that all of its log leads to; of partitions with records.
        watermarks: The watermark of what is published; of partitions that have one.
    """
    greatest = max(watermarks.values(), default=None)
    found = []
    for number, (begin, end) in sorted(offsets.items()):
        behind = max(0, end - max(begin, reached.get(number, begin)))
        own = watermarks.get(number)
        lag_ms = 0 if not behind else None if own is None else max(0, latest_ms.get(number, own) - own)
        found.append(Lag(number, behind, lag_ms, None if own is None or greatest is None else greatest - own))
    return found


class LagReport:
    """Writes the lag of each topic partition into `partition_lags`, now and then.

    Args:
        settings: Where Kafka is.
        client: A client of the source's database.
        catalog: The source.
        clock: Seconds that only grow.
    """

    def __init__(
        self, settings: Settings, client: Client, catalog: Catalog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._client = client
        self._catalog = catalog
        self._clock = clock
        self._again = 0.0

    def write_now_and_then(self) -> None:
        """Writes if the last time is long enough ago.

        Raises:
            ClickHouseError: ClickHouse refused.
            KafkaException: No broker answered.
            OSError: One of them is away.
        """
        if self._clock() >= self._again:
            self.write()

    def write(self) -> None:
        """Writes at once; raises what `write_now_and_then` does."""
        self._again = self._clock() + EVERY_S
        # the log is asked first, so that a partition which keeps up has no lag
        offsets = kafka.log_offsets(self._settings, self._catalog.topic)
        behind_ms = milliseconds(self._catalog.out_of_orderness)
        now = time.time_ns() // 1_000_000
        stamps = greatest_stamps(self._settings, self._catalog)
        watermarks = self._client.query(
            f"SELECT topic_partition, toUnixTimestamp64Milli(watermark) FROM {quote('watermarks')} FINAL"
            " WHERE topic = {topic:String}",
            parameters={"topic": self._catalog.topic},
        ).result_rows
        found = lags(
            offsets,
            frontier(self._client, self._catalog),
            {number: latest([stamp], now) - behind_ms for number, stamp in stamps.items()},
            {int(number): int(mark) for number, mark in watermarks},
        )
        schema = {"topic_partition": pl.Int32, "lag_offsets": pl.Int64, "lag_ms": pl.Int64, "skew_ms": pl.Int64}
        rows = pl.DataFrame(found, schema=schema, orient="row").with_columns(
            topic=pl.lit(self._catalog.topic),
            # said here, as ClickHouse drops rows that it has seen before
            at=pl.lit(now).cast(pl.Datetime("ms", "UTC")),
        )
        insert_frame(self._client, quote(LAGS_TABLE), rows)
