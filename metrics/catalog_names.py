"""The names that a catalog takes in its source's database and in Kafka: none of them stands for two things.

A metric that is no ratio has the tables `speed_<m>`, `expected_<m>` and `batch_<m>`; every metric has the views
`<m>_<grain>`, `<m>_<grain>__speed` and `<m>_<grain>__batch` for each of its grains; a lookup has `lookup_<name>`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from metrics.catalog import Path

OWN_TABLES = frozenset(
    {
        "alerts",
        "batch_alerts",
        "batch_exceptions",
        "batch_runs",
        "certificates",
        "exceptions",
        "ledger",
        "ledger_checks",
    }
    | {
        "log_blocks",
        "metric_versions",
        "partition_lags",
        "publications",
        "speed_alarms",
        "speed_progress",
        "watermarks",
    }
)
"""The tables of every source."""

LAYERS = ("speed", "expected", "batch")
"""What a metric's tables begin with."""

_VIEWS = ("", "__speed", "__batch")
_OF_VERSION = re.compile(r"__[0-9a-f]{8}(_|$)")
_RULE = "a metric's tables and views have names of their own"
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def name_problems(
    folded: Iterable[str], grains: Mapping[str, Sequence[str]], lookups: Iterable[str] = ()
) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of metrics whose tables or views would be another's.

    Args:
        folded: The names of metrics that have tables, in order.
        grains: The grains of each metric, by name.
        lookups: The names of the lookups.
    """
    taken = {name: "a table of every source" for name in OWN_TABLES}
    taken |= {f"lookup_{name}": f"the table of lookup `{name}`" for name in lookups}
    refused = set()
    for metric in folded:
        tables = [f"{layer}_{metric}" for layer in LAYERS]
        if clash := next((table for table in tables if table in OWN_TABLES), None):
            yield ("metrics", metric), _RULE, metric, f"rename it; `{clash}` is {taken[clash]}"
            refused.add(metric)
        taken |= {table: f"a table of metric `{metric}`" for table in tables if table not in taken}
    for metric, windows in grains.items():
        path: Path = ("metrics", metric)
        if metric == "lookup" or metric.startswith("lookup_"):
            yield path, _RULE, metric, "rename it; names that begin with `lookup_` are those of lookups' tables"
        elif _OF_VERSION.search(metric):
            yield path, _RULE, metric, "rename it; `__` and eight digits name a former version of a metric"
        elif metric not in refused:
            views = [f"{metric}_{grain}{suffix}" for grain in windows for suffix in _VIEWS]
            if clash := next((view for view in views if view in taken), None):
                yield path, _RULE, metric, f"rename it; its view `{clash}` would be {taken[clash]}"
            taken |= {view: f"a view of metric `{metric}`" for view in views if view not in taken}


def topic_name_problems(
    topic: str, lookups: Mapping[str, str], alerts: Mapping[str, str]
) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of topics that Kafka would not create.

    Args:
        topic: Of the catalog's events.
        lookups: The topic of each lookup, by name.
        alerts: The topic of each alert that names one, by name.
    """
    rule = "a topic's name is 1 to 249 letters, digits, ., _ and -, and not . or .."
    named: list[tuple[Path, str]] = [(("topic",), topic)]
    named += [(("lookups", name, "topic"), own) for name, own in lookups.items()]
    named += [(("alerts", name, "topic"), own) for name, own in alerts.items()]
    for path, name in named:
        if not _TOPIC.fullmatch(name):
            yield path, rule, name, "write for example events.shop.v1"
    if _TOPIC.fullmatch(topic) and not _TOPIC.fullmatch(f"{topic}.late"):
        yield ("topic",), rule, f"{topic}.late", "shorten `topic`; this is where its late events go"


def topic_problems(
    alerts: Mapping[str, str], topic: str, lookups: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of alerts that would be sent to where something else is.

    Args:
        alerts: The topic of each alert, by name.
        topic: Of the catalog's events.
        lookups: The topic of each lookup, by name.
    """
    taken = {
        topic: "the topic of the events",
        f"{topic}.dlq": "that of dead letters",
        f"{topic}.late": "that of late events",
    }
    taken |= {of_lookup: f"that of lookup `{name}`" for name, of_lookup in (lookups or {}).items()}
    for name, own in alerts.items():
        if own in taken:
            rule = "an alert's topic holds alerts alone"
            yield ("alerts", name, "topic"), rule, own, f"name another; this is {taken[own]}"
