"""Reconcile published days: examine, decide, and put the certificate on record. The thin edge around pure decisions."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect, insert_frame, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import LEDGER_BLOCK
from reconciliation import tables
from reconciliation.certificate import (
    Certificate,
    Check,
    Comparison,
    Counts,
    decide,
    exceptions_agree,
    ledgers_agree,
    published_agrees,
)
from reconciliation.compare import metric_diffs
from reconciliation.diff import MetricDiff, Query, Scope
from reconciliation.result import Examined, PartitionReconciliation, Status

DAYS_AT_ONCE = 4
"""Days examined side by side: a day is some thirty small queries, each of which mostly waits for its answer."""


def reconcile(
    settings: Settings,
    catalog: Catalog,
    days: Iterable[date],
    *,
    client: Client | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[PartitionReconciliation, ...]:
    """Compare each day's published run with the speed layer and certify it.

    Certificates are only ever added. A day whose latest certificate was made from the same evidence gets no other, nor
    does one whose run cannot be counted again, because it computed other definitions than the catalog's.

    Args:
        settings: where ClickHouse is.
        catalog: the source's definitions.
        days: UTC days, in the order in which the results come.
        client: a connection to use; None opens one.
        now: when a certificate is issued, aware and in UTC.

    Returns:
        One result per day. A day that is not published is a result too, and says what to do.

    Raises:
        ManifestError: a published run has no readable manifest.
        ClickHouseUnavailableError: no server answers.
    """
    connection = client or connect(settings)
    database = settings.database(catalog.source)
    query = reader(connection)
    results = []
    for result in examine(query, catalog, database, days):
        results.append(_certified(connection, query, database, catalog, result, now))
    return tuple(results)


def examine(query: Query, catalog: Catalog, database: str, days: Iterable[date]) -> tuple[PartitionReconciliation, ...]:
    """What `reconcile` would find, writing nothing."""
    known = tables.exists(query, database)
    with ThreadPoolExecutor(DAYS_AT_ONCE) as pool:
        return tuple(pool.map(lambda day: _examine_day(query, catalog, database, day, known=known), days))


def reader(client: Client) -> Query:
    """Queries over one connection."""

    def run(sql: str, parameters: Mapping[str, Any]) -> pl.DataFrame:
        return query_frame(client, sql, parameters)

    return run


def _examine_day(query: Query, catalog: Catalog, database: str, day: date, *, known: bool) -> PartitionReconciliation:
    publication = tables.publication(query, database, day) if known else None
    if publication is None:
        message = (
            f"{day} of `{catalog.source}` is not published, so there is nothing to compare."
            f" run `lockstep batch --from {day} --to {day}` first"
        )
        return PartitionReconciliation(day, Status.NOT_PUBLISHED, message)
    manifest = tables.manifest(query, database, day, publication.run_id)
    progress = tables.progress(query, database, manifest.topic)
    open_from = progress.open_from(manifest.ranges, catalog.allowed_lateness)
    caught_up = not progress.behind(manifest.ranges)

    joined = frozenset(metric.name for metric in catalog.shown if catalog.lookups_of(metric))
    scope = Scope(database, day, publication.run_id, open_from, joined)
    computed = [metric for metric in catalog.shown if set(metric.versions) <= set(publication.metric_versions)]
    not_in_run = tuple(metric.name for metric in catalog.shown if metric not in computed)
    diffs = metric_diffs(query, computed, scope)
    counting = tables.counting_metric(catalog, publication.metric_versions)
    if counting:
        counts = tables.counts(query, database, day, publication.run_id, counting)
    else:
        defined = tables.counting_metric(catalog, [metric.metric_version for metric in catalog.metrics])
        counts = Counts(lacking=defined.name if defined else None)
    agreement = tables.exception_agreement(query, database, day, manifest)
    comparison = together(diffs)
    certificate = decide(
        manifest, counts, comparison, sketch_windows(diffs), lagging_windows(diffs) if catalog.lookups else None
    )
    last = tables.last_certificate(query, database, day)
    return PartitionReconciliation(
        partition=day,
        status=Status.RECONCILED,
        message=_message(day, certificate, not_in_run),
        progress=progress,
        examined=Examined(
            publication=publication,
            manifest=manifest,
            certificate=certificate,
            counts=counts,
            comparison=comparison,
            reported=(
                published_agrees(manifest, counts, closed=caught_up),
                ledgers_agree(manifest, tables.ledger(query, database, manifest.topic), progress, LEDGER_BLOCK),
                exceptions_agree(agreement.only_batch, agreement.only_speed, agreement.both, closed=caught_up),
            ),
            metrics=diffs,
            not_in_run=not_in_run,
            exceptions=tables.exception_counts(query, database, day, publication.run_id),
            issued_at=last.issued_at if last and last.fingerprint == certificate.fingerprint else None,
        ),
    )


def together(diffs: Iterable[MetricDiff]) -> Comparison:
    """Slices of all metrics."""
    parts = [diff.slices.comparison for diff in diffs]
    return Comparison(
        compared=sum(part.compared for part in parts),
        equal=sum(part.equal for part in parts),
        not_yet_closed=sum(part.not_yet_closed for part in parts),
        residual=sum(part.residual for part in parts),
    )


def sketch_windows(diffs: Iterable[MetricDiff]) -> int:
    """Windows of all metrics and grains whose estimate is not the exact value; ratios of estimates are not counted."""
    return sum(grain.sketched for diff in diffs if not diff.is_ratio for grain in diff.grains)


def lagging_windows(diffs: Iterable[MetricDiff]) -> int:
    """Windows of all metrics and grains that differ because versions of lookups came late; ratios are not counted."""
    return sum(grain.lagging for diff in diffs if not diff.is_ratio for grain in diff.grains)


def _message(day: date, certificate: Certificate, not_in_run: Sequence[str]) -> str:
    """What a person should know first; empty when all is well."""
    if not certificate.certified:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in certificate.checks if check.outcome == "fails")
        return f"{day} is not certified: {failed}. run `lockstep batch --from {day} --to {day}` to publish it again"
    if certificate.residual:
        return f"{day}: {certificate.residual} published slices differ from what the log says, without a reason"
    if waiting := certificate.causes["not_yet_closed"]:
        return f"{day}: {waiting} slices are not closed, because the speed layer has not read as far as the batch run"
    if not_in_run:
        return (
            f"{day}: not compared, because the run did not compute them as they are defined now:"
            f" {', '.join(not_in_run)}. run `lockstep batch --from {day} --to {day}`"
        )
    return ""


def _certified(
    client: Client,
    query: Query,
    database: str,
    catalog: Catalog,
    result: PartitionReconciliation,
    now: Callable[[], datetime],
) -> PartitionReconciliation:
    seen = result.examined
    # what cannot be counted again takes no certificate away that was issued when it could
    if seen is None or seen.issued_at is not None or seen.counts.lacking:
        return result
    issued_at = now()
    certificate = seen.certificate
    frame = pl.DataFrame(
        {
            "partition": [result.partition],
            "run_id": [certificate.run_id],
            "certified": [certificate.certified],
            "verdict": [str(certificate.verdict)],
            "residual": [certificate.residual],
            "causes": [[{"key": cause, "value": number} for cause, number in certificate.causes.items()]],
            "evidence": [json.dumps(evidence(catalog, seen), sort_keys=True)],
            "issued_at": [issued_at],
        },
        schema_overrides={
            "residual": pl.UInt64,
            "causes": pl.List(pl.Struct({"key": pl.String, "value": pl.UInt64})),
            "issued_at": pl.Datetime("us", "UTC"),
        },
    )
    insert_frame(
        client,
        f"{quote(database)}.{quote('certificates')}",
        frame,
        token=f"{certificate.fingerprint} {issued_at.isoformat()}",
    )
    return replace(result, examined=replace(seen, issued_at=issued_at))


def evidence(catalog: Catalog, seen: Examined) -> dict[str, Any]:
    """What a certificate keeps of what it was decided from."""
    return {
        "fingerprint": seen.certificate.fingerprint,
        "catalog_version": catalog.version,
        "metric_versions": list(seen.publication.metric_versions),
        "slices_compared": seen.comparison.compared,
        "events": seen.manifest.events,
        "checks": [_check(check) for check in seen.certificate.checks],
        "reported": [_check(check) for check in seen.reported],
    }


def _check(check: Check) -> dict[str, str]:
    return {"name": check.name, "outcome": str(check.outcome), "detail": check.detail}
