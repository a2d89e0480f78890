"""What Dagster's pages show of an asset: of what was made of a day, and the columns in which it lies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from metrics.catalog import Catalog
from reconciliation.result import PartitionReconciliation
from serving.schema import metric_tables
from serving.table import Table

SCHEMA, ROWS = "dagster/column_schema", "dagster/row_count"
"""The keys under which Dagster looks for them."""


def columns_of(table: Table) -> dict[str, Any]:
    """The columns of a table."""
    return {SCHEMA: dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in table.columns])}


def columns_of_metrics(catalog: Catalog) -> dict[str, Any]:
    """The columns of all `batch_<metric>`, each after the name of its table."""
    exact = [metric_tables(metric)[2] for metric in catalog.metrics]
    columns = [dg.TableColumn(f"{table.name}.{name}", kind) for table in exact for name, kind in table.columns]
    return {SCHEMA: dg.TableSchema(columns=columns)}


def manifest_metadata(manifest: Mapping[str, Any], rows: int | None = None) -> dict[str, Any]:
    """What the page of a day shows of the run that computed it.

    Args:
        manifest: The day's, without its ledger.
        rows: How many it has written of the day, into all tables; None: nobody counted.
    """
    offsets = dg.MetadataValue.table(
        [
            dg.TableRecord({name: each[name] for name in ("topic_partition", "start", "end", "log_begin", "log_end")})
            for each in manifest["ranges"]
        ]
    )
    counts = {f"records/{name}": number for name, number in manifest["dispositions"].items()}
    told = ("run_id", "events", "outside", "checksum", "catalog_version", "code_version", "wall_seconds", "cpu_seconds")
    counted = {} if rows is None else {ROWS: rows}
    return {"offsets": offsets, **counts, **counted, **{name: manifest[name] for name in told}}


def reconciliation_metadata(result: PartitionReconciliation, report: Path) -> dict[str, Any]:
    """What the page of a day shows: the report, the residual and the events or rows by cause."""
    return {
        "report": dg.MetadataValue.url(report.absolute().as_uri()),
        "report_path": dg.MetadataValue.path(report),
        "residual": result.residual,
        "verdict": result.verdict,
        "message": result.message or "none",
        **{f"cause/{cause}": number for cause, number in result.causes.items()},
    }


def certificate_metadata(result: PartitionReconciliation) -> dict[str, Any]:
    """Whether the day is certified, and for which batch run."""
    run = result.examined.publication.run_id if result.examined else "none"
    return {"certified": result.certified, "run_id": run, "verdict": result.verdict}
