"""When a day can be closed: from then on nothing that counts in the speed layer can reach it."""

from datetime import timedelta

from metrics.catalog import Catalog

_MARGIN = timedelta(minutes=15)
_LONGEST = timedelta(hours=23, minutes=59)


def closing_time(catalog: Catalog) -> tuple[int, int]:
    """Hour and minute (UTC) at which yesterday is closed: midnight, lateness, out-of-orderness and a margin."""
    after = min(catalog.allowed_lateness + catalog.out_of_orderness + _MARGIN, _LONGEST)
    minutes = -(-after // timedelta(minutes=1))
    return minutes // 60, minutes % 60
