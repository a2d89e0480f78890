"""The import contract of the reference is about every module of metrics."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_reference_may_import_no_other_module_of_metrics() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if "metrics.reference" in one.get("source_modules", []))
    modules = {f"metrics.{path.stem}" for path in (ROOT / "metrics").glob("*.py") if path.stem != "__init__"}
    judges = {name for name in modules if name.startswith("metrics.reference")}
    assert set(contract["source_modules"]) == judges
    assert set(contract["forbidden_modules"]) == modules - judges
