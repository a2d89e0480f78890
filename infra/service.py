"""What a service of the local stack is: a command, the ports it takes, and how one knows that it is ready."""

import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PROBE_TIMEOUT_S = 1.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
_HTTP_ERROR = 500


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Service:
    """A process that the stack starts, watches and stops.

    Attributes:
        name: short name: of the pid file, of the log, and in `lockstep status`.
        argv: the command. It must stay in the foreground and end on SIGTERM.
        address: where it answers, `host:port` or a URL; shown by `status`.
        ready: tells whether it can be used now; called often, must not block for more than a second or so.
        env: environment variables added to the stack's own.
        ports: the ports it listens on, by the field of `Settings` that sets each.
        needs: names of services that must be ready before it is started, and are stopped after it.
        prepare: called before each start by `up`, for files that the process expects.
        stop_timeout_s: how long it may take to end before it is killed.
    """

    name: str
    argv: tuple[str, ...]
    address: str
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = _nothing
    stop_timeout_s: float = 20.0

    def digest(self) -> str:
        """Changes when the process would be another one, so that a running one has to be replaced."""
        parts = [list(self.argv), sorted(self.env.items()), self.address, sorted(self.ports.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def specification(self, log: Path) -> dict[str, object]:
        """What the supervisor process is told, as JSON values."""
        return {
            "name": self.name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "address": self.address,
            "needs": list(self.needs),
            "digest": self.digest(),
            "log": str(log),
            "cwd": os.getcwd(),
            "stop_timeout_s": self.stop_timeout_s,
        }


def tcp_ready(host: str, port: int) -> Callable[[], bool]:
    """Ready once something accepts connections there."""
    return lambda: accepts(host, port)


def http_ready(url: str) -> Callable[[], bool]:
    """Ready once a GET of the URL is answered with a status below 500."""

    def ready() -> bool:
        try:
            with _DIRECT.open(url, timeout=_PROBE_TIMEOUT_S) as response:
                return bool(response.status < _HTTP_ERROR)
        except urllib.error.HTTPError as error:
            return error.code < _HTTP_ERROR
        except OSError:
            return False

    return ready


def accepts(host: str, port: int, timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
    """Whether something accepts connections at the port."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
