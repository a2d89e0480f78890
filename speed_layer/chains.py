"""Chains: what a session is worked out from as long as it is short, so that its instants need not be looked at.

A chain that is shorter than the maximum length is one session, from its first event to its last, whatever lies between.
New events only make it longer, or join it to others; so a row per chain is enough to tell what they change. Only where
a chain is as long as the maximum, or becomes so, do its instants say where it is cut: `speed_layer.sessions` does that.
"""

from dataclasses import dataclass

import polars as pl

from metrics.catalog import Metric
from metrics.fold import SESSION_KEY, Group
from metrics.state import merge_states

LAST = "_last"
_FRESH, _CHAIN = "_fresh", "_chain"


@dataclass(frozen=True)
class Grown:
    """What new events make of the chains of a metric.

    Attributes:
        chains: All chains: the dimensions, window_start, `LAST` (first and last event, ms), chain_events, events and
            the state's columns.
        changed: Those of them that have new events, without the ones of `cut`.
        gone: Former chains that do not begin where they did, with the chain_events of those that they are in now;
            without the ones of `cut`.
        cut: The dimensions of chains that are too long to be one session, and have new events.
    """

    chains: pl.DataFrame
    changed: pl.DataFrame
    gone: pl.DataFrame
    cut: pl.DataFrame


def chains_of(group: Group, metric: Metric, instants: pl.DataFrame) -> pl.DataFrame:
    """The chains of a metric, as in `Grown.chains`, from states of instants in any order, merged or not."""
    return grow(group, metric, None, instants).chains


def grow(group: Group, metric: Metric, chains: pl.DataFrame | None, fresh: pl.DataFrame) -> Grown:
    """What states of new instants make of chains; None for the chains is none at all."""
    assert group.session is not None
    new = _points(group, metric, fresh)
    if chains is None:
        chains = new.clear().drop(_FRESH)
    if new.is_empty():
        nothing = chains.clear()
        return Grown(chains, nothing, nothing, nothing.select(group.dimensions))
    touched = pl.col(SESSION_KEY).is_in(new[SESSION_KEY].unique().implode())
    numbered = _numbered(group, pl.concat([chains.filter(touched).with_columns(pl.lit(0).alias(_FRESH)), new]))
    start, length = pl.col("window_start"), pl.col(LAST) - pl.col("window_start")
    bounds = numbered.group_by(_CHAIN).agg(
        *(pl.col(name).first() for name in group.dimensions),
        start.min(),
        pl.col(LAST, _FRESH).max(),
        pl.col("chain_events").sum(),
    )
    joined = bounds.join(merge_states(metric.agg.state, numbered, [_CHAIN]), on=_CHAIN)
    cut = (
        joined.filter((pl.col(_FRESH) == 1) & (length >= group.session.max_length_ms)).select(group.dimensions).unique()
    )
    now = joined.select(chains.columns)
    changed = joined.filter(pl.col(_FRESH) == 1)
    before = numbered.filter(pl.col(_FRESH) == 0)
    versions = joined.select(_CHAIN, "chain_events", _now=start)
    gone = before.drop("chain_events").join(versions, on=_CHAIN).filter(start > pl.col("_now"))
    if not cut.is_empty():
        changed = changed.join(cut, on=group.dimensions, how="anti", nulls_equal=True)
        gone = gone.join(cut, on=group.dimensions, how="anti", nulls_equal=True)
    whole = pl.concat([chains.filter(~touched), now])
    return Grown(whole, changed.select(chains.columns), gone.select(chains.columns), cut)


def _points(group: Group, metric: Metric, instants: pl.DataFrame) -> pl.DataFrame:
    """Instants as chains of their own, with the mark of what is new."""
    events, carried = f"{metric.name}.events", f"{metric.name}.carried"
    more = pl.col(carried).fill_null(0) if carried in instants.columns else pl.lit(0, pl.UInt64)
    start = pl.col("slice_start")
    return instants.filter(pl.col(events) > 0).select(
        *group.dimensions,
        start.alias("window_start"),
        start.alias(LAST),
        (pl.col(events) + more).cast(pl.UInt64).alias("chain_events"),
        pl.col(events).alias("events"),
        *(pl.col(f"{metric.name}.{column.name}").alias(column.name) for column in metric.agg.state),
        pl.lit(1).alias(_FRESH),
    )


def _numbered(group: Group, parts: pl.DataFrame) -> pl.DataFrame:
    """The parts of chains with the number of the chain that they are in together."""
    assert group.session is not None
    ordered = parts.sort(*group.dimensions, "window_start").with_columns(
        _key=pl.struct(group.dimensions).rle_id() if len(group.dimensions) > 1 else pl.col(group.dimensions[0]).rle_id()
    )
    reached = pl.col(LAST).cum_max().shift().over("_key")
    apart = (pl.col("window_start") - reached >= group.session.gap_ms).fill_null(value=True)
    return ordered.with_columns(apart.cum_sum().alias(_CHAIN)).drop("_key")
