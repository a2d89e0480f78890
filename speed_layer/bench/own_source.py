"""A source of a bench's own: a catalog under a name that nobody else has, and its job as a process."""

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from infra import kafka
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.measure import of_services
from infra.settings import Settings
from metrics.catalog import Catalog

_STOP_S = 60.0
_FLINK = ("flink-jobserver", "flink-expansion")


@contextmanager
def own_source(
    settings: Settings, template: str | Path, changes: Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, Catalog]]:
    """The file and the catalog of a new source; its topics and its database are removed at the end.

    Args:
        settings: Where they are.
        template: The name of a catalog beside this module, or the path of one elsewhere.
        changes: What to say otherwise, by key of the catalog.
    """
    values = yaml.safe_load((Path(__file__).parent / template).read_text())
    name = f"bench_{uuid.uuid4().hex[:8]}"
    values |= {"source": name, "topic": f"lockstep.{name}", **(changes or {})}
    for alert, definition in values.get("alerts", {}).items():
        definition["topic"] = f"lockstep.{name}.{alert}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        catalog = load_catalog(path)
        try:
            yield path, catalog
        finally:
            connect(settings).command(f"DROP DATABASE IF EXISTS {quote(settings.database(name))}")
            topics = [catalog.topic, catalog.dlq_topic, catalog.late_topic, *(alert.topic for alert in catalog.alerts)]
            for future in kafka.admin(settings).delete_topics(topics).values():
                future.exception()


@contextmanager
def running(settings: Settings, path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The speed layer of a catalog as a process, which is asked to end at the end."""
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(path), *options]
    job = subprocess.Popen(command, env={**os.environ, **settings.environ()}, stdout=subprocess.DEVNULL)
    try:
        yield job
    finally:
        job.terminate()
        try:
            job.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()


def parts(settings: Settings) -> dict[str, list[int]]:
    """What a `Meter` tells apart: the Python workers, Flink, the broker and ClickHouse."""
    names = {"workers": ("beam-workers",), "flink": _FLINK, "kafka": ("kafka",), "clickhouse": ("clickhouse",)}
    return {part: of_services(settings, services) for part, services in names.items()}
