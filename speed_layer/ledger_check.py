"""The ledger's check at work: it reads the tables and the log now and then, and says in ClickHouse whether they agree.

`ledger_checks` holds what it is now. When the ledger no longer closes, and two looks say so, an alarm is raised in
`speed_alarms` and in the log; it is taken back, its text then empty, when the ledger closes again.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, TopicPartition

from infra import kafka
from infra.clickhouse import quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import DISPOSITIONS
from serving.status import LEDGER_ALARM
from speed_layer.accounting import Block, Judgement, Sample, Span, confirmed, judge, metric_of_all
from speed_layer.cardinality import ALARMS_TABLE
from speed_layer.published import frontier

CHECKS_TABLE = "ledger_checks"
LOOK_S = 10.0
_AGAIN_S = 1.0
"""A look that found something is repeated so soon."""

_SHARE = 20
"""A look that takes long is followed by a pause so many times as long."""

_READING_S = 1.0
"""Blocks are read again for so long in one look, the rest in later ones."""

_SHOWN = 5

logger = logging.getLogger(__name__)


class LedgerCheck:
    """Looks now and then whether the ledger closes.

    The first look waits until what the log held then is published, and judges nothing: rows that another version of the
    catalog left may be there until then.

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
        self._metric = metric_of_all(catalog)
        self._records = RecordCounts(settings, catalog, clock)
        self._before: Sample | None = None
        self._earlier: Judgement | None = None
        self._caught_up = False
        self._again = 0.0
        self._alarmed: str | None = None

    def look_now_and_then(self) -> None:
        """Takes a sample if the last look is long enough ago, and judges once what the log held then is published.

        Raises:
            ClickHouseError: ClickHouse refused.
            OSError: It is away, or Kafka is.
        """
        began = self._clock()
        if self._before is None:
            if began >= self._again:
                self._before = self._sample()
            return
        if not self._before.is_in(frontier(self._client, self._catalog)):
            return
        if not self._caught_up:
            self._caught_up, self._before = True, None
            return
        before, self._before = self._before, None
        found = self._judge(before, self._sample())
        pause = _AGAIN_S if found.findings else LOOK_S
        self._again = began + max(pause, _SHARE * (self._clock() - began))

    def check(self) -> None:
        """Looks at once, twice if something is found: for a log that is published to its end.

        Raises:
            ClickHouseError: ClickHouse refused.
            OSError: It is away, or Kafka is.
        """
        self._earlier = None
        before = self._sample()
        for _ in range(2):
            now = self._sample()
            if not before.is_in(now.reached) or not self._judge(before, now).findings:
                return
            before = now

    def close(self) -> None:
        """Closes the consumer."""
        self._records.close()

    def _judge(self, before: Sample, now: Sample) -> Judgement:
        self._records.begin()
        found = judge(before, now, self._records.count)
        earlier, self._earlier = self._earlier, found
        if found.findings and earlier is None:
            return found  # the next look may confirm it
        sure = confirmed(earlier, found) if earlier else found
        if sure.findings or not found.findings:
            self._tell(sure, now)
        return found

    def _tell(self, found: Judgement, now: Sample) -> None:
        """Writes how it is now; an alarm is raised, renewed when it says something else, or taken back."""
        closes = not found.findings
        at = datetime.now(UTC)
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)  # as the tables keep it
        known = self._client.query(
            f"SELECT closes, since FROM {quote(CHECKS_TABLE)} FINAL WHERE topic = {{topic:String}}",
            parameters={"topic": self._catalog.topic},
        ).result_rows
        since = known[0][1] if known and bool(known[0][0]) == closes else at
        texts = [finding.text for finding in found.findings[:_SHOWN]]
        more = [f"and {len(found.findings) - _SHOWN} more"] if len(found.findings) > _SHOWN else []
        text = "" if closes else f"the ledger of `{self._catalog.topic}` does not close: {'; '.join([*texts, *more])}"
        # whoever is ended between two inserts leaves an alarm to be raised, or to be taken back, by the next
        if closes and known and not known[0][0]:
            self._alarm(known[0][1], "")
            logger.warning("the ledger of `%s` closes again", self._catalog.topic)
        self._client.insert(
            CHECKS_TABLE,
            [[self._catalog.topic, closes, since, now.counted, now.published, found.unread, text, at]],
            column_names=["topic", "closes", "since", "counted", "published", "unread", "text", "at"],
        )
        if not closes and text != self._alarmed:
            self._alarm(since, text)
            logger.error("%s", text)
        self._alarmed = text or None

    def _alarm(self, since: datetime, text: str) -> None:
        """Writes the alarm that began at `since`; the row that is written last holds.

        It says when that was: ClickHouse drops a row that it has seen before.
        """
        metrics = [self._metric.name] if self._metric else []
        self._client.insert(
            ALARMS_TABLE,
            [[LEDGER_ALARM, metrics, "", 1, since, text, datetime.now(UTC)]],
            column_names=["group_id", "metrics", "dimension", "rows", "slice_start", "text", "at"],
        )

    def _sample(self) -> Sample:
        topic = {"topic": self._catalog.topic}
        reached = frontier(self._client, self._catalog)
        rows = self._client.query(
            f"SELECT topic_partition, block, records, {' + '.join(DISPOSITIONS)}, counted FROM {quote('ledger')} FINAL"
            " WHERE topic = {topic:String}",
            parameters=topic,
        ).result_rows
        published = self._published()
        offsets = kafka.log_offsets(self._settings, self._catalog.topic)
        return Sample(
            reached,
            {(int(number), int(block)): Block(*map(int, counts)) for number, block, *counts in rows},
            published,
            {number: begin for number, (begin, _) in offsets.items()},
            {number: end for number, (_, end) in offsets.items()},
        )

    def _published(self) -> int | None:
        if self._metric is None:
            return None
        ((events,),) = self._client.query(
            f"SELECT sum(events) FROM {quote(f'speed_{self._metric.name}')} FINAL"
            " WHERE metric_version = {version:String}",
            parameters={"version": self._metric.metric_version},
        ).result_rows
        return int(events)


