"""Where a breach goes: a message in its alert's topic and a row in the table `alerts`, once each.

The table is the memory of what was raised. A candidate is left out when the table has a breach of the same key that
lies within the candidate's own: the same one, or one that was raised when an event before it had not arrived yet. The
message is sent first and then the row is written; should the writer die between the two, the last messages of the topic
tell its successor. So a breach has one message, whatever is replayed.
"""

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import polars as pl
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from infra import kafka
from infra.clickhouse import ClickHouseUnavailableError, connect, query_frame, quote
from infra.settings import Settings
from metrics.alert import Alert
from metrics.breach import key_columns, table_rows
from metrics.catalog import Catalog
from serving.alert_tables import ALERTS
from speed_layer.tables import TableWriter

_AT_ONCE = 5000
_REMEMBERED = 50_000
"""Messages at the end of a topic in which a successor looks for what was sent and not yet written."""

_RETRY_S = 0.5

logger = logging.getLogger(__name__)


class AlertSink:
    """Raises breaches; waits for Kafka and ClickHouse as long as it takes."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._tables = TableWriter(settings, catalog)
        self._client: Client | None = None
        self._producer: Producer | None = None
        self._sent: dict[str, set[str]] = {}

    def raise_all(self, alert: Alert, candidates: pl.DataFrame) -> int:
        """Raises those breaches that have not been raised; returns how many these are.

        Args:
            alert: Whose they are.
            candidates: What `metrics.breach.breaches` gives.
        """
        if candidates.is_empty():
            return 0
        due = not_raised(alert, candidates, self._raised(alert, candidates))
        for block in due.iter_slices(_AT_ONCE):
            rows = table_rows(alert, block)
            sent = self._sent_before(alert.topic)
            self._produce(alert.topic, [r for r in messages(self._catalog, alert, rows) if r["key"] not in sent])
            sent.update(rows["alert_id"])
            self._tables.insert(quote(ALERTS), rows)
        return due.height

    def _raised(self, alert: Alert, candidates: pl.DataFrame) -> pl.DataFrame:
        """Keys and raised_at (ms) of what the table has of the candidates' time."""
        dims = ", ".join(f"dims[{{d{n}:String}}] AS {quote(key)}" for n, key in enumerate(key_columns(alert)))
        sql = (
            f"SELECT {dims + ', ' if dims else ''}toUnixTimestamp64Milli(breached_at) AS raised FROM {quote(ALERTS)} "
            "WHERE alert = {alert:String} AND alert_version = {version:String} "
            "AND toUnixTimestamp64Milli(breached_at) BETWEEN {since:Int64} AND {until:Int64}"
        )
        bound = {f"d{n}": name for n, name in enumerate(alert.by)} | {
            "alert": alert.name,
            "version": alert.alert_version,
            "since": candidates["breached_at"].min(),
            "until": candidates["until"].max(),
        }
        while True:
            try:
                if self._client is None:
                    self._client = connect(self._settings, self._settings.database(self._catalog.source))
                return query_frame(self._client, sql, bound)
            except (ClickHouseError, ClickHouseUnavailableError, OSError) as error:
                logger.warning("cannot read %s: %s; waiting", ALERTS, error)
                self._client = None
                time.sleep(_RETRY_S)

    def _sent_before(self, topic: str) -> set[str]:
        """Ids of the messages at the end of the topic, read once, and of those sent from here since."""
        while topic not in self._sent:
            try:
                self._sent[topic] = last_keys(self._settings, topic)
            except (KafkaException, kafka.KafkaUnavailableError) as error:
                logger.warning("cannot read `%s`: %s; waiting", topic, error)
                time.sleep(_RETRY_S)
            except kafka.TopicError:
                kafka.ensure_topics(self._settings, {topic: 1})
        return self._sent[topic]

    def _produce(self, topic: str, records: list[dict[str, Any]]) -> None:
        while records:
            try:
                if self._producer is None:
                    self._producer = kafka.producer(self._settings, {"linger.ms": 0})
                kafka.produce_all(self._producer, topic, records)
                return
            except KafkaException as error:
                logger.warning("cannot produce to `%s`: %s; waiting", topic, error)
                self._producer = None
                time.sleep(_RETRY_S)


def not_raised(alert: Alert, candidates: pl.DataFrame, raised: pl.DataFrame) -> pl.DataFrame:
    """The candidates of which no part was raised, in the order of time.

    Args:
        alert: Whose they are.
        candidates: What `metrics.breach.breaches` gives.
        raised: The key columns and `raised`, in ms.
    """
    following = candidates.sort("breached_at").join_asof(
        raised.sort("raised"),
        left_on="breached_at",
        right_on="raised",
        by=key_columns(alert) or None,
        strategy="forward",
        check_sortedness=False,
    )
    return following.filter(pl.col("raised").is_null() | (pl.col("raised") > pl.col("until"))).drop("raised")


def messages(catalog: Catalog, alert: Alert, rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The records of an alert's topic, from rows of its table."""
    for row in rows.iter_rows(named=True):
        body = {
            "alert": alert.name,
            "alert_version": alert.alert_version,
            "alert_id": row["alert_id"],
            "source": catalog.source,
            "when": alert.when,
            "dims": {entry["key"]: entry["value"] for entry in row["dims"]},
            "breached_at": iso(row["breached_at"]),
            "value": row["value"],
            "threshold": row["threshold"],
            "evidence": row["evidence"],
        }
        yield {"key": row["alert_id"], "value": json.dumps(body, ensure_ascii=False).encode()}


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def last_keys(settings: Settings, topic: str) -> set[str]:
    """The keys of the last messages of a topic.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
        KafkaException: It went away meanwhile.
    """
    found: set[str] = set()
    ends = kafka.log_offsets(settings, topic)
    consumer = kafka.consumer(settings, "lockstep-alerts", {"enable.partition.eof": True})
    try:
        for partition, (begin, end) in ends.items():
            if begin == end:
                continue
            consumer.assign([TopicPartition(topic, partition, max(begin, end - _REMEMBERED))])
            at_end = False
            while not at_end:
                for message in consumer.consume(_AT_ONCE, 1.0):
                    error = message.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    if error is None and message.key() is not None:
                        found.add(message.key().decode(errors="replace"))
                    at_end |= error is not None or message.offset() + 1 >= end
    finally:
        consumer.close()
    return found
