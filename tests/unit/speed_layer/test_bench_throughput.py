from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speed_layer.bench.run import Run, Stretch
from speed_layer.bench.table import lines
from speed_layer.bench.throughput import (
    CEILING,
    FLINK_SQL,
    FLINK_SQL_PLAIN,
    PER_ELEMENT,
    TARGETS,
    A,
    B,
    measure,
    medians,
    missed,
    ratios,
    result,
    rounds,
)

MACHINE = {"cpu": "a cpu", "cores": 2, "memory_bytes": 8 << 30, "load_before": 0.0}


def run(rate: int, *, exact: bool = True, cpu_s: float = 1.0, peak: int = 1 << 20) -> Run:
    stretch = Stretch(1_000_000, 1_000_000 / rate, {"system": cpu_s, "broker": 0.5})
    return Run(stretch, 100.0, {"system": peak, "broker": 1}, exact)


def figures(rate: int, **changes: Any) -> dict[str, Any]:
    return run(rate, **changes).figures()


def every(rates: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    return {system: [figures(rate)] for system, rate in rates.items()}


def test_figures_are_rates_of_what_was_read_in_the_timed_stretch() -> None:
    found = Run(Stretch(500_000, 2.0, {"system": 3.0}), 20.0, {"system": 7}, exact=True, more={"checkpoints": 4})
    assert found.figures() == {
        "events": 500_000,
        "events_per_s": 250_000,
        "seconds": 2.0,
        "whole_s": 20.0,
        "cpu_s_per_million": {"system": 6.0},
        "peak_bytes": {"system": 7},
        "exact": True,
        "checkpoints": 4,
    }


def test_a_stretch_too_short_to_be_timed_has_no_endless_rate() -> None:
    assert Run(Stretch(10, 0.0, {}), 0.0, {}, exact=True).figures()["events_per_s"] == 200


def test_medians_are_of_every_figure_by_itself() -> None:
    found = medians([figures(100, cpu_s=9.0, peak=1), figures(300, cpu_s=1.0, peak=5), figures(200, cpu_s=2.0, peak=3)])
    assert (found["events_per_s"], found["cpu_s_per_million"]["system"], found["peak_bytes"]["system"]) == (200, 2.0, 3)
    assert (found["least_events_per_s"], found["greatest_events_per_s"], found["runs"]) == (100, 300, 3)


def test_one_run_that_is_not_exact_spoils_the_system() -> None:
    assert medians([figures(1), figures(2)])["exact"]
    assert not medians([figures(1), figures(2, exact=False), figures(3)])["exact"]


def test_ratios_are_of_those_that_ran() -> None:
    assert ratios({A: 300, PER_ELEMENT: 10, CEILING: 600}) == {"a_to_per_element": 30, "a_to_ceiling": 0.5}
    assert ratios({CEILING: 600}) == {}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_met_from_its_number_on(name: str) -> None:
    least = TARGETS[name].least
    assert missed({name: least}) == []
    assert missed({name: least * 0.999}) == [name]


def test_the_targets_are_those_of_the_project() -> None:
    assert {name: target.least for name, target in TARGETS.items()} == {
        "a_to_per_element": 20,
        "a_to_flink_sql": 1,
        "a_to_ceiling": 0.7,
        "b_to_a": 1 / 3,
    }


GOOD = {A: 400_000, B: 200_000, PER_ELEMENT: 10_000, FLINK_SQL: 300_000, CEILING: 500_000}


def test_all_is_well_if_all_was_exact_and_every_target_is_met() -> None:
    found = result(MACHINE, every(GOOD))
    assert found["ok"]
    assert (found["missed"], found["not_judged"]) == ([], [])


@pytest.mark.parametrize(
    ("system", "rate", "name"),
    [
        (B, 100_000, "b_to_a"),
        (PER_ELEMENT, 21_000, "a_to_per_element"),
        (FLINK_SQL, 400_001, "a_to_flink_sql"),
        (CEILING, 600_000, "a_to_ceiling"),
    ],
)
def test_each_missed_target_is_no_success(system: str, rate: int, name: str) -> None:
    found = result(MACHINE, every(GOOD | {system: rate}))
    assert not found["ok"]
    assert found["missed"] == [name]
    assert any(line.startswith(name) and "MISSED" in line for line in lines(found))


@pytest.mark.parametrize("system", GOOD)
def test_a_system_that_miscounts_is_no_success(system: str) -> None:
    runs = every(GOOD) | {system: [figures(GOOD[system], exact=False)]}
    assert not result(MACHINE, runs)["ok"]


def test_what_did_not_run_is_not_judged_and_said_so() -> None:
    found = result(MACHINE, every({A: 1, B: 1}))
    assert found["not_judged"] == ["a_to_per_element", "a_to_flink_sql", "a_to_ceiling"]
    assert any(line.startswith("not judged: a_to_per_element") for line in lines(found))


def test_rounds_take_turns_and_begin_with_warm_ups() -> None:
    assert rounds([A, CEILING, FLINK_SQL_PLAIN], 2) == [
        (0, A),
        (0, FLINK_SQL_PLAIN),
        (1, A),
        (1, CEILING),
        (1, FLINK_SQL_PLAIN),
        (2, CEILING),
        (2, FLINK_SQL_PLAIN),
        (2, A),
    ]


def counting(done: list[str], fails_at: int = 0) -> Callable[[], Run]:
    def one() -> Run:
        done.append("run")
        if len(done) == fails_at:
            raise RuntimeError
        return run(len(done))

    return one


def test_runs_for_warming_up_do_not_count(tmp_path: Path) -> None:
    found = measure({A: counting([])}, 2, tmp_path / "notes", lambda _: None)
    assert [one["events_per_s"] for one in found[A]] == [2, 3]


def test_an_interrupted_bench_goes_on_where_it_was(tmp_path: Path) -> None:
    notes, done = tmp_path / "deep" / "notes", list[str]()
    with pytest.raises(RuntimeError):
        measure({CEILING: counting(done, fails_at=3)}, 3, notes, lambda _: None)
    found = measure({CEILING: counting(done)}, 3, notes, lambda _: None, resume=True)
    assert [one["events_per_s"] for one in found[CEILING]] == [1, 2, 4]


def test_a_new_bench_forgets_the_one_before(tmp_path: Path) -> None:
    notes, done = tmp_path / "notes", list[str]()
    measure({CEILING: counting(done)}, 1, notes, lambda _: None)
    found = measure({CEILING: counting(done)}, 1, notes, lambda _: None)
    assert [one["events_per_s"] for one in found[CEILING]] == [2]
