"""What a reconciliation found, as frozen values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from reconciliation.certificate import Certificate, Check, Comparison, Counts
from reconciliation.diff import MetricDiff
from reconciliation.evidence import Manifest, Progress, Publication
from reconciliation.tables import ExceptionCount


class Status(StrEnum):
    """Whether there was anything to compare."""

    RECONCILED = "reconciled"
    NOT_PUBLISHED = "not_published"


@dataclass(frozen=True)
class Examined:
    """Everything that was seen of a published day.

    Attributes:
        certificate: the decision.
        reported: checks that stand beside the certificate.
        metrics: differences per metric.
        not_in_run: metrics whose present definition the run did not compute, so nothing is compared.
        exceptions: records not counted, per disposition and reason.
        issued_at: when a certificate with this evidence was issued; None before.
    """

    publication: Publication
    manifest: Manifest
    certificate: Certificate
    counts: Counts
    comparison: Comparison
    reported: tuple[Check, ...]
    metrics: tuple[MetricDiff, ...]
    not_in_run: tuple[str, ...]
    exceptions: tuple[ExceptionCount, ...]
    issued_at: datetime | None = None


@dataclass(frozen=True)
class PartitionReconciliation:
    """One day: what was examined, or that there is nothing to examine and what to do about it."""

    partition: date
    status: Status
    message: str = ""
    examined: Examined | None = None
    progress: Progress = field(default_factory=lambda: Progress({}))

    @property
    def certified(self) -> bool:
        """Whether the day's exact values may be relied upon."""
        return self.examined is not None and self.examined.certificate.certified

    @property
    def residual(self) -> int:
        """Published slices that differ from the expected ones without a reason."""
        return self.examined.certificate.residual if self.examined else 0

    @property
    def causes(self) -> Mapping[str, int]:
        """Cause to number of events or rows."""
        return self.examined.certificate.causes if self.examined else {}

    @property
    def repaired(self) -> int:
        """Dead letters of the day that were produced again; each stays a dead letter, its repair is another record."""
        return sum(count.repaired for count in self.examined.exceptions) if self.examined else 0

    @property
    def verdict(self) -> str:
        """The verdict on the speed layer, or `not_published`."""
        return str(self.examined.certificate.verdict) if self.examined else str(self.status)

    @property
    def problem(self) -> bool:
        """Whether a person has to look: a residual, no certificate, or nothing published."""
        return bool(self.residual) or not self.certified

    def summary(self) -> dict[str, Any]:
        """The object that `reconcile --json` prints for the day."""
        shown: dict[str, Any] = {
            "partition": self.partition.isoformat(),
            "certified": self.certified,
            "residual": self.residual,
            "causes": dict(self.causes),
            "repaired": self.repaired,
            "verdict": self.verdict,
            "run_id": self.examined.publication.run_id if self.examined else None,
        }
        if self.message:
            shown["message"] = self.message
        return shown


def summaries(results: Iterable[PartitionReconciliation]) -> dict[str, Any]:
    """The object that `reconcile --json` prints."""
    return {"partitions": [result.summary() for result in results]}
