"""Published days of which the log has got more since: they have to be computed again, and no others."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl
from clickhouse_connect.driver.client import Client

from batch_layer.block_index import HOUR_MS, counted
from batch_layer.manifest import Indexed
from infra.clickhouse import query_frame
from metrics.window import DAY_MS, from_epoch_ms


@dataclass(frozen=True)
class StaleDay:
    """A day whose published run has not seen all that the log holds of it.

    Attributes:
        run_id: The run; None: the day was never published.
        then: What the run was to find; None: the run did not say.
        now: What the index of the log counts.
    """

    day: date
    run_id: str | None
    then: Indexed | None
    now: Indexed

    @property
    def why(self) -> str:
        """What came since, in words."""
        if self.run_id is None:
            return f"never published; the log has {self.now.events} events and {self.now.dead_letters} dead letters"
        if self.then is None:
            return f"run `{self.run_id}` did not say how much it found"
        more = (self.now.events - self.then.events, self.now.dead_letters - self.then.dead_letters)
        return f"since run `{self.run_id}` {more[0]} events and {more[1]} dead letters came"


def stale_days(index: pl.DataFrame, published: Mapping[date, tuple[str, Indexed | None]]) -> list[StaleDay]:
    """The days of which the log holds something that what is published has not seen, in order.

    Args:
        index: Of the log, as it is now.
        published: By day the run that it shows, and what that was to find.
    """
    found = []
    for day in days_in(index):
        start = int((day - date(1970, 1, 1)) / timedelta(milliseconds=1))
        now = Indexed(*counted(index, (start, start + DAY_MS)))
        run_id, then = published.get(day, (None, None))
        if then != now:
            found.append(StaleDay(day, run_id, then, now))
    return found


def days_in(index: pl.DataFrame) -> list[date]:
    """The days of which the log holds events or dead letters, in order."""
    lists = (index.select(pl.col(name).explode()).drop_nulls().unnest(name) for name in ("events", "dead_letters"))
    hours = pl.concat(part.select("key") for part in lists)["key"]
    days = (hours * HOUR_MS // DAY_MS).unique().sort()
    return [from_epoch_ms(day * DAY_MS).date() for day in days.to_list()]


def published_days(client: Client) -> dict[date, tuple[str, Indexed | None]]:
    """By day the run that it shows, and what that was to find."""
    sql = (
        "SELECT p.partition AS day, p.run_id AS run_id, JSONHas(r.manifest, 'indexed') AS said, "
        "JSONExtractUInt(r.manifest, 'indexed', 'events') AS events, "
        "JSONExtractUInt(r.manifest, 'indexed', 'dead_letters') AS dead_letters "
        "FROM (SELECT partition, argMax(run_id, published_at) AS run_id FROM publications GROUP BY partition) AS p "
        "LEFT JOIN (SELECT partition, run_id, argMax(manifest, at) AS manifest FROM batch_runs "
        "WHERE status = 'complete' GROUP BY partition, run_id) AS r "
        "ON p.partition = r.partition AND p.run_id = r.run_id"
    )
    rows = query_frame(client, sql).to_dicts()
    return {
        row["day"]: (row["run_id"], Indexed(row["events"], row["dead_letters"]) if row["said"] else None)
        for row in rows
    }
