"""Error and size of the sketches beside Apache DataSketches' HLL and KLL, on the same values."""

import json
import os
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from chdb.session import Session

from metrics import sketch
from metrics.by_value import Distinct, Quantile
from metrics.expression import Expression, FieldType

SIZES = (100, 10_000, 1_000_000)
SEEDS = 5
QUANTILES = ("0.5", "0.95", "0.99")
HLL_LOG_K = 12
KLL_K = 200

_VALUE = (Expression("value", {"value": FieldType("float")}),)
_TEXT = (Expression("value", {"value": FieldType("string")}),)


class MissingDataSketchesError(Exception):
    """The library to compare with is not installed; the text says how to."""


def run() -> dict[str, Any]:
    """The figures of all sizes: relative errors (medians over seeds), bytes and seconds to build a sketch.

    Raises:
        MissingDataSketchesError: `datasketches` is not installed.
    """
    try:
        import datasketches  # noqa: PLC0415 - of the development environment alone
    except ImportError as error:
        msg = "the bench compares with `datasketches`, which is not installed. run `make setup`, or pip install it"
        raise MissingDataSketchesError(msg) from error
    engine = Session()
    try:
        runs = [
            run
            for size in SIZES
            for run in (*_distinct(engine, datasketches, size), *_quantile(engine, datasketches, size))
        ]
    finally:
        engine.close()
    return {
        "name": "sketches",
        "machine": {"cores": os.cpu_count() or 1},
        "runs": runs,
        "ratios": _ratios(runs),
        "ok": all(run["figures"]["within_bounds"] for run in runs if run["system"] == "lockstep"),
    }


def _distinct(engine: Session, library: Any, size: int) -> list[dict[str, Any]]:  # noqa: ANN401 - a module
    own, other = [], []
    for seed in range(SEEDS):
        texts = [f"{seed}/{number}" for number in range(size)]
        begun = time.perf_counter()
        state = _state(Distinct(_TEXT), pl.Series(texts))
        seconds = time.perf_counter() - begun
        value, lower, upper = _shown(engine, "registers", "Map(UInt16, UInt8)", state, sketch.distinct_sql("registers"))
        own.append((abs(value / size - 1), _bytes(state, 3), seconds, lower <= size <= upper))
        begun = time.perf_counter()
        hll = library.hll_sketch(HLL_LOG_K, library.tgt_hll_type.HLL_8)
        for text in texts:
            hll.update(text)
        seconds = time.perf_counter() - begun
        estimate, low, high = hll.get_estimate(), hll.get_lower_bound(3), hll.get_upper_bound(3)
        other.append((abs(estimate / size - 1), len(hll.serialize_compact()), seconds, low <= size <= high))
    return [_run("lockstep", "distinct", size, own), _run("datasketches HLL", "distinct", size, other)]


def _quantile(engine: Session, library: Any, size: int) -> list[dict[str, Any]]:  # noqa: ANN401 - a module
    own, other = [], []
    for seed in range(SEEDS):
        values = np.random.default_rng(seed).lognormal(3, 1.2, size)
        ordered = np.sort(values)
        truths = [ordered[max(1, -(-size * round(float(q) * 100) // 100)) - 1] for q in QUANTILES]
        begun = time.perf_counter()
        state = _state(Quantile(_VALUE), pl.Series(values))
        seconds = time.perf_counter() - begun
        errors, held = [], True
        for q, truth in zip(QUANTILES, truths, strict=True):
            expressions = sketch.quantile_sql("buckets", q)
            value, lower, upper = _shown(engine, "buckets", "Map(Int32, UInt64)", state, expressions)
            errors.append(abs(value / truth - 1))
            held &= lower <= truth <= upper
        own.append((max(errors), _bytes(state, 12), seconds, held))
        begun = time.perf_counter()
        kll = library.kll_doubles_sketch(KLL_K)
        kll.update(values)
        seconds = time.perf_counter() - begun
        errors = [abs(kll.get_quantile(float(q)) / truth - 1) for q, truth in zip(QUANTILES, truths, strict=True)]
        other.append((max(errors), len(kll.serialize()), seconds, True))
    return [_run("lockstep", "quantile", size, own), _run("datasketches KLL", "quantile", size, other)]


def _state(agg: Distinct | Quantile, values: pl.Series) -> list[dict[str, int]]:
    events = pl.DataFrame({"group": 0, "argument": values})
    entries: list[dict[str, int]] = agg.prepare(events, ["group"])[agg.state[0].name].to_list()[0]
    return entries


def _shown(
    engine: Session, name: str, kind: str, state: list[dict[str, int]], expressions: Sequence[str]
) -> tuple[float, float, float]:
    pairs = ", ".join(f"{entry['key']}, {entry['value']}" for entry in state)
    sql = f"SELECT {', '.join(expressions)} FROM (SELECT CAST(map({pairs}), '{kind}') AS {name})"
    answer = engine.query(f"{sql} SETTINGS output_format_json_quote_64bit_integers = 0", "JSONCompactEachRow")
    value, lower, upper = json.loads(str(answer))
    return value, lower, upper


def _bytes(state: list[dict[str, int]], entry_bytes: int) -> int:
    """What a state takes in a table before compression."""
    return len(state) * entry_bytes


def _run(system: str, what: str, size: int, rows: list[tuple[float, int, float, bool]]) -> dict[str, Any]:
    return {
        "system": system,
        "figures": {
            "sketch": what,
            "values": size,
            "relative_error": median(row[0] for row in rows),
            "greatest_relative_error": max(row[0] for row in rows),
            "bytes": round(median(row[1] for row in rows)),
            "seconds": median(row[2] for row in rows),
            "within_bounds": all(row[3] for row in rows),
        },
    }


def _ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes of ours for each byte of the other's, by sketch and number of values."""
    found: dict[str, float] = {}
    for ours, theirs in zip(runs[::2], runs[1::2], strict=True):
        figures = ours["figures"]
        ratio = figures["bytes"] / theirs["figures"]["bytes"]
        found[f"{figures['sketch']}_{figures['values']}_bytes"] = round(ratio, 3)
    return found
