"""What the demo decides: which days, and whether the layers found what was made."""

from dataclasses import dataclass, field
from datetime import date

from orchestration.backfill_plan import ranges
from orchestration.demo_summary import truth_line


@dataclass
class Reconciled:
    partition: date
    causes: dict[str, int] = field(default_factory=dict)


TRUTH = {
    "by_day": {
        "2026-11-19": {"dispositions": {"counted": 90, "late": 4, "duplicate": 3, "id_conflict": 0, "dead_letter": 3}}
    }
}


def test_days_without_a_gap_are_one_range() -> None:
    days = [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 3)]
    assert ranges(days) == [(date(2026, 2, 27), date(2026, 3, 1)), (date(2026, 3, 3), date(2026, 3, 3))]


def test_no_days_are_no_range() -> None:
    assert ranges([]) == []


def test_what_was_made_and_found_agrees_cause_by_cause() -> None:
    day = Reconciled(date(2026, 11, 19), {"late": 4, "duplicate": 3, "dead_letter": 2})
    line = truth_line(TRUTH, [day])
    assert "late 4 made, 4 found [green]" in line
    assert "dead letter 3 made, 2 found [red]" in line


def test_a_day_that_the_generator_did_not_make_is_not_judged() -> None:
    assert "late 0 made, 0 found" in truth_line(TRUTH, [Reconciled(date(2026, 11, 20), {"late": 9})])
