"""Reconciliation of every aggregation and every window, against a real ClickHouse and tables whose rows are known."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import polars as pl
import pytest
from reconciliation_seed import COMPLETE, DAY, MINUTE, Seed, body, make_log

from infra.clickhouse import connect
from metrics.catalog import Metric
from metrics.reference import Record
from metrics.window import Window, to_epoch_ms
from reconciliation.certificate import Outcome, Verdict
from reconciliation.reconcile import examine, reader
from reconciliation.report import build

NEXT = date(2026, 3, 2)
START = to_epoch_ms(Window.of_day(DAY).start)
HOUR = 60 * MINUTE


@pytest.fixture
def client(clickhouse):
    with connect(clickhouse) as connection:
        yield connection


@pytest.fixture
def seed(client, clickhouse, unique, tmp_path):
    return Seed(client, clickhouse, f"recon_{unique}", tmp_path, COMPLETE)


@pytest.fixture
def run(client, seed):
    def examine_day(day=DAY):
        (result,) = examine(reader(client), seed.catalog, seed.database, [day])
        return result

    return examine_day


def of(result, metric):
    return next(diff for diff in result.examined.metrics if diff.metric == metric)


def grain(result, metric, name):
    return next(one for one in of(result, metric).grains if one.grain == name)


def residuals(result):
    return {diff.metric: diff.slices.comparison.residual for diff in result.examined.metrics if not diff.is_ratio}


def log_of(*events):
    """Records of one topic partition: (minute of the day at which it happened, and at which it was sent, changes)."""
    return [
        Record(0, number, START + sent * MINUTE, body(number, START + happened * MINUTE, **changes))
        for number, (happened, sent, changes) in enumerate(events)
    ]


CLOSING = (26 * 60, 26 * 60, {"user_id": "closing"})
"""An event of the next day whose arrival closes the day."""


def one_row(rows, number, condition):
    """Whether a row is the one of that number, in order of time, among those that fulfil the condition."""
    order = ["slice_start" if "slice_start" in rows.columns else "window_start"]
    order += [name for name in ("session_key", "country") if name in rows.columns]
    taken = rows.with_row_index("_row").filter(condition).sort(order)["_row"]
    return pl.int_range(pl.len()) == taken[number]


def defect(name, kind, dtype):
    """Another value than the column has."""
    own = pl.col(name)
    if isinstance(dtype, pl.List):
        return own.list.head(own.list.len() - 1)
    if kind.startswith("Nullable("):
        return pl.lit(None, dtype)
    if dtype == pl.Float64:
        return own * (1 + 1e-6) + 1e-6
    if isinstance(dtype, pl.Decimal):
        return (own + Decimal("0.01")).cast(dtype)
    return (own + 1).cast(dtype)


@pytest.fixture
def planted(seed):
    """A change that gives each column that is compared one wrong value, in a row of its own; and how many it gives."""
    given = {}

    def change(name, rows):
        metric = seed.catalog.metric(name)
        columns = [("events", "UInt64", pl.UInt64()), *((c.name, c.clickhouse_type, c.dtype) for c in metric.agg.state)]
        if metric.session:
            columns.append(("length_ms", "UInt64", rows.schema["length_ms"]))
        marked = rows
        for index, (column, kind, dtype) in enumerate(columns):
            filled = pl.col(column).list.len() > 0 if isinstance(dtype, pl.List) else pl.col(column).is_not_null()
            at = one_row(rows, 2 * index, filled)
            changed = pl.when(at).then(defect(column, kind, dtype)).otherwise(pl.col(column))
            marked = marked.with_columns(changed.alias(column))
        given[name] = sum(before != after for before, after in zip(rows.rows(), marked.rows(), strict=True))
        assert given[name] == len(columns), name
        return marked

    return change, given


def test_a_speed_layer_that_read_the_same_log_is_clean_in_every_metric(seed, run):
    log = make_log(events=900, users=40)
    seed.speed(log)
    seed.batch(log)
    result = run()
    assert result.certified
    assert (result.verdict, result.residual) == (Verdict.CLEAN, 0)
    assert [diff.metric for diff in result.examined.metrics] == [metric.name for metric in seed.catalog.shown]
    compared = {diff.metric: diff.slices.comparison for diff in result.examined.metrics}
    assert all(one.equal == one.compared > 0 for name, one in compared.items() if name != "purchase_ratio")
    for diff in result.examined.metrics:
        for one in diff.grains:
            assert one.changed_by["residual"] == one.changed_by["not_yet_closed"] == 0, diff.metric
            assert all(row.split.total == row.readings.difference for row in (*one.bins, *one.worst))


def test_every_column_that_speed_got_wrong_is_a_residual(seed, run, planted):
    log = make_log(events=900, users=40)
    change, given = planted
    seed.speed(log, change=change)
    seed.batch(log)
    result = run()
    assert residuals(result) == given
    assert result.certified
    assert result.verdict == Verdict.SPEED_DEFECT
    for diff in result.examined.metrics:
        wrong = [row for row in diff.slices.samples if row.closed]
        assert len(wrong) == given.get(diff.metric, 0)
        assert all(row.speed != row.expected or row.speed_events != row.expected_events for row in wrong)
        # an estimate or a list may hide it, which is why states decide
        if not diff.is_ratio and not seed.catalog.metric(diff.metric).agg.by_value:
            assert sum(one.changed_by["residual"] for one in diff.grains) > 0, diff.metric


def test_sums_of_floats_may_differ_by_rounding_and_by_no_more(seed, run, client):
    log = make_log(events=900, users=40)
    loose = {
        metric.name: [column.name for column in metric.agg.state if column.tolerance]
        for metric in seed.catalog.metrics
        if any(column.tolerance for column in metric.agg.state)
    }
    assert set(loose) == {"weights", "average_weight", "balance", "spread"}

    def off_by(share):
        def change(name, rows):
            size = pl.col("magnitude") if "magnitude" in rows.columns else pl.col("mean").abs()
            return rows.with_columns(pl.col(column) + share * size for column in loose.get(name, []))

        return change

    seed.batch(log)
    seed.speed(log, change=off_by(2e-10))
    rounded = run()
    assert rounded.residual == 0
    for name in loose:
        for one in of(rounded, name).grains:
            assert one.changed_by["residual"] == one.changed_by["sketch"] == 0
            assert one.changed_by["late"] > 0
    seed.speed(log, change=off_by(1e-6))
    wrong = residuals(run())
    assert {name for name, number in wrong.items() if number} == set(loose)


def test_a_magnitude_that_overflowed_hides_no_residual(seed, run, client):
    log = make_log(events=300)
    seed.batch(log)
    seed.speed(log)
    always = "WHERE true SETTINGS mutations_sync = 1"
    for table in ("speed_weights", "expected_weights", "batch_weights"):
        client.command(f"ALTER TABLE {seed.database}.{table} UPDATE magnitude = inf {always}")
    assert residuals(run())["weights"] == 0
    client.command(f"ALTER TABLE {seed.database}.speed_weights UPDATE total = 7 {always}")
    result = run()
    slices = of(result, "weights").slices.comparison
    assert slices.residual + slices.not_yet_closed == slices.compared > slices.not_yet_closed
    assert grain(result, "weights", "1h").changed_by["residual"] == slices.residual


def test_a_late_event_shows_in_sessions_lists_means_and_last_values(seed, run):
    ann = {"user_id": "ann", "country": "DE"}
    log = log_of(
        (600, 600, ann | {"page": "/a", "amount": "10.00"}),
        (610, 610, ann | {"page": "/a", "amount": "20.00"}),
        (650, 650, ann | {"page": "/b", "amount": "30.00"}),
        (840, 840, ann | {"page": "/c", "amount": "1.00"}),
        (630, 850, ann | {"page": "/b", "amount": "40.00"}),
        CLOSING,
    )
    seed.speed(log)
    seed.batch(log)
    result = run()
    assert result.residual == 0
    assert result.causes["late"] == 1

    visits = grain(result, "visits", "session")
    # the late event joins two sessions: the first grows by two events, the second is gone
    parts = {row.window_start.hour * 60 + row.window_start.minute: row for row in visits.worst}
    assert {at: row.split.late for at, row in parts.items()} == {600: 2, 650: -1}
    assert (parts[600].session_key, parts[600].length_ms) == ("ann", 50 * MINUTE)
    assert parts[650].without_value == ("with_late", "exact")
    assert visits.split.late == 1
    assert visits.changed_by["late"] == 2

    pages = grain(result, "pages", "1h")
    assert [(row.item, row.readings.speed, row.readings.exact) for row in pages.worst] == [("/b", 1, 2)]
    assert (pages.windows, pages.differing, pages.split.late) == (2, 1, 1)

    average = grain(result, "average", "5m")
    (row,) = average.worst
    assert (row.readings.exact, row.split.late) == (40, 40)
    assert row.without_value == ("speed", "expected", "counted")
    assert grain(result, "average_weight", "1h").changed_by["late"] == 1

    last = grain(result, "last_page", "5m")
    assert [(one.item, one.split.late) for one in last.worst] == [("/b", 1)]


def test_a_last_value_that_a_late_event_replaces_is_taken_apart_by_item(seed, run):
    log = log_of(
        (600, 600, {"page": "/a"}),
        (602, 900, {"page": "/b"}),
        CLOSING,
    )
    seed.speed(log)
    seed.batch(log)
    last = grain(run(), "last_page", "5m")
    assert {row.item: row.split.late for row in last.worst} == {"/a": -1, "/b": 1}
    assert (last.windows, last.differing, last.changed_by["late"], last.split.late) == (1, 1, 1, 0)


def test_a_window_that_reaches_into_other_days_shows_this_days_share(seed, run):
    log = make_log(events=900, late=5, users=40)
    seed.speed(log)
    seed.batch(log)
    result = run()
    # an hour every quarter: each event is in four windows
    assert grain(result, "events", "1h_every_15m").split.late == 20
    for name in ("1d", "week_europe_berlin", "global"):
        assert grain(result, "events", name).split.late == 5
    sliding = grain(result, "events", "1h_every_15m")
    assert min(one.start for one in sliding.bins) == Window.of_day(DAY).start - timedelta(minutes=45)
    (week, *_) = grain(result, "events", "week_europe_berlin").worst
    assert week.window_end - week.window_start == timedelta(days=7)
    assert all(one.start == Window.of_day(DAY).start for one in grain(result, "events", "global").bins)


def test_a_session_belongs_to_the_day_in_which_it_ends(seed, run):
    bob = {"user_id": "bob", "country": "DE"}
    log = log_of((1420, 1420, bob), (1445, 1445, bob), (30 * 60, 30 * 60, {"user_id": "closing", "country": "DE"}))
    seed.speed(log)
    seed.batch(log, day=DAY)
    seed.batch(log, day=NEXT)
    first, second = run(DAY), run(NEXT)
    assert of(first, "visits").slices.comparison.compared == 0
    assert of(second, "visits").slices.comparison.compared == 2
    assert first.residual == second.residual == 0
    (one, _) = grain(second, "visits", "session").bins
    assert (one.start, one.windows) == (Window.of_day(NEXT).start, 1)


def test_a_session_that_was_taken_back_does_not_exist(seed, run):
    log = make_log(events=300, users=20)

    def one_more(deleted):
        def change(name, rows):
            if name != "visits":
                return rows
            shifted = rows.sort("window_start").head(1).with_columns(pl.col("window_start") - 1000)
            extra = shifted.with_columns(is_deleted=pl.lit(deleted, pl.UInt8), chain_events=pl.lit(99, pl.UInt64))
            return pl.concat([rows.with_columns(is_deleted=pl.lit(0, pl.UInt8)), extra])

        return change

    seed.batch(log)
    seed.speed(log, change=one_more(1))
    assert residuals(run())["visits"] == 0
    seed.speed(log, change=one_more(0))
    result = run()
    assert residuals(result)["visits"] == 1
    visits = of(result, "visits").slices
    (row,) = visits.samples
    assert visits.only_speed == 1
    assert row.session_key
    assert row.speed["length_ms"].isdigit()


def test_two_layers_agree_that_there_is_no_value(seed, run):
    nothing = {
        "amount": None,
        "weight": None,
        "gain": None,
        "page": None,
        "change": None,
        "counted": None,
        "user_id": None,
    }
    log = log_of((600, 600, nothing), (603, 603, nothing), CLOSING)
    seed.speed(log)
    seed.batch(log)
    result = run()
    assert result.residual == 0
    assert all(one.differing == 0 for diff in result.examined.metrics for one in diff.grains)
    pages = grain(result, "pages", "1h")
    assert pages.windows == 1


def test_a_ratio_is_read_from_both_its_metrics_and_decides_nothing(seed, run):
    log = log_of(
        (600, 600, {"event_type": "purchase"}),
        (601, 601, {"event_type": "view"}),
        (602, 602, {"event_type": "view"}),
        (660, 660, {"event_type": "purchase"}),
        (603, 900, {"event_type": "purchase"}),
        CLOSING,
    )

    seed.batch(log)
    seed.speed(log)
    ratio = grain(run(), "purchase_ratio", "1h")
    (row,) = ratio.worst
    assert (row.readings.speed, row.readings.exact, row.split.late) == (Decimal("0.5"), 1, Decimal("0.5"))
    assert ratio.windows == 2
    seed.client.command(f"TRUNCATE TABLE {seed.database}.speed_views")
    result = run()
    assert of(result, "purchase_ratio").slices.comparison.compared == 0
    assert result.residual == of(result, "views").slices.comparison.residual == 1
    (row,) = grain(result, "purchase_ratio", "1h").worst
    assert (row.without_value, row.split.residual) == (("speed",), Decimal("0.5"))


def test_a_quantile_is_explained_as_sketch_and_its_bounds_are_checked(seed, run):
    log = make_log(events=900, late=0, users=40)
    seed.speed(log)
    seed.batch(log)
    result = run()
    for name, one in (("median", "1h"), ("heaviest", "3d"), ("visit_spread", "session")):
        diff = grain(result, name, one)
        assert diff.covered == diff.bounded == diff.windows > 0
        assert diff.sketched > 0
        assert diff.changed_by["residual"] == 0
        worst = diff.worst[0]
        assert worst.lower <= worst.readings.counted <= worst.upper


def test_what_speed_has_not_read_yet_is_open_in_sessions_too(seed, run):
    log = make_log(events=600, users=20)
    seed.speed(log, upto=150)
    seed.batch(log)
    result = run()
    assert (result.verdict, result.residual) == (Verdict.NOT_YET_CLOSED, 0)
    assert of(result, "visits").slices.comparison.not_yet_closed > 0
    assert grain(result, "visits", "session").changed_by["not_yet_closed"] > 0


def test_the_second_count_is_that_of_the_exact_states(seed, run, client):
    log = make_log(events=300)
    seed.speed(log)
    seed.batch(log)
    checks = {check.name: check for check in run().examined.certificate.checks}
    assert checks["events_agree"].detail == "`events`: 305 events"
    lost = "reading = 'exact' AND country = 'PT'"
    client.command(f"ALTER TABLE {seed.database}.batch_events DELETE WHERE {lost} SETTINGS mutations_sync = 1")
    checks = {check.name: check for check in run().examined.certificate.checks}
    assert checks["events_agree"].outcome is Outcome.FAILS


def test_the_report_says_what_adds_up_and_what_does_not(clickhouse, client, seed):
    log = make_log(events=300, users=20)
    seed.speed(log)
    seed.batch(log)
    now = datetime(2026, 3, 2, 4, tzinfo=UTC)
    doc = build(clickhouse, seed.catalog, DAY, client=client, now=lambda: now)
    kinds = {metric["metric"]: metric["kind"] for metric in doc["metrics"]}
    assert {name for name, kind in kinds.items() if kind == "sum"} == {
        "events", "purchases", "views", "revenue", "weights", "balance", "visits",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "items"} == {"pages", "last_page", "visit_pages"}
    assert {metric["metric"] for metric in doc["metrics"] if metric["is_ratio"]} == {"purchase_ratio"}
    assert {m.name for m in seed.catalog.shown if isinstance(m, Metric)} == set(kinds) - {"purchase_ratio"}
