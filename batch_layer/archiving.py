"""Copies a log into its archive as it grows, and compares the two."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from batch_layer import log_reader
from batch_layer.archive import Archive, ArchivedStretch, blocks_in
from batch_layer.log_reader import Records
from batch_layer.tasks import Stretch, Told, carried_out
from infra import kafka
from infra.avro import schema_ids
from infra.registry import Registry, UnknownSchemaError, registry_address
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import LEDGER_BLOCK

_OFFSETS = 20 * LEDGER_BLOCK
"""In one stretch at most: its records are held at once."""

_REGISTRY_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Copied:
    """What a pass did.

    Attributes:
        stretches: That were copied.
        gaps: Offsets that had expired before they were copied.
    """

    stretches: tuple[ArchivedStretch, ...]
    gaps: tuple[Stretch, ...]

    @property
    def records(self) -> int:
        """How many records were copied."""
        return sum(stretch.records for stretch in self.stretches)


@dataclass(frozen=True)
class Archiver:
    """Copies stretches of a log; it is sent to other processes."""

    settings: Settings
    catalog: Catalog
    archive: Archive

    def copy(self, stretch: Stretch) -> ArchivedStretch:
        """Copies a stretch."""
        records = self._read(stretch)
        span = (stretch.begin, stretch.end)
        return self.archive.write(stretch.topic_partition, span, records, self._schemas(records))

    def differing(self, stretch: Stretch, begins: Mapping[int, int]) -> list[int]:
        """Blocks of a stretch of the archive, as it begins and ends there, of which the log holds something else.

        Args:
            stretch: Which.
            begins: By topic partition, where the log begins; what lies before is compared with what was copied alone.
        """
        held = self.archive.stretches()[stretch.topic_partition]
        (copied,) = (one for one in held if (one.begin, one.end) == (stretch.begin, stretch.end))
        self.archive.check(copied)
        if stretch.begin < begins.get(stretch.topic_partition, stretch.end):
            return []
        in_log = {block.block: block for block in blocks_in((stretch.begin, stretch.end), self._read(stretch))}
        return [block.block for block in copied.blocks if in_log[block.block] != block]

    def _read(self, stretch: Stretch) -> Records:
        records = Records()
        topic, number = self.catalog.topic, stretch.topic_partition
        for more in log_reader.read(self.settings, topic, number, stretch.begin, stretch.end):
            records.extend(more)
        return records

    def _schemas(self, records: Records) -> dict[str, str]:
        """The writer schemas of the values, as far as the registry has them."""
        if self.catalog.format == "json":
            return {}
        registry = Registry(registry_address(self.settings, self.catalog), _REGISTRY_PATIENCE_S)
        found = {}
        for number in sorted(schema_ids(records.values)):
            with suppress(UnknownSchemaError):
                schema, referred = registry.schema(number)
                text = msgspec.json.encode({"schema": schema, "references": referred})
                found[str(number)] = text.decode()
        return found


def catch_up(archiver: Archiver, offsets: Mapping[int, tuple[int, int]], told: Told = lambda *_: None) -> Copied:
    """Copies what has come since.

    Args:
        archiver: Of the topic.
        offsets: By topic partition the offsets ``[begin, end)`` that the log has.
        told: Told of offsets that were copied.

    Raises:
        ArchiveError: What is in the archive cannot be read.
        ExpiredError: Records expired while they were copied.
        KafkaUnavailableError: No broker answered.
    """
    stretches, gaps = lacking(archiver.archive.stretches(), offsets)
    total = sum(each.end - each.begin for each in stretches)
    copied = []
    for stretch, written in carried_out(archiver.copy, stretches):
        copied.append(written)
        told("copying the log, offsets", stretch.end - stretch.begin, total)
    return Copied(tuple(sorted(copied, key=lambda one: (one.topic_partition, one.begin))), tuple(gaps))


def lacking(
    copied: Mapping[int, Sequence[ArchivedStretch]], offsets: Mapping[int, tuple[int, int]]
) -> tuple[list[Stretch], list[Stretch]]:
    """What an archive lacks of a log, in stretches, and what it can no longer get.

    A pass that was broken off may have copied later stretches than it left out: holes are filled, too.
    """
    stretches, gaps = [], []
    for number, (begin, end) in sorted(offsets.items()):
        held = [(one.begin, one.end) for one in copied.get(number, ())]
        reached = held[0][0] if held else begin
        for since, until in [*held, (end, end)]:
            if reached < min(since, begin):
                gaps.append(Stretch(number, reached, min(since, begin)))
            first = max(reached, begin)
            stretches += [Stretch(number, at, min(at + _OFFSETS, since)) for at in range(first, since, _OFFSETS)]
            reached = max(reached, until)
    return stretches, gaps


def compare(
    archiver: Archiver,
    copied: Sequence[ArchivedStretch],
    offsets: Mapping[int, tuple[int, int]],
    told: Told = lambda *_: None,
) -> dict[int, list[int]]:
    """Reads what was archived, and of the log what both have; by topic partition, the blocks of offsets that differ.

    Args:
        archiver: Of the topic.
        copied: What is read.
        offsets: By topic partition the offsets ``[begin, end)`` that the log has.
        told: Told of offsets that were compared.

    Raises:
        ArchiveError: The archive does not hold what was copied into it.
    """
    stretches = [Stretch(one.topic_partition, one.begin, one.end) for one in copied]
    total = sum(each.end - each.begin for each in stretches)
    found: dict[int, list[int]] = {}
    begins = {number: begin for number, (begin, _) in offsets.items()}
    for stretch, blocks in carried_out(partial(archiver.differing, begins=begins), stretches):
        if blocks:
            found.setdefault(stretch.topic_partition, []).extend(blocks)
        told("comparing archive and log, offsets", stretch.end - stretch.begin, total)
    return found


def archiver_of(settings: Settings, catalog: Catalog) -> tuple[Archiver, dict[int, tuple[int, int]]]:
    """What copies the log of a source, and by topic partition the offsets ``[begin, end)`` that it has.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
    """
    topic = kafka.describe(settings, catalog.topic)
    archive = Archive(settings.archive, catalog.topic, topic.topic_id)
    return Archiver(settings, catalog, archive), kafka.log_offsets(settings, catalog.topic)
