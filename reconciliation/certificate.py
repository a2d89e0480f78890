"""The decision whether a partition's exact values can be relied upon, made from evidence of the batch run alone.

Agreement with the speed layer certifies nothing: two layers may be wrong together. A partition is certified when its
manifest is complete, its counts close and an independent second count arrives at the same number of events. The verdict
on the speed layer stands beside the certificate and does not enter it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciliation.evidence import LedgerBlock, Manifest, OffsetRange, Progress

_BEHIND = "the speed layer has not published all that the run read"
_NO_COUNT = "the catalog has no count metric without a `where`"


class Verdict(StrEnum):
    """What the comparison with the expected states says of the speed layer."""

    CLEAN = "clean"
    NOT_YET_CLOSED = "not_yet_closed"
    SPEED_DEFECT = "speed_defect"


class Outcome(StrEnum):
    """How a check ended; `not_checked` says that there was nothing to check, never that it was skipped."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_CHECKED = "not_checked"


@dataclass(frozen=True)
class Check:
    """One statement about a partition and whether it holds.

    Attributes:
        certifies: whether the certificate depends on it; the others are reported.
        detail: the numbers that were compared, for a person to read.
    """

    name: str
    outcome: Outcome
    detail: str
    certifies: bool = True


@dataclass(frozen=True)
class Counts:
    """Second counts of a day's events, made from the rows and not from the manifest.

    Attributes:
        metric: the unfiltered count metric whose rows were added up; None when the catalog has none.
        exact_events: events in its exact states.
        expected_events: events in its expected speed states.
        published_events: events in the speed layer's published rows.
        lacking: such a metric of the catalog that the run did not compute as it is defined now; None where it computed
            one, or there is none.
    """

    metric: str | None = None
    exact_events: int = 0
    expected_events: int = 0
    published_events: int = 0
    lacking: str | None = None

    @property
    def missing(self) -> str:
        """Why there is no second count."""
        return f"the run did not compute `{self.lacking}` as it is defined now" if self.lacking else _NO_COUNT


@dataclass(frozen=True)
class Comparison:
    """Rows of the speed layer against the expected ones, all metrics together: slices compared and how they ended."""

    compared: int
    equal: int
    not_yet_closed: int
    residual: int


@dataclass(frozen=True)
class Certificate:
    """The decision on one partition.

    Attributes:
        residual: slices whose published state differs from the expected one without a reason.
        causes: cause to number of events (late, duplicate, id_conflict, dead_letter) or rows (sketch, not_yet_closed;
            of a source with lookups also lookup_lag).
        fingerprint: the same evidence has the same one, so that it is certified once.
    """

    run_id: str
    certified: bool
    verdict: Verdict
    residual: int
    causes: Mapping[str, int]
    checks: tuple[Check, ...]
    fingerprint: str


def decide(
    manifest: Manifest,
    counts: Counts,
    comparison: Comparison,
    sketch_windows: int,
    lagging_windows: int | None = None,
) -> Certificate:
    """Certify the run that the manifest describes, or say which evidence is missing.

    Args:
        manifest: of the published run.
        counts: second counts from the same run's rows.
        comparison: published speed slices against expected ones.
        sketch_windows: windows whose estimate differs from the exact value of the same events.
        lagging_windows: windows that differ because versions of lookups came late; None for a source without lookups.
    """
    checks = (
        day_closed(manifest),
        manifest_complete(manifest),
        dispositions_close(manifest.ranges),
        events_agree(manifest, counts),
        expected_agrees(manifest, counts),
        index_agrees(manifest),
    )
    causes = {
        "late": manifest.disposed("late"),
        "duplicate": manifest.disposed("duplicate"),
        "id_conflict": manifest.disposed("id_conflict"),
        "dead_letter": manifest.disposed("dead_letter"),
        "sketch": sketch_windows,
        "not_yet_closed": comparison.not_yet_closed,
    }
    if lagging_windows is not None:
        causes["lookup_lag"] = lagging_windows
    certified = all(check.outcome is not Outcome.FAILS for check in checks if check.certifies)
    verdict = verdict_on(comparison)
    return Certificate(
        run_id=manifest.run_id,
        certified=certified,
        verdict=verdict,
        residual=comparison.residual,
        causes=causes,
        checks=checks,
        fingerprint=_fingerprint(manifest, certified, verdict, comparison, causes, checks),
    )


