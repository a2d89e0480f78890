import json
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from metrics.disposition import COUNTED, DUPLICATE, LATE
from orchestration.batch_bench import answers, beside, days, growth
from orchestration.batch_bench.systems import BATCH, DAY, PLAIN, POLARS, READING, SPAN, START_MS, TITLES
from speed_layer.bench.backlog import Backlog, body_b, events
from speed_layer.bench.run import Run, Stretch
from speed_layer.bench.throughput import result

EVENTS = 30_000
MACHINE = {"cpu": "a cpu", "cores": 2, "memory_bytes": 8 << 30, "load_before": 0.0}


@pytest.fixture(scope="module")
def backlog() -> Backlog:
    filled = Backlog("t", EVENTS)
    for event in events(EVENTS, 4, body_b, SPAN):
        filled.add(event)
    return filled


def told_by_the_records() -> Counter[tuple[int, str]]:
    """The answers, from what the records say and nothing else."""
    found: Counter[tuple[int, str]] = Counter()
    for event in events(EVENTS, 4, body_b, SPAN):
        fields = json.loads(event.value)
        if event.disposition in {COUNTED, LATE} and SPAN[0] <= fields["ts"] < SPAN[1]:
            minute = fields["ts"] // 60_000 * 60_000
            found[minute, fields["event_type"]] += 1
            if fields["event_type"] == "purchase":
                found[minute, answers.TURNOVER] += int(Decimal(fields["amount"]) * 100)
    return found


def test_expected_are_each_event_of_the_day_once_with_what_purchases_paid(backlog: Backlog) -> None:
    assert backlog.dispositions[DUPLICATE] > 0
    assert backlog.dispositions[LATE] > 0
    assert {(minute, name): n for minute, name, n in answers.expected(backlog, SPAN)} == told_by_the_records()


def test_a_summary_is_of_all_rows_in_any_order(backlog: Backlog) -> None:
    rows = answers.expected(backlog, SPAN)
    assert answers.summary(rows) == answers.summary(reversed(rows))
    (at, name, number), *rest = rows
    assert answers.summary([(at, name, number + 1), *rest]) != answers.summary(rows)
    assert answers.summary([(at + 60_000, name, number), *rest]) != answers.summary(rows)


@pytest.mark.parametrize("kind", ["spark", "polars"])
def test_files_of_both_kinds_are_read_alike(backlog: Backlog, tmp_path: Path, kind: str) -> None:
    rows = answers.expected(backlog, SPAN)
    found = pl.DataFrame(rows, schema=["at", "f_event_type", "value"], orient="row")
    found = found.with_columns(pl.from_epoch("at", "ms"))
    outside = found.head(1).with_columns(pl.col("at") + timedelta(days=2))
    is_turnover = pl.col("f_event_type") == answers.TURNOVER
    paid = (pl.col("value").cast(pl.Decimal(38, 2)) / 100).cast(pl.Decimal(38, 2)).alias("value")
    of_turnover = found.filter(is_turnover).select("at", paid)
    for name, frame in ((answers.BY_TYPE, pl.concat([found.filter(~is_turnover), outside])), ("turnover", of_turnover)):
        path = tmp_path / f"{name}_1m.parquet"
        if kind == "spark":
            path.mkdir()
            (path / "_SUCCESS").touch()
            spark = frame.select(pl.exclude("at"), window=pl.struct(start="at"))
            for number, part in enumerate(spark.iter_slices(5_000)):
                part.write_parquet(path / f"part-{number}.parquet")
        else:
            frame.rename({"at": "event_time"}).write_parquet(path)
    assert answers.summary(answers.of_files(tmp_path, SPAN)) == answers.summary(rows)


def figures(rate: int, *, exact: bool = True) -> dict[str, Any]:
    stretch = Stretch(1_000_000, 1_000_000 / rate, {"system": 9.0, "broker": 0.5, "clickhouse": 2.0})
    return Run(stretch, 100.0, {"system": 1 << 20}, exact, {"start_s": 4.0, "index_s": 3.0}).figures()


def beside_others(rates: dict[str, int]) -> dict[str, Any]:
    runs = {system: [figures(rate)] for system, rate in rates.items()}
    return result(MACHINE, runs, name="batch", titles=TITLES, targets=beside.TARGETS)


def test_the_targets_beside_other_means_are_those_of_the_project() -> None:
    least = {(target.system, target.other): target.least for target in beside.TARGETS.values()}
    assert least == {(BATCH, PLAIN): 3.0, (BATCH, POLARS): 0.5}


def test_all_is_well_at_three_times_plain_spark_and_half_of_polars() -> None:
    found = beside_others({BATCH: 30_000, PLAIN: 10_000, POLARS: 60_000, READING: 500_000})
    assert (found["ok"], found["missed"], found["not_judged"]) == (True, [], [])


