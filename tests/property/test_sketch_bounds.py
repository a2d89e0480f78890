"""What sketches promise: a quantile is always within its bounds, a distinct count as often as stated."""

import json
import math
import random
from pathlib import Path

import numpy as np
from chdb.session import Session
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import sketch
from metrics.by_value import Quantile
from metrics.expression import Expression, FieldType

SEEDS = 1_000
STATED = math.erf(sketch.BOUND_SIGMAS / math.sqrt(2))
"""The share of a normal distribution within so many deviations."""

FLOAT = {"x": FieldType("float")}


def likelihood_of_at_most(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of a binomial distribution."""
    misses = trials - successes
    return 1 - sum(math.comb(trials, k) * (1 - share) ** k * share ** (trials - k) for k in range(misses))


def test_the_bounds_of_a_distinct_count_hold_as_often_as_stated(engine: Session, tmp_path: Path) -> None:
    rows, truths = [], []
    for seed in range(SEEDS):
        chance = random.Random(seed)
        truth = int(10 ** chance.uniform(0, 4.3))
        register, rank = sketch.registers_of([f"{seed}/{number}" for number in range(truth)])
        greatest: dict[int, int] = {}
        for key, value in zip(register.tolist(), rank.tolist(), strict=True):
            greatest[key] = max(value, greatest.get(key, 0))
        rows.append({"seed": seed, "registers": {str(key): value for key, value in greatest.items()}})
        truths.append(truth)
    file = tmp_path / "sketches.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    _, lower, upper = sketch.distinct_sql("registers")
    sql = (
        f"SELECT {lower}, {upper} FROM file('{file}', 'JSONEachRow', 'seed UInt32, registers Map(UInt16, UInt8)')"
        " ORDER BY seed"
    )
    bounds = answer(engine, sql)
    assert len(bounds) == SEEDS
    held = sum(low <= truth <= high for truth, (low, high) in zip(truths, bounds, strict=True))
    assert likelihood_of_at_most(held, SEEDS, STATED) > 0.001, f"{held} of {SEEDS} bounds hold; {STATED:.4f} are stated"


def test_the_binomial_test_finds_bounds_that_hold_too_seldom() -> None:
    assert likelihood_of_at_most(997, SEEDS, STATED) > 0.4
    assert likelihood_of_at_most(980, SEEDS, STATED) < 1e-9


magnitudes = st.floats(-1e100, 1e100, allow_subnormal=False) | st.floats(-100, 100, allow_subnormal=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(magnitudes, min_size=1, max_size=40), st.sampled_from(["0", "0.01", "0.5", "0.95", "0.999", "1"]))
def test_a_quantile_is_within_its_bounds_and_its_relative_error_always(
    engine: Session, values: list[float], quantile: str
) -> None:
    buckets: dict[int, int] = {}
    for bucket in sketch.buckets_of(np.array(values)).tolist():
        buckets[bucket] = buckets.get(bucket, 0) + 1
    entries = ", ".join(f"{key}, {count}" for key, count in sorted(buckets.items()))
    shown = Quantile((Expression("x", FLOAT),), quantile).present_sql()
    ((value, lower, upper),) = answer(
        engine,
        f"SELECT {shown.value}, {shown.lower}, {shown.upper}"
        f" FROM (SELECT CAST(map({entries}), 'Map(Int32, UInt64)') AS buckets)",
    )
    rank = max(1, math.ceil(len(values) * int(float(quantile) * 1000) / 1000))
    truth = sorted(values)[rank - 1]
    assert lower <= truth <= upper
    assert abs(value - truth) <= sketch.RELATIVE_ERROR * abs(truth) * (1 + 1e-12)


def answer(engine: Session, sql: str) -> list[list[float]]:
    rows = engine.query(sql + " SETTINGS output_format_json_quote_64bit_integers = 0", "JSONCompactEachRow")
    return [json.loads(line) for line in str(rows).splitlines()]
