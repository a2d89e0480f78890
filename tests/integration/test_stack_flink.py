"""Flink runs a Python pipeline in processes of the worker pool."""

from pathlib import Path

import apache_beam as beam
import psutil
from apache_beam.options.pipeline_options import PipelineOptions

from infra.settings import Settings
from infra.stack import status


def test_a_python_pipeline_runs_in_the_worker_pool(flink: Settings, tmp_path: Path) -> None:
    def note(pair: tuple[str, int]) -> None:  # inside the test, so that it travels to the worker by value
        started_by = psutil.Process().parent().parent()  # the pool's server forks it
        (tmp_path / pair[0]).write_text(f"{pair[1]} {started_by.pid}")

    options = PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_endpoint={flink.job_endpoint}",
            f"--artifact_endpoint={flink.artifact_endpoint}",
            "--environment_type=EXTERNAL",
            f"--environment_config={flink.worker_endpoint}",
            f"--parallelism={flink.parallelism}",
        ]
    )
    with beam.Pipeline(options=options) as pipeline:
        pairs = pipeline | beam.Create([("even" if n % 2 == 0 else "odd", n) for n in range(10)])
        _ = pairs | beam.CombinePerKey(sum) | beam.Map(note)
    pool = {entry.name: entry.pid for entry in status(flink)}["beam-workers"]
    assert (tmp_path / "even").read_text() == f"20 {pool}"
    assert (tmp_path / "odd").read_text() == f"25 {pool}"


def test_the_worker_pool_listens_on_loopback_only(flink: Settings) -> None:
    pool = {entry.name: entry.pid for entry in status(flink)}["beam-workers"]
    listening = [c.laddr for c in psutil.Process(pool).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {flink.host}
