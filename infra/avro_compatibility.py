"""Whether records written with one Avro schema can be read with another: the specification's schema resolution.

Logical types are left out, as in Avro's own check: what is compared is how values are stored.
"""

from typing import Any

import fastavro

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


def unreadable(reader: Any, writer: Any) -> str | None:  # noqa: ANN401 - schemas are any JSON
    """Why a reader cannot read what a writer wrote: the first cause found, with its place; None where it can.

    Args:
        reader: plain values of the schema that reads.
        writer: plain values of the schema that wrote.
    """
    return _Check(reader, writer).cause


class _Check:
    def __init__(self, reader: Any, writer: Any) -> None:  # noqa: ANN401
        self._readers: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}
        self._known: dict[tuple[str, str], str | None] = {}
        parsed_reader = fastavro.parse_schema(reader, self._readers)
        parsed_writer = fastavro.parse_schema(writer, self._writers)
        self.cause = self._compare(parsed_reader, parsed_writer, "")

    def _compare(self, reader: Any, writer: Any, at: str) -> str | None:  # noqa: ANN401, PLR0911 - a return a rule
        if isinstance(writer, list):
            return _first(self._compare(reader, branch, at) for branch in writer)
        if isinstance(reader, list):
            causes = [self._compare(branch, writer, at) for branch in reader]
            return None if None in causes else f"{at or 'the union'} has no branch for {_name(writer)}"
        read, written = _node(reader, self._readers), _node(writer, self._writers)
        kind = read["type"]
        if kind != written["type"]:
            fits = kind in _PROMOTIONS.get(written["type"], ())
            return None if fits else f"{at or 'the schema'} was {written['type']} and would be read as {kind}"
        if kind in {"record", "error", "enum", "fixed"} and _simple(read["name"]) != _simple(written["name"]):
            return f"{at or 'the schema'} was called {written['name']} and is called {read['name']} now"
        match kind:
            case "record" | "error":
                return self._compare_fields(read, written, at)
            case "enum":
                gone = [] if "default" in read else sorted({*written["symbols"]} - {*read["symbols"]})
                return f"{at or 'the enum'} has lost {', '.join(gone)}" if gone else None
            case "fixed":
                sizes = written["size"], read["size"]
                return None if sizes[0] == sizes[1] else f"{at} had {sizes[0]} bytes and has {sizes[1]} now"
            case "array":
                return self._compare(read["items"], written["items"], f"{at}[]")
            case "map":
                return self._compare(read["values"], written["values"], f"{at}{{}}")
        return None

    def _compare_fields(self, reader: Any, writer: Any, at: str) -> str | None:  # noqa: ANN401
        pair = (reader["name"], writer["name"])
        if pair not in self._known:
            self._known[pair] = None  # a record inside itself breaks no rule of its own
            self._known[pair] = self._first_of_fields(reader, writer, at)
        return self._known[pair]

    def _first_of_fields(self, reader: Any, writer: Any, at: str) -> str | None:  # noqa: ANN401
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            place = f"{at}.{field['name']}".lstrip(".")
            names = [name for name in (field["name"], *field.get("aliases", ())) if name in written]
            if names:
                cause = self._compare(field["type"], written[names[0]]["type"], place)
            else:
                cause = None if "default" in field else f"{place} is new and has no default"
            if cause is not None:
                return cause
        return None


def _node(schema: Any, named: dict[str, Any]) -> Any:  # noqa: ANN401
    return named.get(schema, {"type": schema}) if isinstance(schema, str) else schema


def _name(schema: Any) -> str:  # noqa: ANN401
    return schema if isinstance(schema, str) else str(schema.get("name", schema["type"]))


def _simple(name: str) -> str:
    return name.rpartition(".")[2]


def _first(causes: Any) -> str | None:  # noqa: ANN401 - an iterable of causes
    return next((cause for cause in causes if cause is not None), None)
