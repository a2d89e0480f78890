"""Windows in ClickHouse say what the reference says: every aggregation in every window, over every change of clocks."""

from pathlib import Path

import pytest
from chdb.session import Session
from conformance import CHANGES, SEED, drawn_by, events, fresh_seed, products
from hypothesis import strategies as st
from windows import compare


@pytest.mark.parametrize("change", CHANGES)
def test_every_window_says_what_the_reference_says(engine: Session, tmp_path: Path, change: str) -> None:
    number = fresh_seed()
    tree, records = drawn_by(number, st.tuples(products(), events(CHANGES[change])))
    try:
        compare(engine, tmp_path, tree, records)
    except AssertionError as error:
        error.add_note(f"{SEED}={number} draws this again")
        raise
