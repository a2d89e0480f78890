"""A shop whose users browse, click, fill carts, check out and buy: where the generator's events come from.

Pure and seeded: the same generator state, span and count give the same visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EVENT_TYPES = ("page_view", "click", "add_to_cart", "checkout", "purchase")
VIEW, CLICK, CART, CHECKOUT, PURCHASE = range(5)
COUNTRIES = ("DE", "FR", "GB", "US", "ES", "IT", "NL", "PL", "SE", "BR", "IN", "JP")
DAY_MS = 86_400_000

_COUNTRY_WEIGHTS = (18, 12, 12, 20, 7, 7, 5, 5, 4, 4, 4, 2)
_WARM_UP_MS = 600_000  # visits begun this long before a span still send events in it
_SECONDS_PER_STEP = 20.0
_CHECKOUT_SHARE = 0.65  # of visits with something in the cart
_PURCHASE_SHARE = 0.8  # of checkouts
_LAST_STEP = 1 << 20  # checkout and purchase come after every page of a visit

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Visits:
    """Events of visits to the shop, sorted by `at`; one row each.

    Attributes:
        at: milliseconds since the epoch at which the event reaches the log.
        event_type: index into `EVENT_TYPES`.
        user: number of the user.
        page: number of the product; 0 is the home page, -1 the checkout, -2 the thanks page.
        cents: price of what went into the cart, or of the whole cart at checkout and purchase; else 0.
    """

    at: Ints
    event_type: Ints
    user: Ints
    page: Ints
    cents: Ints


class Shop:
    """Products with prices, and users with a country and a habit of coming back."""

    def __init__(self, rng: np.random.Generator, users: int, products: int = 200) -> None:
        weights = np.array(_COUNTRY_WEIGHTS, dtype=np.float64)
        self.country: Ints = rng.choice(len(COUNTRIES), size=users, p=weights / weights.sum()).astype(np.int64)
        self._price: Ints = np.round(np.exp(rng.normal(7.6, 0.9, products + 1))).astype(np.int64) + 99
        self._product_share = _zipf(products)
        self._user_share = _zipf(users, exponent=0.6)

    def visits(self, rng: np.random.Generator, start: int, end: int, count: int) -> Visits:
        """Exactly `count` events of visits within [start, end), both in milliseconds since the epoch."""
        pieces: list[Visits] = []
        missing = count
        while missing > 0:
            found = self._some_visits(rng, start, end, missing)
            pieces.append(_rows(found, slice(0, missing)))
            missing -= min(missing, len(found.at))
        if not pieces:
            return Visits(*(np.empty(0, dtype=np.int64) for _ in range(5)))
        joined = Visits(
            *(np.concatenate([getattr(piece, name) for piece in pieces]) for name in Visits.__dataclass_fields__)
        )
        return _rows(joined, np.argsort(joined.at, kind="stable"))

    def _some_visits(self, rng: np.random.Generator, start: int, end: int, wanted: int) -> Visits:
        """Whole visits in a random order, so that cutting the rows anywhere cuts at most one visit."""
        visits = wanted // 4 + 16
        views = 1 + rng.geometric(0.35, visits)
        clicks = rng.binomial(views, 0.5)
        carts = rng.binomial(clicks, 0.45)
        checkouts = ((carts > 0) & (rng.random(visits) < _CHECKOUT_SHARE)).astype(np.int64)
        purchases = checkouts * (rng.random(visits) < _PURCHASE_SHARE)

        first_view = np.cumsum(views) - views
        product = 1 + rng.choice(len(self._product_share), size=int(views.sum()), p=self._product_share)
        parts = [
            _steps(views, VIEW),
            _steps(clicks, CLICK),
            _steps(carts, CART),
            _steps(checkouts, CHECKOUT, step=_LAST_STEP),
            _steps(purchases, PURCHASE, step=_LAST_STEP),
        ]
        visit, step, kind = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((kind, step, visit))
        visit, step, kind = visit[order], step[order], kind[order]

        on_product = kind <= CART
        page = np.where(kind == CHECKOUT, -1, -2)
        page[on_product] = product[first_view[visit[on_product]] + step[on_product]]
        cents = np.zeros(len(kind), dtype=np.int64)
        in_cart = kind == CART
        cents[in_cart] = self._price[page[in_cart]] * rng.integers(1, 4, int(in_cart.sum()))
        cart_total = np.bincount(visit, weights=cents, minlength=visits).astype(np.int64)
        paid = kind >= CHECKOUT
        cents[paid] = cart_total[visit[paid]]
        page[(kind == VIEW) & (step == 0)] = 0

        begun = _daily_rhythm(rng, start - _WARM_UP_MS, end, visits)
        pause = (rng.exponential(_SECONDS_PER_STEP * 1000, len(kind)) + 300).astype(np.int64)
        elapsed = np.cumsum(pause)
        first_row = np.searchsorted(visit, np.arange(visits))
        at = begun[visit] + elapsed - elapsed[first_row][visit]
        user = rng.choice(len(self._user_share), size=visits, p=self._user_share).astype(np.int64)
        found = Visits(at, kind, user[visit], page.astype(np.int64), cents)
        return _rows(found, (at >= start) & (at < end))


def page_name(page: int) -> str:
    """The address of a page by its number."""
    if page > 0:
        return f"/product/{page}"
    return {0: "/", -1: "/checkout", -2: "/thanks"}[page]


def _rows(visits: Visits, index: slice | NDArray[np.generic]) -> Visits:
    return Visits(*(getattr(visits, name)[index] for name in Visits.__dataclass_fields__))


def _steps(counts: Ints, kind: int, step: int | None = None) -> tuple[Ints, Ints, Ints]:
    """One row per step of a kind: (visit, number of the step within the visit, kind)."""
    visit = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(visit)) - np.repeat(np.cumsum(counts) - counts, counts)
    if step is not None:
        number = np.full(len(visit), step)
    return visit, number, np.full(len(visit), kind)


def _zipf(size: int, exponent: float = 1.0) -> NDArray[np.float64]:
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    share: NDArray[np.float64] = weights / weights.sum()
    return share


def _daily_rhythm(rng: np.random.Generator, start: int, end: int, count: int) -> Ints:
    """Times in [start, end), denser in the evening (UTC) than at night."""
    grid = np.linspace(start, end, 512)
    density = 1.0 + 0.6 * np.sin(2 * np.pi * (grid / DAY_MS - 0.5))
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    times: Ints = np.interp(rng.random(count) * share[-1], share, grid).astype(np.int64)
    return times
