"""Flink itself, beneath Beam's job server: its configuration, and stopping what the job server cannot.

The job server runs an embedded Flink per job. When it cancels a job it interrupts the thread that waits for it, and the
job runs on unseen; so jobs are cancelled at Flink's own REST interface, which says of each job what it is called.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from infra.settings import Settings

PORTS = 10
"""REST ports that embedded Flinks may take, from `flink_ui_port` on: one per job."""

_EMBEDDED = "[local]"
_OVER = frozenset({"CANCELED", "FAILED", "FINISHED", "SUSPENDED"})
_TIMEOUT_S = 5.0
_GONE_S = 30.0
_POLL_S = 0.2

logger = logging.getLogger(__name__)


def configure(settings: Settings) -> Path:
    """Writes the configuration of an embedded Flink; returns its directory."""
    directory = settings.data_dir.absolute() / "flink" / "conf"
    directory.mkdir(parents=True, exist_ok=True)
    scratch = settings.data_dir.absolute() / "flink" / "rocksdb"
    options = {
        "rest.address": settings.host,
        "rest.bind-address": settings.host,
        "rest.bind-port": f"{settings.flink_ui_port}-{settings.flink_ui_port + PORTS - 1}",
        # A write that waits for ClickHouse, or a read that waits for Kafka, holds a checkpoint up; that is no failure.
        "execution.checkpointing.tolerable-failed-checkpoints": 1_000_000,
        # RocksDB works in a directory of each task's own, and a checkpoint holds what changed since the last.
        "state.backend.rocksdb.localdir": str(scratch),
        "state.backend.incremental": "true",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
    }
    text = "".join(f"{name}: {value}\n" for name, value in options.items())
    (directory / "flink-conf.yaml").write_text(text)
    return directory


def slots(settings: Settings) -> int:
    """The most subtasks of a job that one Flink process runs: its slots; all of them where nothing else is known."""
    if settings.flink_master == _EMBEDDED:
        return settings.parallelism
    answer = _request(f"{_addresses(settings)[0]}/taskmanagers", "GET")
    listed = answer.get("taskmanagers", []) if isinstance(answer, dict) else []
    return min(settings.parallelism, max((each["slotsNumber"] for each in listed), default=settings.parallelism))


def running(settings: Settings, prefix: str) -> list[str]:
    """Names of the Flink jobs that are not over and whose name begins with `prefix`."""
    return [job["name"] for address in _addresses(settings) for job in _running(address, prefix)]


def cancel(settings: Settings, prefix: str) -> list[str]:
    """Cancels Flink jobs whose name begins with `prefix`, and waits until they are over; returns their names."""
    cancelled = []
    for address in _addresses(settings):
        for job in _running(address, prefix):
            _request(f"{address}/jobs/{job['jid']}?mode=cancel", "PATCH")
            cancelled.append(job["name"])
            deadline = time.monotonic() + _GONE_S
            while time.monotonic() < deadline and any(j["jid"] == job["jid"] for j in _running(address, prefix)):
                time.sleep(_POLL_S)
    return cancelled


def _addresses(settings: Settings) -> list[str]:
    if settings.flink_master != _EMBEDDED:
        return [f"http://{settings.flink_master}"]
    ports = range(settings.flink_ui_port, settings.flink_ui_port + PORTS)
    return [f"http://{settings.host}:{port}" for port in ports]


def _running(address: str, prefix: str) -> list[dict[str, Any]]:
    answer = _request(f"{address}/jobs/overview", "GET")
    listed = answer.get("jobs", []) if isinstance(answer, dict) else []
    return [job for job in listed if job["name"].startswith(prefix) and job["state"] not in _OVER]


def _request(url: str, method: str) -> Any:  # noqa: ANN401 - whatever JSON says
    """The answer, None where nothing or something else answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"null")
    except (OSError, ValueError, urllib.error.HTTPError):
        return None
