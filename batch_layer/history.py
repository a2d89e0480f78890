"""What was published of a day, and by which run; an older run can be made current again."""

from dataclasses import dataclass
from datetime import date, datetime

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.clickhouse import insert_frame, query_frame

DROPPED = "dropped"
"""Status in `batch_runs` of a run whose rows are gone."""


class RevertError(Exception):
    """There is no run that could be made current; the text says why."""


@dataclass(frozen=True)
class Edition:
    """What a day showed from some moment on.

    Attributes:
        current: Whether it is what the day shows now.
        kept: Whether its rows are still there.
    """

    partition: date
    run_id: str
    published_at: datetime
    metric_versions: tuple[str, ...]
    alert_versions: tuple[str, ...]
    current: bool
    kept: bool


def editions(client: Client, day: date) -> list[Edition]:
    """What a day has shown, the oldest first."""
    sql = (
        "SELECT partition, run_id, published_at, metric_versions, alert_versions, run_id NOT IN "
        "(SELECT run_id FROM batch_runs WHERE partition = {day:Date} AND status = {dropped:String}) AS kept "
        "FROM publications WHERE partition = {day:Date} ORDER BY published_at"
    )
    rows = query_frame(client, sql, {"day": day, "dropped": DROPPED}).to_dicts()
    return [
        Edition(
            day,
            row["run_id"],
            row["published_at"],
            tuple(row["metric_versions"]),
            tuple(row["alert_versions"]),
            current=number == len(rows) - 1,
            kept=bool(row["kept"]),
        )
        for number, row in enumerate(rows)
    ]


def chosen(known: list[Edition], day: date, run_id: str | None) -> Edition:
    """The edition to go back to: of a run, else the last that another run than the current one has published.

    Raises:
        RevertError: There is none, it is current, or its rows are gone.
    """
    if not known:
        msg = f"{day} was never published, so nothing can be made current. publish it by `lockstep batch`"
        raise RevertError(msg)
    current = known[-1].run_id
    if run_id == current:
        msg = f"run `{run_id}` is what {day} shows already. name another; `lockstep publish list` has them"
        raise RevertError(msg)
    fitting = [one for one in known if (one.run_id == run_id if run_id else one.run_id != current)]
    if not fitting:
        what = f"run `{run_id}` never published {day}" if run_id else f"no other run than `{current}` published {day}"
        msg = f"{what}. `lockstep publish list` has those that did"
        raise RevertError(msg)
    if not fitting[-1].kept:
        msg = f"the rows of run `{fitting[-1].run_id}` are gone: it was superseded long ago. run the day again"
        raise RevertError(msg)
    return fitting[-1]


def revert(client: Client, day: date, run_id: str | None = None) -> tuple[str, str]:
    """Makes an older run current again; its publication is a new one, so that nothing of what was shown is forgotten.

    Args:
        client: Of the source's database.
        day: The day.
        run_id: The run; None: the one before the current one.

    Returns:
        The run that was current, and the one that is now.

    Raises:
        RevertError: There is no such run, or another publication came in between.
    """
    known = editions(client, day)
    wanted = chosen(known, day, run_id)
    versions = {"metric_versions": [*wanted.metric_versions], "alert_versions": [*wanted.alert_versions]}
    row = {"partition": day, "run_id": wanted.run_id, **versions}
    rows = pl.DataFrame([row], schema_overrides=dict.fromkeys(versions, pl.List(pl.String)))
    insert_frame(client, "publications", rows, f"{day}/{len(known)}")
    now = editions(client, day)
    if now[len(known)].run_id != wanted.run_id:
        msg = f"{day} was published by run `{now[-1].run_id}` meanwhile. look at it, and revert again if you still want"
        raise RevertError(msg)
    return known[-1].run_id, wanted.run_id


def rows_by_day(client: Client, run_id: str) -> dict[str, int]:
    """By day how many rows a run has written, in all tables.

    Args:
        client: Of the source's database.
        run_id: The run.
    """
    sql = (
        "SELECT substring(partition, 3, 10) AS day, sum(rows) AS written FROM system.parts "
        "WHERE database = currentDatabase() AND active AND endsWith(partition, {ending:String}) GROUP BY day"
    )
    return dict(query_frame(client, sql, {"ending": f",'{run_id}')"}).select("day", "written").rows())
