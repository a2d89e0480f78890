"""Sessions: bursts of events of one key, found from all that is known of the key, whatever the order of arrival.

Events of a key less than a gap apart form a chain. A session begins with the first event of a chain, and again with
the first event that is `max_length` or more after the session's beginning. A session is ``[first event, last event +
gap)``, cut short where the next session of the chain begins.
"""

from collections.abc import Sequence

import polars as pl

from metrics.window import SessionWindow

SESSION_COLUMNS = {
    "window_start": pl.Int64(),
    "window_end": pl.Int64(),
    "length_ms": pl.Int64(),
    "chain_events": pl.UInt64(),
}


def assign_sessions(rows: pl.DataFrame, keys: Sequence[str], window: SessionWindow) -> pl.DataFrame:
    """Gives each row its session.

    Args:
        rows: Columns `keys`, event_time (ms) and events (how many the row stands for).
        keys: Columns that name whose sessions they are.
        window: Gap and maximum length.

    Returns:
        The rows in order of keys and event time, with window_start, window_end and length_ms (all in ms; the length is
        that from the first event to the last) and chain_events, the events of the whole chain.
    """
    time = pl.col("event_time")
    chained = rows.sort(*keys, "event_time").with_columns(
        _chain=(time.diff().over(keys) >= window.gap_ms).fill_null(value=True).cum_sum().over(keys)
    )
    chain = [*keys, "_chain"]
    cut = chained.with_columns(
        window_start=time.min().over(chain), chain_events=pl.col("events").sum().over(chain).cast(pl.UInt64)
    )
    beyond = time - pl.col("window_start") >= window.max_length_ms
    while cut.select(beyond.any()).item():
        begun = pl.when(beyond).then(time).min().over([*chain, "window_start"])
        cut = cut.with_columns(window_start=pl.when(beyond).then(begun).otherwise(pl.col("window_start")))
    session = [*chain, "window_start"]
    last, next_start = time.max().over(session), pl.col("_following").max().over(session)
    # a window expression inside another would be of the inner one's rows
    followed = cut.with_columns(_following=pl.col("window_start").shift(-1).over(chain)).with_columns(
        _following=pl.when(pl.col("_following") > pl.col("window_start")).then("_following")
    )
    return followed.with_columns(
        window_end=pl.min_horizontal(last + window.gap_ms, next_start),
        length_ms=last - pl.col("window_start"),
    ).drop("_chain", "_following")
