"""The pipeline: log -> chunks -> partial states -> whole states in panes -> ClickHouse -> progress.

Beside it: chunks -> what alerts watch -> alerts in their topics and in ClickHouse -> progress.
"""

import logging

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.external import ExternalTransform, ImplicitSchemaPayloadBuilder

from infra.settings import Settings
from metrics.catalog import Catalog
from speed_layer import flink
from speed_layer.alert_elements import is_for_alerts
from speed_layer.alerts import RaiseAlerts
from speed_layer.cardinality import Limits
from speed_layer.merge import MergeIntoPanes
from speed_layer.partials import Element
from speed_layer.publish import TrackProgress, WritePanes, WriteProgress
from speed_layer.source import ReadPartitions, buckets
from speed_layer.spread import spread

GENERATE_SEQUENCE = "beam:external:java:generate_sequence:v1"
LARGEST_BUNDLE_MS = 50

WORKERS_PER_SUBTASK = 2
"""Stages are dealt out to workers in turn; with one per subtask, readers of all partitions may share a process."""

_SEED_PERIOD_MS = 1000


class Seeds(beam.PTransform):
    """The numbers of the topic partitions, each once and with its key, from a source that is native to Flink.

    With `Create` or `Impulse` as the only source Flink completes no checkpoint. All come out of one element, so that
    the watermark of the source, which is the wall clock, cannot pass a partition that has not begun.
    """

    def __init__(self, partitions: int, parallelism: int, expansion_service: str) -> None:
        super().__init__()
        self._seeds = [(key, number) for number, key in enumerate(spread(partitions, parallelism))]
        self._expansion_service = expansion_service

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """Applies the transform."""
        seeds = self._seeds
        every = ImplicitSchemaPayloadBuilder({"start": 0, "elements_per_period": 1, "period": _SEED_PERIOD_MS})
        return (
            pbegin
            | "Count" >> ExternalTransform(GENERATE_SEQUENCE, every, self._expansion_service)
            | "One per partition"
            >> beam.FlatMap(lambda number: seeds if number == 0 else []).with_output_types(tuple[str, int])
        )


class SpeedLayer(beam.PTransform):
    """The whole of the speed layer, from the numbers of topic partitions on."""

    def __init__(self, job: str, settings: Settings, catalog: Catalog, published: dict[int, int]) -> None:
        super().__init__()
        self._job = job
        self._settings = settings
        self._catalog = catalog
        self._published = published

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Applies the transform."""
        read = ReadPartitions(self._job, self._settings, self._catalog, self._published)
        elements = pcoll | "Read partitions" >> beam.ParDo(read).with_output_types(tuple[str, bytes])
        raised = []
        if self._catalog.alerts:
            watched = elements | "For alerts" >> beam.Filter(is_for_alerts).with_output_types(tuple[str, bytes])
            elements = elements | "For the merge" >> beam.Filter(_is_for_merge).with_output_types(tuple[str, bytes])
            raising = RaiseAlerts(self._job, self._settings, self._catalog)
            raised.append(watched | "Raise alerts" >> beam.ParDo(raising).with_output_types(tuple[int, bytes]))
        receipts = (
            elements
            | "Merge into panes" >> MergeIntoPanes(self._job, self._catalog, limits(self._settings))
            | "Write panes"
            >> beam.ParDo(WritePanes(self._settings, self._catalog)).with_output_types(tuple[int, bytes])
        )
        if raised:
            receipts = (receipts, *raised) | "Receipts" >> beam.Flatten()
        return (
            receipts
            | "Track progress" >> beam.ParDo(TrackProgress())
            | "Write progress" >> beam.ParDo(WriteProgress(self._settings, self._catalog))
        )


def _is_for_merge(element: Element) -> bool:
    return not is_for_alerts(element)


def limits(settings: Settings) -> Limits:
    """What the merge may use, and from when it raises an alarm."""
    return Limits(settings.worker_memory_bytes, settings.alarm_rows, buckets(settings))


def options(settings: Settings, job_name: str) -> PipelineOptions:
    """The options under which the pipeline runs on Flink."""
    # The options that only the runner knows are not unparseable, as the SDK warns.
    logging.getLogger(pipeline_options.__name__).setLevel(logging.ERROR)
    state = settings.data_dir.absolute() / "flink"
    (state / "checkpoints").mkdir(parents=True, exist_ok=True)
    return PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_name={job_name}",
            f"--job_endpoint={settings.job_endpoint}",
            f"--artifact_endpoint={settings.artifact_endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config={settings.worker_endpoint}",
            # Every Flink process starts that many of its own.
            f"--sdk_worker_parallelism={WORKERS_PER_SUBTASK * flink.slots(settings)}",
            f"--parallelism={settings.parallelism}",
            "--streaming",
            # Flink runs the expanded Java source natively only so.
            "--experiments=use_deprecated_read",
            f"--checkpointing_interval={settings.checkpoint_interval_ms}",
            f"--state_backend={settings.state_backend}",
            # The default storage holds 5 MB and then fails the job.
            f"--state_backend_storage_path=file://{state / 'checkpoints'}",
            f"--flink_conf_dir={flink.configure(settings)}",
            # Spelt so in the runner.
            f"--max_bundle_time_mills={LARGEST_BUNDLE_MS}",
            "--max_bundle_size=1000",
        ]
    )


def build(
    settings: Settings, catalog: Catalog, job: str, job_name: str, partitions: int, published: dict[int, int]
) -> beam.Pipeline:
    """The pipeline, ready to run.

    Args:
        settings: Where everything is.
        catalog: What to compute.
        job: Names this submission; memories of other submissions are not used.
        job_name: The name shown by the job server.
        partitions: Number of partitions of the topic.
        published: By topic partition, the offset before which side outputs are already stored.
    """
    pipeline = beam.Pipeline(options=options(settings, job_name))
    _ = (
        pipeline
        | "Topic partitions" >> Seeds(partitions, settings.parallelism, settings.expansion_endpoint)
        | "Speed layer" >> SpeedLayer(job, settings, catalog, published)
    )
    return pipeline
