"""When a speed layer is behind, and what is said of it."""

from datetime import timedelta

import pytest

from orchestration.speed_lag import MOST_BEHIND, SpeedLag

S = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("lag", "behind", "said"),
    [
        (SpeedLag(0, None, None), True, "has not said anything yet"),
        (SpeedLag(0, timedelta(0), 121 * S), True, "has said nothing for 121 s"),
        (SpeedLag(7, None, S), True, "7 offsets and an unknown time behind"),
        (SpeedLag(7, MOST_BEHIND + S, S), True, "7 offsets and 301 s behind"),
        (SpeedLag(7, MOST_BEHIND, S), False, "7 offsets and 300 s behind"),
        (SpeedLag(0, timedelta(0), 120 * S), False, "has published the whole log"),
        (SpeedLag(0, None, S), False, "has published the whole log"),
    ],
)
def test_a_speed_layer_is_behind_when_it_is_late_or_silent(lag: SpeedLag, behind: bool, said: str) -> None:  # noqa: FBT001
    assert lag.behind == behind
    assert said in lag.text


def test_what_is_not_known_is_not_shown() -> None:
    assert SpeedLag(0, None, None).as_metadata() == {"lag_offsets": 0}
    assert SpeedLag(3, 2 * S, S).as_metadata() == {"lag_offsets": 3, "lag_s": 2.0, "silent_s": 1.0}
