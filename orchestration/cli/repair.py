"""`repair dlq`: dead letters produced again after a fix."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from infra.avro import unframe_of
from infra.registry import ANSWER_WITHIN_S, require_registry
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.event import Decoder
from metrics.window import to_epoch_ms
from orchestration.cli.common import (
    CatalogOption,
    Failed,
    JsonOption,
    SourceOption,
    UserError,
    counted,
    err,
    load_one,
    out,
    print_json,
    settings,
)
from serving.query import parse_time
from speed_layer.dead_letters import Choice, Letter, Place, read_letters
from speed_layer.repair import Plan, by_command, look, plan, produce, unchanged

SAMPLES = 5
"""Of what would be produced, and of what is refused, a person is shown so many."""

_SHOWN = 120

repair = typer.Typer(name="repair", help="Put right what the layers could not read.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(repair, rich_help_panel="Data")


@repair.callback()
def family() -> None:
    """Put right what the layers could not read."""


@repair.command()
def dlq(  # noqa: PLR0913, PLR0917 - options of a command
    reasons: Annotated[
        list[str] | None, typer.Option("--reason", metavar="R", help="Only of this reason; may be repeated.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="T", help="Sent then or later, ISO 8601 UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="T", help="Sent before this.")] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(
            "--offset", metavar="PARTITION:OFFSET", help="Only this one, by its place in the topic; may be repeated."
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="COMMAND",
            help="Shell command that mends one: its bytes on stdin, the right ones on stdout.",
            show_default="the same bytes again",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be produced; produce nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Produce dead letters again, once what made them unreadable is put right; without options, all of them.

    Each becomes a new record behind the others, with its first place in the headers. Those that are still no events by
    the catalog are refused (exit code 1); those that were repaired before are left alone.
    """
    definition = load_one("`lockstep repair dlq`", catalog, source).catalog
    choice = Choice(
        frozenset(reasons or ()),
        None if start is None else to_epoch_ms(parse_time(start, "--from")),
        None if end is None else to_epoch_ms(parse_time(end, "--to")),
        frozenset(_place(text) for text in offsets or ()),
    )
    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        msg = "`--yes` must say that records are to be produced where nobody can be asked. add it, or --dry-run to look"
        raise UserError(msg)
    where = settings()
    decoder = _decoder(where, definition)
    with err.status(f"reading `{definition.dlq_topic}` and `{definition.topic}`"):
        letters = read_letters(where, definition, choice)
        _require_all(definition, choice, letters)
        starts: dict[int, int] = {}
        for letter in letters:
            starts.setdefault(*letter.place)
        seen = look(where, definition, starts, {letter.place for letter in letters})
        mend = by_command(command, text=definition.format == "json") if command else unchanged
        planned = plan(definition, decoder, letters, seen, mend, time.time_ns() // 1_000_000)
    if not as_json:
        _show(definition, planned)
    produced = 0
    if planned.repairs and not dry_run and (yes or typer.confirm(f"produce {_letters(len(planned.repairs))} again?")):
        produced = produce(where, definition, decoder, planned)
    if as_json:
        print_json(_document(definition, planned, produced))
    elif produced:
        out.print(f"{_letters(produced)} produced again to `{definition.topic}`")
        first, last = planned.days[0], planned.days[-1]
        out.print(f"when their days are over: `lockstep batch --from {first} --to {last}`, then `lockstep reconcile`")
    if planned.refused:
        raise Failed("" if as_json else f"{_letters(len(planned.refused))} refused; --json names each with its reason")


def _place(text: str) -> Place:
    try:
        number, offset = map(int, text.split(":"))
    except ValueError as error:
        msg = f"`--offset` must be the partition and the offset of a dead letter, like 0:17; got `{text}`"
        raise UserError(msg) from error
    return Place(number, offset)


def _decoder(where: Settings, definition: Catalog) -> Decoder:
    require_registry(where, definition)
    return Decoder(definition, unframe_of(where, definition, patience_s=ANSWER_WITHIN_S))


def _require_all(definition: Catalog, choice: Choice, letters: Sequence[Letter]) -> None:
    missing = choice.places - {letter.place for letter in letters}
    if missing:
        msg = (
            f"`--offset` must name dead letters of `{definition.dlq_topic}` that the other options leave in; got "
            f"{', '.join(map(str, sorted(missing)))}. see the table `exceptions` for their places"
        )
        raise UserError(msg)


def _reasons(planned: Plan) -> dict[str, dict[str, int]]:
    """Reason to what becomes of its letters."""
    parts = {
        "repairable": Counter(one.letter.reason for one in planned.repairs),
        "already_repaired": Counter(letter.reason for letter, _ in planned.before),
        "refused": Counter(one.was for one in planned.refused),
    }
    known = sorted(set().union(*parts.values()))
    return {reason: {name: counts[reason] for name, counts in parts.items()} for reason in known}


def _show(definition: Catalog, planned: Plan) -> None:
    table = Table(title=f"dead letters of {definition.topic}", title_justify="left")
    for heading in ("reason", "to produce", "repaired before", "refused"):
        table.add_column(heading, justify="left" if heading == "reason" else "right")
    for reason, counts in _reasons(planned).items():
        table.add_row(reason, *(f"{number:,}" for number in counts.values()))
    out.print(table)
    for sample in _samples(planned):
        out.print(f"{sample['place']} {sample['before']}\n  becomes {sample['after']}", highlight=False, markup=False)
    for one in planned.refused[:SAMPLES]:
        err.print(f"{one.place} refused: {one.reason}, {one.detail}", highlight=False, markup=False)


def _samples(planned: Plan) -> list[dict[str, Any]]:
    return [
        {
            "place": str(one.letter.place),
            "reason": one.letter.reason,
            "before": _text(one.letter.value),
            "after": _text(one.record.value),
        }
        for one in planned.repairs[:SAMPLES]
    ]


def _text(value: bytes | None) -> str:
    """Bytes as a person reads them, shortened."""
    text = (value or b"").decode(errors="backslashreplace")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _letters(number: int) -> str:
    return counted(number, "dead letter")


def _document(definition: Catalog, planned: Plan, produced: int) -> dict[str, Any]:
    return {
        "topic": definition.topic,
        "dlq": definition.dlq_topic,
        "chosen": len(planned.repairs) + len(planned.before) + len(planned.refused),
        "repairable": len(planned.repairs),
        "produced": produced,
        "already_repaired": len(planned.before),
        "reasons": _reasons(planned),
        "refused": [
            {"place": str(one.place), "was": one.was, "reason": one.reason, "detail": one.detail}
            for one in planned.refused
        ],
        "samples": _samples(planned),
        "days": [day.isoformat() for day in planned.days],
    }
