"""Panes: what one bundle of the merge publishes.

An early pane per bundle holds the rows of slices that changed. When the watermark passes the end of a slice, an on-time
pane holds all its rows; what comes later is in late panes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import polars as pl

from metrics.disposition import DISPOSITIONS
from speed_layer.cardinality import Alarm
from speed_layer.partials import Receipt

EARLY, ON_TIME, LATE = "early", "on_time", "late"

LEDGER_COLUMNS = ("topic_partition", "block", "records", *DISPOSITIONS)


@dataclass
class PaneBatch:
    """What one bundle publishes: panes, ledger rows, and the receipts of what is then in the tables.

    Attributes:
        panes: By group id, whole states of the slices that changed, with a column `pane`.
        sessions: By metric, rows of the sessions that changed and tombstones.
        ledger: Rows of topic_partition, block, records and a count per disposition.
        receipts: How many elements of each chunk are in this bundle.
        alarms: Of slices with very many rows.
    """

    panes: dict[str, pl.DataFrame] = field(default_factory=dict)
    sessions: dict[str, pl.DataFrame] = field(default_factory=dict)
    ledger: list[tuple[int, ...]] = field(default_factory=list)
    receipts: dict[Receipt, int] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)


def panes(
    whole: pl.DataFrame, changed: pl.DataFrame, due: Sequence[Collection[int]], closed: Sequence[Collection[int]]
) -> pl.DataFrame:
    """The rows to publish, with a column `pane`.

    Args:
        whole: Whole states of some keys, with a column `_key`, the number of each.
        changed: Those of them that the bundle changed.
        due: By number of a key, starts of slices that the watermark has passed in this bundle, in ms.
        closed: By number of a key, starts of slices that it has passed at all.
    """
    place = ["_key", "slice_start"]
    on_time = whole.join(_slices(due), on=place, how="semi").with_columns(pane=pl.lit(ON_TIME))
    others = changed.join(_slices(due), on=place, how="anti")
    behind = others.join(_slices(closed), on=place, how="semi").with_columns(pane=pl.lit(LATE))
    early = others.join(_slices(closed), on=place, how="anti").with_columns(pane=pl.lit(EARLY))
    return pl.concat([on_time, behind, early]).drop("_key")


def _slices(starts: Sequence[Collection[int]]) -> pl.DataFrame:
    pairs = [(number, start) for number, own in enumerate(starts) for start in own]
    return pl.DataFrame(pairs, schema={"_key": pl.Int32, "slice_start": pl.Int64}, orient="row")
