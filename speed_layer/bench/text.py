"""The results of `bench freshness`, `bench growth` and `bench backpressure` as people read them."""

from collections.abc import Iterator, Mapping
from typing import Any

_MIB = 1 << 20


def freshness(result: Mapping[str, Any]) -> Iterator[str]:
    """Times, where they went, and what was missed."""
    figures = result["runs"][0]["figures"]
    for name, what in (("view", "produced until a query shows it"), ("alert", "breach until its message")):
        shares = ", ".join(f"{share.removesuffix('_ms')} {ms:,.0f} ms" for share, ms in figures[name].items())
        yield f"{name}, {what}: {shares}"
    for name, shares in {**figures["steps"], "query": figures["query"]}.items():
        yield f"  {name.replace('_', ' ')}: p50 {shares['p50_ms']:,.0f} ms, p99 {shares['p99_ms']:,.0f} ms"
    cores = ", ".join(f"{part} {used:g}" for part, used in figures["cores_used"].items())
    yield f"at {figures['sent_per_s']:,} events/s; cores used: {cores}; cold start {figures['cold_start_s']:g} s"
    for name, ratio in result["ratios"].items():
        yield f"{name}: {ratio:g} times the target{': MISSED' if ratio > 1 else ''}"
    yield from (f"WRONG: {text}" for text in figures["wrong"])


def growth(result: Mapping[str, Any]) -> Iterator[str]:
    """A line per case."""
    for run in result["runs"]:
        f = run["figures"]
        peak = f["peak_bytes"]
        yield (
            f"{run['system']}: {f['events_per_s']:,} events/s; peak memory: workers {peak['workers'] / _MIB:,.0f} MiB, "
            f"Flink {peak['flink'] / _MIB:,.0f} MiB, afterwards {f['memory_after']:g} times; state "
            f"{f['state_bytes'] / _MIB:,.1f} MiB of {f['state_bound_bytes'] / _MIB:,.1f}"
            f"{'' if f['exact'] else '; NOT EXACT'}{'' if f['ok'] else '; MISSED'}"
        )


def backpressure(result: Mapping[str, Any]) -> Iterator[str]:
    """What was held up, how fast it was published then, and what memory did meanwhile."""
    f = result["runs"][0]["figures"]
    early, late = (f["memory"][half] / _MIB for half in ("early_in_the_outage", "late_in_the_outage"))
    yield f"ClickHouse away for {f['outage_s']:g} s at {f['sent_per_s']:,} events/s: {f['backlog']:,} events held up"
    yield (
        f"published at {f['drained_per_s']:,} events/s, {result['ratios']['drained_to_live_rate']:g} times that rate; "
        f"lag under {f['short_lag_s']:g} s again after {f['recovered_s']:g} s"
    )
    yield f"most memory of workers and Flink: {early:,.0f} MiB early in the outage, {late:,.0f} MiB late in it"
    yield f"counted {f['counted']:,} of {f['events']:,}"
