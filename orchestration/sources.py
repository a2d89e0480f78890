"""The sources of a catalog file or of a directory of them, and which of them a command is about."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.catalog_file import catalog_files, load_catalogs
from metrics.catalog import Catalog

DEMO_CATALOGS = Path(__file__).resolve().parent / "catalogs"


class SourceError(ValueError):
    """It is not clear which source is meant, or there is none of that name; the text lists those there are."""


@dataclass(frozen=True)
class SourceFile:
    """A source and the file that defines it."""

    path: Path
    catalog: Catalog

    @property
    def name(self) -> str:
        """The source's name."""
        return self.catalog.source


def load_sources(path: Path) -> tuple[SourceFile, ...]:
    """The sources of a catalog file, or of a directory of them in the order of its files' names.

    Raises:
        CatalogError: A catalog breaks a rule, or two of a directory name the same thing; with all problems.
    """
    found = zip(catalog_files(path), load_catalogs(path), strict=True)
    return tuple(SourceFile(file.absolute(), catalog) for file, catalog in found)


def chosen(sources: Sequence[SourceFile], name: str | None) -> tuple[SourceFile, ...]:
    """The source of that name alone; all of them without a name.

    Raises:
        SourceError: There is none of that name.
    """
    picked = tuple(source for source in sources if name is None or source.name == name)
    if not picked:
        msg = f"`--source` must be one of {_names(sources)}; got `{name}`"
        raise SourceError(msg)
    return picked


def only(sources: Sequence[SourceFile], what: str) -> SourceFile:
    """The one source there is.

    Raises:
        SourceError: There are several, of which `what` needs one.
    """
    if len(sources) == 1:
        return sources[0]
    msg = f"{what} is about one source; there are {_names(sources)}. name one, such as `--source {sources[0].name}`"
    raise SourceError(msg)


def owner_of_metric(sources: Sequence[SourceFile], metric: str) -> SourceFile:
    """The source that a metric belongs to; a metric's name stands once in a directory.

    Raises:
        SourceError: None of several has it; of one source, its catalog knows better what to say.
    """
    if len(sources) == 1:
        return sources[0]
    for source in sources:
        if any(shown.name == metric for shown in source.catalog.shown):
            return source
    known = "; ".join(f"{each.name}: {', '.join(shown.name for shown in each.catalog.shown)}" for each in sources)
    msg = f"unknown metric `{metric}`. the metrics of the sources are {known}"
    raise SourceError(msg)


def owner_of_columns(sources: Sequence[SourceFile], columns: Collection[str], what: str) -> SourceFile:
    """The source whose events a file with such columns holds: the only one whose time and required fields are there.

    Raises:
        SourceError: Several sources have such events, or none has.
    """
    fitting = [source for source in sources if _needed(source.catalog) <= set(columns)]
    return fitting[0] if len(fitting) == 1 else only(sources, what)


def _needed(catalog: Catalog) -> set[str]:
    return {catalog.event_time_field, *(name for name, each in catalog.fields.items() if each.required)}


def _names(sources: Sequence[SourceFile]) -> str:
    return ", ".join(f"`{source.name}`" for source in sources)
