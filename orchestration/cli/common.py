"""What every command shares: where it prints, which catalog it reads, how it fails."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from infra.catalog_file import load_catalog
from infra.settings import Settings, load_settings
from metrics.catalog import Catalog

DONE, FOUND, USAGE = 0, 1, 2
DEMO_CATALOG = Path(__file__).resolve().parent.parent / "catalogs" / "shop.yaml"

# Where nobody sets a width, such as in a pipe, tables are as wide as they need.
_WIDE = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
out = Console(soft_wrap=True, width=_WIDE)
err = Console(stderr=True, soft_wrap=True)

CatalogOption = Annotated[
    Path | None,
    typer.Option("--catalog", "-c", help="Catalog to use, for this command.", show_default="the global one"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]


class UserError(Exception):
    """Something the user can put right; the text says what is wrong and the way out."""


class Failed(Exception):
    """The work was done and found a problem, which has been printed: exit code 1."""


@dataclass
class State:
    """The global options, and whether the running command speaks JSON."""

    catalog: Path = DEMO_CATALOG
    json_output: bool = False


STATE = State()


def settings() -> Settings:
    """The settings, from the environment.

    Raises:
        SettingsError: A `LOCKSTEP_` variable has a value that its setting does not allow.
    """
    return load_settings()


def catalog_path(option: Path | None = None) -> Path:
    """The catalog file that a command uses: its own option, else the global one, else the demo's.

    A directory stands for the one `.yaml` file in it.

    Raises:
        UserError: The directory holds no catalog, or more than one.
    """
    path = (option or STATE.catalog).absolute()
    if not path.is_dir():
        return path
    found = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"`{entry.name}`" for entry in found) or "none"
    msg = f"`--catalog` must name one catalog; `{path}` holds {names}. name the file"
    raise UserError(msg)


def catalog(option: Path | None = None) -> Catalog:
    """The catalog that a command uses.

    Raises:
        CatalogError: It breaks a rule; with file, line, rule, value and way out.
    """
    return load_catalog(catalog_path(option))


def parse_day(text: str) -> date:
    """A UTC day, `2026-01-31`.

    Raises:
        BadParameter: The text is no day.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        msg = f"a day is written YYYY-MM-DD; got `{text}`"
        raise typer.BadParameter(msg) from error


def speak_json(enabled: bool) -> bool:
    """Note that this command prints JSON, so that a failure is printed as JSON as well."""
    STATE.json_output = enabled
    return enabled


def print_json(value: dict[str, Any]) -> None:
    """Print the one JSON object of a command on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def fail(message: str, code: int = USAGE, details: dict[str, Any] | None = None) -> NoReturn:
    """Say what is wrong, in red on stderr (and as JSON on stdout for a command that speaks it), and exit."""
    if STATE.json_output:
        print_json({"error": message, **(details or {})})
    err.print(f"[bold red]error:[/] [red]{escape(message)}[/]", highlight=False)
    raise SystemExit(code)


def days_between(first: date, last: date) -> list[date]:
    """Every UTC day from the first to the last, both included.

    Raises:
        UserError: The last lies before the first.
    """
    if last < first:
        msg = f"`--to` must not lie before `--from`; got {first} to {last}. swap them"
        raise UserError(msg)
    return [date.fromordinal(ordinal) for ordinal in range(first.toordinal(), last.toordinal() + 1)]


def guarded(work: Callable[[], Any]) -> None:
    """Run a command and turn what it raises into a sentence and an exit code.

    What this project raises with its own exception classes is meant for the user; a driver that cannot reach its server
    is a matter of setup. Anything else is a defect and keeps its traceback.
    """
    try:
        work()
    except Failed as problem:
        if str(problem):
            err.print(f"[bold red]found:[/] [red]{escape(str(problem))}[/]", highlight=False)
        raise SystemExit(FOUND) from None
    except KeyboardInterrupt:
        err.print("stopped")
        raise SystemExit(130) from None
    except Exception as error:
        message = _for_the_user(error)
        if message is None:
            raise
        fail(message, details=_details(error))


def _details(error: Exception) -> dict[str, Any]:
    problems = getattr(error, "problems", None)
    return {"ok": False, "errors": [vars_of(problem) for problem in problems]} if problems else {}


def vars_of(problem: Any) -> dict[str, Any]:  # noqa: ANN401 - any frozen problem
    """A catalog problem as JSON: file, line, rule, value, hint."""
    return {name: getattr(problem, name) for name in ("file", "line", "rule", "value", "hint")}


_OURS = ("metrics", "infra", "serving", "speed_layer", "batch_layer", "reconciliation", "orchestration")
_UNREACHABLE = {
    ("clickhouse_connect", "ClickHouseError"): "ClickHouse",
    ("urllib3", "MaxRetryError"): "ClickHouse",
    ("cimpl", "KafkaException"): "Kafka",
    ("requests", "ConnectionError"): "Dagster",
    ("httpx", "ConnectError"): "Dagster",
}


def _for_the_user(error: Exception) -> str | None:
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _OURS:
            return str(error).strip("'\"") if isinstance(error, KeyError) else str(error)
        system = _UNREACHABLE.get((package, kind.__name__))
        if system:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return f"{system} could not be used: {first}. see `lockstep status`; `lockstep up` starts what is missing"
    return None
