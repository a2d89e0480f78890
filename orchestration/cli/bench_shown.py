"""What benches found, on a terminal."""

from typing import Any

from rich.table import Table

from orchestration.benches import Bench
from orchestration.cli.common import out
from speed_layer.bench import table


def show(bench: Bench, result: dict[str, Any]) -> None:
    """The systems as a table with the ratios under it, if it is such a bench; lines; the machine."""
    if bench.is_table:
        headings, *rows = table.rows(result)
        shown = Table(title=result["name"], title_justify="left")
        for heading in headings:
            shown.add_column(heading, justify="left" if heading == "system" else "right")
        for row in rows:
            shown.add_row(*row)
        out.print(shown)
        for line in table.verdicts(result):
            out.print(f"[{'red' if 'MISSED' in line else 'green'}]{line}[/]", highlight=False)
    for line in bench.lines(result):
        out.print(line, highlight=False)
    out.print(table.machine_line(result), highlight=False)


def show_sketches(result: dict[str, Any]) -> None:
    """A row per sketch, system and number of values."""
    shown = Table(title="sketches", title_justify="left")
    for heading in ("sketch", "values", "system", "relative error", "greatest", "bytes", "ms", "in bounds"):
        shown.add_column(heading, justify="left" if heading in {"sketch", "system"} else "right")
    for run in result["runs"]:
        f = run["figures"]
        shown.add_row(
            f["sketch"],
            f"{f['values']:,}",
            run["system"],
            f"{f['relative_error']:.3%}",
            f"{f['greatest_relative_error']:.3%}",
            f"{f['bytes']:,}",
            f"{f['seconds'] * 1000:,.1f}",
            "yes" if f["within_bounds"] else "no",
        )
    out.print(shown)
