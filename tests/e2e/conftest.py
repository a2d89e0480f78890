"""The command line against a real stack, and the demo's catalog under a source of a test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings
from orchestration.sources import DEMO_CATALOGS


@pytest.fixture
def lockstep(stack: Settings) -> Callable[[Path], Lockstep]:
    """`lockstep(catalog)`: the command line for that catalog, on the session's stack."""
    return lambda catalog: Lockstep(stack, catalog)


@pytest.fixture
def shop(tmp_path: Path, unique: str) -> Path:
    """The demo's shop under a source and a topic of this test's own."""
    return _of_its_own("shop", tmp_path, unique)


@pytest.fixture
def devices(tmp_path: Path, unique: str) -> Path:
    """The demo's devices under a source and a topic of this test's own."""
    return _of_its_own("devices", tmp_path, unique)


def _of_its_own(source: str, folder: Path, name: str) -> Path:
    path = folder / f"{source}.yaml"
    text = (DEMO_CATALOGS / path.name).read_text().replace(f"source: {source}\n", f"source: {name}\n")
    path.write_text(text.replace(f"topic: events.{source}.v1", f"topic: {name}", 1))
    return path
