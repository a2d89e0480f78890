"""Write the report of some days as an HTML file and a JSON file, and the page over all reports of the source."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from reconciliation import tables
from reconciliation.alerts import alert_days, section
from reconciliation.document import KIND, document
from reconciliation.page import index_page, report_page
from reconciliation.reconcile import examine, reader
from reconciliation.result import PartitionReconciliation


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written; `index` is the page over all reports of the source."""

    html: Path
    json: Path
    index: Path


def reports_dir(settings: Settings, source: str) -> Path:
    """The absolute directory of a source's reports."""
    return settings.data_dir.absolute() / "reports" / source


def write_report(
    settings: Settings,
    catalog: Catalog,
    days: date | Sequence[date],
    out_dir: Path | None = None,
    *,
    results: Sequence[PartitionReconciliation] | None = None,
    client: Client | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReportPaths:
    """Write `<day>.html` and `<day>.json`, or `<first>_<last>` for several days, replacing those of the same days.

    Args:
        settings: where ClickHouse and the data directory are.
        catalog: the source's definitions.
        days: one day or several, UTC.
        out_dir: None for `data_dir/reports/<source>`.
        results: what `reconcile` returned for these days; None examines them again and certifies nothing.
        client: a connection to use; None opens one.
        now: when the report is made, aware and in UTC.

    Raises:
        ValueError: no day is asked for.
        ManifestError: a published run has no readable manifest.
    """
    doc = build(settings, catalog, days, results=results, client=client, now=now)
    folder = out_dir or reports_dir(settings, catalog.source)
    folder.mkdir(parents=True, exist_ok=True)
    name = doc["from"] if doc["from"] == doc["to"] else f"{doc['from']}_{doc['to']}"
    paths = ReportPaths(folder / f"{name}.html", folder / f"{name}.json", folder / "index.html")
    _replace(paths.json, json.dumps(doc, indent=1, ensure_ascii=False))
    _replace(paths.html, report_page(doc, name))
    _replace(paths.index, index_page(_stored(folder)))
    return paths


def build(
    settings: Settings,
    catalog: Catalog,
    days: date | Sequence[date],
    *,
    results: Sequence[PartitionReconciliation] | None = None,
    client: Client | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Any]:
    """The report as one JSON object, written nowhere: see `write_report` for the arguments."""
    wanted = [days] if isinstance(days, date) else sorted(set(days))
    if not wanted:
        message = "a report is about at least one day; got none. name a day, such as 2026-03-01"
        raise ValueError(message)
    query = reader(client or connect(settings))
    database = settings.database(catalog.source)
    found = list(examine(query, catalog, database, wanted) if results is None else results)
    exceptions = {
        result.partition: tables.exception_records(
            query, database, result.partition, result.examined.publication.run_id
        )
        for result in found
        if result.examined
    }
    alerts = section(alert_days(query, catalog, database, found))
    return document(catalog, found, exceptions, now()) | {"alerts": alerts}


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports in a folder; files of another kind or shape are left alone."""
    documents = {}
    for path in folder.glob("*.json"):
        try:
            doc = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(doc, dict) and doc.get("kind") == KIND:
            documents[path.stem] = doc
    return documents


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, so that a reader never sees half of it."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
