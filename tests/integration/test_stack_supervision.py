"""The stack starts what is missing, replaces what changed, restarts what died, and touches nothing else."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import psutil
import pytest

from infra.clickhouse import connect, insert_frame
from infra.kafka import ensure_topics, log_offsets, produce_all, producer
from infra.processes import Identity, read_json, write_json
from infra.service import Service, http_ready
from infra.services import clickhouse_services, kafka_services
from infra.settings import Settings
from infra.stack import StackError, down, status, up

PATIENCE_S = 60.0


@pytest.fixture
def own(tmp_path: Path, new_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Settings of a stack of this test's own."""
    settings = new_settings(tmp_path, start_timeout_s=PATIENCE_S)
    yield settings
    down(settings)


def _web(settings: Settings, name: str = "web", field: str = "api_port", *, needs: tuple[str, ...] = ()) -> Service:
    """A small real server, as the layers above would add one."""
    port = getattr(settings, field)
    argv = (sys.executable, "-m", "http.server", str(port), "--bind", settings.host)
    address = f"http://{settings.host}:{port}"
    return Service(name, argv, address, http_ready(address), ports={field: port}, needs=needs)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _pid(settings: Settings, name: str) -> int | None:
    return {entry.name: entry.pid for entry in status(settings)}.get(name)


def _supervisor(settings: Settings, name: str) -> int:
    state = read_json(settings.run_dir / f"{name}.json")
    assert state is not None
    return int(state["supervisor"]["pid"])


def test_up_twice_changes_nothing_and_down_leaves_nothing(own: Settings) -> None:
    services = [_web(own), _web(own, "other", "dagster_port", needs=("web",))]
    first = up(own, services)
    assert {entry.name: entry.state for entry in first} == {"web": "running", "other": "running"}
    assert all(entry.rss_bytes > 0 for entry in first)
    assert [entry.pid for entry in up(own, services)] == [entry.pid for entry in first]
    assert down(own) == ["other", "web"]  # dependants first
    assert status(own) == []
    assert [Identity.of(entry.pid or 0) for entry in first] == [None, None]


def test_a_service_that_dies_is_started_again(own: Settings) -> None:
    up(own, [_web(own)])
    old = _pid(own, "web")
    assert old is not None
    os.kill(old, signal.SIGKILL)
    _until(lambda: _pid(own, "web") not in (None, old) and status(own)[0].state == "running")
    assert status(own)[0].restarts == 1


def test_a_half_up_stack_is_completed_and_the_other_half_left_alone(own: Settings) -> None:
    services = [_web(own), _web(own, "other", "dagster_port")]
    up(own, services)
    kept, lost = _pid(own, "web"), Identity.of(_pid(own, "other") or 0)
    assert lost is not None
    os.kill(_supervisor(own, "other"), signal.SIGKILL)
    _until(lambda: {entry.name: entry.state for entry in status(own)}["other"] == "unsupervised")
    up(own, services)
    assert _pid(own, "web") == kept
    assert _pid(own, "other") not in (None, lost.pid)
    assert not lost.alive()


def test_a_service_that_would_run_differently_is_replaced(own: Settings) -> None:
    up(own, [_web(own)])
    old = _pid(own, "web")
    moved = own.model_copy(update={"api_port": own.flink_ui_port})
    entries = up(moved, [_web(moved)])
    assert entries[0].pid != old
    assert entries[0].address.endswith(str(own.flink_ui_port))


def test_a_taken_port_names_its_owner_and_the_setting(own: Settings) -> None:
    with socket.create_server((own.host, own.api_port)), pytest.raises(StackError) as refusal:
        up(own, [_web(own)])
    assert f"port {own.api_port} of `web` is taken by `{psutil.Process().name()}` (pid {os.getpid()})" in str(
        refusal.value
    )
    assert "choose another port by `LOCKSTEP_API_PORT`" in str(refusal.value)
    assert status(own) == []


def test_a_service_that_cannot_run_is_given_up_with_the_end_of_its_log(own: Settings) -> None:
    broken = Service("broken", (sys.executable, "-c", "raise SystemExit('no luck')"), "nowhere", lambda: False)
    with pytest.raises(StackError, match=r"`broken` ended 3 times, at last with exit code 1(.|\n)*no luck"):
        up(own, [broken])
    assert status(own) == []


def test_a_recycled_pid_is_never_signalled(own: Settings) -> None:
    up(own, [_web(own)])
    innocent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state_file = own.run_dir / "web.json"
    state = read_json(state_file)
    assert state is not None
    real, supervisor = Identity.from_json(state["process"]), Identity.from_json(state["supervisor"])
    forged = {"pid": innocent.pid, "create_time": time.time() - 3600}
    write_json(state_file, {**state, "process": forged, "supervisor": forged})
    assert down(own) == ["web"]
    assert innocent.poll() is None
    innocent.communicate(b"\n")
    assert real is not None
    assert supervisor is not None
    supervisor.send(signal.SIGTERM)
    _until(lambda: not real.alive())


def test_what_has_an_owner_ends_with_it(own: Settings) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    up(own, [_web(own)], owner_pid=owner.pid)
    process = Identity.of(_pid(own, "web") or 0)
    assert process is not None
    owner.kill()
    owner.wait()
    _until(lambda: not process.alive())


def test_clickhouse_keeps_its_rows_when_it_is_killed(own: Settings) -> None:
    up(own, clickhouse_services(own))
    client = connect(own)
    client.command("CREATE TABLE kept (id Int64) ENGINE = MergeTree ORDER BY id")
    insert_frame(client, "kept", pl.DataFrame({"id": range(100_000)}))
    os.kill(_pid(own, "clickhouse") or 0, signal.SIGKILL)
    again = connect(own, wait_seconds=PATIENCE_S)  # waits for the supervisor to bring it back
    assert again.command("SELECT count() FROM kept") == 100_000
    down(own)
    up(own, clickhouse_services(own))
    assert connect(own).command("SELECT count() FROM kept") == 100_000


def test_kafka_keeps_its_records_when_it_is_killed(own: Settings) -> None:
    services = kafka_services(own)
    up(own, services)
    ensure_topics(own, {"kept": 1})
    client = producer(own)
    assert produce_all(client, "kept", ({"value": b"x"} for _ in range(1000))) == 1000
    old = _pid(own, "kafka")
    os.kill(old or 0, signal.SIGKILL)
    # The same producer goes on, and nothing is lost or written twice.
    assert produce_all(client, "kept", ({"value": b"y"} for _ in range(1000))) == 1000
    assert _pid(own, "kafka") not in (None, old)
    assert log_offsets(own, "kept") == {0: (0, 2000)}


def test_a_second_server_on_the_same_data_says_so(own: Settings) -> None:
    up(own, clickhouse_services(own))
    other = own.model_copy(update={"clickhouse_port": own.api_port})
    second = subprocess.run(
        [sys.executable, "-m", "infra.clickhouse_front"],
        env={**os.environ, **other.environ()},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert second.returncode == 1
    assert "the embedded ClickHouse could not open" in second.stderr
    assert connect(own).command("SELECT 1") == 1
