"""The local stack: services as detached, supervised processes with pid files and logs under `data_dir`.

    from infra.stack import up, down, status
    from infra.services import core_services

    up(settings, core_services(settings))     # Kafka, ClickHouse, Flink; idempotent
    down(settings)

Or from a shell: `python -m infra up`, `python -m infra status`, `python -m infra down`.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from infra.processes import Identity, is_free, owner_of, read_json, write_json
from infra.service import Service, accepts
from infra.settings import Settings, setting_name

State = Literal["running", "starting", "restarting", "unsupervised", "stopped"]
_POLL_S = 0.05
_CRASHES_ALLOWED = 2
_LOG_LIMIT_BYTES = 20 << 20
_TAIL_LINES = 15
_TAIL_BYTES = 16 << 10


class StackError(RuntimeError):
    """The stack could not be started or stopped; the text says which service, why, and what to do."""


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now.

    `state` is `running` (it answers), `starting` (it does not answer yet), `restarting` (it ended and will be started
    again), `unsupervised` (it runs, but nobody would start it again), or `stopped`. `rss_bytes` is the memory of the
    process and its descendants.
    """

    name: str
    state: State
    pid: int | None
    address: str
    rss_bytes: int
    restarts: int
    log: str


def up(
    settings: Settings,
    services: Sequence[Service],
    *,
    owner_pid: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[ServiceStatus]:
    """Start the services that do not run, wait until all are ready, return their status.

    Services start as soon as what they need is ready, several at once. One that already runs as described is left
    alone; one that runs differently (another port, another command) is replaced.

    Args:
        settings: where data, logs and pid files are; passed on to every process.
        services: what to start.
        owner_pid: a process that the services must not outlive; None lets them run until `down`.
        report: told in a line each time a service is started or ready.

    Raises:
        StackError: a port is taken, a service ended again and again, or was not ready in `start_timeout_s`.
    """
    _make_dirs(settings)
    with _exclusive(settings, report), ThreadPoolExecutor(max(1, len(services))) as pool:
        wanted = {service.name: service for service in services}
        running = [service for service in services if _replace_if_changed(settings, service)]
        _require_free_ports(settings, [service for service in services if service not in running])
        ready: set[str] = set()
        starting: dict[str, Future[None]] = {}
        begun = {service.name: time.monotonic() for service in running}
        crashes = {name: state["restarts"] for name, state in _states(settings)}
        while len(ready) < len(wanted):
            for service in services:
                name = service.name
                if name in ready or any(need in wanted and need not in ready for need in service.needs):
                    continue
                if name not in begun:
                    begun[name] = time.monotonic()
                    report(f"{name}: starting")
                    starting[name] = pool.submit(_start, settings, service, owner_pid)
                if name in starting and not starting[name].done():
                    continue
                if name in starting:
                    starting[name].result()
                if service.ready():
                    ready.add(name)
                    report(f"{name}: ready at {service.address} after {time.monotonic() - begun[name]:.1f} s")
                else:
                    _check_progress(settings, service, begun[name], crashes.get(name, 0))
            time.sleep(_POLL_S)
    return [entry for entry in status(settings) if entry.name in wanted]


def down(settings: Settings, *, report: Callable[[str], None] = lambda _: None) -> list[str]:
    """Stop everything that runs, dependants first; return the names of what was stopped. Data are kept."""
    _make_dirs(settings)
    stopped: list[str] = []
    with _exclusive(settings, report):
        remaining = dict(_states(settings))
        while remaining:
            needed = {need for state in remaining.values() for need in state.get("needs", [])}
            layer = [name for name in remaining if name not in needed] or list(remaining)
            with ThreadPoolExecutor(len(layer)) as pool:
                list(pool.map(lambda name: _stop(settings, name), layer))
            for name in layer:
                del remaining[name]
                stopped.append(name)
                report(f"{name}: stopped")
    return stopped


def stop(settings: Settings, names: Sequence[str], *, report: Callable[[str], None] = lambda _: None) -> None:
    """Stop some services, which nothing else needs; one that does not run is left alone."""
    with _exclusive(settings, report):
        for name in names:
            _stop(settings, name)
            report(f"{name}: stopped")


def status(settings: Settings) -> list[ServiceStatus]:
    """Every service that was started and not stopped, in the order of starting."""
    return [_status_of(state) for _, state in _states(settings)]


def _status_of(state: dict[str, Any]) -> ServiceStatus:
    process = Identity.from_json(state["process"])
    supervisor = Identity.from_json(state["supervisor"])
    alive = process is not None and process.alive()
    supervised = supervisor is not None and supervisor.alive()
    now: State = "stopped"
    if alive and not supervised:
        now = "unsupervised"
    elif alive:
        now = "running" if _answers(state["address"]) else "starting"
    elif supervised:
        now = "restarting"
    return ServiceStatus(
        name=state["name"],
        state=now,
        pid=process.pid if process and alive else None,
        address=state["address"],
        rss_bytes=process.rss_bytes() if process and alive else 0,
        restarts=state["restarts"],
        log=state["log"],
    )


def _answers(address: str) -> bool:
    """Whether the address accepts connections; an address without a port always does."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        return parts.port is None or accepts(parts.hostname or "", parts.port)
    except ValueError:
        return True


def _start(settings: Settings, service: Service, owner_pid: int | None) -> None:
    """Prepare and launch a service with its supervisor; returns before it is ready."""
    service.prepare()
    log = _log_file(settings, service.name)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    state_file = settings.run_dir / f"{service.name}.json"
    state_file.unlink(missing_ok=True)
    write_json(settings.run_dir / f"{service.name}.spec.json", service.specification(log))
    command = [sys.executable, "-m", "infra.supervise", str(settings.run_dir), service.name]
    if owner_pid is not None:
        command.append(str(owner_pid))
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            command,
            env={**os.environ, **settings.environ()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while not state_file.exists():
        if supervisor.poll() is not None:
            msg = f"the supervisor of `{service.name}` ended with {supervisor.returncode}. {_tail(log)}"
            raise StackError(msg)
        time.sleep(_POLL_S)


def _check_progress(settings: Settings, service: Service, begun: float, crashes_before: int) -> None:
    """Give a service up that ends again and again, or takes too long."""
    state = read_json(settings.run_dir / f"{service.name}.json") or {}
    log = _log_file(settings, service.name)
    times = state.get("restarts", 0) - crashes_before
    if times > _CRASHES_ALLOWED:
        _stop(settings, service.name)
        code = state["exit_code"]
        msg = f"`{service.name}` ended {times} times, at last with exit code {code}. {_tail(log)}"
        raise StackError(msg)
    if time.monotonic() - begun > settings.start_timeout_s:
        msg = (
            f"`{service.name}` must be ready within {settings.start_timeout_s:g} s "
            f"(`{setting_name('start_timeout_s')}`); it does not answer at {service.address}. {_tail(log)}"
        )
        raise StackError(msg)


def _replace_if_changed(settings: Settings, service: Service) -> bool:
    """Whether the service runs as described; one that runs otherwise, or without a supervisor, is stopped."""
    state = read_json(settings.run_dir / f"{service.name}.json")
    if state is None:
        return False
    supervisor = Identity.from_json(state["supervisor"])
    if supervisor is not None and supervisor.alive() and state["digest"] == service.digest():
        return True
    _stop(settings, service.name)
    return False


def _require_free_ports(settings: Settings, services: Sequence[Service]) -> None:
    taken = []
    for service in services:
        for field, port in service.ports.items():
            if not is_free(settings.host, port):
                name = setting_name(field)
                taken.append(
                    f"port {port} of `{service.name}` is taken by {owner_of(port)}. "
                    f"stop that process, or choose another port by `{name}`"
                )
    if taken:
        raise StackError("\n".join(taken))


def _stop(settings: Settings, name: str) -> None:
    """Stop a service and its supervisor, and wait for their end; nothing else is ever signalled."""
    state_file = settings.run_dir / f"{name}.json"
    state = read_json(state_file)
    if state is None:
        return
    spec = read_json(settings.run_dir / f"{name}.spec.json") or {}
    patience = float(spec.get("stop_timeout_s", 20.0)) + 5.0
    supervisor, process = Identity.from_json(state["supervisor"]), Identity.from_json(state["process"])
    for identity in (supervisor, process):
        if identity is None:
            continue
        identity.send(signal.SIGTERM)
        until = time.monotonic() + patience
        while identity.alive() and time.monotonic() < until:
            time.sleep(_POLL_S)
        identity.send(signal.SIGKILL)
    if process is not None:
        process.kill_group()
    state_file.unlink(missing_ok=True)


def _states(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    files = sorted(settings.run_dir.glob("*.json"), key=lambda path: path.stat().st_mtime)
    states = [(path.stem, read_json(path)) for path in files if not path.name.endswith(".spec.json")]
    return [(name, state) for name, state in states if state is not None and "supervisor" in state]


def _tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return f"its log is {log}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return f"the end of its log, {log}:\n" + "\n".join(f"  {line}" for line in lines)


def _log_file(settings: Settings, name: str) -> Path:
    return settings.log_dir / f"{name}.log"


def _make_dirs(settings: Settings) -> None:
    for directory in (settings.run_dir, settings.log_dir):
        directory.mkdir(parents=True, exist_ok=True)


@contextmanager
def _exclusive(settings: Settings, report: Callable[[str], None]) -> Iterator[None]:
    """Let one `up` or `down` work at a time; the lock goes with the process that holds it."""
    with (settings.run_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is starting or stopping this stack: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
