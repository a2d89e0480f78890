"""What the speed layer knew of lookups when it read offsets of a log, as `lookup_positions` has it."""

from collections.abc import Mapping
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Lookup
from serving.lookup_tables import POSITIONS


@dataclass(frozen=True)
class Span:
    """Offsets ``[start, end)`` of a topic partition of the events' topic.

    Attributes:
        positions: By topic partition of the lookup, the offset before which versions were known there.
        opened_at: When the span was begun (microseconds), by ClickHouse's clock; None for one that is yet to be.
    """

    start: int
    end: int
    positions: Mapping[int, int]
    opened_at: int | None = None


def recorded(  # noqa: PLR0913, PLR0917 - the place of spans
    client: Client, lookup: Lookup, events_topic: str, topic_partition: int, start: int, end: int, since: int = 0
) -> list[Span]:
    """The spans that reach to `start` or beyond and begin before `end`, those first that were opened first.

    Args:
        client: Of the source's database.
        lookup: Which.
        events_topic: Whose offsets they are.
        topic_partition: Of the events' topic.
        start: Of the offsets asked about.
        end: Of the offsets asked about; exclusive.
        since: Spans that begin before this offset are left out.
    """
    sql = (
        "SELECT start_offset, max(end_offset), any(positions), toUnixTimestamp64Micro(written_at) AS opened_at "
        f"FROM {quote(POSITIONS)} "
        "WHERE events_topic = {events:String} AND topic_partition = {number:Int32} AND lookup = {lookup:String} "
        "AND topic = {topic:String} AND start_offset >= {since:Int64} AND start_offset < {end:Int64} "
        "AND end_offset >= {start:Int64} GROUP BY start_offset, opened_at ORDER BY opened_at, start_offset"
    )
    parameters = {
        "events": events_topic,
        "number": topic_partition,
        "lookup": lookup.name,
        "topic": lookup.topic,
        "since": since,
        "start": start,
        "end": end,
    }
    rows = client.query(sql, parameters=parameters).result_rows
    return [Span(int(first), int(last), dict(at), int(opened)) for first, last, at, opened in rows]
