"""Sessions in the speed layer: what new events change of them, and when their instants may be forgotten.

A session can only be told from all events of its key that are near it, so the merge keeps the states of every instant
(millisecond) at which a key has events, and works sessions out anew for chains that have new ones, where
`speed_layer.chains` does not tell them. A chain, events of a key less than a gap apart, only ever grows; the number of
its events is the version of its sessions' rows.

Instants are kept by the block of event time: a block is held until the watermark is beyond all that its events could
still have to do with. What is forgotten are whole sessions at the front of a chain, so that the next one still begins
where it did. Of a chain that goes on, the first instant that is left carries the number of the events before it.
"""

from collections.abc import Collection, Sequence

import polars as pl

from metrics.catalog import Metric
from metrics.fold import Group, merge_states, session_rows
from metrics.session import assign_sessions
from speed_layer.chains import LAST, grow

BLOCK_MS = 6 * 3_600_000
"""Event time whose instants are held by one timer."""


def arrivals(events: pl.DataFrame, reached: int | None) -> dict[int, int]:
    """By block of event time, how far the log's time was when its last events came, in ms.

    Where a log goes back in time, its events are as far behind as that; they are kept as long as any that come then.

    Args:
        events: Events in the order of the log: columns event_time and record_time.
        reached: The partition's watermark before them.
    """
    time = pl.col("event_time")
    stood = pl.max_horizontal(time, pl.col("record_time").cum_max(), pl.lit(reached, pl.Int64))
    by_block = events.select(block=time // BLOCK_MS, stood=stood).group_by("block").agg(pl.col("stood").max())
    return dict(by_block.iter_rows())


def blocks_of(states: pl.DataFrame) -> list[int]:
    """The blocks that instants lie in."""
    return (states["slice_start"] // BLOCK_MS).unique().to_list()


def beyond(states: pl.DataFrame, held: Collection[int]) -> int:
    """How many instants lie in no block that is held."""
    return int((~(states["slice_start"] // BLOCK_MS).is_in(list(held))).sum())


def together(instants: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Instants in one frame as they are, not merged; only some carry anything."""
    return pl.concat(instants, how="diagonal")


def published_sessions(
    group: Group, metric: Metric, chains: pl.DataFrame | None, base: pl.DataFrame | None, fresh: Sequence[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What `changed_sessions` says of a metric for new instants, and the chains with them.

    Args:
        group: A group of sessions.
        metric: One of its metrics.
        chains: The chains of `base`, as `chains_of` gives them; None for none.
        base: The instants that are known, merged or not; None for none.
        fresh: The new ones.
    """
    assert group.session is not None
    new = together(fresh)
    grown = grow(group, metric, chains, new)
    last = pl.col(LAST)
    short = [
        rows.select(
            "window_start",
            (last + group.session.gap_ms).alias("window_end"),
            (last - pl.col("window_start")).alias("length_ms"),
            "chain_events",
            *group.dimensions,
            *events_and_state,
            pl.lit(deleted, pl.UInt8).alias("is_deleted"),
        )
        for rows, deleted, events_and_state in (
            (grown.changed, 0, [pl.col("events"), *(pl.col(c.name) for c in metric.agg.state)]),
            (grown.gone, 1, [pl.lit(0, pl.UInt64).alias("events"), *_empty(metric)]),
        )
    ]
    if not grown.cut.is_empty():
        known = new.clear() if base is None else base
        before, after = (
            merge_instants(group, [rows.join(grown.cut, on=group.dimensions, how="semi") for rows in parts])
            for parts in ([known], [known, new])
        )
        short.append(changed_sessions(group, metric, before, after).select(short[0].columns))
    return pl.concat(short), grown.chains


def changed_sessions(group: Group, metric: Metric, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The rows of a metric's sessions that new events of some keys make or change, and tombstones of those they end.

    Args:
        group: A group of sessions.
        metric: One of its metrics.
        before: All states of these keys without the new events.
        after: The same with them.

    Returns:
        What `session_rows` gives, with is_deleted. A tombstone stands for a start that is one no more; it has the
        version of the chain that its events are in now, and empty states.
    """
    now = _sessions(group, metric, after).with_columns(is_deleted=pl.lit(0, pl.UInt8))
    if before.is_empty() or now.is_empty():
        return now
    was = _sessions(group, metric, before)
    starts = [*group.dimensions, "window_start"]
    changed = now.join(was, on=[*starts, "chain_events"], how="anti")
    gone = was.join(now, on=starts, how="anti").drop("chain_events").sort("window_start")
    if gone.is_empty():
        return changed
    tombstones = gone.join_asof(
        now.select(*starts, "chain_events").sort("window_start"),
        on="window_start",
        by=group.dimensions,
        strategy="backward",
        check_sortedness=False,
    ).with_columns(pl.lit(0, pl.UInt64).alias("events"), *_empty(metric), is_deleted=pl.lit(1, pl.UInt8))
    return pl.concat([changed, tombstones.select(changed.columns)])


def merge_instants(group: Group, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Merges states of instants, with what some of them carry."""
    states = together(frames)
    merged = merge_states(group, states)
    carried = [name for metric in group.metrics if (name := _carried(metric)) in states.columns]
    if not carried:
        return merged
    most = states.group_by(group.keys).agg(pl.col(carried).max())
    return merged.join(most, on=group.keys, how="left", maintain_order="left")


def unsettled(group: Group, states: pl.DataFrame, more: Sequence[pl.DataFrame], held: Collection[int]) -> pl.DataFrame:
    """What must be kept of `states`: each metric's sessions that reach into a block that is held, and those after them.

    Args:
        group: A group of sessions.
        states: Merged states of instants.
        more: Other states of the same keys, which are kept anyway.
        held: The blocks that are held.
    """
    every = merge_instants(group, [states, *more])
    for metric in group.metrics:
        name, own = _carried(metric), [f"{metric.name}.events", *(f"{metric.name}.{c.name}" for c in metric.agg.state)]
        kept = _kept(group, metric, every, held)
        here = pl.concat([kept.filter(pl.col(name) > 0), kept.join(states, on=group.keys, how="semi")]).unique()
        states = (
            states.drop(name, strict=False)
            .join(here, on=group.keys, how="full", coalesce=True)
            .with_columns(pl.when(pl.col(name).is_not_null()).then(pl.col(own)))
        )
    left = [pl.any_horizontal(pl.col(f"{m.name}.events", _carried(m)) > 0) for m in group.metrics]
    return states.filter(pl.any_horizontal(left).fill_null(value=False)).sort(group.keys)


def _kept(group: Group, metric: Metric, states: pl.DataFrame, held: Collection[int]) -> pl.DataFrame:
    """The keys of a metric's instants that are kept, and how many events of their chain before them are not."""
    assert group.session is not None
    time, start = pl.col("event_time"), pl.col("window_start")
    cut = assign_sessions(_own(group, metric, states), group.dimensions, group.session).with_columns(
        _chain=_chains(time.diff(), group),
        _held=pl.when((time // BLOCK_MS).is_in(list(held))).then(start),
    )
    # a window expression inside another would be of the inner one's rows
    from_held = cut.with_columns(pl.col("_held").min().over("_chain"))
    gone = pl.when(start < pl.col("_held")).then(pl.col("events") + pl.col(_carried(metric))).otherwise(0)
    counted = from_held.with_columns(_gone=gone.sum().over("_chain"))
    before = pl.when(time == pl.col("_held")).then("_gone").otherwise(0)
    return counted.filter(start >= pl.col("_held")).select(
        time.alias("slice_start"), *group.dimensions, (pl.col(_carried(metric)) + before).cast(pl.UInt64)
    )


def _sessions(group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
    """`session_rows` with all events of their chains."""
    rows, name = session_rows(group, metric, states), _carried(metric)
    carried = _own(group, metric, states).filter(pl.col(name) > 0).rename({"event_time": "window_start"})
    if carried.is_empty():
        return rows
    last = pl.col("window_start") + pl.col("length_ms")
    chained = rows.with_columns(_chain=_chains(pl.col("window_start") - last.shift(), group))
    by_chain = carried.sort("window_start").join_asof(
        chained.select("window_start", *group.dimensions, "_chain").sort("window_start"),
        on="window_start",
        by=group.dimensions,
        strategy="backward",
        check_sortedness=False,
    )
    more = by_chain.group_by("_chain").agg(pl.col(name).sum())
    return (
        chained.join(more, on="_chain", how="left", maintain_order="left")
        .with_columns(pl.col("chain_events") + pl.col(name).fill_null(0))
        .drop("_chain", name)
    )


def _own(group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
    """A metric's instants: event_time, the dimensions, events and what they carry."""
    events, name = f"{metric.name}.events", _carried(metric)
    carried = pl.col(name).fill_null(0) if name in states.columns else pl.lit(0, pl.UInt64).alias(name)
    return states.filter(pl.col(events) > 0).select(
        pl.col("slice_start").alias("event_time"), *group.dimensions, pl.col(events).alias("events"), carried
    )


def _chains(apart: pl.Expr, group: Group) -> pl.Expr:
    """Numbers chains, of rows in order of the dimensions and time, by how far each row is from the one before."""
    assert group.session is not None
    return (apart.over(group.dimensions) >= group.session.gap_ms).fill_null(value=True).cum_sum()


def _carried(metric: Metric) -> str:
    return f"{metric.name}.carried"


def _empty(metric: Metric) -> list[pl.Expr]:
    """The state of no event."""
    exprs = []
    for column in metric.agg.state:
        nullable = column.clickhouse_type.startswith("Nullable")
        empty = pl.lit([], column.dtype) if column.is_map else pl.lit(None if nullable else 0).cast(column.dtype)
        exprs.append(empty.alias(column.name))
    return exprs
