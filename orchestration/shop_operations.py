"""What goes on in a shop besides visits: stock is counted, delivered and returned, and services log requests."""

from __future__ import annotations

import numpy as np

from orchestration.happenings import Columns, Ints, taken
from orchestration.shop import PURCHASE, REQUEST, RESTOCK, RETURN, SERVICES, STOCK_TAKE, VIEW, shop_rows

SERVICE_SHARE = (0.3, 0.12, 0.25, 0.13, 0.08, 0.12)
FULL_STOCK = 150
OK, NOT_FOUND, ERROR, UNAVAILABLE = 200, 404, 500, 503

_ERROR_SHARE = 0.004
_NOT_FOUND_SHARE = 0.02
_DELIVERY_UNITS = 60
_RETURN_SHARE = 0.05
_LATENCY_MS = (35.0, 80.0, 25.0, 18.0, 160.0, 45.0)  # the medians of the services
_LONGEST_DELIVERY_MS = 600_000


class Stock:
    """What a shop has of each product: counted now and then, and delivered again after so many were sold.

    A product is delivered when `_DELIVERY_UNITS` more of it were sold, so that by itself its stock stays well above
    what an alert would call low.
    """

    def __init__(self, products: int) -> None:
        self._sold: Ints = np.zeros(products + 1, dtype=np.int64)  # since the last delivery
        self._counted = False

    def counts(self, start: int, most: int) -> Columns:
        """The count of every product, or of the `most` wanted ones, at `start`; the first one is kept undisturbed."""
        products = np.arange(1, min(len(self._sold) - 1, most) + 1)
        first, self._counted = not self._counted, True
        return shop_rows(
            np.full(len(products), start),
            event_type=STOCK_TAKE,
            product=products,
            level=FULL_STOCK - self._sold[products],
            kept=int(first),
        )

    def deliveries(self, rng: np.random.Generator, purchases: Columns, end: int) -> Columns:
        """What is delivered in place of what was sold, some minutes after."""
        ordered = taken(purchases, np.lexsort((purchases["at"], purchases["product"])))
        product, units = ordered["product"], ordered["units"]
        sold = np.cumsum(units)
        first = np.searchsorted(product, product)
        sold = sold - (sold - units)[first] + self._sold[product]
        batches = sold // _DELIVERY_UNITS - (sold - units) // _DELIVERY_UNITS
        self._sold[product] = sold % _DELIVERY_UNITS  # of repeated indices, the last value stays
        due = taken(ordered, batches > 0)
        at = due["at"] + rng.integers(60_000, _LONGEST_DELIVERY_MS, len(due["at"]))
        units = batches[batches > 0] * _DELIVERY_UNITS
        return shop_rows(np.minimum(at, end - 1), event_type=RESTOCK, product=due["product"], units=units)


def returns(rng: np.random.Generator, purchases: Columns, end: int) -> Columns:
    """Some of what was bought comes back."""
    back = taken(purchases, rng.random(len(purchases["at"])) < _RETURN_SHARE)
    at = back["at"] + (rng.random(len(back["at"])) * (end - back["at"])).astype(np.int64)
    return shop_rows(
        np.minimum(at, end - 1),
        event_type=RETURN,
        user=back["user"],
        country=back["country"],
        product=back["product"],
        units=rng.integers(1, back["units"] + 1),
    )


def requests(rng: np.random.Generator, visits: Columns, end: int, count: int) -> Columns:
    """`count` lines from the logs of the services, of requests that the visits made."""
    viewed = np.flatnonzero(visits["event_type"] == VIEW)
    if not len(viewed):
        viewed = np.arange(len(visits["at"]))
    cause = taken(visits, rng.choice(viewed, size=count) if count else viewed[:0])
    service = rng.choice(len(SERVICES), size=count, p=SERVICE_SHARE)
    luck = rng.random(count)
    status = np.full(count, OK)
    status[luck < _ERROR_SHARE + _NOT_FOUND_SHARE] = NOT_FOUND
    status[luck < _ERROR_SHARE] = np.where(luck[luck < _ERROR_SHARE] < _ERROR_SHARE / 2, ERROR, UNAVAILABLE)
    at = np.minimum(cause["at"] + rng.integers(1, 50, count), end - 1)
    return request_rows(rng, at, cause["user"], service, status)


def request_rows(rng: np.random.Generator, at: Ints, user: Ints, service: Ints, status: Ints) -> Columns:
    """Lines of the services' logs; what fails takes longer."""
    median = np.array(_LATENCY_MS)[service] * np.where(status >= ERROR, 8.0, 1.0)
    latency = np.round(1000 * median * np.exp(rng.normal(0.0, 0.6, len(at)))).astype(np.int64)
    return shop_rows(at, event_type=REQUEST, user=user, service=service, status=status, latency_us=latency)


def purchases_of(rows: Columns) -> Columns:
    """The purchases that name a product among rows."""
    return taken(rows, (rows["event_type"] == PURCHASE) & (rows["product"] > 0))
