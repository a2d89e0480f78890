"""What a system under measurement takes: processor time and memory of all its processes, and what it runs on."""

import os
import platform
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from infra.processes import Identity, read_json
from infra.settings import Settings

SPEED = ("flink-jobserver", "flink-expansion", "beam-workers")
"""The services that are the speed layer's engine; `kafka` and `clickhouse` work for every system."""

_EVERY_S = 0.5
"""A sample reads the process table, about 10 ms for a whole stack."""


class Meter:
    """Samples the memory of process trees from entering to leaving; tells their processor time at any moment.

    A part is a name and the processes at the roots of its trees. Processor time is user and system time of every living
    process of a tree and of all that ended in it, for which their parents were told. One whose parent ended before it
    is lost, so a root should be what outlives the rest, as a supervisor does. What a stretch of work took is the
    difference of two calls of `cpu`.

    Attributes:
        samples: Monotonic time and resident bytes by part, in order of time.
    """

    def __init__(self, parts: Mapping[str, Collection[int]], every_s: float = _EVERY_S) -> None:
        self.samples: list[tuple[float, dict[str, int]]] = []
        self._parts = parts
        self._every_s = every_s
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._keep_on, daemon=True)

    def __enter__(self) -> Self:
        """Begins to sample."""
        self.sample()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends sampling."""
        self._over.set()
        self._sampler.join()
        self.sample()

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time by part, since its processes began."""
        return {part: sum(map(_cpu_s, _members(roots))) for part, roots in self._parts.items()}

    def peaks(self) -> dict[str, int]:
        """The greatest number of resident bytes of all processes of a part at one moment, by part.

        Pages that processes share, such as those of a library, count for each of them.
        """
        return {part: max(rss[part] for _, rss in self.samples) for part in self._parts}

    def sample(self) -> None:
        """Notes the memory of all parts now, beside the regular samples."""
        rss = {part: sum(map(_rss_bytes, _members(roots))) for part, roots in self._parts.items()}
        self.samples.append((time.monotonic(), rss))

    def _keep_on(self) -> None:
        while not self._over.wait(self._every_s):
            self.sample()


def of_services(settings: Settings, names: Iterable[str]) -> list[int]:
    """The supervisors of services that the stack runs: the roots of all that these ever started.

    Raises:
        LookupError: One of them does not run.
    """
    pids = []
    for name in names:
        state = read_json(settings.run_dir / f"{name}.json")
        supervisor = Identity.from_json(state["supervisor"]) if state else None
        if supervisor is None or not supervisor.alive():
            msg = f"service `{name}` must run to be measured; it does not. start it with `lockstep up`"
            raise LookupError(msg)
        pids.append(supervisor.pid)
    return pids


def machine() -> dict[str, Any]:
    """What a figure was taken on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _members(roots: Iterable[int]) -> list[psutil.Process]:
    """The roots and all their descendants, remains of dead ones that nobody has asked for included."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            root = psutil.Process(pid)
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
