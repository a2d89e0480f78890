"""Breaches: from columns of events to the instants at which an alert is due; see `metrics.alert` for what that means.

Both layers run these functions, the speed layer on what it keeps of the last minutes, the batch layer on all events of
its days. Everything is compared exactly: sums are integers of the decimal's last digit, shares are cross-multiplied.
"""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import polars as pl

from metrics.aggregation import ARGUMENTS, DECIMAL_DIGITS
from metrics.alert import OPERATORS, Alert
from metrics.catalog import Catalog, Metric
from metrics.event import FIELD_PREFIX
from metrics.expression import Condition, Expression
from metrics.fold import dimension, place
from metrics.hashing import digest
from metrics.over_time import Level
from metrics.window import milliseconds

MOST_EVIDENCE = 1000
"""Events that one alert names; of more, the latest."""

MOST_EVIDENCE_BYTES = 256 << 10
"""Length of all ids that one alert names; of more, the latest, and the last however long it is."""

FOLDED = -1
"""The place of a row that stands for all earlier events of its key."""

_LARGEST = 10**38


def key_columns(alert: Alert) -> list[str]:
    """The columns of rows and breaches that hold the alert's dimensions, as text."""
    return [FIELD_PREFIX + name for name in alert.by]


def row_schema(alert: Alert, catalog: Catalog) -> dict[str, pl.DataType]:
    """Names and types of the columns of an alert's rows."""
    _, values = _watched(alert, catalog)
    return (
        {name: pl.String() for name in key_columns(alert)}
        | {"event_time": pl.Int64(), "record_time": pl.Int64(), "place": pl.Int64(), "event_id": pl.String()}
        | {name: dtype for name, (_, dtype) in zip(ARGUMENTS, values, strict=False)}
    )


def alert_rows(alert: Alert, catalog: Catalog, events: pl.DataFrame) -> pl.DataFrame:
    """The events that an alert watches, with what it needs of them.

    Events of a level that neither set nor change it are left out: they say nothing about it.

    Args:
        alert: One of the catalog's.
        catalog: Defines the level metrics that alerts watch.
        events: Columns topic_partition and offset or place, record_time, event_time, event_id and ``f_<field>``.

    Returns:
        The columns of `row_schema`; rows in the order of the events.
    """
    condition, values = _watched(alert, catalog)
    chosen = events if condition is None else events.filter(condition.holds)
    rows = chosen.select(
        *(dimension(name).alias(FIELD_PREFIX + name) for name in alert.by),
        "event_time",
        "record_time",
        "place" if "place" in events.columns else place(),
        "event_id",
        *(value.cast(dtype).alias(name) for name, (value, dtype) in zip(ARGUMENTS, values, strict=False)),
    )
    if alert.kind == "level":
        return rows.filter(pl.any_horizontal(pl.col(ARGUMENTS).is_not_null()))
    return rows


def watched_condition(alert: Alert, catalog: Catalog) -> Condition | None:
    """Which events an alert watches; None for all."""
    return _watched(alert, catalog)[0]


def _watched(alert: Alert, catalog: Catalog) -> tuple[Condition | None, list[tuple[pl.Expr, pl.DataType]]]:
    """The condition, and value and type of each argument."""
    if alert.kind == "level":
        metric = catalog.metric(alert.metric or "")
        assert isinstance(metric, Metric)
        assert isinstance(metric.agg, Level)
        dtype = pl.Decimal(DECIMAL_DIGITS, metric.agg.scale)
        return metric.condition, [(argument.polars, dtype) for argument in metric.agg.arguments]
    if alert.kind == "count":
        return alert.condition, []
    assert isinstance(alert.argument, Expression)
    if isinstance(alert.argument, Condition) and alert.kind == "share":
        return alert.condition, [(alert.argument.holds, pl.Boolean())]
    return alert.condition, [(alert.argument.polars, pl.Decimal(DECIMAL_DIGITS, alert.argument.type.scale))]


