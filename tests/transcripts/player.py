"""Plays transcripts: steps of events and watermarks through Beam's TestStream, and the panes they must lead to.

A transcript is a YAML mapping with `metrics` (as in a catalog), and `steps`, each one of:

- `events`: a bundle of events of one chunk, each `{at: seconds, <field>: value}`;
- `watermark`: seconds, must grow;
- `panes`: what the step before it put out, rows of `{pane, at: slice start in seconds, <dimension>, <metric>: events}`,
  of sessions `{session: key, at: start, until: end, <dimension>, <metric>: events}`, 0 events for a tombstone;
  an empty list says that it put out nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import yaml
from apache_beam.coders import BytesCoder, StrUtf8Coder, TupleCoder
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader
from metrics.fold import groups
from speed_layer import partials
from speed_layer.merge import MergeIntoPanes
from speed_layer.panes import PaneBatch
from speed_layer.partials import Receipt

START_S = 1_700_000_000 // 3600 * 3600
STEPS = ("events", "watermark", "panes")
Row = dict[str, Any]


class TranscriptError(Exception):
    """A transcript that says nothing or contradicts itself."""


@dataclass(frozen=True)
class Transcript:
    """A checked transcript: its catalog and its steps as (kind, value)."""

    catalog: Catalog
    steps: tuple[tuple[str, Any], ...]


def load(path: Path) -> Transcript:
    """Reads and checks a transcript file.

    Raises:
        TranscriptError: It is not a transcript; the text names the step.
    """
    return parse(yaml.safe_load(path.read_text()))


def parse(tree: Any) -> Transcript:
    """Checks a transcript."""
    if not isinstance(tree, dict) or set(tree) != {"metrics", "steps"}:
        msg = "a transcript has `metrics` and `steps`, nothing else"
        raise TranscriptError(msg)
    steps: list[tuple[str, Any]] = []
    reached = float("-inf")
    for number, step in enumerate(tree["steps"], 1):
        if not isinstance(step, dict) or len(step) != 1 or next(iter(step)) not in STEPS:
            msg = f"step {number}: a step is one of {', '.join(STEPS)}; got {step}"
            raise TranscriptError(msg)
        [(kind, value)] = step.items()
        if kind == "watermark":
            if value <= reached:
                msg = f"step {number}: a watermark must grow; got {value} after {reached}"
                raise TranscriptError(msg)
            reached = value
        elif kind == "panes" and (not steps or steps[-1][0] == "panes"):
            msg = f"step {number}: panes come after events or a watermark"
            raise TranscriptError(msg)
        elif kind == "events" and not all(isinstance(event, dict) and "at" in event for event in value):
            msg = f"step {number}: every event has a time, `at`"
            raise TranscriptError(msg)
        steps.append((kind, value))
    if not any(kind == "panes" for kind, _ in steps):
        msg = "a transcript that expects no panes tests nothing"
        raise TranscriptError(msg)
    return Transcript(_catalog(tree["metrics"]), tuple(steps))


def play(transcript: Transcript) -> tuple[list[list[Row]], list[list[Row]]]:
    """Runs a transcript; returns the panes expected and those put out, each list of rows that of one step."""
    expected = [sorted(map(_row, value), key=_order) for kind, value in transcript.steps if kind == "panes" and value]
    _BATCHES.clear()
    options = PipelineOptions([])
    options.view_as(StandardOptions).streaming = True
    with beam.Pipeline("BundleBasedDirectRunner", options=options) as pipeline:
        _ = pipeline | _stream(transcript) | MergeIntoPanes("transcript", transcript.catalog) | beam.Map(_collect)
    put_out = [rows for batch in _BATCHES if (rows := sorted(_rows(transcript.catalog, batch), key=_order))]
    return expected, put_out


_BATCHES: list[PaneBatch] = []


def _collect(batch: PaneBatch) -> None:
    """By name, so that it is this module's list that grows, not a pickled copy."""
    _BATCHES.append(batch)


def _stream(transcript: Transcript) -> TestStream:
    stream = TestStream(coder=TupleCoder([StrUtf8Coder(), BytesCoder()]))
    offset = 0
    for kind, value in transcript.steps:
        if kind == "watermark":
            stream = stream.advance_watermark_to(Timestamp(seconds=START_S + value))
        elif kind == "events":
            elements = list(_elements(transcript.catalog, value, offset))
            offset += len(value)
            moment = min(event["at"] for event in value) + START_S
            stream = stream.add_elements([TimestampedValue(element, moment) for element in elements])
    return stream.advance_watermark_to_infinity()


def _elements(catalog: Catalog, events: list[Row], offset: int) -> Iterator[partials.Element]:
    offsets = list(range(offset, offset + len(events)))
    times = [int((START_S + event["at"]) * 1000) for event in events]
    values = [
        json.dumps({"event_id": str(o), "ts": t} | {k: v for k, v in event.items() if k != "at"}).encode()
        for o, t, event in zip(offsets, times, events, strict=True)
    ]
    chunk = PartitionReader(catalog).read(0, offsets, times, values)
    receipt = Receipt(0, 0, offset, offset + len(events), 0, None)
    yield from partials.elements(chunk, groups(catalog), 2, receipt)


def _rows(catalog: Catalog, batch: PaneBatch) -> Iterator[Row]:
    for group in groups(catalog):
        for row in batch.panes[group.id].iter_rows(named=True) if group.id in batch.panes else ():
            counts = {m.name: row[f"{m.name}.events"] for m in group.metrics if row[f"{m.name}.events"]}
            at = row["slice_start"] // 1000 - START_S
            yield {"pane": row["pane"], "at": at} | {name: row[name] for name in group.by} | counts
        for metric in group.metrics:
            for row in batch.sessions[metric.name].iter_rows(named=True) if metric.name in batch.sessions else ():
                at, until = (row[name] // 1000 - START_S for name in ("window_start", "window_end"))
                found = {"session": row["session_key"], "at": at, "until": until, metric.name: row["events"]}
                yield found | {name: row[name] for name in group.by}


def _row(row: Row) -> Row:
    return dict(row)


def _order(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def _catalog(metrics: Any) -> Catalog:
    tree = {
        "source": "transcript",
        "topic": "transcript",
        "event_id": "event_id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "fields": {"country": "string", "user": "string"},
        "metrics": metrics,
    }
    return parse_catalog(tree, {}, "transcript")
