"""Identity of processes and owners of ports. A pid alone names nobody: pids are used again."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SAME_START_S = 1.0
_WATCH_S = 1.0


@dataclass(frozen=True)
class Identity:
    """A process for as long as it lives: pid and creation time (seconds since the epoch)."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The process that has the pid now; None when there is none, or only its remains."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid, process.create_time())
        except psutil.NoSuchProcess:
            return None

    def alive(self) -> bool:
        """Whether this very process still runs, and not another one that was given its pid."""
        now = Identity.of(self.pid)
        return now is not None and abs(now.create_time - self.create_time) < _SAME_START_S

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still this one."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kill everything in the process group that this process leads, if it is still this process or gone."""
        if Identity.of(self.pid) is None or self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def rss_bytes(self) -> int:
        """Resident memory of the process and all its descendants."""
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += member.memory_info().rss
        return total

    def as_json(self) -> dict[str, Any]:
        """For a pid file."""
        return {"pid": self.pid, "create_time": self.create_time}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> "Identity | None":
        """From a pid file."""
        return cls(value["pid"], value["create_time"]) if value else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file at once, so that a reader never sees half of it."""
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps(value, indent=1))
    new.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object, or None where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def owner_of(port: int) -> str:
    """Who listens on a port, for people: `nginx (pid 812)`, or that it cannot be told."""
    with contextlib.suppress(psutil.AccessDenied):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    return f"`{psutil.Process(connection.pid).name()}` (pid {connection.pid})"
    return "a process that may not be inspected (another user's, or outside of this container)"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its descendants, those that have ended included."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = member.cpu_times()
                total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def end_with(parent: int) -> None:
    """Ends this process soon after its parent has, even one that was killed and could tell nobody.

    Args:
        parent: The pid of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
