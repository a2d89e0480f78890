"""States that a worker keeps in memory."""

import polars as pl

from speed_layer.memory import Memory

SMALL = pl.DataFrame({"a": [1]})


def test_a_state_is_given_back_only_to_its_own_history() -> None:
    memory = Memory()
    memory.put("key", b"one", SMALL)

    assert memory.get("key", b"one") is SMALL
    assert memory.get("key", b"another") is None


def test_the_longest_unused_go_first() -> None:
    memory = Memory(largest_bytes=2500)
    memory.put("first", b"t", SMALL)
    memory.put("second", b"t", SMALL)
    memory.get("first", b"t")

    memory.put("third", b"t", SMALL)

    assert memory.get("second", b"t") is None
    assert memory.get("first", b"t") is SMALL
    assert memory.get("third", b"t") is SMALL


def test_what_is_larger_than_the_budget_is_not_kept_at_all() -> None:
    memory = Memory(largest_bytes=10)

    memory.put("key", b"t", SMALL)

    assert memory.get("key", b"t") is None


def test_what_is_dropped_is_gone() -> None:
    memory = Memory()
    memory.put("key", b"t", SMALL)

    memory.drop("key")
    memory.drop("key")

    assert memory.get("key", b"t") is None


def test_a_state_that_grows_bit_by_bit_stays_in_few_parts() -> None:
    memory = Memory()
    memory.put("key", b"t", SMALL)
    for _ in range(1000):
        state = memory.get("key", b"t")
        assert state is not None
        memory.put("key", b"t", pl.concat([state, SMALL]))

    assert state["a"].to_list() == [1] * 1000
    assert state.n_chunks() <= 65
