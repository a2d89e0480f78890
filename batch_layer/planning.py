"""From days to the plan of a run: what the broker, the archive and the index of the log say of them."""

from collections.abc import Sequence
from datetime import date

from batch_layer import log
from batch_layer.archive import Archive
from batch_layer.block_index import counted, extents, latest_ms
from batch_layer.indexing import Indexer, bring_up_to_date
from batch_layer.manifest import Indexed, Plan, earliest_record_time, fitted, plan
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
    state = log.observe(settings, catalog.topic, since)
    archive = Archive(settings.archive, catalog.topic, state.topic_id)
    state = log.with_archive(state, archive.stretches(), since)
    planned = plan(catalog, days, state, allow_open=allow_open)
    schema.apply(connect(settings), catalog, settings.database(catalog.source))
    indexer = Indexer(settings, catalog, state.topic_id, reader_of(settings, catalog.topic, planned))
    refuse_former(indexer, planned)
    index = bring_up_to_date(
        indexer, {p.topic_partition: (p.begin, p.end) for p in state.partitions}, told, anew=reindex
    )
    spans = day_spans(planned.days)
    last = max(end for _, end in spans) + latest_ms(index, spans)
    stops = log.stops(settings, catalog.topic, planned, last)
    indexed = {day: Indexed(*counted(index, span)) for day in planned.days for span in day_spans([day])}
    return fitted(planned, catalog, stops, extents(index, neighbourhood(catalog, spans)), indexed)


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
