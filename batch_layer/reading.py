"""The whole log: what has been archived of it, then what Kafka has, each record once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batch_layer import log_reader
from batch_layer.archive import Archive, ArchivedStretch
from batch_layer.log_reader import Records
from batch_layer.manifest import LogState, Plan
from infra.settings import Settings


@dataclass(frozen=True)
class LogReader:
    """Reads a topic from where its archive begins; it is sent to other processes.

    Attributes:
        archive: Of the topic.
        archived: By topic partition, stretches that follow one another without a gap up to what the log has, or beyond.
        log_begin: By topic partition, the offset from which on Kafka is read, and no longer the archive.
    """

    settings: Settings
    topic: str
    archive: Archive
    archived: Mapping[int, tuple[ArchivedStretch, ...]]
    log_begin: Mapping[int, int]

    def read(self, topic_partition: int, start: int, end: int) -> Iterator[Records]:
        """The records at offsets ``[start, end)`` of a topic partition, in order, some at a time.

        Raises:
            ArchiveError: The archive is damaged.
            ExpiredError: The log no longer has an offset, and the archive not either.
            KafkaUnavailableError: No broker answered.
        """
        edge = min(max(start, self.log_begin[topic_partition]), end)
        reached = start
        for stretch in self.archived.get(topic_partition, ()):
            first, last = max(reached, stretch.begin), min(edge, stretch.end)
            if first < last and first == reached:
                yield from self.archive.read(stretch, first, last)
                reached = last
        # what neither has is refused by the broker
        yield from log_reader.read(self.settings, self.topic, topic_partition, reached, end)


def reader_of(settings: Settings, topic: str, found: LogState | Plan) -> LogReader:
    """What reads a topic as a run found it, or the ranges of a plan."""
    archive = Archive(settings.archive, topic, found.topic_id)
    if isinstance(found, Plan):
        begins = {each.topic_partition: each.log_begin for each in found.ranges}
        return LogReader(settings, topic, archive, found.archived, begins)
    begins = {each.topic_partition: each.in_log_from for each in found.partitions}
    archived = {each.topic_partition: each.archived for each in found.partitions if each.archived}
    return LogReader(settings, topic, archive, archived, begins)
