"""Where a breach goes: a message in its alert's topic and a row in the table `alerts`, once each.

The table is the memory of what was raised. A candidate is left out when the table has a breach of the same key that
lies within the candidate's own: the same one, or one that was raised when an event before it had not arrived yet. The
message is sent first and then the row is written; should the writer die between the two, the last messages of the topic
tell its successor. So a breach has one message, whatever is replayed. One that is larger than its topic takes has none:
it is in the table only.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
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
from speed_layer.side_outputs import LARGEST_BYTES, ROOMY
from speed_layer.tables import TableWriter

_AT_ONCE = 500
_REMEMBERED = 50_000
"""Messages at the end of a topic in which a successor looks for what was sent and not yet written."""

_RETRY_S = 0.5
_CONNECT_S = 5.0
_PRODUCER = {"linger.ms": 0, "message.max.bytes": LARGEST_BYTES}
_TOO_LARGE = (
    "alert `{}` is in the table only: topic `{}` must take messages of {:,} bytes and does not. "
    "raise its `max.message.bytes`"
)

logger = logging.getLogger(__name__)


class AlertSink:
    """Raises breaches; waits for Kafka and ClickHouse as long as it takes."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog
        self._tables = TableWriter(settings, catalog)
        self._client: Client | None = None
        self._producer: Producer | None = None
        self._sent: dict[str, dict[str, None]] = {}

    def prepare(self) -> None:
        """Connects to Kafka, so that the first breach need not wait for it; one that is away is waited for then."""
        with suppress(KafkaException):
            self._producer = kafka.producer(self._settings, _PRODUCER)
            self._producer.list_topics(timeout=_CONNECT_S)

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
            told = rows.with_columns(block["events"])
            self._produce(alert.topic, list(messages(self._catalog, alert, told)))
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

    def _sent_before(self, topic: str) -> dict[str, None]:
        """Ids of the messages at the end of the topic, read once, and of those sent from here since, in order."""
        while topic not in self._sent:
            try:
                self._sent[topic] = dict.fromkeys(last_keys(self._settings, topic))
            except (KafkaException, kafka.KafkaUnavailableError) as error:
                logger.warning("cannot read `%s`: %s; waiting", topic, error)
                time.sleep(_RETRY_S)
            except kafka.TopicError:
                kafka.ensure_topics(self._settings, {topic: 1}, ROOMY)
        return self._sent[topic]

    def _produce(self, topic: str, records: list[dict[str, Any]]) -> None:
        """Sends those records that the topic has not got; after a failure it is asked again which these are."""
        while left := [record for record in records if record["key"] not in self._sent_before(topic)]:
            try:
                if self._producer is None:
                    self._producer = kafka.producer(self._settings, _PRODUCER)
                kafka.produce_all(self._producer, topic, left)
                self._remember(topic, left)
            except KafkaException as error:
                self._begin_anew(topic)
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    logger.warning("cannot produce to `%s`: %s; waiting", topic, error)
                    time.sleep(_RETRY_S)
                elif len(left) > 1:
                    half = len(left) // 2
                    self._produce(topic, left[:half])
                    records = left[half:]
                else:
                    logger.error("%s", _TOO_LARGE.format(left[0]["key"], topic, len(left[0]["value"])))
                    return

    def _begin_anew(self, topic: str) -> None:
        """Lets the producer end what it has begun, so that another finds in the topic all that came of it."""
        if self._producer is not None:
            self._producer.flush()
        self._producer = None
        del self._sent[topic]

    def _remember(self, topic: str, records: list[dict[str, Any]]) -> None:
        sent = self._sent_before(topic)
        sent.update(dict.fromkeys(record["key"] for record in records))
        for oldest in list(sent)[:-_REMEMBERED]:
            del sent[oldest]


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
    """The records of an alert's topic, from rows of its table with `events`: evidence may name fewer."""
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
            "events": row["events"],
            "evidence": row["evidence"],
        }
        yield {"key": row["alert_id"], "value": json.dumps(body, ensure_ascii=False).encode()}


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def last_keys(settings: Settings, topic: str) -> list[str]:
    """The keys of the last messages of a topic, in the order of time.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
        KafkaException: It went away meanwhile.
    """
    found: list[tuple[int, str]] = []
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
                        found.append((message.timestamp()[1], message.key().decode(errors="replace")))
                    at_end |= error is not None or message.offset() + 1 >= end
    finally:
        consumer.close()
    return [key for _, key in sorted(found)[-_REMEMBERED:]]
