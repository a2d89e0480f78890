"""What sketches promise: a quantile is always within its bounds, a distinct count as often as stated, and no wider."""

import json
import math
import random
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from chdb.session import Session
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metrics import sketch
from metrics.aggregation import polars_type
from metrics.by_value import Quantile
from metrics.expression import Expression, FieldType

SEEDS = 1_000
SIZES = [10, 100, 1_000, 5_000, 20_000]
SATURATED = 10_000
"""Of more values than that, a few for each register, the error is nearly that of any number; of fewer it is less."""

DOCUMENTED_ERROR = 1.04 / math.sqrt(4096)
STATED = math.erf(sketch.BOUND_SIGMAS / math.sqrt(2))
"""The share of a normal distribution within so many deviations."""

FLOAT = {"x": FieldType("float")}


def likelihood_of_at_most(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of a binomial distribution."""
    misses = trials - successes
    return 1 - sum(math.comb(trials, k) * (1 - share) ** k * share ** (trials - k) for k in range(misses))


@dataclass(frozen=True)
class Estimate:
    """What ClickHouse says of a sketch of so many distinct values."""

    truth: int
    value: int
    lower: int
    upper: int


@pytest.fixture(scope="module")
def estimates(engine: Session, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Estimate]]:
    """Estimates of other values for each seed, by the size about which their true numbers lie."""
    rows, truths = [], []
    for seed in range(SEEDS):
        truth = round(SIZES[seed % len(SIZES)] * random.Random(seed).uniform(0.8, 1.2))
        register, rank = sketch.registers_of([f"{seed}/{number}" for number in range(truth)])
        greatest: dict[int, int] = {}
        for key, value in zip(register.tolist(), rank.tolist(), strict=True):
            greatest[key] = max(value, greatest.get(key, 0))
        rows.append({"seed": seed, "registers": {str(key): value for key, value in greatest.items()}})
        truths.append(truth)
    file = tmp_path_factory.mktemp("sketches") / "sketches.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    sql = (
        f"SELECT {', '.join(sketch.distinct_sql('registers'))}"
        f" FROM file('{file}', 'JSONEachRow', 'seed UInt32, registers Map(UInt16, UInt8)') ORDER BY seed"
    )
    found: dict[int, list[Estimate]] = {size: [] for size in SIZES}
    for seed, (truth, said) in enumerate(zip(truths, answer(engine, sql), strict=True)):
        found[SIZES[seed % len(SIZES)]].append(Estimate(truth, *map(int, said)))
    return found


def test_the_bounds_of_a_distinct_count_hold_at_least_as_often_as_stated(estimates: dict[int, list[Estimate]]) -> None:
    held = sum(one.lower <= one.truth <= one.upper for of_size in estimates.values() for one in of_size)
    assert likelihood_of_at_most(held, SEEDS, STATED) > 0.001, f"{held} of {SEEDS} bounds hold; {STATED:.4f} are stated"


def test_the_bounds_of_a_distinct_count_are_no_wider_than_stated(estimates: dict[int, list[Estimate]]) -> None:
    error = 3 * DOCUMENTED_ERROR
    for one in (one for of_size in estimates.values() for one in of_size):
        assert one.lower <= one.value <= one.upper
        # a unit for each of the three that are rounded
        assert one.upper - one.lower <= one.value * 2 * error / (1 - error**2) + 3


@pytest.mark.parametrize("size", SIZES)
def test_the_error_of_a_distinct_count_is_the_one_stated(estimates: dict[int, list[Estimate]], size: int) -> None:
    of_size = estimates[size]
    error = math.sqrt(sum((one.value / one.truth - 1) ** 2 for one in of_size) / len(of_size))
    # the error of so many estimates is itself known to 1 / sqrt(2 n), of which three
    slack = 3 / math.sqrt(2 * len(of_size))
    assert error <= DOCUMENTED_ERROR * (1 + slack)
    if size > SATURATED:
        assert error >= DOCUMENTED_ERROR * 0.75


def test_the_binomial_test_finds_bounds_that_hold_too_seldom() -> None:
    assert likelihood_of_at_most(997, SEEDS, STATED) > 0.4
    assert likelihood_of_at_most(980, SEEDS, STATED) < 1e-9


magnitudes = st.floats(-1e100, 1e100, allow_subnormal=False) | st.floats(-100, 100, allow_subnormal=False)


@settings(max_examples=300)
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


LARGEST = 10**18
"""A decimal is smaller."""


@st.composite
def exact_values(draw: st.DrawFn) -> tuple[FieldType, list[int]]:
    """An int or decimal type, and values in units of its last decimal: of all sizes, and beside the buckets' edges."""
    kind = draw(st.sampled_from([FieldType("int"), *(FieldType("decimal", scale) for scale in (0, 2, 6, 18))]))
    unit = 10**kind.scale
    low, high = (-(2**63), 2**63 - 1) if kind.kind == "int" else (1 - LARGEST * unit, LARGEST * unit - 1)

    def beside(edge: tuple[int, int, int, int]) -> int:
        power, part, away, sign = edge
        return max(low, min(high, sign * ((64 + part) * unit * 2**power // 64 + away)))

    edges = st.tuples(st.integers(0, 63), st.integers(0, 64), st.integers(-3, 3), st.sampled_from([-1, 1])).map(beside)
    return kind, draw(st.lists(st.integers(low, high) | st.integers(-300, 300) | edges, min_size=1, max_size=20))


@settings(max_examples=150)
@given(exact_values(), st.sampled_from(["0", "0.5", "0.95", "1"]))
@example((FieldType("decimal", 2), [7205759403792793599]), "0.5")
@example((FieldType("decimal", 2), [29]), "0.5")
@example((FieldType("int"), [2**63 - 1]), "0.5")
@example((FieldType("int"), [-(2**63)]), "0.5")
def test_a_quantile_of_exact_values_is_within_its_bounds_however_large_they_are(
    engine: Session, typed: tuple[FieldType, list[int]], quantile: str
) -> None:
    kind, units = typed
    values = sorted(one if kind.kind == "int" else Decimal(f"{one}E-{kind.scale}") for one in units)
    agg = Quantile((Expression("x", {"x": kind}),), quantile)
    events = pl.DataFrame({"argument": pl.Series(values, dtype=polars_type(kind))}).with_columns(group=pl.lit(0))
    ((buckets,),) = agg.prepare(events, ["group"]).select("buckets").rows()
    entries = ", ".join(f"{entry['key']}, {entry['value']}" for entry in buckets)
    shown = agg.present_sql()
    ((value, lower, upper),) = answer(
        engine,
        f"SELECT {', '.join(f'toString({text})' for text in (shown.value, shown.lower, shown.upper))}"
        f" FROM (SELECT CAST(map({entries}), 'Map(Int32, UInt64)') AS buckets)",
    )
    truth = Decimal(values[max(1, math.ceil(len(values) * int(float(quantile) * 1000) / 1000)) - 1])
    assert Decimal(lower) <= truth <= Decimal(upper)
    allowed = Decimal(sketch.RELATIVE_ERROR) * abs(truth) * Decimal("1.000000000001")
    assert abs(Decimal(value) - truth) <= allowed + Decimal(f"0.5E-{kind.scale}")


def answer(engine: Session, sql: str) -> list[list[float]]:
    rows = engine.query(sql + " SETTINGS output_format_json_quote_64bit_integers = 0", "JSONCompactEachRow")
    return [json.loads(line) for line in str(rows).splitlines()]
