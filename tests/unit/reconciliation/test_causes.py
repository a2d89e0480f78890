"""The split of a difference into causes adds up, for any numbers."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from reconciliation.causes import CAUSES, Readings, Split, split, total
from reconciliation.diff import Bin

WHOLE = st.integers(min_value=-(2**63), max_value=2**63)
MONEY = st.decimals(min_value=Decimal(-(10**34)), max_value=Decimal(10**34), places=2, allow_nan=False)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)


def readings(values):
    return st.builds(Readings.of, values, values, values, values, values)


ITEMS = st.integers(min_value=0, max_value=3)
"""Counts of an item in lists in which it may not be."""

SHARE = st.one_of(st.just(0.0), st.floats(min_value=0, max_value=1))
"""Values that are missing, and read as 0, or lie in [0, 1]."""

ANY = st.one_of(*map(readings, (WHOLE, MONEY, FLOAT, ITEMS, SHARE)))


@given(ANY, st.booleans())
def test_the_parts_telescope_to_exact_minus_speed(window, closed):
    assert split(window, closed=closed).total == window.difference


@given(st.lists(st.tuples(ANY, st.booleans()), max_size=8))
def test_the_parts_of_many_windows_telescope_to_the_sum_of_their_differences(windows):
    differences = [split(window, closed=True).total for window, _ in windows]
    whole = total(split(window, closed=closed) for window, closed in windows)
    exact = total(Split(late=difference) for difference in differences)
    assert whole.total == exact.late


@given(ANY)
def test_a_closed_window_is_never_called_not_yet_closed_and_an_open_one_never_a_residual(window):
    assert split(window, closed=True).not_yet_closed == 0
    assert split(window, closed=False).residual == 0
    assert split(window, closed=True).residual == split(window, closed=False).not_yet_closed


@given(WHOLE)
def test_five_equal_readings_leave_nothing_to_explain(value):
    assert all(
        part == 0 for part in split(Readings.of(value, value, value, value, value), closed=True).parts().values()
    )


def test_each_step_between_two_readings_is_one_cause():
    parts = split(Readings.of(97, 98, 100, 103, 102), closed=True)
    assert parts == Split(residual=Decimal(1), sketch=Decimal(2), late=Decimal(3), duplicate=Decimal(-1))
    assert parts.total == 5


def test_the_parts_come_in_the_documented_order():
    assert tuple(Split().parts()) == CAUSES


def test_a_float_is_taken_at_its_shortest_writing():
    assert split(Readings.of(0.1, 0.1, 0.1, 0.3, 0.3), closed=True).late == Decimal("0.2")


@given(st.lists(readings(ITEMS), max_size=5))
def test_a_window_that_is_taken_apart_by_item_telescopes_item_by_item(items):
    parts = total(split(item, closed=True) for item in items)
    assert parts.total == sum(item.exact - item.speed for item in items)


@given(st.tuples(*[st.integers(min_value=0, max_value=9)] * 4), st.booleans())
def test_a_changed_window_is_counted_under_the_cause_that_its_part_has(changed, closed):
    one = Bin(datetime(2026, 3, 1, tzinfo=UTC), closed, 9, Readings.of(*(0,) * 5), 9, changed, 0, 0)
    assert tuple(one.changed_by) == CAUSES
    assert sum(one.changed_by.values()) == sum(changed)
    assert one.changed_by["not_yet_closed" if closed else "residual"] == 0


def test_what_came_of_versions_that_came_late_is_no_sketch():
    readings = Readings.of(97, 98, 100, 103, 102)
    assert split(readings.lagging(), closed=True).parts() == split(readings, closed=True).parts() | {
        "sketch": 0,
        "lookup_lag": 2,
    }
    partly = split(readings.lagging(Decimal(5)), closed=True)
    assert (partly.sketch, partly.lookup_lag, partly.total) == (-3, 5, 5)
    one = Bin(datetime(2026, 3, 1, tzinfo=UTC), True, 9, readings, 9, (1, 4, 2, 0), 0, 0, lagging=3)
    assert one.changed_by == dict.fromkeys(CAUSES, 0) | {"residual": 1, "sketch": 1, "lookup_lag": 3, "late": 2}
