"""The rules that the lookups of a catalog obey beyond their types, each with its way out."""

from collections.abc import Iterator, Mapping, Sequence

from metrics.catalog import Field, Lookup, Path
from metrics.catalog_words import known_names

TAKEN = frozenset({"archive", "dead_letters", "gaps", "positions"})
"""Names that tables about lookups have."""


def lookup_problems(
    topic: str, fields: Mapping[str, Field], lookups: Sequence[Lookup]
) -> Iterator[tuple[Path, str, object, str]]:
    """Path, rule, value and way out of what is wrong with lookups.

    Args:
        topic: Of the catalog's events.
        fields: Of the events, by name.
        lookups: Of the catalog, in order.
    """
    # Spark makes no difference between letters of unlike case
    taken = {name.lower(): "a field of the events" for name in fields}
    for lookup in lookups:
        path: Path = ("lookups", lookup.name)
        if lookup.name in TAKEN:
            hint = "name it after what is looked up, for example customers"
            yield path, "a lookup must not have the name of a table about lookups", lookup.name, hint
        if lookup.topic in {topic, f"{topic}.dlq", f"{topic}.late"}:
            hint = "name the compacted topic that holds its versions"
            yield (*path, "topic"), "a lookup has a topic of its own", lookup.topic, hint
        if lookup.key not in fields:
            hint = known_names(lookup.key, fields)
            yield (*path, "key"), "`key` of a lookup must be a field", lookup.key, hint
        elif fields[lookup.key].type == "float":
            hint = "declare the field a decimal or a string"
            yield (*path, "key"), "a float cannot be looked up", lookup.key, hint
        for field, joined in zip(lookup.fields, lookup.joined, strict=True):
            name = joined.name.lower()
            if name in taken:
                rule = "a joined field must not have the name of another field"
                hint = f"`{joined.name}` is {taken[name]} already; rename the lookup or the field"
                yield (*path, "fields", field.name), rule, joined.name, hint
            taken[name] = f"a field of lookup `{lookup.name}`"
