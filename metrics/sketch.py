"""Sketches: small states of many values whose error is bounded, and that depend on the set of values alone.

Neither the order of the values, nor chunks, nor the machine changes a bit of them: the batch layer rebuilds the speed
layer's sketches from the same events and demands equality.
"""

from collections.abc import Sequence

import numpy as np
import xxhash

PRECISION = 12
"""Index bits of the HyperLogLog sketch: 2**12 registers, a relative standard error of 1.04 / 2**6 = 1.6 %."""

REGISTERS = 1 << PRECISION
STANDARD_ERROR = 1.04 / REGISTERS**0.5
BOUND_SIGMAS = 3
"""Bounds of a distinct count lie this many standard errors away: they hold in at least 99.7 % of windows."""

_REST_BITS = 64 - PRECISION

SUB_BUCKET_BITS = 6
RELATIVE_ERROR = 1 / (2 << SUB_BUCKET_BITS)
"""Greatest relative error of a quantile: half the width of a bucket, of which each power of two has 64."""

_MANTISSA_BITS = 52
BUCKET_SHIFT = _MANTISSA_BITS - SUB_BUCKET_BITS


def registers_of(values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The HyperLogLog register (uint16) and the rank (uint8) of each value.

    A value's 64-bit XXH3 hash gives the register by its first 12 bits and the rank by the number of leading zeros, plus
    one, of the others.

    Source:
        Flajolet et al., "HyperLogLog" (2007).
    """
    digest = xxhash.xxh3_64_intdigest
    hashes = np.fromiter((digest(value.encode()) for value in values), dtype=np.uint64, count=len(values))
    register = (hashes >> np.uint64(_REST_BITS)).astype(np.uint16)
    rest = hashes & np.uint64((1 << _REST_BITS) - 1)
    # frexp's exponent is the bit length: exact, because the rest has 52 bits and a double holds 53
    _, bit_length = np.frexp(rest.astype(np.float64))
    return register, (_REST_BITS - bit_length + 1).astype(np.uint8)


def distinct_sql(registers: str) -> tuple[str, str, str]:
    """Ertl's estimate in ClickHouse's SQL, and its bounds, never below the number of registers hit.

    Args:
        registers: A map of the registers that are not zero.

    Source:
        Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), section 4.
    """
    filled = f"length(mapKeys({registers}))"
    empty_share = f"(1 - {filled} / {REGISTERS})"
    sigma = f"({empty_share} + arraySum(k -> pow({empty_share}, exp2(k)) * exp2(k - 1), range(1, 32)))"
    harmonic = f"({REGISTERS} * {sigma} + arraySum(rank -> exp2(-toFloat64(rank)), mapValues({registers})))"
    estimate = f"if({filled} = 0, 0, {REGISTERS**2} / (2 * log(2)) / {harmonic})"
    error = BOUND_SIGMAS * STANDARD_ERROR
    return (
        f"greatest({filled}, toUInt64(round({estimate})))",
        f"greatest({filled}, toUInt64(floor({estimate} / (1 + {error}))))",
        f"greatest({filled}, toUInt64(ceil({estimate} / (1 - {error}))))",
    )


def buckets_of(values: np.ndarray) -> np.ndarray:
    """The bucket (int32) of each finite float64; buckets are in the order of the values.

    The bucket of a positive value is the leading bits of the value itself: its exponent and six bits of its mantissa,
    so each power of two is cut into 64 equal parts and no rounding, table or logarithm is involved. A negative value
    has the negative bucket of its opposite. Zero, and what is too small to have a normal exponent, has bucket 0.

    Source:
        The mapping that Masson, Rim and Lee, "DDSketch" (2019), section 2.2, call linearly interpolated.
    """
    magnitude = np.abs(values)
    bucket = (magnitude.view(np.uint64) >> np.uint64(BUCKET_SHIFT)).astype(np.int32)
    bucket[magnitude < np.finfo(np.float64).tiny] = 0
    signed: np.ndarray = np.where(values < 0, -bucket, bucket).astype(np.int32)
    return signed


def rank_sql(total: str, quantile: str) -> str:
    """The rank, from 1, of a quantile among `total` values: ceil(q * total) in whole numbers, at least 1.

    Args:
        total: SQL of a UInt64.
        quantile: A decimal in [0, 1], such as ``0.95``.
    """
    digits = len(quantile.partition(".")[2])
    numerator = int(quantile.replace(".", ""))
    return f"greatest(1, intDiv(toUInt256({total}) * {numerator} + {10**digits - 1}, {10**digits}))"


def quantile_sql(buckets: str, quantile: str) -> tuple[str, str, str]:
    """The middle and the edges of the bucket that holds a quantile, as Nullable(Float64) in ClickHouse's SQL.

    Args:
        buckets: A map from bucket to number of values, in ascending order of buckets.
        quantile: A decimal in [0, 1].
    """
    rank = rank_sql(f"arraySum(mapValues({buckets}))", quantile)
    index = f"arrayFirstIndex(reached -> reached >= {rank}, arrayCumSum(mapValues({buckets})))"
    key = f"mapKeys({buckets})[{index}]"

    def edge(step: int) -> str:
        bits = f"bitShiftLeft(toUInt64(abs({key}) + {step}), {BUCKET_SHIFT})"
        return f"if({key} = 0, 0, sign({key}) * reinterpretAsFloat64({bits}))"

    near, far = edge(0), edge(1)
    empty = f"length(mapKeys({buckets})) = 0"
    return (
        f"if({empty}, NULL, ({near} + {far}) / 2)",
        f"if({empty}, NULL, least({near}, {far}))",
        f"if({empty}, NULL, greatest({near}, {far}))",
    )
