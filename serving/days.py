"""The SQL of published and certified days, and how much of a window they cover."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from infra.clickhouse import quote
from metrics.window import DAY_MS, AnyWindow, GlobalWindow, SessionWindow
from serving import window_sql


@dataclass(frozen=True)
class Days:
    """The days whose current publication covers all of some metric versions.

    Attributes:
        database: of the source, unquoted.
        versions: the metric versions; a ratio has two, and a day of which it has only one counts for neither.
        as_of: what was published and certified up to this moment counts, and no more; None: all of it.
        instead: days that show these runs, whatever is published of them.
    """

    database: str
    versions: tuple[str, ...]
    as_of: datetime | None = None
    instead: tuple[tuple[date, str], ...] = ()

    @property
    def published(self) -> str:
        """SELECT of partition, run_id, published_at and certified."""
        return (
            f"SELECT d.partition AS partition, d.run_id AS run_id, d.published_at AS published_at,"
            f" (d.partition, d.run_id) IN {self._runs} AS certified\nFROM ({self._current}) AS d"
        )

    @property
    def published_and_certified(self) -> str:
        """SELECT of partition, run_id and published_at of the certified ones of the published days."""
        return (
            f"SELECT d.partition AS partition, d.run_id AS run_id, d.published_at AS published_at\n"
            f"FROM ({self._current}) AS d WHERE (d.partition, d.run_id) IN {self._runs}"
        )

    @property
    def dropped(self) -> str:
        """SELECT of partition and run_id of the published days whose rows are gone."""
        return (
            f"SELECT d.partition AS partition, d.run_id AS run_id FROM ({self._current}) AS d\n"
            f"WHERE (d.partition, d.run_id) IN (SELECT r.partition, r.run_id FROM {table(self.database, 'batch_runs')}"
            " AS r WHERE r.status = 'dropped')"
        )

    @property
    def certified(self) -> str:
        """The certified days, as the right side of IN."""
        return f"(SELECT d.partition FROM ({self._current}) AS d WHERE (d.partition, d.run_id) IN {self._runs})"

    @property
    def _current(self) -> str:
        """SELECT of each published day's current run."""
        covered = f"[{', '.join(map(text, self.versions))}]"
        # columns are qualified: a bare name would mean the alias, which is an aggregate itself
        return (
            "SELECT p.partition AS partition, argMax(p.run_id, p.published_at) AS run_id,"
            " max(p.published_at) AS published_at"
            # a run of another version of the catalog leaves this version's days as they are
            f" FROM {table(self.database, 'publications')} AS p WHERE hasAll(p.metric_versions, {covered})"
            f"{self._until('p.published_at')}{self._others} GROUP BY p.partition{self._runs_instead}"
        )

    @property
    def _others(self) -> str:
        if not self.instead:
            return ""
        return f" AND p.partition NOT IN ({', '.join(f'toDate({text(str(day))})' for day, _ in self.instead)})"

    @property
    def _runs_instead(self) -> str:
        if not self.instead:
            return ""
        listed = ", ".join(f"(toDate({text(str(day))}), {text(run_id)})" for day, run_id in self.instead)
        return (
            "\nUNION ALL SELECT i.1 AS partition, i.2 AS run_id, now64(6) AS published_at"
            f" FROM (SELECT arrayJoin([{listed}]) AS i)"
        )

    def _until(self, column: str, word: str = "AND") -> str:
        if self.as_of is None:
            return ""
        return f" {word} {column} <= fromUnixTimestamp64Micro({_microseconds(self.as_of)}, 'UTC')"

    @property
    def _runs(self) -> str:
        """Days and runs whose last certificate says so, as the right side of IN: a join takes longer to plan."""
        return (
            f"(SELECT c.partition, c.run_id FROM {table(self.database, 'certificates')} AS c"
            f"{self._until('c.issued_at', 'WHERE')}"
            " GROUP BY c.partition, c.run_id HAVING argMax(c.certified, c.issued_at))"
        )

    def share(self, window: AnyWindow, start: str, end: str, others: str | None = None) -> str:
        """How much of a window's time lies in certified days: Float64, exactly 1 where all of it does.

        Args:
            window: the window.
            start: SQL of its start.
            end: SQL of its end.
            others: of a global window, a SELECT of one Date column `partition`: days that must be certified besides
                all from the first published one to the last.
        """
        if isinstance(window, SessionWindow):
            # a session belongs to the day of its last millisecond
            return f"toFloat64(toDate({end} - toIntervalMillisecond(1)) IN {self.certified})"
        if isinstance(window, GlobalWindow):
            more = f" UNION ALL SELECT partition, false AS sure FROM ({others})" if others else ""
            return (
                "(SELECT if(count() = 0, 0, uniqExactIf(partition, sure)"
                " / (dateDiff('day', min(partition), max(partition)) + 1))"
                f" FROM (SELECT partition, certified AS sure FROM (\n{self.published}\n){more}))"
            )
        if window_sql.within_a_day(window):
            return f"toFloat64(toDate({start}) IN {self.certified})"
        begins, ends = f"toUnixTimestamp64Milli({start})", f"toUnixTimestamp64Milli({end})"
        days = f"(SELECT groupArray(toInt64(partition) * {DAY_MS}) FROM (\n{self.published}\n) WHERE certified)"
        overlap = f"greatest(0, least({ends}, day + {DAY_MS}) - greatest({begins}, day))"
        return f"arraySum(day -> {overlap}, {days}) / ({ends} - {begins})"


def _microseconds(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def table(database: str, name: str) -> str:
    """A table's name in SQL."""
    return f"{quote(database)}.{quote(name)}"


def text(value: str) -> str:
    """A string literal: views take no bound parameters."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
