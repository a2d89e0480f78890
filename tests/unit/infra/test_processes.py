"""A process is known by its pid and its birth; a service by what it would run."""

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

from infra.processes import Identity, is_free, owner_of, read_json, write_json
from infra.service import Service, http_ready, tcp_ready

WEB = Service("web", ("serve",), "http://127.0.0.1:1", lambda: True, env={"A": "1"}, ports={"api_port": 1})


def test_a_process_is_not_another_with_the_same_pid() -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    assert me.alive()
    earlier = Identity(me.pid, me.create_time - 60)
    assert not earlier.alive()
    earlier.send(signal.SIGKILL)  # we live to tell


def test_nobody_has_an_unused_pid() -> None:
    assert Identity.of(2**22 + 1) is None


def test_an_identity_survives_its_pid_file(tmp_path: Path) -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    write_json(tmp_path / "me.json", {"process": me.as_json(), "supervisor": None})
    state = read_json(tmp_path / "me.json")
    assert state is not None
    assert Identity.from_json(state["process"]) == me
    assert Identity.from_json(state["supervisor"]) is None


def test_half_a_pid_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"pid": 1')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_a_listening_port_is_taken_by_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert f"(pid {os.getpid()})" in owner_of(port)
        assert tcp_ready("127.0.0.1", port)()
    assert is_free("127.0.0.1", port)
    assert not tcp_ready("127.0.0.1", port)()
    assert not http_ready(f"http://127.0.0.1:{port}/")()


def test_a_service_that_would_run_differently_has_another_digest() -> None:
    same = replace(WEB, ready=lambda: False, needs=("kafka",))
    assert same.digest() == WEB.digest()
    for changed in (
        replace(WEB, argv=("serve", "-v")),
        replace(WEB, env={"A": "2"}),
        replace(WEB, ports={"api_port": 2}),
    ):
        assert changed.digest() != WEB.digest()
