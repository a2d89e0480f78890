"""The batch layer recomputes which alerts were due, from exact events, day by day."""

from datetime import UTC, datetime, timedelta

import alert_log
import polars as pl
import pytest
from alert_log import DAY_MS, START_MS

from batch_layer.run import run
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import DUPLICATE

FIRST = datetime.fromtimestamp(START_MS / 1000, UTC).date()
DAYS = [FIRST, FIRST + timedelta(days=1)]


@pytest.fixture
def source(unique: str) -> Catalog:
    return alert_log.catalog(unique)


def test_a_day_has_the_breaches_of_all_events_known_of_it(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    start = START_MS + DAY_MS - 500 * alert_log.STEP_MS
    sent = alert_log.flaws(2, alert_log.records(1, 1500, start))
    alert_log.append(kafka, source, sent)

    run(kafka, source, DAYS[:1], allow_open=True)
    run(kafka, source, DAYS[1:], allow_open=True)

    events = alert_log.events_of(source, sent).filter(pl.col("disposition") != DUPLICATE)
    due = {name: table.sort("alert_id") for name, table in alert_log.due(source, events).items()}
    held = connect(kafka, kafka.database(source.source)).query(
        "SELECT alert, toString(partition), alert_id, value, evidence FROM batch_alerts ORDER BY alert, alert_id"
    )
    rows = [tuple(row) for row in held.result_rows]
    assert {row[1] for row in rows} == {str(day) for day in DAYS}
    for alert in source.alerts:
        expected = due[alert.name].select(
            pl.col("breached_at").dt.date().cast(pl.String), "alert_id", "value", "evidence"
        )
        assert expected.height, "the log must breach every alert"
        assert [row[1:] for row in rows if row[0] == alert.name] == expected.rows()
