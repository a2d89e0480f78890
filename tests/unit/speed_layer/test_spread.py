"""Topic partitions over Flink's subtasks."""

import pytest

from speed_layer.spread import spread, subtask


def test_the_hash_is_flinks() -> None:
    # As observed on Flink 1.19 with two subtasks and the keys 0 to 15.
    second = [number for number in range(16) if subtask(str(number), 2) == 1]

    assert second == [0, 1, 2, 5, 8, 11, 15]


@pytest.mark.parametrize(("partitions", "parallelism"), [(1, 1), (4, 2), (4, 4), (12, 3), (3, 8)])
def test_partitions_go_to_subtasks_in_turn(partitions: int, parallelism: int) -> None:
    keys = spread(partitions, parallelism)

    assert len(set(keys)) == partitions
    assert [subtask(key, parallelism) for key in keys] == [n % parallelism for n in range(partitions)]
