"""What is published of a source, to be compared with what another run has published of the same log."""

import polars as pl
from clickhouse_connect.driver.client import Client
from polars.testing import assert_frame_equal

from infra.clickhouse import query_frame, quote
from metrics.catalog import Catalog


def contents(client: Client, catalog: Catalog) -> dict[str, pl.DataFrame]:
    """The live rows of the ledger, the exceptions and each metric; which pane they came in, and when, may differ."""
    found = {name: query_frame(client, f"SELECT * EXCEPT topic FROM {name} FINAL") for name in ("ledger", "exceptions")}
    for metric in catalog.metrics:
        live = "is_deleted = 0" if metric.session else "1"
        found[metric.name] = query_frame(
            client,
            f"SELECT * EXCEPT (metric_version, pane, written_at) FROM {quote(f'speed_{metric.name}')} FINAL "
            f"WHERE {live} AND metric_version = {{version:String}}",
            {"version": metric.metric_version},
        )
    named = {pl.String, pl.Int32, pl.Int64, pl.Datetime("ms", "UTC")}  # maps and lists have no order
    return {name: rows.sort([c for c, kind in rows.schema.items() if kind in named]) for name, rows in found.items()}


def assert_same(found: dict[str, pl.DataFrame], wanted: dict[str, pl.DataFrame]) -> None:
    """What is found is what is wanted, row by row."""
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        try:
            assert_frame_equal(found[name], rows)
        except AssertionError as error:
            error.add_note(f"in `{name}`")
            raise
