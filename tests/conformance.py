"""What every engine is asked: catalogs of all aggregations and windows, events around changes of clocks, by seed."""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent / "property"))
from strategies import TREE, amounts, texts  # noqa: E402 - a directory of its own, which pytest adds too

from metrics.reference import Record  # noqa: E402

Tree = dict[str, Any]
"""A catalog as its file has it."""

HOUR = 3_600_000
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]
CHANGES = {
    "Berlin loses an hour": 1_711_846_800_000,
    "Berlin gains an hour": 1_729_990_800_000,
    "New York loses an hour": 1_710_054_000_000,
    "New York gains an hour": 1_730_613_600_000,
    "Lord Howe gains half an hour": 1_712_415_600_000,
    "Lord Howe loses half an hour": 1_728_142_200_000,
    "Cairo loses an hour at midnight": 1_714_082_400_000,
    "Cairo gains an hour at midnight": 1_730_401_200_000,
}
WINDOWS = [
    "tumbling 7m",
    "tumbling 1h",
    "tumbling 36h",
    "sliding 1h every 25m",
    "sliding 2h every 1h",
    "global",
    *(f"{unit} {zone}" for unit in ("day", "week", "month") for zone in ZONES),
]
SESSIONS = ["session 30m max 2h", "session 10m", "session 30m"]
AGGREGATIONS: dict[str, Tree] = {
    "n": {"agg": "count", "by": ["country"]},
    "total": {"agg": "sum(amount)", "where": "kind <> 'view'"},
    "size": {"agg": "sum(size)", "by": ["country"]},
    "points": {"agg": "sum(points)", "by": ["kind"]},
    "least": {"agg": "min(amount)"},
    "most": {"agg": "max(size)", "by": ["country"]},
    "mean": {"agg": "mean(amount)"},
    "mean_size": {"agg": "mean(size)", "by": ["kind"]},
    "spread": {"agg": "stddev(size)"},
    "users": {"agg": "distinct(user)", "by": ["country"]},
    "median": {"agg": "quantile(amount, 0.5)", "by": ["country"]},
    "p95": {"agg": "quantile(items, 0.95)"},
    "p1": {"agg": "quantile(size, 0.01)"},
    "top": {"agg": "top(user, 2)", "by": ["country"]},
    "latest": {"agg": "last(user)", "by": ["kind"]},
    "member": {"agg": "last(member)"},
    "stock": {"agg": "level(level, items)", "by": ["country"]},
}
RATIOS = {"per_event": ["size", "n"], "users_per_event": ["users", "n"]}
LOG = TREE | {
    "fields": TREE["fields"] | {"level": "int", "points": {"type": "int", "default": 3}},
    "dedup_horizon": 500_000,
}

LONG = 100_000
HANDS = 4
SOME_SESSIONS = 6


@st.composite
def products(draw: st.DrawFn) -> Tree:
    """A catalog with every aggregation in every window and every session.

    The windows of an aggregation are dealt to several metrics, so that they are made of slices of many widths.
    """
    metrics: Tree = {}
    for name, metric in AGGREGATIONS.items():
        dealt = draw(st.permutations(WINDOWS))
        hands = [dealt[number::HANDS] for number in range(HANDS)]
        windows: list[Any] = [*hands, *(SESSIONS if _allows_sessions(metric) else [])]
        metrics |= {f"{name}_{number}": metric | {"window": own} for number, own in enumerate(windows)}
    return LOG | {"metrics": metrics}


@st.composite
def samples(draw: st.DrawFn) -> Tree:
    """A catalog with every aggregation in a few windows, every window in a few aggregations, sessions of some.

    Any aggregation may meet any window or session in one of them.
    """
    deck = draw(st.permutations(WINDOWS))
    metrics: Tree = {}
    for number, (name, metric) in enumerate(AGGREGATIONS.items()):
        hand = [deck[(number * HANDS + card) % len(deck)] for card in range(HANDS)]
        metrics[name] = metric | {"window": hand}
    for number, name in enumerate(draw(st.permutations(sorted(filter(_has_sessions, AGGREGATIONS))))[:SOME_SESSIONS]):
        metrics[f"{name}_sessions"] = AGGREGATIONS[name] | {"window": SESSIONS[number % len(SESSIONS)]}
    for name, (above, below) in RATIOS.items():
        shared = metrics[above]["window"][:2]
        metrics[below]["window"] = list(dict.fromkeys([*metrics[below]["window"], *shared]))
        metrics[name] = {"ratio": [above, below], "window": shared}
    return LOG | {"metrics": metrics}


