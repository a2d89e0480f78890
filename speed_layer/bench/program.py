"""What the benches do alike as programs: options, the stack, the result as a file, as JSON and as lines."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.service import Service
from infra.services import core_services
from infra.settings import Settings, load_settings
from infra.stack import down, status, up

Result = dict[str, Any]


def options(name: str, text: str, package: str = "speed_layer.bench") -> argparse.ArgumentParser:
    """The options that every bench has."""
    parser = argparse.ArgumentParser(prog=f"python -m {package} {name}", description=text)
    parser.add_argument("--results", type=Path, help="directory of results (`bench-results` under `data_dir`)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def results_of(given: argparse.Namespace, settings: Settings) -> Path:
    """The directory of results."""
    return Path(given.results or settings.data_dir.absolute() / "bench-results")


def report(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def carry_out(
    given: argparse.Namespace,
    measure: Callable[[Settings], Result],
    lines: Callable[[Result], Iterable[str]],
    services: Callable[[Settings], Sequence[Service]] = core_services,
) -> int:
    """Measures on the stack of the settings, which is stopped again if it was not up; returns the exit code.

    Args:
        given: Values of `options`.
        measure: What is done once the stack is up.
        lines: The result as people read it.
        services: What has to be up.
    """
    settings = load_settings()
    ran_before = any(service.state == "running" for service in status(settings))
    try:
        up(settings, services(settings), report=report)
        result = measure(settings)
    except (ConnectionError, LookupError, RuntimeError, TimeoutError) as error:
        report(str(error))
        return 2
    finally:
        if not ran_before:
            down(settings)
    results = results_of(given, settings)
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{result['name']}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result) if given.json else "\n".join(lines(result)))
    return 0 if result["ok"] else 1
