"""The tables of lookups: the versions of each, and what is known of how they came there."""

from collections.abc import Iterable

from metrics.catalog import Lookup
from serving.table import INSTANT, TIME, Table

ARCHIVED = "lookup_archive"
DEAD_LETTERS = "lookup_dead_letters"
GAPS = "lookup_gaps"
POSITIONS = "lookup_positions"

_OF_LOOKUP = (("lookup", "LowCardinality(String)"), ("topic", "LowCardinality(String)"), ("topic_partition", "Int32"))
_AT = ("at", f"{TIME} DEFAULT now64(3)")


def versions_of(lookup: Lookup) -> str:
    """The name of the table of a lookup's versions, unquoted."""
    return f"lookup_{lookup.name}"


def lookup_tables(lookups: Iterable[Lookup]) -> Iterable[Table]:
    """The tables of a source's lookups; none where it has none.

    `lookup_<name>` has a row per version: its key, from when it is valid, its place in the topic, and `fields`, its
    values as text; without a value it deletes the key. `value` is the record itself, from which both layers read.

    `lookup_archive` says up to which offset versions are kept, `lookup_gaps` which offsets were gone before, and from
    when on the history is complete again; `lookup_dead_letters` has the records that are no versions.

    `lookup_positions` says which versions the speed layer knew: for offsets ``[start_offset, end_offset)`` of a
    partition of the events' topic, those before `positions`, an offset by partition of the lookup's topic. A span grows
    at its end for as long as nothing new comes, and keeps the `written_at` at which it was opened; for an offset in
    several the first one opened holds, for all who read it.
    """
    lookups = tuple(lookups)
    if not lookups:
        return ()
    place = ("topic", "topic_partition", "offset")
    return (
        *(
            Table(
                versions_of(lookup),
                (
                    ("key", "String"),
                    ("valid_from", TIME),
                    *_OF_LOOKUP[1:],
                    ("offset", "Int64"),
                    ("record_time", TIME),
                    ("is_deleted", "UInt8"),
                    ("fields", "Map(String, String)"),
                    ("value", "Nullable(String)"),
                ),
                place,
                replacing=True,
            )
            for lookup in lookups
        ),
        Table(
            DEAD_LETTERS,
            (
                *_OF_LOOKUP,
                ("offset", "Int64"),
                ("record_time", TIME),
                ("key", "Nullable(String)"),
                ("value", "Nullable(String)"),
                ("reason", "LowCardinality(String)"),
                ("detail", "String"),
                _AT,
            ),
            ("lookup", *place),
            replacing=True,
        ),
        Table(
            ARCHIVED,
            (*_OF_LOOKUP, ("next_offset", "Int64"), _AT),
            ("lookup", "topic", "topic_partition"),
            replacing=True,
            version="next_offset",
        ),
        Table(
            GAPS,
            (
                *_OF_LOOKUP,
                ("start_offset", "Int64"),
                ("end_offset", "Int64"),
                ("complete_from", TIME),
                ("noticed_at", f"{INSTANT} DEFAULT now64(6)"),
            ),
            ("lookup", "topic", "topic_partition", "start_offset"),
            replacing=True,
            version="noticed_at",
        ),
        Table(
            POSITIONS,
            (
                *_OF_LOOKUP[:2],
                ("events_topic", "LowCardinality(String)"),
                ("topic_partition", "Int32"),
                ("start_offset", "Int64"),
                ("end_offset", "Int64"),
                ("positions", "Map(Int32, Int64)"),
                ("written_at", f"{INSTANT} DEFAULT now64(6)"),
            ),
            ("events_topic", "topic_partition", "lookup", "start_offset", "written_at"),
            replacing=True,
            version="end_offset",
        ),
    )
