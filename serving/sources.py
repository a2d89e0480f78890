"""The sources of one server, found by their names and by those of their metrics and alerts, which no two share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from serving import alerts
from serving.query import UnknownMetricError
from serving.source import Source


class Sources(Sequence[Source]):
    """One source, or several that readers ask for by name."""

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - an index or a slice
        return self._sources[index]

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def names(self) -> list[str]:
        """The names of the sources."""
        return [source.catalog.source for source in self._sources]

    def named(self, name: str | None) -> "Sources":
        """The source of a name alone; all of them without a name.

        Raises:
            UnknownMetricError: there is none of that name.
        """
        found = [source for source in self._sources if name in {None, source.catalog.source}]
        if not found:
            msg = f"unknown source `{name}`. the sources are: {', '.join(self.names)}"
            raise UnknownMetricError(msg)
        return Sources(*found)

    def of_metric(self, name: str) -> Source:
        """The source that a metric belongs to; the only one, whatever its metrics.

        Raises:
            UnknownMetricError: none of several has it.
        """
        return self._owner("metric", name, lambda source: [metric.name for metric in source.catalog.shown])

    def of_alert(self, name: str) -> Source:
        """The source that an alert belongs to; the only one, whatever its alerts.

        Raises:
            UnknownMetricError: none of several has it.
        """
        return self._owner("alert", name, lambda source: [alert.name for alert in source.catalog.alerts])

    def most(self) -> Source:
        """The source with the most to see."""
        return max(self._sources, key=lambda source: len(source.catalog.shown))

    def raised(self, name: str | None, start: str | None, end: str | None, limit: int) -> dict[str, Any]:
        """Alerts that were raised live, latest first; of several sources each says of which."""
        asked = self if name is None else Sources(self.of_alert(name))
        found: dict[str, list[dict[str, Any]]] = {"definitions": [], "alerts": []}
        for source in asked:
            query = alerts.build(source.catalog, name, start, end, limit)
            of_it = alerts.answer(source.client, source.database, query)
            of_which = {"source": source.catalog.source} if len(self) > 1 else {}
            for part, entries in found.items():
                entries += [{**of_which, **entry} for entry in of_it[part]]
        # ISO times of one zone sort as text, but for the milliseconds that only some have.
        found["alerts"].sort(key=lambda entry: entry["breached_at"].replace("Z", ""), reverse=True)
        return {**found, "alerts": found["alerts"][:limit]}

    def _owner(self, kind: str, name: str, names: Callable[[Source], list[str]]) -> Source:
        if len(self._sources) == 1:
            return self._sources[0]
        for source in self._sources:
            if name in names(source):
                return source
        known = "; ".join(f"{source.catalog.source}: {', '.join(names(source)) or 'none'}" for source in self._sources)
        msg = f"unknown {kind} `{name}`. the {kind}s of the sources are {known}"
        raise UnknownMetricError(msg)