class RecordCounts:
    """How many committed records a consumer finds in some offsets: each span is read once, and remembered.

    Args:
        settings: Where Kafka is.
        catalog: The source.
        clock: Seconds that only grow.
    """

    def __init__(self, settings: Settings, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = catalog.topic
        self._clock = clock
        self._deadline = 0.0
        self._known: dict[Span, int] = {}
        options = {"enable.partition.eof": True, "fetch.message.max.bytes": 1 << 20, "queued.min.messages": 10_000}
        self._consumer = kafka.consumer(settings, f"lockstep-ledger-{catalog.source}", options)

    def begin(self) -> None:
        """A look begins, with its share of time."""
        self._deadline = self._clock() + _READING_S

    def count(self, span: Span) -> int | None:
        """The number of records; None if the look has no time left, or Kafka does not answer."""
        if span not in self._known:
            if self._clock() >= self._deadline:
                return None
            found = self._read(span)
            if found is None:
                return None
            self._known[span] = found
        return self._known[span]

    def close(self) -> None:
        """Closes the consumer."""
        self._consumer.close()

    def _read(self, span: Span) -> int | None:
        self._consumer.assign([TopicPartition(self._topic, span.topic_partition, span.start)])
        found = 0
        deadline = self._deadline + _READING_S
        while self._clock() < deadline:
            for message in self._consumer.consume(10_000, 0.2):
                error = message.error()
                if error is None and message.offset() < span.end:
                    found += 1
                elif error is None or (error.code() == KafkaError._PARTITION_EOF and message.offset() >= span.end):
                    return found
                elif error.code() in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
                    return None
        return None
