"""Reads a catalog file: YAML to plain values, with the line of each."""

from pathlib import Path
from typing import Any

import yaml

from metrics.catalog import Catalog, CatalogError, Problem
from metrics.catalog_build import parse_catalog

CATALOG_SUFFIXES = (".yaml", ".yml")
_MOST_LEVELS = 20
"""A value that is an alias of what is around it nests for ever."""

_NESTING = f"a catalog nests at most {_MOST_LEVELS} levels deep"
_NEST_LESS = "nest less, and let no value hold itself"


def catalog_files(path: Path) -> tuple[Path, ...]:
    """The catalog files that a path stands for: itself, or the YAML files in a directory, by name."""
    if not path.is_dir():
        return (path,)
    return tuple(sorted(entry for entry in path.iterdir() if entry.suffix in CATALOG_SUFFIXES))


def load_catalogs(path: Path) -> tuple[Catalog, ...]:
    """The catalogs of a file or of all files in a directory, which must not name the same thing twice.

    Raises:
        CatalogError: With the problems of all files.
    """
    problems: list[Problem] = []
    loaded: list[tuple[Path, Catalog]] = []
    for file in catalog_files(path):
        try:
            loaded.append((file, load_catalog(file)))
        except CatalogError as error:
            problems += error.problems
    if not loaded and not problems:
        hint = "name a YAML file, or a directory that holds some"
        problems.append(Problem(str(path), 1, "a directory of catalogs holds YAML files", "none", hint))
    problems += _named_twice(loaded)
    if problems:
        raise CatalogError(problems)
    return tuple(catalog for _, catalog in loaded)


def _named_twice(loaded: list[tuple[Path, Catalog]]) -> list[Problem]:
    """A source, a topic, a metric and an alert each belong to one file."""
    owners: dict[tuple[str, str], Path] = {}
    problems = []
    for file, catalog in loaded:
        names = [("source", catalog.source), ("topic", catalog.topic)]
        names += [("metric", metric.name) for metric in catalog.shown] + [("alert", a.name) for a in catalog.alerts]
        for kind, name in names:
            owner = owners.setdefault((kind, name), file)
            if owner != file:
                rule = f"a {kind} belongs to one catalog of a directory"
                problems.append(Problem(str(file), 1, rule, name, f"rename it; `{owner.name}` has it too"))
    return problems


def load_catalog(path: Path) -> Catalog:
    """The catalog that a file defines.

    Raises:
        CatalogError: The file is missing, is not YAML, or breaks a rule; with file, line, rule, value and way out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "name a readable YAML file with --catalog"
        raise CatalogError([Problem(str(path), 1, "a catalog is a readable file", _reason(error), hint)]) from error
    return _Reading(path, text).catalog()


class _Reading:
    """One file on its way from text to a catalog."""

    def __init__(self, path: Path, text: str) -> None:
        self._file = str(path)
        self._text = text
        self._lines: dict[tuple[str | int, ...], int] = {}

    def catalog(self) -> Catalog:
        """The catalog that the text defines.

        Raises:
            CatalogError: It is not YAML, or breaks a rule.
        """
        rule = "a catalog is YAML"
        try:
            loader = yaml.SafeLoader(self._text)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise self._error(line, rule, f"U+{error.character:04X}", "remove the control character") from error
        try:
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self._error(line, rule, error.problem or "", "correct the syntax") from error
        except RecursionError as error:
            raise self._error(loader.line + 1, _NESTING, "more", _NEST_LESS) from error
        if not isinstance(node, yaml.MappingNode):
            rule = "a catalog is a mapping of options"
            raise self._error(1, rule, self._text[:40], "begin with `source: NAME`")
        return parse_catalog(self._plain(loader, node, ()), self._lines, self._file)

    def _plain(self, loader: yaml.SafeLoader, node: yaml.Node, at: tuple[str | int, ...]) -> Any:  # noqa: ANN401
        self._lines.setdefault(at, node.start_mark.line + 1)
        if len(at) > _MOST_LEVELS:
            raise self._error(node.start_mark.line + 1, _NESTING, self._shown(node), _NEST_LESS)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    rule, hint = "a name is a text", "write one name before the colon"
                    raise self._error(line, rule, self._shown(key), hint)
                if name in result:
                    rule, hint = "a name stands once in a mapping", "remove one of them or rename it"
                    raise self._error(line, rule, name, hint)
                self._lines[*at, name] = line
                result[name] = self._plain(loader, value, (*at, name))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(loader, item, (*at, index)) for index, item in enumerate(node.value)]
        try:
            return loader.construct_object(node)
        except Exception as error:  # each type has its own ways not to read a text
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            rule, hint = "a value is one of its type", f"it is read as `{kind}`; put text in quotes, without a tag"
            raise self._error(node.start_mark.line + 1, rule, self._shown(node), hint) from error

    def _shown(self, node: yaml.Node) -> str:
        """How the file has it, if it is short."""
        return self._text[node.start_mark.index : node.end_mark.index].partition("\n")[0][:40]

    def _error(self, line: int, rule: str, value: str, hint: str) -> CatalogError:
        return CatalogError([Problem(self._file, line, rule, value, hint)])


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
