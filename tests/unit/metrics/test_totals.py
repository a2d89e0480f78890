"""Totals are exact: what a catalog may add up never outgrows the integer that holds it."""

from metrics.totals import GREATEST_TOTAL_SCALE, MOST_VALUES_DIGITS

LARGEST = 10**38 - 1
"""A decimal of 38 digits in units of its last one; polars and ClickHouse wrap in silence not far beyond it."""


def test_a_hundred_billion_of_the_greatest_values_fit_a_total() -> None:
    greatest = 2**63 * 10**GREATEST_TOTAL_SCALE
    total = 10**MOST_VALUES_DIGITS * greatest
    assert total <= LARGEST
