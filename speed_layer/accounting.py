"""Whether the ledger closes: its blocks cover the log, and its counted are the events of the published rows.

Everything here is true of tables that are being written. A frontier is read before the tables, and what lies before it
is in them; so a block before it must be complete. Of the sums, the ledger's at one moment is compared with the rows' at
a later one, by which all that the log held at the first is published, and the other way round: work under way can make
the later sum greater, never less. Where the log pauses, the two are exact.

Offsets without a record (transaction markers, records of aborted transactions) are told from a hole by reading the
block again, as only a consumer sees them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from metrics.catalog import Catalog, Metric
from metrics.disposition import LEDGER_BLOCK

MISSING, SURPLUS, UNBALANCED, LOST, DOUBLED = "missing", "surplus", "unbalanced", "lost", "doubled"


@dataclass(frozen=True)
class Block:
    """A row of the ledger.

    Attributes:
        records: How many were read.
        disposed: How many of them have a disposition.
        counted: How many of them are counted.
    """

    records: int
    disposed: int
    counted: int


NO_ROW = Block(0, 0, 0)


@dataclass(frozen=True)
class Span:
    """Offsets of one block, `start` up to `end` (exclusive); `whole` if they are all that the block has."""

    topic_partition: int
    start: int
    end: int
    whole: bool

    @property
    def place(self) -> tuple[int, int]:
        """The key of its row in the ledger."""
        return self.topic_partition, self.start // LEDGER_BLOCK


@dataclass(frozen=True)
class Sample:
    """What tables and log said, in the order in which they were asked.

    Attributes:
        reached: By topic partition, the offset before which all is published.
        blocks: The ledger, by topic partition and number of the block.
        published: Events folded in the rows of a metric that takes every event; None if the catalog has none.
        begins: By topic partition, the first offset that the log still has.
        ends: By topic partition, the log's end (exclusive).
    """

    reached: Mapping[int, int]
    blocks: Mapping[tuple[int, int], Block]
    published: int | None
    begins: Mapping[int, int]
    ends: Mapping[int, int]

    @property
    def counted(self) -> int:
        """Events that the ledger counts."""
        return sum(block.counted for block in self.blocks.values())

    @property
    def expired(self) -> int:
        """Of these, events in blocks of which the log has lost the beginning."""
        kept = {
            place: block
            for place, block in self.blocks.items()
            if place[1] * LEDGER_BLOCK >= self.begins.get(place[0], 0)
        }
        return self.counted - sum(block.counted for block in kept.values())

    def is_in(self, reached: Mapping[int, int]) -> bool:
        """Whether all that its log held is published, if everything before these offsets is."""
        return all(end <= self.begins[number] or reached.get(number, 0) >= end for number, end in self.ends.items())


@dataclass(frozen=True)
class Finding:
    """Where the ledger does not close.

    Attributes:
        kind: `missing`, `surplus` or `unbalanced` records of a block; `lost` or `doubled` events of the rows.
        records: By how many.
        span: The block's offsets; None of the rows.
    """

    kind: str
    records: int
    span: Span | None = None

    @property
    def place(self) -> tuple[str, tuple[int, int] | None]:
        """What two findings at different times have in common if they are of the same defect."""
        return self.kind, self.span and self.span.place

    @property
    def text(self) -> str:
        """What a reader is told."""
        if self.span is None:
            than = {LOST: "fewer events than the ledger counts", DOUBLED: "more events than the ledger counts"}
            return f"published rows have {self.records:,} {than[self.kind]}"
        where = f"offsets {self.span.start} to {self.span.end} of partition {self.span.topic_partition}"
        what = {MISSING: "not in the ledger", SURPLUS: "too many in the ledger", UNBALANCED: "without a disposition"}
        return f"{where}: {self.records:,} records {what[self.kind]}"


@dataclass(frozen=True)
class Judgement:
    """What one look found.

    Attributes:
        findings: Where the ledger does not close; none if it does.
        unread: Blocks with fewer records than offsets that could not be read again yet, so nothing is known of them.
    """

    findings: tuple[Finding, ...]
    unread: int


def metric_of_all(catalog: Catalog) -> Metric | None:
    """A metric whose slices hold every counted event once: a count if there is one, and with the fewest dimensions.

    Sessions hold an event once too, but a session that has become part of another stays in the table for a moment.
    """
    taking_all = [metric for metric in catalog.metrics if metric.where is None and metric.session is None]
    return min(taking_all, key=lambda metric: (metric.agg.name != "count", len(metric.by)), default=None)


def judge(before: Sample, now: Sample, records_in: Callable[[Span], int | None]) -> Judgement:
    """Whether the ledger closes.

    Args:
        before: A sample.
        now: A later one; all that the log held at the first was published before it was taken.
        records_in: How many records a consumer finds in some offsets; None if that is not known now.
    """
    stood = {number for number, offset in now.reached.items() if before.reached.get(number) == offset}
    found: list[Finding] = list(_beyond(now))
    unread = 0
    short = [span for span in _spans(now) if now.blocks.get(span.place, NO_ROW).records < span.end - span.start]
    # what has no row at all first: markers alone seldom fill a block
    for span in sorted(short, key=lambda span: now.blocks.get(span.place, NO_ROW).records):
        if span.end % LEDGER_BLOCK and span.topic_partition not in stood:
            continue  # it grows, so it would be read again and again
        have, due = now.blocks.get(span.place, NO_ROW).records, records_in(span)
        if due is None:
            unread += 1
        elif have < due:
            found.append(Finding(MISSING, due - have, span))
        elif have > due and span.whole:
            found.append(Finding(SURPLUS, have - due, span))
    return Judgement((*found, *_of_rows(before, now)), unread)


def confirmed(earlier: Judgement, later: Judgement) -> Judgement:
    """The later judgement with what the earlier one had found too."""
    known = {finding.place for finding in earlier.findings}
    return replace(later, findings=tuple(finding for finding in later.findings if finding.place in known))


def _spans(now: Sample) -> Iterator[Span]:
    """The blocks of what the log has and is published, the first and the last perhaps in part."""
    for number, begin in now.begins.items():
        reached = now.reached.get(number, begin)
        for block in range(begin // LEDGER_BLOCK, -(-reached // LEDGER_BLOCK)):
            first, last = block * LEDGER_BLOCK, (block + 1) * LEDGER_BLOCK
            start, end = max(first, begin), min(last, reached)
            if start < end:
                yield Span(number, start, end, (start, end) == (first, last))


def _beyond(now: Sample) -> Iterator[Finding]:
    """Rows with more records than the log has offsets for, or with another number of dispositions."""
    for (number, block), row in now.blocks.items():
        first = block * LEDGER_BLOCK
        last = min(first + LEDGER_BLOCK, now.ends.get(number, 0))
        span = Span(number, first, max(first, last), last - first == LEDGER_BLOCK)
        if row.records > span.end - span.start:
            yield Finding(SURPLUS, row.records - (span.end - span.start), span)
        if row.disposed != row.records:
            yield Finding(UNBALANCED, abs(row.records - row.disposed), span)


def _of_rows(before: Sample, now: Sample) -> Iterator[Finding]:
    """What the published rows have too few or too many.

    A metric that is younger than the log's lost beginning need not have what was there.
    """
    if before.published is None or now.published is None:
        return
    if (least := before.counted - now.expired) > now.published:
        yield Finding(LOST, least - now.published)
    if before.published > now.counted:
        yield Finding(DOUBLED, before.published - now.counted)