def breaches(alert: Alert, rows: pl.DataFrame) -> pl.DataFrame:
    """The breaches of an alert, whatever the order of the rows.

    Args:
        alert: What is watched.
        rows: What `alert_rows` gives, each event once; of each key and instant asked about, all that lie less than
            `within` before it, or of a level all there are or their `folded` rest.

    Returns:
        `key_columns`; breached_at (Int64, ms); until (Int64, ms: the last instant to which the breach goes on without
        a new one); value (Float64); event_id (of the first event at the breach by place); events (Int64: how many are
        in the window, of a level at the breach); evidence (List(String): their ids in the order of time, at most
        `MOST_EVIDENCE` and `MOST_EVIDENCE_BYTES`). Sorted by key and time.
    """
    keys = key_columns(alert)
    schema = {name: pl.String() for name in keys} | {
        "breached_at": pl.Int64(),
        "until": pl.Int64(),
        "value": pl.Float64(),
        "event_id": pl.String(),
        "events": pl.Int64(),
        "evidence": pl.List(pl.String()),
    }
    if rows.is_empty():
        return pl.DataFrame(schema=schema)
    numbers = rows.select(keys).unique().sort(keys).with_row_index("_key") if keys else None
    numbered = rows.with_columns(_key=pl.lit(0, pl.UInt32)) if numbers is None else rows.join(numbers, on=keys)
    ordered = numbered.sort("_key", "event_time", "place").with_row_index("_row")
    instants = ordered.group_by("_key", "event_time", maintain_order=True).agg(
        *(pl.col(name).first() for name in (*keys, "event_id", "place")),
        pl.col("_row").first().cast(pl.Int64).alias("_first"),
        (pl.col("_row").last().cast(pl.Int64) + 1).alias("_end"),
        *_measures(alert),
    )
    scale = _scale(rows.schema)
    judged = _levels(alert, instants, scale) if alert.kind == "level" else _windows(alert, instants, scale)
    goes_on = pl.col("holds") & pl.col("held")
    runs = judged.with_columns(until=pl.col("event_time").max().over("_key", (~goes_on).cum_sum()))
    rising = runs.filter(pl.col("holds") & ~pl.col("held") & (pl.col("place") != FOLDED))
    since = pl.max_horizontal("_from", pl.col("_end") - MOST_EVIDENCE, _short_enough(ordered, rising["_end"]))
    named = rising.with_row_index("_breach").with_columns(
        events=pl.col("_end") - pl.col("_from"), _row=pl.int_ranges(since, "_end")
    )
    positions = named.select("_breach", "_row").explode("_row")
    evidence = (
        positions.with_columns(evidence=ordered["event_id"].gather(positions["_row"]))
        .group_by("_breach", maintain_order=True)
        .agg("evidence")
    )
    found = named.join(evidence, on="_breach", how="left", maintain_order="left")
    shown = found.rename({"event_time": "breached_at"})
    return shown.select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _short_enough(rows: pl.DataFrame, ends: pl.Series) -> pl.Series:
    """For each end (exclusive) the first row from which on the ids up to it are no longer than they may be."""
    length = np.concatenate([[0], rows["event_id"].str.len_bytes().cast(pl.Int64).cum_sum().to_numpy()])
    end = ends.to_numpy()
    return pl.Series(np.minimum(np.searchsorted(length, length[end] - MOST_EVIDENCE_BYTES), end - 1))


def folded(alert: Alert, rows: pl.DataFrame, before: int) -> pl.DataFrame:
    """The rows without those of instants before `before` (ms), of which a level keeps one row per key.

    That row sets the level that they led to, at the time of the last of them.
    """
    old = pl.col("event_time") < before
    recent = rows.filter(~old)
    if alert.kind != "level" or recent.height == rows.height:
        return recent
    keys = key_columns(alert)
    ordered = rows.filter(old).with_columns(pl.col(ARGUMENTS).to_physical())
    instants = (
        ordered.with_columns(_key=pl.struct(keys) if keys else pl.lit(0))
        .sort(*keys, "event_time")
        .group_by("_key", "event_time", maintain_order=True)
        .agg(*(pl.col(name).first() for name in keys), pl.col("record_time").max(), *_measures(alert))
    )
    last = instants.with_columns(argument=_level()).group_by("_key", maintain_order=True).last()
    kind = rows.schema["argument"]
    scale = _scale(rows.schema)
    texts = [_decimal_text(value, scale) for value in last["argument"].to_list()]
    rest = last.with_columns(
        pl.Series("argument", texts, dtype=pl.String).cast(kind),
        pl.lit(None, kind).alias("argument2"),
        pl.lit(FOLDED, pl.Int64).alias("place"),
        pl.lit("").alias("event_id"),
    )
    return pl.concat([rest.select(rows.columns), recent])


def table_rows(alert: Alert, found: pl.DataFrame) -> pl.DataFrame:
    """Breaches as both layers' tables hold them.

    Returns:
        alert, alert_version, alert_id, dims (entries of a map), breached_at (UTC), value, threshold, evidence, topic.
    """
    dims = [dict(zip(alert.by, row, strict=True)) for row in found.select(key_columns(alert)).rows()]
    if not alert.by:
        dims = [{} for _ in range(found.height)]
    times = found["breached_at"].to_list()
    entry = pl.List(pl.Struct({"key": pl.String(), "value": pl.String()}))
    return found.select(
        pl.lit(alert.name).alias("alert"),
        pl.lit(alert.alert_version).alias("alert_version"),
        pl.Series("alert_id", [alert_id(alert, d, t) for d, t in zip(dims, times, strict=True)], dtype=pl.String),
        pl.Series("dims", [[{"key": n, "value": v} for n, v in d.items()] for d in dims], dtype=entry),
        pl.col("breached_at").cast(pl.Datetime("ms", "UTC")),
        "value",
        pl.lit(float(alert.threshold)).alias("threshold"),
        "evidence",
        pl.lit(alert.topic).alias("topic"),
    )


