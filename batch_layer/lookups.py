"""What a batch run knows of lookups: every version there is, and which of them the speed layer knew, and when.

The exact readings join the version that was valid when an event happened. The expected speed states are folded from the
same events joined with the versions that the speed layer had read by then, as it wrote down in `lookup_positions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import polars as pl
from clickhouse_connect.driver.client import Client

from batch_layer.manifest import Plan, earliest_event_time, instant
from batch_layer.refusals import DayRefusedError
from infra.settings import Settings
from metrics.catalog import Catalog, Lookup
from metrics.lookup import Known, VersionReader, joined
from serving.lookup_archive import Archive, Gap, archived_records, gaps
from serving.lookup_positions import recorded


class LookupHistoryError(DayRefusedError):
    """Versions that events of a day may have to be joined with were gone before they were archived."""


@dataclass(frozen=True)
class Versions:
    """The versions of a catalog's lookups; it is sent to the executors.

    Attributes:
        lookups: Of the catalog.
        versions: By lookup, rows of `metrics.lookup.version_schema`.
        known: By lookup, what the speed layer knew.
        positions: By lookup and topic partition, the offset before which versions are there.
    """

    lookups: tuple[Lookup, ...]
    versions: Mapping[str, pl.DataFrame]
    known: Mapping[str, Known]
    positions: Mapping[str, Mapping[int, int]]

    def exact(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events joined with the versions that were valid when they happened."""
        for lookup in self.lookups:
            events = joined(events, lookup, self.versions[lookup.name])
        return events

    def expected(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events joined as the speed layer had to: with what it knew when it read them."""
        for lookup in self.lookups:
            versions = self.versions[lookup.name]
            numbers = versions["topic_partition"].unique().to_list()
            events = joined(events, lookup, versions, self.known[lookup.name].before(events, numbers))
        return events

    def until(self, positions: Mapping[str, Mapping[int, int]]) -> "Versions":
        """The same as it was when the topics of lookups reached to these offsets."""
        versions = {name: _before(rows, positions[name]) for name, rows in self.versions.items()}
        return replace(self, versions=versions, positions=positions)


def _before(rows: pl.DataFrame, positions: Mapping[int, int]) -> pl.DataFrame:
    end = pl.col("topic_partition").replace_strict(dict(positions), default=0, return_dtype=pl.Int64)
    return rows.filter(pl.col("offset") < end)


def read_versions(settings: Settings, client: Client, catalog: Catalog, planned: Plan) -> Versions | None:
    """Archives what has come since, and reads all versions; None for a catalog without lookups.

    Raises:
        LookupHistoryError: The history of a lookup is not complete from the first of the plan's days on.
        LookupTopicError: The topic of a lookup is not the one that was archived.
        TopicError: The topic of a lookup does not exist.
    """
    if not catalog.lookups:
        return None
    # positions first: what the speed layer knew is then in the archive, too
    known_then = {lookup.name: known(client, catalog, lookup, planned) for lookup in catalog.lookups}
    versions, positions = {}, {}
    for lookup in catalog.lookups:
        archive = Archive(settings, client, lookup)
        try:
            archive.catch_up()
            positions[lookup.name] = archive.positions
        finally:
            archive.close()
        refuse_gaps(catalog, lookup, gaps(client, lookup), planned.days)
        versions[lookup.name] = VersionReader(lookup).read(archived_records(client, lookup)).versions
    return Versions(catalog.lookups, versions, known_then, positions)


def refuse_gaps(catalog: Catalog, lookup: Lookup, missing: Sequence[Gap], days: Sequence[date]) -> None:
    """Refuses days that need versions from before the history is complete.

    Raises:
        LookupHistoryError: There are such.
    """
    needed = earliest_event_time(catalog, days)
    late = [gap for gap in missing if gap.complete_from > needed]
    if not late:
        return
    complete = max(gap.complete_from for gap in late)
    lost = ", ".join(f"offsets {gap.start} to {gap.end} of partition {gap.topic_partition}" for gap in late)
    msg = (
        f"the history of lookup `{lookup.name}` is complete only from {instant(complete)} on, and day {min(days)} "
        f"needs it from {instant(needed)}: of topic `{lookup.topic}` {lost} were gone before they were archived. "
        "choose days from then on; keep `lockstep speed` running, which archives versions as they come, or raise the "
        "topic's `min.compaction.lag.ms`, before more is lost"
    )
    raise LookupHistoryError(msg)


def known(client: Client, catalog: Catalog, lookup: Lookup, planned: Plan) -> Known:
    """What the speed layer knew of a lookup at the offsets that a plan reads."""
    return Known.of(
        (r.topic_partition, span.start, span.end, span.positions)
        for r in planned.ranges
        for span in recorded(client, lookup, catalog.topic, r.topic_partition, r.start, r.end)
    )
