"""What a chunk says to alerts: the events that each of them watches, a few elements keyed by alert and key.

A key is ``alert|<name>|<bucket>``; the bucket is a hash of the alert's dimensions, so all events of one key meet there.
"""

from collections.abc import Iterator

import polars as pl
import xxhash

from metrics.alert import Alert
from metrics.breach import alert_rows, key_columns
from metrics.catalog import Catalog
from speed_layer.partials import Element, to_ipc

PREFIX = "alert"


def is_for_alerts(element: Element) -> bool:
    """Whether an element holds what an alert watches."""
    return element[0].startswith(f"{PREFIX}|")


def alert_payloads(catalog: Catalog, counted: pl.DataFrame, buckets: int) -> Iterator[Element]:
    """Pairs of key and Arrow bytes: the rows of `metrics.breach.alert_rows` of each alert and bucket."""
    for alert in catalog.alerts:
        rows = alert_rows(alert, catalog, counted)
        for bucket, part in _by_bucket(alert, rows, buckets):
            yield f"{PREFIX}|{alert.name}|{bucket}", to_ipc(part)


def _by_bucket(alert: Alert, rows: pl.DataFrame, buckets: int) -> Iterator[tuple[int, pl.DataFrame]]:
    keys = key_columns(alert)
    if rows.is_empty():
        return
    if not keys:
        yield 0, rows
        return
    known = rows.select(keys).unique()
    texts = known.select(pl.concat_str(keys, separator="\x1f")).to_series().to_list()
    numbers = [xxhash.xxh32_intdigest(text.encode()) % buckets for text in texts]
    numbered = rows.join(known.with_columns(pl.Series("_bucket", numbers)), on=keys, maintain_order="left")
    for (bucket,), part in numbered.partition_by("_bucket", as_dict=True, include_key=False).items():
        yield int(str(bucket)), part
