"""The systems of `bench batch`, each run once as a process of its own over what is in the topic.

The clock starts when the imports are done and, where Spark is used, a JVM is up and has answered: what a run costs.
What starting costs is told apart.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from infra.clickhouse import connect, quote
from infra.measure import Meter, of_services
from infra.processes import cpu_seconds
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.window import DAY_MS, Window, to_epoch_ms
from orchestration.batch_bench import answers
from speed_layer.bench.run import BenchError, Run, Stretch

DAY = date(2026, 5, 28)
START_MS = to_epoch_ms(Window.of_day(DAY).start)
SPAN = (START_MS, START_MS + DAY_MS)

BATCH, PLAIN, POLARS, READING = "batch", "plain", "polars", "reading"
TITLES = {
    BATCH: "batch layer: metrics and alerts to ClickHouse",
    PLAIN: "plain Spark job: metrics to Parquet",
    POLARS: "polars: metrics to Parquet",
    READING: "reading alone, not decoded",
}
"""The systems, in the order in which they run."""

Work = Callable[[], dict[str, float]]
"""Does what is timed; gives further figures."""

Check = Callable[[], str]
"""Says what was found, once the clock has stopped."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended well.

    Attributes:
        said: Its output.
        seconds: From its start to its end.
        peak_bytes: Greatest resident memory at one moment, by part: the process with all that it started, services.
        service_cpu_s: What services took meanwhile.
    """

    said: bytes
    seconds: float
    peak_bytes: dict[str, int]
    service_cpu_s: dict[str, float]


def once(settings: Settings, catalog: Catalog, system: str, events: int) -> dict[str, Any]:
    """Runs a system, in this process, over about so many events.

    Returns:
        seconds, cpu_s, answer and more: how long it took to start, and further figures.
    """
    with tempfile.TemporaryDirectory() as scratch, _ready(settings, catalog, system, events, Path(scratch)) as ready:
        work, check = ready
        start_s = time.time() - psutil.Process().create_time()
        before, begun = cpu_seconds(os.getpid()), time.monotonic()
        more = work()
        seconds, cpu_s = time.monotonic() - begun, cpu_seconds(os.getpid()) - before
        more = {"start_s": round(start_s, 2), **more}
        return {"seconds": seconds, "cpu_s": cpu_s, "answer": check(), "more": more}


@contextmanager
def _ready(
    settings: Settings, catalog: Catalog, system: str, events: int, scratch: Path
) -> Iterator[tuple[Work, Check]]:
    """What a system does, once all that it needs is loaded and started."""
    from orchestration.batch_bench import rivals  # noqa: PLC0415 - Spark takes a second to import

    def of_files() -> str:
        return answers.summary(answers.of_files(scratch, SPAN))

    if system == READING:
        read: list[int] = []
        yield _without_more(lambda: read.append(rivals.reading(settings, catalog))), lambda: f"{sum(read):,} records"
    elif system == POLARS:
        yield _without_more(lambda: rivals.polars_job(settings, catalog, scratch)), of_files
    else:
        from batch_layer.job import spark_session  # noqa: PLC0415

        with spark_session(settings, events) as session:
            session.range(1).count()
            if system == PLAIN:
                yield _without_more(lambda: rivals.plain_job(session, settings, catalog, scratch)), of_files
            else:
                yield _batch(settings, catalog, lambda *_: nullcontext(session))


def _without_more(work: Callable[[], object]) -> Work:
    def done() -> dict[str, float]:
        work()
        return {}

    return done


def _batch(settings: Settings, catalog: Catalog, session_of: Callable[..., Any]) -> tuple[Work, Check]:
    from batch_layer.planning import refresh_index  # noqa: PLC0415
    from batch_layer.run import run  # noqa: PLC0415

    runs: list[str] = []

    def work() -> dict[str, float]:
        begun = time.monotonic()
        refresh_index(settings, catalog)
        index_s = time.monotonic() - begun
        [found] = run(settings, catalog, [DAY], session_of=session_of)
        runs.append(found.run_id)
        return {"index_s": round(index_s, 2)}

    return work, lambda: answers.summary(answers.of_batch(settings, catalog, runs[-1]))


def measured(settings: Settings, path: Path, catalog: Catalog, system: str, events: int, wanted: str) -> Run:
    """Runs a system as a process over so many events; exact if it finds what is wanted.

    Raises:
        BenchError: It failed.
    """
    # what a run before has left, its index of the log above all, is not there for the next
    connect(settings).command(f"DROP DATABASE IF EXISTS {quote(settings.database(catalog.source))}")
    words = ["once", "--system", system, "--shop", str(path), "--events", str(events)]
    ended = ended_well(settings, [sys.executable, "-m", "orchestration.batch_bench", *words])
    found: dict[str, Any] = json.loads(ended.said.splitlines()[-1])
    exact = found["answer"] == wanted
    if not exact:
        print(f"{TITLES[system]}: found {found['answer']}, wanted {wanted}", file=sys.stderr, flush=True)
    cpu_s = {"system": found["cpu_s"], **ended.service_cpu_s}
    return Run(Stretch(events, found["seconds"], cpu_s), ended.seconds, ended.peak_bytes, exact, found["more"])


def ended_well(settings: Settings, command: Sequence[str]) -> Ended:
    """Runs a command to its end.

    Raises:
        BenchError: It failed.
    """
    services = {"broker": of_services(settings, ("kafka",)), "clickhouse": of_services(settings, ("clickhouse",))}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**os.environ, **settings.environ()}, stdout=output)
        try:
            with Meter({"system": [process.pid], **services}) as meter:
                before = meter.cpu()
                code = process.wait()
                after = meter.cpu()
        finally:
            _end(process)
        seconds = time.monotonic() - begun
        output.seek(0)
        said = output.read()
    if code:
        msg = f"`{' '.join(command)}` ended with {code}; what it said is above"
        raise BenchError(msg)
    return Ended(said, seconds, meter.peaks(), {part: after[part] - before[part] for part in services})


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()
