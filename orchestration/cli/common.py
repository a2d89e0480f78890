"""What every command shares: where it prints, which sources it is about, how it fails."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from infra.settings import Settings, load_settings
from metrics.catalog import Catalog
from orchestration.sources import DEMO_CATALOGS, SourceFile, chosen, load_sources, only

DONE, FOUND, USAGE = 0, 1, 2

# Where nobody sets a width, such as in a pipe, tables are as wide as they need.
_WIDE = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
out = Console(soft_wrap=True, width=_WIDE)
err = Console(stderr=True, soft_wrap=True)


class UserError(Exception):
    """Something the user can put right; the text says what is wrong and the way out."""


class Failed(Exception):
    """The work was done and found a problem, which has been printed: exit code 1."""


@dataclass
class State:
    """The global options, and whether the running command speaks JSON."""

    catalog: Path = DEMO_CATALOGS
    source: str | None = None
    json_output: bool = False


STATE = State()


def speak_json(enabled: bool) -> bool:
    """Note that this command prints JSON, so that a failure is printed as JSON as well."""
    STATE.json_output = enabled
    return enabled


CatalogOption = Annotated[
    Path | None,
    typer.Option(
        "--catalog",
        "-c",
        help="Catalog file, or a directory of them, for this command.",
        show_default="the global one",
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", "-s", help="Only this source, for this command.", show_default="the global one"),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=speak_json, help="Print one JSON object on stdout; everything else goes to stderr."
    ),
]


def settings() -> Settings:
    """The settings, from the environment.

    Raises:
        SettingsError: A `LOCKSTEP_` variable has a value that its setting does not allow.
    """
    return load_settings()


def load(catalog: Path | None = None, source: str | None = None) -> tuple[SourceFile, ...]:
    """The sources that a command is about: of its own options, else of the global ones, else the demo's.

    Raises:
        CatalogError: A catalog breaks a rule; with file, line, rule, value and way out.
        SourceError: There is no source of that name.
    """
    return chosen(load_sources((catalog or STATE.catalog).absolute()), source or STATE.source)


def load_one(what: str, catalog: Path | None = None, source: str | None = None) -> SourceFile:
    """The one source that a command is about, which must be the only one or be named.

    Raises:
        CatalogError: A catalog breaks a rule; with file, line, rule, value and way out.
        SourceError: There are several, or none of that name.
    """
    return only(load(catalog, source), what)


def catalog(option: Path | None = None, source: str | None = None) -> Catalog:
    """The catalog of the one source that a command is about.

    Raises:
        CatalogError: A catalog breaks a rule; with file, line, rule, value and way out.
        SourceError: There are several, or none of that name.
    """
    return load_one("this command", option, source).catalog


def catalog_path(catalog: Path | None = None, source: str | None = None) -> Path:
    """The file, or the directory, that holds just the sources that a command is about.

    Raises:
        CatalogError: A catalog breaks a rule; with file, line, rule, value and way out.
        SourceError: There is no source of that name.
    """
    found = load(catalog, source)
    return found[0].path if source or STATE.source else (catalog or STATE.catalog).absolute()


def of_source(source: SourceFile, sources: Sequence[SourceFile], document: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a JSON object that says of which source it is, where a command is about several."""
    return {"source": source.name, **document} if len(sources) > 1 else dict(document)


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


def counted(number: int, noun: str) -> str:
    """A number of things in words: `1 alert`, `1,024 alerts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