def verdict_on(comparison: Comparison) -> Verdict:
    """A defect outweighs rows that are still open: it will not close by waiting."""
    if comparison.residual:
        return Verdict.SPEED_DEFECT
    return Verdict.NOT_YET_CLOSED if comparison.not_yet_closed else Verdict.CLEAN


def day_closed(manifest: Manifest) -> Check:
    """No event that counts could still come when the run read the log."""
    faults = [] if manifest.closed else ["the run began before the watermark had passed the day's end and the lateness"]
    return _check("day_closed", faults, "the watermark had passed the day's end and the lateness")


def manifest_complete(manifest: Manifest) -> Check:
    """Each topic partition once, read within what the log held; without an index of the log, up to its end then."""
    faults = []
    if not manifest.ranges:
        faults.append("no range")
    seen: set[int] = set()
    for read in manifest.ranges:
        name = f"topic partition {read.topic_partition}"
        if read.topic_partition in seen:
            faults.append(f"{name} twice")
        seen.add(read.topic_partition)
        if not read.reaches_from <= read.start <= read.end <= read.log_end:
            faults.append(f"{name} read [{read.start}, {read.end}) of a log [{read.reaches_from}, {read.log_end})")
        elif read.end < read.log_end and manifest.indexed is None:
            faults.append(f"{name} ends {read.log_end - read.end} offsets before the end of the log")
        if read.records > read.end - read.start:
            faults.append(f"{name} has {read.records} records in {read.end - read.start} offsets")
    if missing := set(range(len(seen))) - seen:
        faults.append(f"no range for topic partition {', '.join(map(str, sorted(missing)))}")
    offsets = sum(read.end - read.start for read in manifest.ranges)
    return _check("manifest_complete", faults, f"{len(seen)} topic partitions, {offsets} offsets")


def index_agrees(manifest: Manifest) -> Check:
    """The index of the log, made by another reader, counts as many events and dead letters of the day as were read."""
    if manifest.indexed is None:
        return Check("index_agrees", Outcome.NOT_CHECKED, "the run had no index of the log", certifies=False)
    dead = manifest.disposed("dead_letter")
    events = sum(manifest.dispositions.values()) - dead
    faults = [
        f"{read} {what} read, {counted} in the index of the log"
        for what, read, counted in (
            ("events", events, manifest.indexed.events),
            ("dead letters", dead, manifest.indexed.dead_letters),
        )
        if read != counted
    ]
    return _check("index_agrees", faults, f"{events} events and {dead} dead letters, read twice")


def dispositions_close(ranges: tuple[OffsetRange, ...]) -> Check:
    """Every record that was read has one disposition."""
    faults = [
        f"topic partition {read.topic_partition}: {read.records} records, {read.disposed} disposed"
        for read in ranges
        if read.records != read.disposed
    ]
    records = sum(read.records for read in ranges)
    return _check("dispositions_close", faults, f"{records} records, each with one disposition")


def events_agree(manifest: Manifest, counts: Counts) -> Check:
    """The exact states of an unfiltered count hold as many events as the manifest.

    A run that computed the count of another definition cannot be counted again, and has no certificate for that.
    """
    if counts.metric is None:
        return Check("events_agree", Outcome.FAILS if counts.lacking else Outcome.NOT_CHECKED, counts.missing)
    faults = []
    if counts.exact_events != manifest.events:
        faults.append(f"`{counts.metric}` holds {counts.exact_events}, the manifest {manifest.events}")
    return _check("events_agree", faults, f"`{counts.metric}`: {manifest.events} events")


def expected_agrees(manifest: Manifest, counts: Counts) -> Check:
    """The expected speed states of an unfiltered count hold as many events as were disposed as counted."""
    if counts.metric is None:
        return Check("expected_agrees", Outcome.NOT_CHECKED, counts.missing)
    counted = manifest.disposed("counted")
    faults = []
    if counts.expected_events != counted:
        faults.append(f"`{counts.metric}` expects {counts.expected_events}, the manifest counted {counted}")
    return _check("expected_agrees", faults, f"`{counts.metric}`: {counted} counted events")


