"""Topic partitions over Flink's subtasks."""

import pytest

from speed_layer.spread import _java_hash, _length, leading, spread, subtask


def test_the_hash_is_flinks() -> None:
    # As observed on Flink 1.19 with two subtasks and the keys 0 to 15.
    second = [number for number in range(16) if subtask(str(number), 2) == 1]

    assert second == [0, 1, 2, 5, 8, 11, 15]


@pytest.mark.parametrize(("partitions", "parallelism"), [(1, 1), (4, 2), (4, 4), (12, 3), (3, 8)])
def test_partitions_go_to_subtasks_in_turn(partitions: int, parallelism: int) -> None:
    keys = spread(partitions, parallelism)

    assert len(set(keys)) == partitions
    assert [subtask(key, parallelism) for key in keys] == [n % parallelism for n in range(partitions)]


@pytest.mark.parametrize("key", ["events|28997120", "ledger|0|3", "alert|größte|0", "long" * 50, ""])
def test_a_key_leads_where_it_is_to(key: str) -> None:
    led = [leading(key, number, 3) for number in range(6)]

    assert [subtask(each, 3) for each in led] == [0, 1, 2, 0, 1, 2]
    assert led[:3] == led[3:]
    assert all(each.rpartition(".")[0] == key for each in led)


def test_a_hash_is_over_signed_bytes_and_a_long_length() -> None:
    # "ö" is C3 B6 in UTF-8, as signed bytes -3D and -4A, with its length before it; the last byte is hashed first.
    assert _java_hash(_length(2) + "ö".encode()) == (31 * (31 * (31 - 0x4A) - 0x3D) + 2) % 2**32
    assert _length(300) == b"\xac\x02"
