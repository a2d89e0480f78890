"""The result of `bench speed` as people read it."""

from collections.abc import Iterator, Mapping
from typing import Any

_MIB = 1 << 20
_GIB = 1 << 30
_HEADINGS = ("system", "events/s", "least to greatest", "runs", "cpu s/M", "broker", "ClickHouse", "peak MiB", "exact")


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Headings, then a row per system."""
    yield _HEADINGS
    for run in result["runs"]:
        f = run["figures"]
        cpu = f["cpu_s_per_million"]
        yield (
            run["system"],
            f"{f['events_per_s']:,.0f}",
            f"{f['least_events_per_s']:,} to {f['greatest_events_per_s']:,}",
            str(f["runs"]),
            *(f"{cpu[part]:.1f}" if part in cpu else "" for part in ("system", "broker", "clickhouse")),
            f"{f['peak_bytes']['system'] / _MIB:,.0f}",
            "yes" if f["exact"] else "NO",
        )


def verdicts(result: Mapping[str, Any]) -> Iterator[str]:
    """A line per ratio: what it is, what it has to be."""
    for name, ratio in result["ratios"].items():
        target = result["targets"][name]
        yield f"{name}: {ratio:g} times, target {target:g}{': MISSED' if name in result['missed'] else ''}"
    if result["not_judged"]:
        yield f"not judged: {', '.join(result['not_judged'])}"


def machine_line(result: Mapping[str, Any]) -> str:
    """What the figures were taken on."""
    on = result["machine"]
    return f"on {on['cpu']}, {on['cores']} cores, {on['memory_bytes'] / _GIB:.0f} GiB, load {on['load_before']} before"


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Everything, as lines of text."""
    table = list(rows(result))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        first, *others = (text.ljust(w) if n == 0 else text.rjust(w) for n, (text, w) in enumerate(zip(row, widths)))  # noqa: B905
        yield "  ".join([first, *others])
    yield from verdicts(result)
    yield machine_line(result)
