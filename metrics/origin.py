"""How a record that repairs a dead letter says so: by the place of that dead letter, its origin, in its headers.

An origin is **repaired** once a later record of its topic partition names it and is an event.
"""

from collections.abc import Iterable

ORIGIN_PREFIX = "lockstep-origin-"
"""Before `topic`, `partition` and `offset` in the names of the headers; their values are text."""


def origin_in(
    headers: Iterable[tuple[str, str | bytes | None]], topic: str, topic_partition: int, offset: int
) -> int | None:
    """The offset of the dead letter that a record repairs; None for all that name none of their own topic partition.

    Args:
        headers: Of the record.
        topic: Of the record.
        topic_partition: Of the record.
        offset: Of the record.
    """
    named = dict(reversed([*headers]))
    topic_, number, origin = (_text(named.get(ORIGIN_PREFIX + part)) for part in ("topic", "partition", "offset"))
    ours = (topic_, number) == (topic, str(topic_partition))
    return int(origin) if ours and origin.isdecimal() and int(origin) < offset else None


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
