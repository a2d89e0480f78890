"""Lookups in the speed layer: the versions that a process has read, and what each chunk knew of them.

A process reads each lookup's topic once, from the archive on. A chunk is joined with the versions read by then, and
which these were is settled before anything of the chunk is put out (`speed_layer.lookup_spans`).
"""

import logging
import threading
import time
from collections.abc import Mapping

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog, Lookup
from metrics.lookup import Known, VersionReader, joined, without_versions
from serving.lookup_archive import Archive, LookupLog, archived_positions, archived_records
from speed_layer.lookup_spans import SpansRead, SpanTable

_POLL_S = 0.2
_RETRY_S = 1.0
_EVERY_S = 1.0
_STOPPED_AFTER_S = 10.0

logger = logging.getLogger(__name__)


class LookupVersions:
    """The versions of a lookup as this process knows them, read on by a thread of its own."""

    def __init__(self, settings: Settings, database: str, lookup: Lookup) -> None:
        self._settings = settings
        self._database = database
        self._lookup = lookup
        self._changed = threading.Condition()
        self._frames = [without_versions([lookup])[lookup.name]]
        self._positions: dict[int, int] = {}
        self._target: dict[int, int] | None = None
        threading.Thread(target=self._run, name=f"lookup {lookup.name}", daemon=True).start()

    def snapshot(self) -> tuple[pl.DataFrame, dict[int, int]]:
        """What is known now: versions, and by topic partition the offset before which they are.

        The first time, it waits until the topic has been read up to its end as of the start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._target is not None and self._has(self._target))
            self._frames = [pl.concat(self._frames)]
            return self._frames[0], dict(self._positions)

    def await_positions(self, positions: Mapping[int, int]) -> None:
        """Waits until everything before these offsets is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._has(positions))

    def _has(self, positions: Mapping[int, int]) -> bool:
        return all(self._positions.get(number, 0) >= at for number, at in positions.items())

    def _run(self) -> None:
        while True:
            try:
                self._read()
            except Exception as error:
                # Kafka or ClickHouse is away, in any of their ways; chunks wait meanwhile, as they do for the log
                logger.warning("cannot read lookup `%s`: %s; waiting", self._lookup.name, error)
                time.sleep(_RETRY_S)

    def _read(self) -> None:
        client = connect(self._settings, self._database)
        positions = archived_positions(client, self._lookup)
        reader = VersionReader(self._lookup)
        archived = archived_records(client, self._lookup)
        kept = pl.col("topic_partition").replace_strict(positions, default=0, return_dtype=pl.Int64)
        frames = [reader.read(archived.filter(pl.col("offset") < kept)).versions]
        log = LookupLog(self._settings, self._lookup, positions)
        try:
            target = log.ends()
            while not log.has_reached(target):
                frames.append(reader.read(log.read(_POLL_S)).versions)
            self._publish(frames, log.positions, target)
            while True:
                versions = reader.read(log.read(_POLL_S)).versions
                self._publish([*self._frames, versions] if versions.height else self._frames, log.positions, target)
        finally:
            log.close()

    def _publish(self, frames: list[pl.DataFrame], positions: Mapping[int, int], target: dict[int, int]) -> None:
        with self._changed:
            self._frames, self._positions, self._target = frames, dict(positions), target
            self._changed.notify_all()


class PartitionLookups:
    """The lookups of a catalog as one topic partition of its log is joined with them."""

    def __init__(self, settings: Settings, catalog: Catalog, topic_partition: int) -> None:
        self._settings = settings
        self._database = settings.database(catalog.source)
        self._lookups = catalog.lookups
        self._spans = {
            lookup.name: SpansRead(SpanTable(settings, self._database, lookup, catalog.topic, topic_partition))
            for lookup in catalog.lookups
        }
        self._topic_partition = topic_partition
        self._known: dict[str, Known] = {}
        self._versions: dict[str, pl.DataFrame] = {}

    def begin(self, start: int, end: int) -> None:
        """Settles what is known for the chunk of offsets ``[start, end)``, and waits until it is known here, too."""
        for lookup in self._lookups:
            versions = _versions_of(self._settings, self._database, lookup)
            spans = self._spans[lookup.name].settle(start, end, lambda versions=versions: versions.snapshot()[1])
            for span in spans:
                versions.await_positions(span.positions)
            self._known[lookup.name] = Known.of((self._topic_partition, s.start, s.end, s.positions) for s in spans)
            self._versions[lookup.name], _ = versions.snapshot()

    def join(self, events: pl.DataFrame) -> pl.DataFrame:
        """Gives events of the chunk the fields of all lookups."""
        for lookup in self._lookups:
            versions = self._versions[lookup.name]
            numbers = versions["topic_partition"].unique().to_list()
            events = joined(events, lookup, versions, self._known[lookup.name].before(events, numbers))
        return events


class Archiving:
    """Archives the versions of lookups as they come, until it is stopped.

    Raises:
        LookupTopicError: The topic of a lookup is not the one that was archived.
    """

    def __init__(self, settings: Settings, client: Client, lookups: tuple[Lookup, ...]) -> None:
        self._settings = settings
        self._client = client
        self._archives: dict[Lookup, Archive | None] = {}
        for lookup in lookups:
            archive = self._archives[lookup] = Archive(settings, client, lookup)
            archive.catch_up()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archive lookups", daemon=True)
        if lookups:
            self._thread.start()

    def stop(self) -> None:
        """Stops; what has come by then and is not archived is archived at the next start."""
        self._stop.set()
        if self._archives:
            self._thread.join(_STOPPED_AFTER_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            for lookup in self._archives:
                self._follow(lookup, _EVERY_S / len(self._archives))
        for archive in self._archives.values():
            if archive is not None:
                archive.close()

    def _follow(self, lookup: Lookup, seconds: float) -> None:
        try:
            archive = self._archives[lookup]
            if archive is None:
                archive = self._archives[lookup] = Archive(self._settings, self._client, lookup)
            archive.follow(seconds)
        except Exception as error:
            # what a server that is away makes of a call has many names; the archive begins again where it stands
            logger.warning("cannot archive lookup `%s`: %s; waiting", lookup.name, error)
            self._archives[lookup] = None
            self._stop.wait(_RETRY_S)


_VERSIONS: dict[tuple[str, Lookup], LookupVersions] = {}
_LOCK = threading.Lock()


def _versions_of(settings: Settings, database: str, lookup: Lookup) -> LookupVersions:
    """This process's versions of a lookup."""
    with _LOCK:
        if (database, lookup) not in _VERSIONS:
            _VERSIONS[database, lookup] = LookupVersions(settings, database, lookup)
        return _VERSIONS[database, lookup]
