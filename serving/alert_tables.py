"""The tables of alerts: what was raised live, and what a batch run says should have been."""

from collections.abc import Iterable

from serving.table import TIME, Table

ALERTS = "alerts"
BATCH_ALERTS = "batch_alerts"

COLUMNS = (
    ("alert", "LowCardinality(String)"),
    ("alert_version", "String"),
    ("alert_id", "String"),
    ("dims", "Map(String, String)"),
    ("breached_at", TIME),
    ("value", "Float64"),
    ("threshold", "Float64"),
    ("evidence", "Array(String)"),
    ("topic", "String"),
)
"""What both hold of a breach, as `metrics.breach.table_rows` gives it."""


def alert_tables() -> Iterable[Table]:
    """`alerts`, a row per breach however often it was written, and `batch_alerts` of all runs.

    They exist in every source, so that a catalog may get its first alert at any time.
    """
    return (
        Table(
            ALERTS,
            (*COLUMNS, ("raised_at", f"{TIME} DEFAULT now64(3)")),
            ("alert", "alert_version", "breached_at", "alert_id"),
            replacing=True,
        ),
        Table(
            BATCH_ALERTS,
            (("run_id", "String"), ("partition", "Date"), *COLUMNS),
            ("alert", "alert_version", "breached_at", "alert_id"),
            partition_by=("partition", "run_id"),
        ),
    )