def ledgers_agree(manifest: Manifest, speed: Iterable[LedgerBlock], progress: Progress, block_size: int) -> Check:
    """Both layers counted the same events over blocks of offsets that both have read whole. Reported, not decisive.

    Where the run recorded no blocks, a topic partition is comparable as a whole if its range starts on a block and the
    speed layer stands exactly at its end.
    """
    theirs = {(block.topic_partition, block.block): block for block in speed}
    faults: list[str] = []
    compared = 0
    if manifest.ledger:
        ends = {read.topic_partition: (read.start, read.end) for read in manifest.ranges}
        mine = {(block.topic_partition, block.block): block.counted for block in manifest.ledger}
        for topic_partition, number in sorted(mine.keys() | theirs.keys()):
            start, end = ends.get(topic_partition, (0, 0))
            position = progress.positions.get(topic_partition)
            last = (number + 1) * block_size
            if number * block_size < start or position is None:
                continue
            if not (last <= min(end, position.next_offset) or position.next_offset == end):
                continue
            counted, block = mine.get((topic_partition, number), 0), theirs.get((topic_partition, number))
            published = block.counted if block else 0
            compared += counted
            if published != counted:
                name = f"topic partition {topic_partition} block {number}"
                faults.append(f"{name}: batch {counted}, speed {published}")
    else:
        for read in manifest.ranges:
            position = progress.positions.get(read.topic_partition)
            if read.start % block_size or position is None or position.next_offset != read.end:
                continue
            blocks = range(read.start // block_size, -(-read.end // block_size))
            counted = sum(theirs[key].counted for key in ((read.topic_partition, b) for b in blocks) if key in theirs)
            compared += read.counted
            if counted != read.counted:
                faults.append(f"topic partition {read.topic_partition}: batch {read.counted}, speed {counted}")
    if not compared and not faults:
        detail = "no offsets that both layers have counted over the same whole blocks"
        return Check("ledgers_agree", Outcome.NOT_CHECKED, detail, certifies=False)
    return _check("ledgers_agree", faults, f"{compared} events counted by both layers", certifies=False)


def published_agrees(manifest: Manifest, counts: Counts, *, closed: bool) -> Check:
    """The published rows of an unfiltered count hold the events that batch disposed as counted. Reported only.

    Args:
        manifest: of the published run.
        counts: second counts from the rows.
        closed: whether the speed layer has published all that the run read.
    """
    if counts.metric is None or not closed:
        missing = counts.missing if counts.metric is None else _BEHIND
        return Check("published_agrees", Outcome.NOT_CHECKED, missing, certifies=False)
    counted = manifest.disposed("counted")
    faults = []
    if counts.published_events != counted:
        faults.append(f"`{counts.metric}` publishes {counts.published_events}, batch counted {counted}")
    detail = f"`{counts.metric}`: {counted} events published and counted by batch"
    return _check("published_agrees", faults, detail, certifies=False)


def exceptions_agree(only_batch: int, only_speed: int, both: int, *, closed: bool) -> Check:
    """Both layers left out the same records for the same reason of disposition. Reported; certifies nothing.

    Args:
        only_batch: records that batch left out and speed did not, or under another disposition.
        only_speed: the reverse.
        both: records that both left out alike.
        closed: whether the speed layer has published all that the run read.
    """
    if not closed:
        return Check("exceptions_agree", Outcome.NOT_CHECKED, _BEHIND, certifies=False)
    faults = []
    if only_batch:
        faults.append(f"{only_batch} known to batch alone")
    if only_speed:
        faults.append(f"{only_speed} known to speed alone")
    return _check("exceptions_agree", faults, f"{both} records left out by both layers", certifies=False)


def _check(name: str, faults: list[str], detail: str, *, certifies: bool = True) -> Check:
    shown = 5
    if not faults:
        return Check(name, Outcome.HOLDS, detail, certifies)
    rest = f"; and {len(faults) - shown} more" if len(faults) > shown else ""
    return Check(name, Outcome.FAILS, "; ".join(faults[:shown]) + rest, certifies)


def _fingerprint(
    manifest: Manifest,
    certified: bool,
    verdict: Verdict,
    comparison: Comparison,
    causes: Mapping[str, int],
    checks: tuple[Check, ...],
) -> str:
    decided = {
        "run_id": manifest.run_id,
        "partition": manifest.partition.isoformat(),
        "certified": certified,
        "verdict": verdict,
        "compared": comparison.compared,
        "residual": comparison.residual,
        "causes": dict(causes),
        "checks": [[check.name, check.outcome, check.detail] for check in checks],
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]