def _has_sessions(name: str) -> bool:
    return _allows_sessions(AGGREGATIONS[name])


def _allows_sessions(metric: Tree) -> bool:
    return not metric["agg"].startswith("level")


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(["buy", "cart", "view"]),
    "user": st.none() | st.sampled_from(["u1", "u2", "😀", "\uffff"]) | texts,
    "country": st.sampled_from([None, "de", "日本", "", "𝔘"]),
    "amount": st.none() | amounts.map(str) | amounts.map(float) | st.sampled_from(["-0.00", -0.0]),
    "items": st.none() | st.integers(-5, 5) | st.integers(-(10**15), 10**15),
    "level": st.none() | st.none() | st.integers(0, 50),
    "points": st.none() | st.integers(0, 9),
    "member": st.none() | st.booleans(),
    "size": st.none() | st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([-0.0, 1e99]),
}
EDGES: list[Tree] = [
    {},
    {"user": "x" * LONG, "country": "de", "size": -0.0, "amount": "-0.00"},
    {"user": "😀", "country": "😀" * (LONG // 4), "size": 1e99, "amount": -0.0},
]
"""What some events of each log are for certain, beside what is drawn: nothing at all, and very long texts."""

_TOKENS = {"size": ["NaN", "Infinity", "-Infinity", "1e400", '"1"'], "amount": ['"NaN"', "0.001"], "items": ["-0.0"]}


@st.composite
def bodies(draw: st.DrawFn, least: int, most: int, change: int | None = None) -> list[Tree]:
    """Events within a day and a half of a change of clocks: half of them spread evenly, half in bursts.

    Now and then a field is missing. The first are `EDGES`.
    """
    middle = draw(st.sampled_from(list(CHANGES.values()))) if change is None else change
    count = draw(st.integers(least, most))
    found = []
    for number in range(count):
        if number % 2:
            moment = middle + draw(st.integers(-10, 10)) * 600_000 + draw(st.sampled_from([0, 0, -1, 1]))
        else:
            moment = middle - 36 * HOUR + number * 72 * HOUR // count + draw(st.integers(0, HOUR))
        fields = {name: draw(values) for name, values in FIELDS.items()}
        if number < len(EDGES):
            fields = EDGES[number]
        for missing in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=2)):
            fields = {name: value for name, value in fields.items() if name != missing}
        found.append({"id": f"e{number}", "ts": moment} | fields)
    return found


def encoded(body: Tree, *, ascii_only: bool = True) -> bytes:
    """An event as JSON."""
    return json.dumps(body, ensure_ascii=ascii_only).encode()


def unreadable(body: Tree) -> list[bytes]:
    """What is no event, though an event is what it comes from."""
    marked = [(encoded(body | {name: "@"}), token) for name, tokens in _TOKENS.items() for token in tokens]
    return [b"{", b'{"id": 1}', encoded(body)[:-3], *(value.replace(b'"@"', token.encode()) for value, token in marked)]


@st.composite
def events(draw: st.DrawFn, change: int | None = None, least: int = 8, most: int = 40) -> list[Record]:
    """A log of one topic partition: drawn events, and among them what is none."""
    records: list[Record] = []
    drawn = draw(bodies(least, most, change))
    for body in drawn:
        records.append(Record(0, len(records), body["ts"], encoded(body, ascii_only=draw(st.booleans()))))
    for value in unreadable(drawn[-1]):
        records.append(Record(0, len(records), drawn[-1]["ts"], value))
    return records


SEED = "CONFORMANCE_SEED"
"""The environment variable that draws the catalog and the log of a failure again."""

Drawn = TypeVar("Drawn")


def fresh_seed() -> int:
    """The seed that the environment names, else a new one."""
    return int(os.environ.get(SEED) or random.SystemRandom().randrange(2**32))


def drawn_by(number: int, strategy: st.SearchStrategy[Drawn]) -> Drawn:
    """What a seed stands for. Hypothesis draws the simplest there is first, so the last of several is taken."""
    found: list[Drawn] = []

    @seed(number)
    @settings(
        max_examples=5,
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: Drawn) -> None:
        found.append(example)

    draw()
    return found[-1]
