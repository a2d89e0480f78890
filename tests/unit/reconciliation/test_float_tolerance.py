import math

import chdb
import pytest

from reconciliation.slice_sql import within

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("speed", "expected", "tolerance", "same"),
    [
        (7.0, 7.0, 0.0, True),
        (7.0, 7.5, 0.5, True),
        (7.0, 7.5, 0.25, False),
        # the magnitude of the terms has overflowed, and with it the tolerance
        (7.0, 1e10, INF, False),
        (7.0, 7.0, INF, True),
        (7.0, 1e10, NAN, False),
        (INF, INF, INF, True),
        (INF, -INF, INF, False),
        (INF, 7.0, INF, False),
        (NAN, NAN, NAN, True),
        (NAN, 7.0, INF, False),
        (NAN, 7.0, 0.5, False),
    ],
)
def test_floats_are_alike_within_a_finite_tolerance_or_equal(
    speed: float, expected: float, tolerance: float, same: bool
) -> None:
    rows = f"('speed', {speed}, 0), ('expected', {expected}, {tolerance})"
    sql = f"SELECT {within(0)} FROM values('side String, f0 Float64, t0 Float64', {rows}) AS u"
    assert chdb.query(sql, "TSV").data().strip() == str(int(same))
