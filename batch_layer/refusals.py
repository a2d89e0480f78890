"""Why a day cannot be computed; each error's text says why, and the way out."""

REFUSED = 2
"""Exit code of a run that was refused: tried again, it would be refused again."""


class DayRefusedError(Exception):
    """A day that cannot be computed from the log as it is; the text says why and the way out."""


class ExpiredError(DayRefusedError):
    """Records that may hold events of the day have expired from the log."""


class LostError(DayRefusedError):
    """The log is not, or not all of, the one that held the events of the day."""


class OpenDayError(DayRefusedError):
    """Events of the day that are not late may still come."""
