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
    """The demo's catalog under a source and a topic of this test's own."""
    path = tmp_path / "shop.yaml"
    text = (DEMO_CATALOGS / "shop.yaml").read_text().replace("source: shop\n", f"source: {unique}\n")
    path.write_text(text.replace("topic: events.shop.v1 ", f"topic: {unique} "))
    return path
