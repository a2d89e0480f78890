"""What the speed layer has published, as ClickHouse says: the only word that counts for `drained`."""

from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Catalog
from metrics.fold import groups
from serving.lookup_tables import POSITIONS
from speed_layer.publish import PROGRESS_TABLE


def frontier(client: Client, catalog: Catalog) -> dict[int, int]:
    """By topic partition, the offset before which everything is in the tables, for this version of the catalog."""
    found = client.query(
        f"SELECT topic_partition, max(next_offset) FROM {quote(PROGRESS_TABLE)} "
        "WHERE catalog_version = {version:String} AND topic = {topic:String} GROUP BY topic_partition",
        parameters={"version": catalog.version, "topic": catalog.topic},
    )
    return {int(partition): int(offset) for partition, offset in found.result_rows}


def watermark(client: Client, catalog: Catalog, partitions: int) -> int | None:
    """The least watermark of all partitions in ms; None while there are fewer with one than `partitions`."""
    found = client.query(
        "SELECT topic_partition, toUnixTimestamp64Milli(max(watermark)) "
        f"FROM {quote(PROGRESS_TABLE)} WHERE catalog_version = {{version:String}} AND topic = {{topic:String}} "
        "GROUP BY topic_partition",
        parameters={"version": catalog.version, "topic": catalog.topic},
    )
    reached = [int(moment) for _, moment in found.result_rows]
    return min(reached) if len(reached) >= partitions else None


def awaiting_on_time(client: Client, catalog: Catalog, reached: int) -> int:
    """Rows of slices that ended at or before `reached` (ms) whose on-time pane is not in the tables yet.

    Sessions have no such pane: what is known of them is in the tables as soon as its events are.
    """
    total = 0
    for group in (group for group in groups(catalog) if not group.session):
        for metric in group.metrics:
            found = client.query(
                f"SELECT count() FROM {quote(f'speed_{metric.name}')} FINAL WHERE metric_version = {{version:String}} "
                "AND pane = 'early' AND toUnixTimestamp64Milli(slice_start) + {width:Int64} <= {reached:Int64}",
                parameters={"version": metric.metric_version, "width": group.slice_width_ms, "reached": reached},
            )
            total += int(found.result_rows[0][0])
    return total


@dataclass(frozen=True)
class Goal:
    """What is to be published: the log as it was at some moment.

    Attributes:
        ends: By topic partition, an exclusive end offset; 0 for a partition that holds nothing.
        watermark: Where the watermark of all partitions gets to when they have read that far, in ms; None for an empty
            log.
    """

    ends: dict[int, int]
    watermark: int | None


def is_drained(client: Client, catalog: Catalog, goal: Goal) -> bool:
    """Whether all of the goal is published, and every slice that has ended by then has its on-time pane."""
    reached = frontier(client, catalog)
    if any(reached.get(partition, 0) < end for partition, end in goal.ends.items()):
        return False
    if goal.watermark is None:
        return True
    least = watermark(client, catalog, len(goal.ends))
    return least is not None and least >= goal.watermark and awaiting_on_time(client, catalog, least) == 0


def forget_progress(client: Client, catalog: Catalog, database: str, ends: dict[int, int]) -> dict[int, int]:
    """Drops progress that is not this catalog version's or is of a log that is gone; returns what holds.

    Without this, rows of a changed metric would count as published before they are.
    """
    reached = frontier(client, catalog)
    parameters = {"topic": catalog.topic, "version": catalog.version}
    delete = {"mutations_sync": 1}
    if any(offset > ends.get(partition, 0) for partition, offset in reached.items()):
        gone = {PROGRESS_TABLE: "topic"} | ({POSITIONS: "events_topic"} if catalog.lookups else {})
        for table, column in gone.items():
            client.command(
                f"ALTER TABLE {quote(database)}.{quote(table)} DELETE WHERE {quote(column)} = {{topic:String}}",
                parameters=parameters,
                settings=delete,
            )
        reached = {}
    shown = client.query(
        "SELECT topic_partition, max(next_offset) FROM watermarks "
        "WHERE topic = {topic:String} GROUP BY topic_partition",
        parameters=parameters,
    ).result_rows
    if any(int(offset) > reached.get(int(partition), 0) for partition, offset in shown):
        client.command(
            f"ALTER TABLE {quote(database)}.watermarks DELETE WHERE topic = {{topic:String}}",
            parameters=parameters,
            settings=delete,
        )
    return reached
