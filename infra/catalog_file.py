"""Reads a catalog file: YAML to plain values, with the line of each."""

from pathlib import Path
from typing import Any

import yaml

from metrics.catalog import Catalog, CatalogError, Problem, parse_catalog


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
