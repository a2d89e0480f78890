"""The SQL of published and certified days, and how much of a window they cover."""

from dataclasses import dataclass

from infra.clickhouse import quote
from metrics.window import DAY_MS, AnyWindow, GlobalWindow, SessionWindow
from serving import window_sql


@dataclass(frozen=True)
class Days:
    """The days whose current publication covers all of some metric versions.

    Attributes:
        database: of the source, unquoted.
        versions: the metric versions; a ratio has two, and a day of which it has only one counts for neither.
    """

    database: str
    versions: tuple[str, ...]

    @property
    def published(self) -> str:
        """SELECT of partition, run_id, published_at and certified."""
        covered = f"[{', '.join(map(text, self.versions))}]"
        # columns are qualified: a bare name would mean the alias, which is an aggregate itself
        return (
            "SELECT d.partition AS partition, d.run_id AS run_id, d.published_at AS published_at,"
            " coalesce(k.certified, false) AS certified\n"
            "FROM (SELECT p.partition AS partition, argMax(p.run_id, p.published_at) AS run_id,"
            " max(p.published_at) AS published_at"
            # a run of another version of the catalog leaves this version's days as they are
            f" FROM {table(self.database, 'publications')} AS p WHERE hasAll(p.metric_versions, {covered})"
            " GROUP BY p.partition) AS d\n"
            "LEFT JOIN (SELECT c.partition AS partition, c.run_id AS run_id,"
            " argMax(c.certified, c.issued_at) AS certified"
            f" FROM {table(self.database, 'certificates')} AS c GROUP BY c.partition, c.run_id) AS k\n"
            "ON d.partition = k.partition AND d.run_id = k.run_id"
        )

    @property
    def certified(self) -> str:
        """The certified days, as the right side of IN."""
        return f"(SELECT partition FROM (\n{self.published}\n) WHERE certified)"

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


def table(database: str, name: str) -> str:
    """A table's name in SQL."""
    return f"{quote(database)}.{quote(name)}"


def text(value: str) -> str:
    """A string literal: views take no bound parameters."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