@pytest.mark.parametrize(
    ("system", "rate", "name"), [(PLAIN, 10_001, "batch_to_plain"), (POLARS, 60_001, "batch_to_polars")]
)
def test_a_rival_that_is_too_fast_is_a_missed_target(system: str, rate: int, name: str) -> None:
    found = beside_others({BATCH: 30_000, PLAIN: 10_000, POLARS: 60_000} | {system: rate})
    assert (found["ok"], found["missed"]) == (False, [name])
    assert any(line.startswith(name) and "MISSED" in line for line in beside.lines(found))


def test_lines_say_what_is_not_in_the_rate() -> None:
    lines = list(beside.lines(beside_others({BATCH: 50_000})))
    assert "not judged: batch_to_plain, batch_to_polars" in lines
    assert lines[-1].startswith("not in the rate of batch: 4 s to start, a JVM too where it needs one")
    assert lines[-1].endswith("of its 20 s, 3 s are for the index of the log")


@pytest.mark.parametrize(("singles", "numbers"), [(1, [15]), (3, [5, 15, 25]), (30, [*range(30)]), (99, [*range(30)])])
def test_single_days_are_spread_over_the_range(singles: int, numbers: list[int]) -> None:
    assert days.sample(30, singles) == numbers


def test_each_day_of_a_range_has_the_events_that_happened_on_it() -> None:
    backlog, found = Backlog("t", EVENTS), Counter[int]()
    for event in events(EVENTS, 4, body_b, (START_MS - 2 * 86_400_000, SPAN[1])):
        backlog.add(event)
        if event.disposition in {COUNTED, LATE}:
            found[json.loads(event.value)["ts"] // 86_400_000] += 1
    last = START_MS // 86_400_000
    assert days.by_day(backlog) == {DAY + timedelta(days=number - last): n for number, n in found.items()}
    assert len(found) == 4, "late events of the first day happened on the day before"


def ranged(whole_s: float, *alone_s: float, exact: bool = True) -> dict[str, Any]:
    whole = days.Timed(30, whole_s, 2 << 20, exact=True)
    return days.result(MACHINE, 20_000, whole, [days.Timed(1, seconds, 1 << 20, exact) for seconds in alone_s])


def test_a_range_may_cost_half_of_what_its_days_cost_alone() -> None:
    found = ranged(150.0, 9.0, 10.0, 11.0)
    assert (found["ratios"], found["ok"]) == ({"range_to_singles": 0.5}, True)
    found = ranged(151.0, 9.0, 10.0, 11.0)
    assert (found["missed"], found["ok"]) == (["range_to_singles"], False)
    assert any("target 0.5: MISSED" in line for line in days.lines(found))


def test_lines_of_a_range_say_what_was_run_and_what_was_taken() -> None:
    whole, alone, start, verdict = days.lines(ranged(60.0, 9.0, 10.0, 11.0))
    assert whole.startswith("30 days of 20,000 events in one run, the index of the log too: 60.0 s, 2.00 s a day")
    assert alone.startswith("a day in a run of its own: 10.0 s, mean of 3 (9.0 to 11.0), so 30 of them: 300 s")
    assert start.endswith("JVM included")
    assert verdict == "range_to_singles: 0.2 times, target 0.5"


def test_a_day_that_was_not_exact_is_no_success() -> None:
    found = ranged(60.0, 10.0, exact=False)
    assert not found["ok"]
    assert any("NOT EXACT" in line for line in days.lines(found))


def of_size(number: int, *, cost: float, peak: int, exact: bool = True) -> dict[str, Any]:
    stretch = Stretch(number, 10.0, {"system": cost * number / 1_000_000, "broker": 0.0, "clickhouse": 0.0})
    return Run(stretch, 20.0, {"system": peak, "broker": 0, "clickhouse": 0}, exact).figures()


def test_growth_is_told_by_the_cost_of_an_event_and_memory_of_the_last_step() -> None:
    found = growth.result(
        MACHINE,
        [
            of_size(100_000, cost=90.0, peak=1 << 30),
            of_size(1_000_000, cost=20.0, peak=1 << 30),
            of_size(10_000_000, cost=18.0, peak=3 << 29),
        ],
    )
    assert (found["ratios"], found["ok"]) == ({"cost_per_event": 0.9, "memory": 1.5}, True)
    *sizes, cost, memory = growth.lines(found)
    assert [line.partition(" events")[0] for line in sizes] == ["100,000", "1,000,000", "10,000,000"]
    assert cost == "cost per event, 10,000,000 events to 1,000,000 events: 0.9 times"
    assert memory.endswith(": 1.5 times")


def test_a_size_that_was_not_exact_is_no_success() -> None:
    sizes = [of_size(n, cost=1.0, peak=1, exact=n > 10) for n in (10, 100, 1_000)]
    found = growth.result(MACHINE, sizes)
    assert not found["ok"]
    assert [line.endswith("NOT EXACT") for line in growth.lines(found)][:3] == [True, False, False]


def test_a_day_is_measured_at_three_sizes_each_ten_times_the_one_before() -> None:
    assert growth.sizes(growth.EVENTS) == [100_000, 1_000_000, 10_000_000]
