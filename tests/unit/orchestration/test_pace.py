"""When records are due."""

from orchestration.produce import AtRate, ByTime


def test_at_a_rate_records_are_due_at_even_distances_whatever_their_timestamps() -> None:
    pace = AtRate(begun=100.0, per_second=4.0)
    assert [pace.due(index, at=at) for index, at in enumerate((5, 5, 9_000))] == [100.0, 100.25, 100.5]


def test_a_replay_shortens_the_distances_between_timestamps() -> None:
    pace = ByTime(begun=100.0, speed_up=10.0)
    assert [pace.due(index, at=at) for index, at in enumerate((7_000, 7_000, 12_000))] == [100.0, 100.0, 100.5]


def test_a_live_record_is_due_at_its_timestamp() -> None:
    pace = ByTime(begun=100.0, origin=100_000)
    assert [pace.due(index, at=at) for index, at in enumerate((100_250, 101_000))] == [100.25, 101.0]
