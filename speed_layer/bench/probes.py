"""Probes: events that are looked for, due at times fixed beforehand, and what their times tell."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

TARGETS_MS = {"view": {"p50_ms": 500, "p99_ms": 1500}, "alert": {"p99_ms": 1000}}
BREACH_EVENTS = 4
"""Events of one user with which the alert of `freshness.yaml` is breached."""


@dataclass
class Probe:
    """An event with a dimension value of its own, or events of a user of their own that breach an alert.

    All times are in seconds since the epoch.

    Attributes:
        name: The dimension value or the user.
        due: When it is to be sent.
        breach: Whether it is to raise an alert, and not to be seen in the view.
        acked: When the broker had it.
        stored: When ClickHouse had its row, as the first query that showed it says.
        seen: When that query, or the alert's message, had arrived.
    """

    name: str
    due: float
    breach: bool
    acked: float | None = None
    stored: float | None = None
    seen: float | None = None

    def events(self) -> list[tuple[int, bytes]]:
        """Event time in ms and the event; those of a breach happened within the milliseconds before it was due."""
        last = round(self.due * 1000)
        if not self.breach:
            return [(last, self._event(last, self.name))]
        return [(at, self._event(at, "purchase")) for at in range(last - BREACH_EVENTS + 1, last + 1)]

    def _event(self, at: int, event_type: str) -> bytes:
        return (
            f'{{"event_id":"{self.name}-{at}","ts":{at},"user_id":"{self.name}","event_type":"{event_type}",'
            '"country":"de","page":"/probe","amount":"1.00"}'
        ).encode()


def schedule(probes: int, per_s: float, start: float, seed: int = 1) -> list[Probe]:
    """So many probes of each kind, in order of time: one of a kind in each period, anywhere in it.

    A fixed distance between probes could beat in time with the turns of the source.
    """
    draw = random.Random(seed)
    found = [
        Probe(f"{kind}-{number}", start + (number + draw.random()) / per_s, breach=kind == "breach")
        for kind in ("probe", "breach")
        for number in range(probes)
    ]
    return sorted(found, key=lambda probe: probe.due)


def latencies(probes: Sequence[Probe], now: float) -> list[float]:
    """Seconds from due to seen; what has not been seen by `now` has taken at least so long."""
    return [(now if probe.seen is None else probe.seen) - probe.due for probe in probes]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the greatest of at least two, in ms."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    named = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(seconds)}
    return {f"{name}_ms": round(value * 1000, 1) for name, value in named.items()}


def steps(probes: Sequence[Probe]) -> dict[str, dict[str, float]]:
    """Where the time of probes that were seen in the view went, by step; none where there are less than two."""
    times = [(p.due, p.acked, p.stored, p.seen) for p in probes if p.acked and p.stored and p.seen]
    names = ("due_to_broker", "broker_to_stored", "stored_to_seen")
    parts = ([each[n + 1] - each[n] for each in times] for n in range(len(names)))
    return {name: spread(part) for name, part in zip(names, parts, strict=True) if len(part) > 1}


def histogram(seconds: Sequence[float], width_s: float) -> list[int]:
    """How many fall into each bin `[n * width_s, (n + 1) * width_s)`, up to the last that has any."""
    counts = [0] * (int(max(seconds) / width_s) + 1)
    for value in seconds:
        counts[int(value / width_s)] += 1
    return counts
