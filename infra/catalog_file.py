"""Reads a catalog file: YAML to plain values, with the line of each."""

from pathlib import Path
from typing import Any

import yaml

from metrics.catalog import Catalog, CatalogError, Problem
from metrics.catalog_build import parse_catalog

CATALOG_SUFFIXES = (".yaml", ".yml")


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
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = Problem(str(path), line, "a catalog is YAML", error.problem or "", "correct the syntax")
        raise CatalogError([problem]) from error
    if not isinstance(node, yaml.MappingNode):
        problem = Problem(str(path), 1, "a catalog is a mapping of options", text[:40], "begin with `source: NAME`")
        raise CatalogError([problem])
    lines: dict[tuple[str | int, ...], int] = {}
    tree = _plain(node, (), lines, path)
    return parse_catalog(tree, lines, str(path))


def _plain(node: yaml.Node, at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], path: Path) -> Any:  # noqa: ANN401
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in result:
                hint = "remove one of them or rename it"
                raise CatalogError([Problem(str(path), line, "a name stands once in a mapping", name, hint)])
            lines[(*at, name)] = line
            result[name] = _plain(value, (*at, name), lines, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, index), lines, path) for index, item in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
