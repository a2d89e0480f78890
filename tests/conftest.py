"""Real engines for tests: started when a test first asks for one, on free ports, stopped when the session ends.

`kafka`, `clickhouse` and `flink` start that one service (or group) and give the `Settings` that reach it; `stack`
starts all. All share the session's `settings` and so may be combined. What is started dies with the pytest process,
however that ends. Tests keep apart by names: use `unique` for topics and sources.
"""

import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
from playwright.sync_api import Browser, sync_playwright

from infra.processes import is_free
from infra.service import Service
from infra.services import clickhouse_services, flink_services, kafka_services, schema_registry
from infra.settings import Settings
from infra.stack import down, up

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

HOST = "127.0.0.1"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Below the range from which the kernel takes ports of outgoing connections, so that nothing takes them meanwhile.
_PORTS = range(12_000, 31_000)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different."""
    found: list[int] = []
    candidates = random.SystemRandom().sample(_PORTS, len(_PORTS))
    while len(found) < count:
        port = candidates.pop()
        if is_free(HOST, port):
            found.append(port)
    return found


def fresh_settings(data_dir: Path, **changes: object) -> Settings:
    """Settings with a data directory and free ports of their own, whatever the environment says."""
    fields = [name for name in Settings.model_fields if name.endswith("_port")]
    ports = dict(zip(fields, free_ports(len(fields)), strict=True))
    # often, so that no test waits long for a checkpoint
    often = {"checkpoint_interval_ms": 3000}
    elsewhere = {"kafka_bootstrap": None, "clickhouse_url": None, "schema_registry": None, "database_prefix": ""}
    return Settings(**{"data_dir": data_dir, "host": HOST, **ports, **often, **elsewhere, **changes})


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of this session's stack; nothing runs yet. Whatever fixtures start is stopped at the end."""
    fresh = fresh_settings(tmp_path_factory.mktemp("lockstep"))
    try:
        yield fresh
    finally:
        down(fresh)


@pytest.fixture(scope="session")
def new_settings() -> Callable[..., Settings]:
    """`new_settings(data_dir, **changes)`: settings for a stack of a test's own; the test calls `down`."""
    return fresh_settings


@pytest.fixture(scope="session")
def kafka(settings: Settings) -> Settings:
    """A Kafka broker is up."""
    return _started(settings, kafka_services(settings))


@pytest.fixture(scope="session")
def registry(kafka: Settings) -> Settings:
    """A schema registry is up, and Kafka."""
    return _started(kafka, [schema_registry(kafka)])


@pytest.fixture(scope="session")
def clickhouse(settings: Settings) -> Settings:
    """ClickHouse is up."""
    return _started(settings, clickhouse_services(settings))


@pytest.fixture(scope="session")
def flink(settings: Settings) -> Settings:
    """The Beam job server with Flink, its expansion service and the worker pool are up."""
    return _started(settings, flink_services(settings))


@pytest.fixture(scope="session")
def stack(kafka: Settings, clickhouse: Settings, flink: Settings) -> Settings:
    """Kafka, ClickHouse and Flink are up."""
    return flink


@pytest.fixture
def unique() -> str:
    """A short name that no other test has; usable as a topic, a source, a database, a table."""
    return f"t{uuid.uuid4().hex[:10]}"


def _started(settings: Settings, services: Sequence[Service]) -> Settings:
    up(settings, services, owner_pid=os.getpid())
    return settings


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found:
        return found
    reason = f"no Chromium is installed (looked on PATH for {', '.join(CHROMIUMS)}); install one to test pages"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# not for the session: Playwright keeps an event loop running in this thread, in which no other test could start its own
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # as root, in a container, Chromium has no sandbox
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
