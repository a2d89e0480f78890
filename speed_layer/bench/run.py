"""One timed run of one system: its figures, and whether what it counted is exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MILLION = 1_000_000
_SHORTEST_S = 0.05


class BenchError(RuntimeError):
    """A run could not be made; the text says what stood in the way."""


@dataclass(frozen=True)
class Stretch:
    """The part of a run that is timed: from the moment the system runs with nothing read to its last result.

    Attributes:
        events: Events read in it.
        seconds: How long it took.
        cpu_s: Processor time by part of the system.
    """

    events: int
    seconds: float
    cpu_s: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        stretch: What was timed.
        whole_s: From the wish to run to the end, the start of the job and its stop included.
        peak_bytes: Greatest resident memory at one moment, by part.
        exact: Whether every count and sum was as it had to be.
        more: Further figures.
    """

    stretch: Stretch
    whole_s: float
    peak_bytes: Mapping[str, int]
    exact: bool
    more: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """As they are written down: rates, seconds, bytes."""
        events, seconds = self.stretch.events, max(self.stretch.seconds, _SHORTEST_S)
        per_million = {part: round(used / events * MILLION, 2) for part, used in self.stretch.cpu_s.items()}
        return {
            "events": events,
            "events_per_s": round(events / seconds),
            "seconds": round(seconds, 2),
            "whole_s": round(self.whole_s, 2),
            "cpu_s_per_million": per_million,
            "peak_bytes": dict(self.peak_bytes),
            "exact": self.exact,
            **self.more,
        }
