"""How many days of a run are computed and published together."""

from datetime import date, timedelta

import pytest

from batch_layer.manifest import Indexed, Plan
from batch_layer.run import portions

FIRST = date(2026, 3, 1)


@pytest.mark.parametrize(
    ("events", "most", "sizes"),
    [
        ([5, 5, 5], 15, [3]),
        ([5, 5, 5], 14, [2, 1]),
        ([5, 5, 5], 1, [1, 1, 1]),
        ([0, 0, 20, 0, 0], 10, [2, 1, 2]),
        ([20], 10, [1]),
        ([0, 0], 1, [2]),
    ],
)
def test_a_portion_is_as_many_days_as_hold_no_more_events(events: list[int], most: int, sizes: list[int]) -> None:
    days = [FIRST + timedelta(days=n) for n in range(len(events))]
    planned = Plan(tuple(days), (), None, indexed={day: Indexed(n, 0) for day, n in zip(days, events, strict=True)})
    found = [*portions(planned, most)]
    assert [len(portion) for portion in found] == sizes
    assert [day for portion in found for day in portion] == days
