"""Lag and skew of topic partitions, and which record timestamps move a watermark."""

import pytest

from speed_layer.lag import Lag, lags
from speed_layer.log import latest

NOW = 1_780_000_000_000
MINUTE = 60_000


@pytest.mark.parametrize(
    ("stamps", "greatest"),
    [
        ([NOW - 7 * MINUTE, NOW - 9 * MINUTE], NOW - 7 * MINUTE),
        ([NOW - 7 * MINUTE, NOW + 5 * MINUTE], NOW + 5 * MINUTE),
        ([NOW - 7 * MINUTE, NOW + 5 * MINUTE + 1], NOW - 7 * MINUTE),
        ([NOW + 365 * 24 * 60 * MINUTE], NOW),
    ],
)
def test_a_record_that_cannot_be_that_new_moves_no_watermark_further_than_now(stamps: list[int], greatest: int) -> None:
    assert latest(stamps, NOW) == greatest


def test_a_partition_that_is_published_has_no_lag_but_may_have_skew() -> None:
    found = lags({0: (0, 10), 1: (0, 10)}, {0: 10, 1: 10}, {0: 500, 1: 900}, {0: 500, 1: 900})

    assert found == [Lag(0, 0, 0, 400), Lag(1, 0, 0, 0)]


def test_lag_is_what_the_log_holds_beyond_the_published_offset() -> None:
    found = lags({0: (100, 150), 1: (100, 150)}, {0: 120}, {0: 900, 1: 900}, {0: 500})

    assert found == [Lag(0, 30, 400, 0), Lag(1, 50, None, None)]


def test_an_idle_partition_that_follows_the_others_has_no_time_to_make_up() -> None:
    assert lags({0: (0, 11)}, {0: 10}, {0: 300}, {0: 500}) == [Lag(0, 1, 0, 0)]


def test_what_has_expired_unread_is_no_lag() -> None:
    assert lags({0: (100, 100)}, {0: 40}, {}, {}) == [Lag(0, 0, 0, None)]