def alert_id(alert: Alert, dims: dict[str, str], breached_at: int) -> str:
    """The name of a breach: a hash of the alert's name and version, the key and the time in ms."""
    return digest([alert.name, alert.alert_version, dims, breached_at])


def _measures(alert: Alert) -> list[pl.Expr]:
    """What is added up per key and instant, in whole numbers."""
    number = pl.len().cast(pl.Int128).alias("_number")
    match alert.kind:
        case "sum":
            return [pl.col("argument").to_physical().cast(pl.Int128).sum().alias("_total")]
        case "share":
            return [number, pl.col("argument").cast(pl.Int128).sum().alias("_hits")]
        case "level":
            return [
                pl.col("argument").to_physical().cast(pl.Int128).max().alias("_set"),
                pl.col("argument2").to_physical().cast(pl.Int128).sum().alias("_change"),
            ]
    return [number]


def _windows(alert: Alert, instants: pl.DataFrame, scale: int) -> pl.DataFrame:
    """Adds `_from` (first row of the window), value, holds and held."""
    assert alert.within is not None
    within = milliseconds(alert.within)
    time = instants["event_time"].to_numpy()
    stride = int(time.max() - time.min()) + within + 2
    code = instants["_key"].to_numpy().astype(np.int64) * stride + (time - time.min())
    begin = pl.Series(np.searchsorted(code, code - within, side="right"))
    last = pl.Series(np.arange(instants.height))

    def added(name: str) -> tuple[pl.Series, pl.Series]:
        """What lies in the window, and in the window without its last instant."""
        sums = pl.concat([pl.Series([0], dtype=pl.Int128), instants[name].cum_sum()])
        before = sums.gather(begin)
        return sums.gather(last + 1) - before, sums.gather(last) - before

    if alert.kind == "share":
        (hits, hits_before), (number, number_before) = added("_hits"), added("_number")
        value = hits.cast(pl.Float64) / number.cast(pl.Float64)
        holds, held = _share(alert, hits, number), _share(alert, hits_before, number_before)
    else:
        total, before = added("_total" if alert.kind == "sum" else "_number")
        value = _in_units(total, scale)
        holds, held = _compare(alert, total, scale), _compare(alert, before, scale)
    return instants.with_columns(
        instants["_first"].gather(begin).alias("_from"),
        value.alias("value"),
        holds.alias("holds"),
        held.alias("held"),
    )


def _levels(alert: Alert, instants: pl.DataFrame, scale: int) -> pl.DataFrame:
    """Adds `_from` (first row at the instant), value, holds and held."""
    levels = instants.with_columns(_level=_level())
    return levels.with_columns(
        pl.col("_first").alias("_from"),
        _in_units(levels["_level"], scale).alias("value"),
        _compare(alert, levels["_level"], scale).alias("holds"),
    ).with_columns(held=pl.col("holds").shift(1).over("_key").fill_null(value=False))


def _in_units(digits: pl.Series, scale: int) -> pl.Series:
    """Integers of a decimal's last digit as floats, rounded once: polars multiplies by the inverse of a constant."""
    return pl.Series(digits.cast(pl.Float64).to_numpy() / 10.0**scale, nan_to_null=True)


def _level() -> pl.Expr:
    """The level after each instant of a key, from `_set` and `_change`; a change at a setting's time is part of it."""
    changes = pl.col("_change").cum_sum().over("_key")
    start = (pl.col("_set") - changes).forward_fill().over("_key")
    return changes + start.fill_null(0)


def _compare(alert: Alert, values: pl.Series, scale: int) -> pl.Series:
    """Whether integers of so many decimals satisfy the condition; rounding the threshold misjudges none of them."""
    threshold = Fraction(alert.threshold) * 10**scale
    bound = floor(threshold) if alert.operator in {">", "<="} else ceil(threshold)
    exact = pl.Series([max(-_LARGEST, min(_LARGEST, bound))], dtype=pl.Int128)
    return OPERATORS[alert.operator](values, exact)  # type: ignore[no-any-return]


def _share(alert: Alert, hits: pl.Series, number: pl.Series) -> pl.Series:
    """Whether hits / number satisfies the condition; one of fewer events than it takes to judge does not."""
    threshold = Fraction(alert.threshold)
    parts = pl.Series([threshold.numerator], dtype=pl.Int128), pl.Series([threshold.denominator], dtype=pl.Int128)
    satisfied = OPERATORS[alert.operator](hits * parts[1], number * parts[0])
    return satisfied & (number >= max(alert.at_least, 1))  # type: ignore[no-any-return]


def _scale(schema: pl.Schema) -> int:
    kind = schema.get("argument")
    return kind.scale if isinstance(kind, pl.Decimal) else 0


def _decimal_text(value: int, scale: int) -> str:
    sign, digits = "-" * (value < 0), str(abs(value)).rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else sign + digits
