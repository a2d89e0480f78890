"""What a batch run of some days would read, and what the days show now; nothing is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from clickhouse_connect.driver.client import Client

from batch_layer.manifest import Indexed, Plan
from infra.clickhouse import query_frame

_RUNS_LOOKED_AT = 20


@dataclass(frozen=True)
class DayPreview:
    """One day of a preview.

    Attributes:
        indexed: What the log holds of it.
        run_id: What it shows now; None: it was never published.
        shown: What that run found; None where it did not say.
        certified: Whether the views serve it.
    """

    day: date
    indexed: Indexed
    run_id: str | None
    shown: Indexed | None
    certified: bool = True

    @property
    def state(self) -> str:
        """`new`, `stale`, `uncertified` or `unchanged`."""
        if self.run_id is None:
            return "new"
        if self.shown != self.indexed:
            return "stale"
        return "unchanged" if self.certified else "uncertified"


@dataclass(frozen=True)
class Preview:
    """What a run of some days would read.

    Attributes:
        planned: Its offsets.
        days: In order.
        seconds: How long it may take, from what runs took before; None where there was none.
    """

    planned: Plan
    days: tuple[DayPreview, ...]
    seconds: float | None

    @property
    def from_archive(self) -> int:
        """Offsets that would be read from the archive."""
        return sum(max(0, min(r.end, r.log_begin) - r.remember_from) for r in self.planned.ranges)

    @property
    def from_log(self) -> int:
        """Offsets that would be read from the log."""
        return sum(max(0, r.end - max(r.remember_from, r.log_begin)) for r in self.planned.ranges)


def preview(client: Client, planned: Plan, published: Mapping[date, tuple[str, Indexed | None]]) -> Preview:
    """What a plan would read.

    Args:
        client: Of the source's database.
        planned: The plan.
        published: By day the run that it shows, and what that found; see `stale.published_days`.
    """
    sure = certified(client)
    shown = {day: published.get(day, (None, None)) for day in planned.days}
    days = tuple(DayPreview(day, planned.indexed[day], *shown[day], (day, shown[day][0]) in sure) for day in shown)
    return Preview(planned, days, estimated_s(durations(client), planned.records))


def certified(client: Client) -> set[tuple[date, str | None]]:
    """The days and runs whose last certificate says that they may be relied upon."""
    sql = "SELECT partition, run_id FROM certificates GROUP BY partition, run_id HAVING argMax(certified, issued_at)"
    return {*query_frame(client, sql).rows()}


def durations(client: Client) -> list[tuple[int, float]]:
    """Offsets that the last runs read, and how many seconds each took."""
    sql = (
        "SELECT arraySum(r -> JSONExtractUInt(r, 'end') - JSONExtractUInt(r, 'remember_from'), "
        "JSONExtractArrayRaw(argMax(manifest, wall), 'ranges')) AS offsets, "
        "max(JSONExtractFloat(manifest, 'wall_seconds') AS wall) AS seconds "
        "FROM batch_runs WHERE status = 'complete' GROUP BY run_id ORDER BY max(at) DESC LIMIT {most:UInt32}"
    )
    return [*query_frame(client, sql, {"most": _RUNS_LOOKED_AT}).select("offsets", "seconds").rows()]


def estimated_s(known: Sequence[tuple[int, float]], offsets: int) -> float | None:
    """How long a run over so many offsets may take: the line through what runs took, which is never below the least.

    Args:
        known: Offsets and seconds of runs.
        offsets: Of the run.
    """
    if not known:
        return None
    least = min(seconds for _, seconds in known)
    pairs = sorted(known)
    (fewest, short), (most, long) = pairs[0], pairs[-1]
    rate = (long - short) / (most - fewest) if most > fewest else 0.0
    return max(least, short + rate * (offsets - fewest))
