"""Which conditions of an alert can begin to hold."""

from decimal import Decimal

import pytest

from metrics.alert import check_when, parse_when


@pytest.mark.parametrize(
    "when",
    [
        "count > 0",
        "count >= 1",
        "share(flag) > 0",
        "share(flag) >= 1",
        "share(flag) < 1.0",
        "share(flag) <= 0",
        "share(flag) > 0.123456789012345678",
        "sum(amount) < -0.505",
    ],
)
def test_a_condition_that_an_event_can_make_true_is_fine(when: str) -> None:
    kind, argument, sign, threshold = parse_when(when)
    check_when(kind, kind, argument, sign, threshold)


@pytest.mark.parametrize("sign", [">", ">=", "<", "<="])
def test_a_level_rises_at_any_threshold(sign: str) -> None:
    check_when("level", "stock", "", sign, Decimal(-3))
