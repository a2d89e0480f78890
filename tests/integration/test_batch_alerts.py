"""The batch layer recomputes which alerts were due, from exact events, day by day."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import alert_log
import polars as pl
import pytest
from alert_log import DAY_MS, START_MS
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.alerts import PART, alert_writes, opening_level, together
from batch_layer.job import spark_session
from batch_layer.run import run
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from metrics.disposition import DUPLICATE

FIRST = datetime.fromtimestamp(START_MS / 1000, UTC).date()
DAYS = [FIRST, FIRST + timedelta(days=1)]


@pytest.fixture(scope="module")
def session(settings: Settings) -> Iterator[SparkSession]:
    with spark_session(settings, 10_000) as opened:
        yield opened


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


def test_a_key_is_judged_in_one_task_whether_its_field_is_null_or_empty(session: SparkSession, source: Catalog) -> None:
    velocity = replace(source, alerts=tuple(one for one in source.alerts if one.name == "card_velocity"))
    users = [None, "", *(f"u{n}" for n in range(30))]
    rows = [(True, True, "buy", user, n, n, f"e{n}") for n, user in enumerate(2 * users)]
    schema = "exact boolean, inside boolean, f_kind string, f_user string, event_time long, place long, event_id string"
    session.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    ((_, frame, _),) = alert_writes(velocity, session.createDataFrame(rows, schema), DAYS, None, "")  # type: ignore[arg-type]
    tasks: dict[str, set[int]] = {}
    for row in frame.select(F.coalesce("f_user", F.lit("")).alias("user"), F.spark_partition_id().alias("t")).collect():
        tasks.setdefault(row.user, set()).add(row.t)
    assert {len(found) for found in tasks.values()} == {1}
    assert len(set.union(*tasks.values())) > 2


def test_an_alert_without_a_key_is_judged_in_parts_that_hold_what_their_first_instants_look_back_to(
    session: SparkSession, source: Catalog
) -> None:
    (share,) = (one for one in source.alerts if one.name == "error_share")
    hour, minute = 3_600_000, 60_000
    times = [0, hour - minute, hour - minute + 1, hour - 1, hour]
    session.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    frame = together(session.createDataFrame([(time,) for time in times], "event_time long"), share)
    rows = frame.select("event_time", PART, F.spark_partition_id().alias("t")).collect()
    held = {start: sorted(row.event_time for row in rows if row[PART] == start) for start in (0, hour)}
    assert held == {0: times[:4], hour: times[2:]}
    assert all(len({row.t for row in rows if row[PART] == start}) == 1 for start in held)


def test_what_a_level_was_does_not_come_from_a_run_of_another_version(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    alert_log.append(kafka, source, alert_log.records(3, 300))
    run(kafka, source, DAYS[:1], allow_open=True)
    database = kafka.database(source.source)
    client = connect(kafka, database)
    (low,) = (one for one in source.alerts if one.name == "low_stock")
    known = opening_level(client, database, source, low, DAYS[1:])
    assert known.height

    stock = source.metric("stock")
    assert isinstance(stock, Metric)
    others = tuple(replace(one, metric_version="f" * 16) if one == stock else one for one in source.metrics)
    run(kafka, replace(source, metrics=others, alerts=()), DAYS[:1], allow_open=True)

    again = opening_level(client, database, source, low, DAYS[1:])
    assert again.sort("f_product", "event_time").equals(known.sort("f_product", "event_time"))
