"""What the typed model of a catalog refuses, in words: rule, value and way out."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from metrics.catalog import Path
from metrics.catalog_parts import CatalogPart

LONGEST_SHOWN = 60
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", timedelta: "duration"}


@dataclass(frozen=True)
class _Place:
    """What a path of a catalog file leads to.

    Attributes:
        kind: The type of its value.
        rules: What that type is annotated with.
        example: A value of it.
    """

    kind: Any
    rules: Iterable[Any]
    example: Any


def in_words(path: Path, error: str, message: str, given: object) -> tuple[Path, str, object, str]:
    """Path, rule, value and way out of what the typed model refuses.

    Args:
        path: Of the value.
        error: Pydantic's name of the error.
        message: Pydantic's text of it.
        given: The value.
    """
    key = str(path[-1])
    match error:
        case "missing":
            return path, needed(key), "nothing", f"add it, for example {_as_written(path)}"
        case "extra_forbidden":
            known = _place(path[:-1]).kind.model_fields
            return path, f"unknown key `{key}`", key, known_names(key, known, "keys here")
        case "too_short":
            return path, f"`{key}` has at least one entry", given, "define one"
        case "value_error":
            rule, _, hint = message.removeprefix("Value error, ").partition(". ")
            return path, f"`{key}`: {rule.partition('; got ')[0]}", given, hint
    place = _place(path)
    kinds = kinds_of(place.kind, place.rules)
    shown = "nothing" if given is None else one_line(given)
    hint = "write one of them" if error == "literal_error" else f"write for example {_as_written(path)}"
    if "text" in kinds and given is not None and not isinstance(given, list | dict):
        hint += "; in quotes it is a text"
    cut = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
    return path, wrong_kind(path, kinds), cut, hint


def needed(key: str) -> str:
    """The rule that a catalog without a key breaks."""
    return f"`{key}` is needed"


def wrong_kind(path: Path, kinds: Iterable[str]) -> str:
    """The rule that a value of none of these kinds breaks."""
    named = [kind if kind.startswith(("one of", "true")) else f"a {kind}" for kind in kinds]
    subject = f"an entry of `{_named(path)[-1]}`" if isinstance(path[-1], int) else f"`{path[-1]}`"
    return f"{subject} is {', or '.join(named)}"


def kinds_of(kind: Any, rules: Iterable[Any] = ()) -> list[str]:  # noqa: ANN401, PLR0911 - a type; a return for each
    """What a value of a type may be in a catalog file, for example ``["text", "list of texts"]``.

    Args:
        kind: The type.
        rules: What it is annotated with: its limits, and the short form that it takes too.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        return kinds_of(inner, more)
    for rule in rules:
        if isinstance(rule, BeforeValidator) and rule.json_schema_input_type is not PydanticUndefined:
            return kinds_of(rule.json_schema_input_type)
    if origin in {Union, UnionType}:
        of_each = [one for member in get_args(kind) if member is not type(None) for one in kinds_of(member, rules)]
        return [one for one in dict.fromkeys(of_each) if one != "whole number" or "number" not in of_each]
    if origin is Literal:
        *others, last = [f"'{value}'" for value in get_args(kind)]
        return [f"one of {', '.join(others)} or {last}"]
    if origin is list:
        return ["list of texts"]
    if origin is dict:
        return ["mapping by name"]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return ["mapping"]
    return [" ".join([_PLAIN[kind], *_limits(rules)])]


def one_line(value: object) -> str:
    """A value on one line, as YAML's flow style has it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{name}: {one_line(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(one_line, value)) + "]"
    return str(value)


def known_names(name: str, known: Mapping[str, object], what: str = "fields") -> str:
    """The names there are, with the one that was probably meant first."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean `{near[0]}`? " if near else "") + f"the {what} are: {', '.join(known)}"


def _place(path: Path) -> _Place:
    here = _Place(CatalogPart, (), None)
    for step in path:
        kind = _bare(here.kind)
        if isinstance(step, int):
            here = _Place(get_args(kind)[0], (), here.example[0])
        elif get_origin(kind) is dict:
            here = _Place(get_args(kind)[1], (), next(iter(here.example.values())))
        else:
            field = kind.model_fields[step]
            here = _Place(field.annotation, field.metadata, field.examples[0])
    return here


def _bare(kind: Any) -> Any:  # noqa: ANN401 - a type
    """A type without annotations and None."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return _bare(next(one for one in get_args(kind) if one is not type(None)))
    return kind


def _named(path: Path) -> Path:
    """The path of the key that a value stands in, which may be a list's."""
    return path if isinstance(path[-1], str) else _named(path[:-1])


def _as_written(path: Path) -> str:
    """An example of the key that a value stands in."""
    path = _named(path)
    return f"{path[-1]}: {one_line(_place(path).example)}"


def _limits(rules: Iterable[Any]) -> list[str]:
    found = []
    for rule in rules:
        for word, attribute in (("from", "ge"), ("to", "le")):
            value = getattr(rule, attribute, None)
            if isinstance(value, int):
                found.append(f"{word} {value:,}")
    return found
