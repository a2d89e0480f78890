"""How far a speed layer is behind its log, as it says itself; one that says nothing is behind."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import query_frame

MOST_BEHIND = timedelta(minutes=5)
_SILENT_AFTER = timedelta(minutes=2)
"""It says every few seconds how far it is."""


@dataclass(frozen=True)
class SpeedLag:
    """How far a speed layer is behind.

    Attributes:
        offsets: That are in the log, and not published.
        lag: Of the topic partition that is furthest behind; None before any record of it is published.
        silent: How long it has said nothing; None: it never said anything.
    """

    offsets: int
    lag: timedelta | None
    silent: timedelta | None

    @property
    def behind(self) -> bool:
        """Whether it does not keep up."""
        if self.silent is None or self.silent > _SILENT_AFTER:
            return True
        return self.offsets > 0 and (self.lag is None or self.lag > MOST_BEHIND)

    @property
    def text(self) -> str:
        """In words, with what to do."""
        if self.silent is None:
            return "the speed layer has not said anything yet. is it up? `lockstep status`"
        if self.silent > _SILENT_AFTER:
            return (
                f"the speed layer has said nothing for {self.silent.total_seconds():.0f} s. `lockstep status` says why"
            )
        seconds = "an unknown time" if self.lag is None else f"{self.lag.total_seconds():.0f} s"
        where = f"the speed layer is {self.offsets} offsets and {seconds} behind the log" if self.offsets else ""
        return where or "the speed layer has published the whole log"

    def as_metadata(self) -> dict[str, Any]:
        """As Dagster shows it."""
        seconds = {"lag_s": self.lag, "silent_s": self.silent}
        return {"lag_offsets": self.offsets} | {
            name: span.total_seconds() for name, span in seconds.items() if span is not None
        }


def read_lag(client: Client, now: datetime) -> SpeedLag:
    """What the speed layer of a source said last.

    Args:
        client: Of the source's database.
        now: The time.
    """
    sql = (
        "SELECT sum(lag_offsets) AS offsets, if(countIf(lag_offsets > 0 AND lag_ms IS NULL) > 0, NULL, max(lag_ms)) "
        "AS lag_ms, max(at) AS at, count() AS partitions FROM partition_lags FINAL"
    )
    (row,) = query_frame(client, sql).to_dicts()
    if not row["partitions"]:
        return SpeedLag(0, None, None)
    lag = None if row["lag_ms"] is None else timedelta(milliseconds=row["lag_ms"])
    return SpeedLag(row["offsets"], lag, now - row["at"])
