"""From days to the plan of a run: what the broker, the archive and the index of the log say of them."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import polars as pl

from batch_layer import log
from batch_layer.archive import Archive
from batch_layer.block_index import counted, extents, latest_ms
from batch_layer.indexing import Indexer, bring_up_to_date
from batch_layer.manifest import Indexed, LogState, Plan, ReadRange, closed_until, earliest_record_time, fitted, plan
from batch_layer.reading import reader_of
from batch_layer.refusals import LostError
from batch_layer.rows import day_spans, neighbourhood
from batch_layer.tasks import Told
from infra.clickhouse import connect
from infra.registry import require_registry
from infra.settings import Settings
from metrics.catalog import Catalog
from serving import schema


def plan_days(
    settings: Settings,
    catalog: Catalog,
    days: Sequence[date],
    *,
    allow_open: bool = False,
    reindex: bool = False,
    told: Told = lambda *_: None,
) -> Plan:
    """The plan of a run over these days of the log as it is now; see `batch_layer.manifest` for its refusals.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: Of the source.
        days: UTC days, in any order.
        allow_open: Whether a day may be planned before the watermark has passed its end and the lateness.
        reindex: Whether the whole log is read for its index, which is else brought up to date.
        told: Told how far that is.

    Raises:
        RegistryUnavailableError: The catalog's format needs a schema registry, and none answers.
    """
    require_registry(settings, catalog)
    since = earliest_record_time(catalog, days) if days else 0
    state = _observed(settings, catalog, since)
    planned = plan(catalog, days, state, allow_open=allow_open)
    indexer = _indexer(settings, catalog, state)
    refuse_former(indexer, planned)
    index = _up_to_date(indexer, state, told, anew=reindex)
    spans = day_spans(planned.days)
    last = max(end for _, end in spans) + latest_ms(index, spans)
    stops = log.stops(settings, catalog.topic, planned, last)
    indexed = {day: Indexed(*counted(index, span)) for day in planned.days for span in day_spans([day])}
    return fitted(planned, catalog, stops, extents(index, neighbourhood(catalog, spans)), indexed)


def plan_again(settings: Settings, catalog: Catalog, manifest: Mapping[str, Any]) -> Plan:
    """The plan of a run that has been, from its manifest: the same offsets for the same day.

    Raises:
        LostError: The topic is another one.
        RegistryUnavailableError: The catalog's format needs a schema registry, and none answers.
    """
    require_registry(settings, catalog)
    state = _observed(settings, catalog, 0)
    if state.topic_id != manifest["topic_id"]:
        msg = (
            f"topic `{catalog.topic}` was made anew: it has id {state.topic_id}, and run `{manifest['run_id']}` read "
            f"that of id {manifest['topic_id']}"
        )
        raise LostError(msg)
    known = manifest.get("lookups")
    found = {each.topic_partition: each for each in state.partitions}
    ranges = []
    for each in manifest["ranges"]:
        now = found[each["topic_partition"]]
        read = {name: each[name] for name in ("topic_partition", "remember_from", "start", "end", "log_end")}
        ranges.append(ReadRange(**read, log_begin=now.in_log_from, begin=now.begin))
    return Plan(
        (day := date.fromisoformat(manifest["partition"]),),
        tuple(ranges),
        day if manifest["closed"] else None,
        state.topic_id,
        {day: Indexed(**manifest["indexed"])},
        {each.topic_partition: each.archived for each in state.partitions if each.archived},
        # JSON has made texts of the topic partitions
        known and {name: {int(number): end for number, end in ends.items()} for name, ends in known.items()},
    )


def refresh_index(settings: Settings, catalog: Catalog, told: Told = lambda *_: None) -> pl.DataFrame:
    """Brings the index of a source's log up to date and returns it: rows of `block_index.BLOCKS`.

    Raises:
        RegistryUnavailableError: The catalog's format needs a schema registry, and none answers.
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
    """
    require_registry(settings, catalog)
    state = _observed(settings, catalog, 0)
    return _up_to_date(_indexer(settings, catalog, state), state, told)


def last_closed_day(settings: Settings, catalog: Catalog) -> date | None:
    """The last day to which nothing that is not late can be added; None for an empty log, which proves nothing.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
    """
    return closed_until(catalog, log.observe(settings, catalog.topic, 0))


def known_index(settings: Settings, catalog: Catalog) -> pl.DataFrame:
    """The index of a source's log as it was left: rows of `block_index.BLOCKS`.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered.
    """
    state = log.observe(settings, catalog.topic, 0)
    indexer = _indexer(settings, catalog, state)
    return indexer.known(indexer.client())


def _observed(settings: Settings, catalog: Catalog, since: int) -> LogState:
    state = log.observe(settings, catalog.topic, since)
    archive = Archive(settings.archive, catalog.topic, state.topic_id)
    return log.with_archive(state, archive.stretches(), since)


def _indexer(settings: Settings, catalog: Catalog, state: LogState) -> Indexer:
    schema.apply(connect(settings), catalog, settings.database(catalog.source))
    return Indexer(settings, catalog, state.topic_id, reader_of(settings, catalog.topic, state))


def _up_to_date(indexer: Indexer, state: LogState, told: Told, *, anew: bool = False) -> pl.DataFrame:
    offsets = {found.topic_partition: (found.begin, found.end) for found in state.partitions}
    return bring_up_to_date(indexer, offsets, told, anew=anew)


def refuse_former(indexer: Indexer, planned: Plan) -> None:
    """Refuses days of which events stood in a log that the topic's name no longer means.

    Raises:
        LostError: There are such.
    """
    client = indexer.client()
    for day in planned.days:
        (span,) = day_spans([day])
        if former := indexer.in_former_logs(client, span):
            topic = indexer.catalog.topic
            listed = ", ".join(f"{events} in the topic of id {topic_id}" for topic_id, events in former.items())
            msg = (
                f"topic `{topic}` was made anew: it has id {planned.topic_id}, and {day} had events in a former one "
                f"({listed}). what is published of that day stays; to count the new topic alone, name another source"
            )
            raise LostError(msg)
