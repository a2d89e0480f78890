"""Reconciliation against a real ClickHouse, over tables whose every row is known."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import polars as pl
import pytest
from reconciliation_seed import CATALOG, DAY, Seed, make_log

from infra.clickhouse import connect
from metrics.reference import answer
from reconciliation.alerts import alert_days
from reconciliation.certificate import Outcome, Verdict
from reconciliation.evidence import ManifestError
from reconciliation.page import report_page
from reconciliation.reconcile import reader, reconcile
from reconciliation.report import build, write_report
from reconciliation.result import Status, summaries

NEXT = date(2026, 3, 2)


@pytest.fixture
def client(clickhouse):
    with connect(clickhouse) as connection:
        yield connection


@pytest.fixture
def seed(client, clickhouse, unique, tmp_path):
    return Seed(client, clickhouse, f"recon_{unique}", tmp_path)


@pytest.fixture
def run(clickhouse, client, seed):
    def reconcile_day(day=DAY):
        (result,) = reconcile(clickhouse, seed.catalog, [day], client=client)
        return result

    return reconcile_day


def outcomes(result):
    checks = (*result.examined.certificate.checks, *result.examined.reported)
    return {check.name: check.outcome for check in checks}


def grain(result, metric, name):
    diff = next(diff for diff in result.examined.metrics if diff.metric == metric)
    return next(one for one in diff.grains if one.grain == name)


def test_a_speed_layer_that_read_the_same_log_has_no_residual_sketches_included(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log)
    result = run()
    assert result.certified
    assert result.verdict == Verdict.CLEAN
    assert result.residual == 0
    assert result.examined.comparison.compared > 500
    assert set(outcomes(result).values()) == {Outcome.HOLDS}
    assert {cause: n for cause, n in result.causes.items() if cause != "sketch"} == {
        "late": 5, "duplicate": 4, "id_conflict": 2, "dead_letter": 3, "not_yet_closed": 0,
    }  # fmt: skip


def test_the_windows_differ_by_what_the_causes_say_and_by_nothing_else(seed, run):
    log = make_log(late=9)
    seed.speed(log)
    seed.batch(log)
    result = run()
    said = answer(seed.tree, log)
    events = grain(result, "events", "1d")
    (whole,) = events.bins
    assert {cause: part for cause, part in events.split.parts().items() if part} == {"late": 9}
    assert whole.readings.exact == sum(cell.events for key, cell in said.exact.items() if key[:2] == ("events", "1d"))
    revenue = grain(result, "revenue", "5m")
    late_money = sum(
        Decimal(cell.value) * sign
        for cells, sign in ((said.exact, 1), (said.expected, -1))
        for key, cell in cells.items()
        if key[:2] == ("revenue", "5m")
    )
    assert revenue.split.late == late_money
    assert revenue.split.total == late_money
    for diff in result.examined.metrics:
        for one in diff.grains:
            assert all(row.split.total == row.readings.difference for row in (*one.bins, *one.worst))


def test_an_estimate_is_explained_as_sketch_and_its_bounds_are_checked(seed, run):
    log = make_log(events=1500)
    seed.speed(log)
    seed.batch(log)
    result = run()
    day = grain(result, "visitors", "1d")
    (worst,) = day.worst
    assert worst.readings.speed == worst.readings.expected != worst.readings.counted == 997
    assert worst.lower <= 997 <= worst.upper
    assert day.split.residual == 0
    assert (day.bounded, day.covered) == (1, 1)
    fine = grain(result, "visitors", "5m")
    assert fine.bounded == fine.windows
    assert fine.covered == fine.bounded
    assert result.causes["sketch"] == sum(one.sketched for diff in result.examined.metrics for one in diff.grains) > 0


def test_a_slice_that_speed_counted_twice_is_a_defect_and_is_shown(seed, run):
    log = make_log()

    def double(metric, rows):
        if metric != "events":
            return rows
        return rows.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(2).otherwise(1).alias("k")).with_columns(
            (pl.col("events") * pl.col("k")).cast(pl.UInt64), (pl.col("count") * pl.col("k")).cast(pl.UInt64)
        ).drop("k")  # fmt: skip

    seed.speed(log, change=double)
    seed.batch(log)
    result = run()
    assert result.certified
    assert (result.verdict, result.residual) == (Verdict.SPEED_DEFECT, 1)
    (row,) = result.examined.metrics[0].slices.samples
    assert row.speed_events == 2 * row.expected_events
    assert row.closed
    assert outcomes(result)["published_agrees"] is Outcome.FAILS
    assert grain(result, "events", "1m").split.residual == row.expected_events - row.speed_events
    assert "without a reason" in result.message


def test_one_register_that_differs_is_a_residual_even_when_the_estimate_hides_it(seed, run):
    log = make_log()

    def drop_register(metric, rows):
        if metric != "visitors":
            return rows
        first = pl.int_range(pl.len()) == 3
        return rows.with_columns(
            pl.when(first).then(pl.col("registers").list.head(pl.col("registers").list.len() - 1))
            .otherwise(pl.col("registers")).alias("registers")
        )  # fmt: skip

    seed.speed(log, change=drop_register)
    seed.batch(log)
    result = run()
    assert result.residual == 1
    (row,) = next(diff for diff in result.examined.metrics if diff.metric == "visitors").slices.samples
    assert row.speed_events == row.expected_events
    assert row.speed != row.expected


def test_the_order_in_which_registers_were_written_says_nothing(seed, run):
    log = make_log()

    def reverse(metric, rows):
        return rows.with_columns(pl.col("registers").list.reverse()) if metric == "visitors" else rows

    seed.speed(log, change=reverse)
    seed.batch(log)
    assert run().residual == 0


def test_a_slice_that_speed_lost_and_one_that_it_invented_are_defects(seed, run):
    log = make_log()

    def shift(metric, rows):
        if metric != "revenue":
            return rows
        return rows.with_columns(
            pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("XX")).otherwise(pl.col("country")).alias("country")
        )

    seed.speed(log, change=shift)
    seed.batch(log)
    result = run()
    revenue = next(diff for diff in result.examined.metrics if diff.metric == "revenue")
    assert result.residual == 2
    assert (revenue.slices.only_speed, revenue.slices.only_expected) == (1, 1)
    assert {row.dimensions["country"] for row in revenue.slices.samples} > {"XX"}
    assert grain(result, "revenue", "1h").split.residual == 0


def test_what_speed_has_not_read_yet_is_not_yet_closed_and_no_defect(seed, run):
    log = make_log()
    seed.speed(log, upto=150)
    seed.batch(log)
    behind = run()
    assert behind.certified
    assert (behind.verdict, behind.residual) == (Verdict.NOT_YET_CLOSED, 0)
    assert behind.causes["not_yet_closed"] > 0
    assert grain(behind, "events", "1d").split.not_yet_closed > 0
    assert outcomes(behind)["published_agrees"] is Outcome.NOT_CHECKED

    seed.speed(log)
    caught_up = run()
    assert (caught_up.verdict, caught_up.causes["not_yet_closed"]) == (Verdict.CLEAN, 0)
    assert seed.certificates() == 2


def test_a_speed_layer_that_never_ran_is_not_yet_closed(seed, run):
    log = make_log(events=200)
    seed.batch(log)
    result = run()
    assert result.certified
    assert result.verdict == Verdict.NOT_YET_CLOSED


def test_the_same_evidence_is_certified_once_and_new_evidence_again(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log)
    first, second = run(), run()
    assert first.examined.issued_at == second.examined.issued_at
    assert seed.certificates() == 1

    seed.batch(log, run_id="run-2")
    third = run()
    assert third.examined.publication.run_id == "run-2"
    assert seed.certificates() == 2

    seed.publish("run-1")
    back = run()
    assert back.examined.publication.run_id == "run-1"
    assert seed.certificates() == 3


def test_a_run_that_is_not_published_is_not_looked_at(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log, publish=False)
    result = run()
    assert result.status is Status.NOT_PUBLISHED
    assert not result.certified
    assert "lockstep batch --from 2026-03-01 --to 2026-03-01" in result.message
    assert seed.certificates() == 0
    assert summaries([result])["partitions"][0]["certified"] is False


def test_a_source_that_was_never_set_up_is_not_published(clickhouse, client, seed):
    client.command(f"DROP DATABASE {seed.database}")
    (result,) = reconcile(clickhouse, seed.catalog, [DAY], client=client)
    assert result.status is Status.NOT_PUBLISHED


def test_a_manifest_that_lost_records_is_not_certified(seed, run):
    log = make_log()
    seed.speed(log)
    told = seed.batch(log, publish=False)
    ranges = [read | {"records": read["records"] - 1} for read in told["ranges"]]
    seed.batch(log, run_id="run-2", ranges=ranges)
    result = run()
    assert not result.certified
    assert outcomes(result)["dispositions_close"] is Outcome.FAILS
    assert result.verdict == Verdict.CLEAN


def test_rows_that_hold_other_events_than_the_manifest_are_not_certified(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log, events=7)
    assert outcomes(run())["events_agree"] is Outcome.FAILS


def test_a_published_run_without_a_manifest_is_an_error_that_names_it(seed, run):
    seed.publish("run-9")
    with pytest.raises(ManifestError, match="run `run-9` is published for 2026-03-01"):
        run()


def test_a_metric_that_the_run_did_not_compute_is_named_and_not_compared(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log, publish=False)
    seed.publish("run-1", versions=[seed.catalog.metric("events").metric_version])
    result = run()
    assert [diff.metric for diff in result.examined.metrics] == ["events"]
    assert result.examined.not_in_run == ("revenue", "visitors")
    assert "not compared" in result.message
    assert "revenue, visitors" in result.message


def test_a_run_of_other_definitions_keeps_the_certificate_that_it_has(seed, run, clickhouse, client):
    log = make_log()
    seed.speed(log)
    seed.batch(log, events=7)
    assert not run().certified
    other = replace(
        seed.catalog, metrics=tuple(replace(metric, metric_version="other") for metric in seed.catalog.metrics)
    )
    (result,) = reconcile(clickhouse, other, [DAY], client=client)
    assert not result.certified
    assert "the run did not compute `events` as it is defined now" in result.message
    assert seed.certificates() == 1


def test_other_days_and_other_runs_do_not_mix(seed, run):
    first, second = make_log(seed=1, late=0), make_log(seed=2, day=NEXT, late=6)
    shifted = [*first]
    for record in second:
        before = sum(1 for one in first if one.topic_partition == record.topic_partition)
        shifted.append(type(record)(record.topic_partition, before + record.offset, record.record_time, record.value))
    seed.speed(shifted)
    seed.batch(shifted, day=DAY)
    seed.batch(shifted, day=NEXT)
    early, late = run(DAY), run(NEXT)
    assert (early.causes["late"], late.causes["late"]) == (0, 6)
    assert early.residual == late.residual == 0


def test_the_exceptions_are_told_apart_by_disposition_and_reason(seed, run):
    log = make_log()
    seed.speed(log)
    seed.batch(log)
    told = Counter()
    for one in run().examined.exceptions:
        told[one.disposition] += one.records
    said = Counter(answer(seed.tree, log).dispositions.values())
    assert told == {name: said[name] for name in ("late", "duplicate", "id_conflict", "dead_letter")}


def test_the_certificate_is_issued_at_the_time_given(clickhouse, client, seed):
    log = make_log(events=200)
    seed.speed(log)
    seed.batch(log)
    moment = datetime(2026, 3, 2, 4, tzinfo=UTC) + timedelta(microseconds=7)
    (result,) = reconcile(clickhouse, seed.catalog, [DAY], client=client, now=lambda: moment)
    assert result.examined.issued_at == moment
    rows = client.query(
        f"SELECT run_id, certified, toString(verdict), residual, causes FROM {seed.database}.certificates"
    ).result_rows
    assert rows == [("run-1", True, "clean", 0, dict(result.causes))]


def test_the_report_names_exactly_the_records_that_were_not_counted(clickhouse, client, seed, tmp_path):
    log = make_log()
    seed.speed(log)
    seed.batch(log)
    results = reconcile(clickhouse, seed.catalog, [DAY], client=client)
    paths = write_report(clickhouse, seed.catalog, DAY, tmp_path, results=results, client=client)
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["2026-03-01.html", "index.html"]
    doc = json.loads(paths.json.read_text())
    (part,) = doc["partitions"]
    named = {(r["topic_partition"], r["offset"]): r["disposition"] for r in part["exceptions"]["records"]}
    said = {at: kind for at, kind in answer(seed.tree, log).dispositions.items() if kind != "counted"}
    assert named == said
    assert part["exceptions"]["total"] == len(said)
    assert doc["headline"]["verdict"] == "clean"
    assert doc["headline"]["certified"] == 1
    assert "2026-03-01" in paths.index.read_text()
    late = next(r for r in part["exceptions"]["records"] if r["disposition"] == "late")
    assert late["event_id"] in paths.html.read_text()


def test_a_report_made_alone_certifies_nothing_and_shows_the_certificate_that_is_there(
    clickhouse, client, seed, tmp_path
):
    log = make_log(events=200)
    seed.speed(log)
    seed.batch(log)
    before = build(clickhouse, seed.catalog, DAY, client=client)
    assert (before["partitions"][0]["issued_at"], seed.certificates()) == (None, 0)
    reconcile(clickhouse, seed.catalog, [DAY], client=client)
    after = build(clickhouse, seed.catalog, [DAY, NEXT], client=client)
    assert after["partitions"][0]["issued_at"] is not None
    assert (after["from"], after["to"], after["headline"]["verdict"]) == ("2026-03-01", "2026-03-02", "not_published")


def test_alerts_are_judged_by_the_run_that_knows_each_whatever_else_the_catalog_defines(
    clickhouse, client, unique, tmp_path
):
    text = CATALOG + "alerts:\n  fast: {{when: count > 3, by: [user_id], within: 2m}}\n"
    seed = Seed(client, clickhouse, f"recon_{unique}", tmp_path, text)
    log = make_log(events=200)
    seed.speed(log)
    seed.batch(log)
    (fast,) = seed.catalog.alerts
    breach = {"alert": "fast", "alert_version": fast.alert_version, "alert_id": "a", "dims": {"user_id": "u1"}}
    breach |= {"breached_at": datetime(2026, 3, 1, 12, tzinfo=UTC), "value": 4.0, "threshold": 3.0, "topic": "fast"}
    for table, of_run in (("alerts", {}), ("batch_alerts", {"run_id": "run-1", "partition": DAY})):
        row = breach | of_run
        client.insert(f"{seed.database}.{table}", [list(row.values())], column_names=list(row))
    results = reconcile(clickhouse, seed.catalog, [DAY], client=client)

    def judged(catalog):
        (day,) = alert_days(reader(client), catalog, seed.database, results)
        return day.live, day.due, day.matched, day.precision, day.recall

    more = replace(seed.catalog.metrics[0], name="more", metric_version="new")
    assert judged(seed.catalog) == judged(replace(seed.catalog, metrics=(*seed.catalog.metrics, more)))
    assert judged(seed.catalog) == (1, 1, 1, 1.0, 1.0)
    seed.publish("run-2", alerts=[])
    assert judged(seed.catalog) == (1, 1, 1, 1.0, 1.0)
    other = replace(seed.catalog, alerts=(replace(fast, alert_version="other"),))
    assert judged(other) == (0, None, None, None, None)
    doc = build(clickhouse, other, DAY, results=results, client=client)
    assert "no published run of 2026-03-01 knows `fast`" in doc["alerts"][0]["message"]
    assert "knows <code>fast</code> as it is defined now" in report_page(doc, "2026-03-01")
