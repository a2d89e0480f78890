"""The three readings of exact rows, in `batch_<m>`, and the SQL that takes one.

A row that is the same in all of them, as nearly every row is, stands there once.
"""

from serving.days import text

READINGS = ("exact", "with_late", "counted")
"""Every well-formed event once; what was counted or late; what the speed layer counted."""

ALL = "all"
"""Stands for all of them."""


def is_of(reading: str, column: str) -> str:
    """Whether a row belongs to a reading.

    Args:
        reading: Which.
        column: The SQL of the row's.
    """
    return f"{column} IN ({text(reading)}, {text(ALL)})"


def each(column: str) -> str:
    """The readings of a row as texts: as many rows as it belongs to.

    Args:
        column: The SQL of the row's.
    """
    listed = ", ".join(map(text, READINGS))
    return f"arrayJoin(if({column} = {text(ALL)}, [{listed}], [toString({column})]))"
