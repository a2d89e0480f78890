"""The rules that the fields of a catalog obey beyond their types, each with its way out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from metrics.catalog import Field, Path
from metrics.catalog_parts import EventTimePart, FieldPart
from metrics.event import INTEGER_DIGITS, DeadLetterError, default_of
from metrics.expression import FieldType


def read_field(name: str, part: FieldPart) -> Field:
    """The field that a catalog declares; a default that `field_problems` refuses stays as it is written."""
    field = Field(name, part.type, part.scale, part.default, part.required)
    try:
        return replace(field, default=default_of(field))
    except DeadLetterError:
        return field


def field_problems(within: Path, fields: Iterable[Field]) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of what is wrong with fields.

    Args:
        within: The path of the mapping that declares them.
        fields: In order.
    """
    spelt: dict[str, str] = {}
    for field in fields:
        path: Path = (*within, field.name)
        if (other := spelt.setdefault(field.name.lower(), field.name)) != field.name:
            hint = f"rename it; Spark would take it for `{other}`"
            yield path, "fields differ by more than the case of their letters", field.name, hint
        if field.scale and field.type != "decimal":
            yield (*path, "scale"), "only a decimal has a scale", field.scale, "remove it"
        try:
            default_of(field)
        except DeadLetterError:
            rule = f"the default must be of the field's type, {field.type}"
            hint = f"write {_taken_by(field)}, or declare the field otherwise"
            yield (*path, "default"), rule, field.default, hint


def id_and_time_problems(
    event_id: str, event_time: EventTimePart, fields: Mapping[str, Field]
) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of an id and a time that the decoder could not read.

    Args:
        event_id: The field that names an event.
        event_time: The field that says when it happened, and how.
        fields: Of the events, by name; the two may be among them.
    """
    if event_id == event_time.field:
        hint = "name another field; the time alone names no event"
        yield ("event_id",), "the id of an event and its time are two fields", event_id, hint
        return
    time_type = "string" if event_time.unit == "iso" else "int"
    for key, name, kind in (("event_id", event_id, "string"), ("event_time", event_time.field, time_type)):
        if (field := fields.get(name)) is None:
            continue
        path: Path = ("fields", name)
        if field.type != kind:
            rule = f"the field of `{key}` is {FieldType(kind).noun}"
            rule += f" where the unit is {event_time.unit}" * (key == "event_time")
            yield path, rule, field.type, f"declare it {kind}, or leave it out where no metric uses it"
        if field.default is not None:
            hint = "remove it; an event without the field is a dead letter"
            yield (*path, "default"), f"the field of `{key}` has no default", field.default, hint


def _taken_by(field: Field) -> str:
    decimals = f"in quotes a number of at most {INTEGER_DIGITS} digits and {field.scale} decimals"
    return {
        "string": "a text, in quotes where it reads as a number",
        "int": "a whole number of 64 bits",
        "float": "a number within 1e100 of zero",
        "decimal": decimals if field.scale else f"a whole number of at most {INTEGER_DIGITS} digits",
        "bool": "true or false",
    }[field.type]
