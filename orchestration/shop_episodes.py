"""Episodes that raise alerts, planted among a shop's events: stolen cards, large orders, bare shelves, ill services."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestration.happenings import Columns, Ints, joined
from orchestration.shop import (
    METHOD_WEIGHTS,
    METHODS,
    PURCHASE,
    RESTOCK,
    SERVICES,
    STOCK_TAKE,
    THANKS_PAGE,
    Shop,
    shop_rows,
)
from orchestration.shop_operations import ERROR, FULL_STOCK, OK, SERVICE_SHARE, UNAVAILABLE, request_rows

EVENTS_PER_EPISODE = 5_000  # of each sort there is about one in so many events

_SMALLEST_SPAN = 1_000  # with fewer events there are no episodes
_SERVICE_EVENTS_SHARE = 0.02  # of all events, at most, belong to episodes of services
_LARGE_ORDERS_EVERY = 3
_CARD_MS, _ORDERS_MS, _SHELF_MS, _SERVICE_MS = 100_000, 360_000, 300_000, 240_000
_WITHIN_SERVICE_MS = 300_000


def episodes(rng: np.random.Generator, shop: Shop, start: int, end: int, count: int, request_share: float) -> Columns:
    """The events of the episodes in a span of `count` events, all kept undisturbed.

    Args:
        rng: draws everything.
        shop: whose users and products take part.
        start: of the span, milliseconds since the epoch.
        end: of the span, exclusive.
        count: events of the whole span; none of them are planted in a small one.
        request_share: how much of the other events are requests, which an ill service must stand out from.
    """
    each = max(1, round(count / EVENTS_PER_EPISODE)) if count >= _SMALLEST_SPAN else 0
    pieces = [shop_rows(np.empty(0, dtype=np.int64))]
    seldom = shop.products - rng.permutation(shop.products // 2)  # the less wanted half, whose stock nobody else moves

    def plant(number: int, length: int, make: Callable[[int, Ints, int], list[Columns]], least: int, most: int) -> None:
        """`number` episodes of `least` to `most` events, one to an equal part of the span, in its first half."""
        if number == 0:
            return
        part = (end - start) / number
        for turn in range(number):
            begun = start + int(part * (turn + rng.uniform(0.05, 0.45)))
            size = int(rng.integers(least, most + 1))
            moments = np.sort(rng.integers(0, max(1, int(min(length, part / 2))), size)) + begun
            pieces.extend(make(turn, moments, int(start + part * (turn + 1)) - 1))

    def card(_: int, at: Ints, __: int) -> list[Columns]:
        return [_purchases(rng, shop, at, rng.integers(500, 6_000, len(at)), method=0)]

    def large(_: int, at: Ints, __: int) -> list[Columns]:
        return [_purchases(rng, shop, at, rng.integers(350_000, 500_000, len(at)))]

    def shelf(turn: int, at: Ints, last: int) -> list[Columns]:
        product = int(seldom[turn])
        counted = shop_rows(at[:1], event_type=STOCK_TAKE, product=product, level=int(rng.integers(15, 20)), kept=1)
        units = np.full(len(at) - 1, 3)
        buyers = rng.integers(0, shop.users, len(units))
        sold = shop_rows(
            at[1:],
            event_type=PURCHASE,
            user=buyers,
            country=shop.country[buyers],
            page=THANKS_PAGE,
            cents=shop.price[product] * units,
            product=product,
            units=units,
            method=rng.choice(len(METHODS), size=len(units), p=METHOD_WEIGHTS),
            kept=1,
        )
        later = np.minimum(at[-1:] + rng.integers(60_000, 1_200_000, 1), last)
        return [counted, sold, shop_rows(later, event_type=RESTOCK, product=product, units=FULL_STOCK, kept=1)]

    def ill(turn: int, at: Ints, _: int) -> list[Columns]:
        service = np.full(len(at), (turn + first_ill) % len(SERVICES))
        users = rng.integers(0, shop.users, len(at))
        status = rng.choice([OK, ERROR, UNAVAILABLE], size=len(at), p=[0.5, 0.3, 0.2])
        status[:12:2] = ERROR
        return [{**request_rows(rng, at, users, service, status), "kept": np.ones(len(at), dtype=np.int64)}]

    plant(each, _CARD_MS, card, 4, 8)
    plant(-(-each // _LARGE_ORDERS_EVERY), _ORDERS_MS, large, 3, 4)
    plant(min(each, len(seldom)), _SHELF_MS, shelf, 5, 6)
    first_ill = int(rng.integers(len(SERVICES)))
    usual = count * request_share * max(SERVICE_SHARE) * min(1.0, _WITHIN_SERVICE_MS / max(1, end - start))
    size = max(30, int(usual * 0.25))
    plant(max(min(each, 1), min(each, int(_SERVICE_EVENTS_SHARE * count / size))), _SERVICE_MS, ill, size, size + 20)
    return joined(pieces)


def _purchases(rng: np.random.Generator, shop: Shop, at: Ints, cents: Ints, method: int | None = None) -> Columns:
    """Purchases of one user, of what is sold most, so that its deliveries make up for them."""
    user = int(rng.integers(shop.users))
    return shop_rows(
        at,
        event_type=PURCHASE,
        user=user,
        country=int(shop.country[user]),
        page=THANKS_PAGE,
        cents=cents,
        product=rng.integers(1, max(2, shop.products // 10), len(at)),
        units=1,
        method=rng.choice(len(METHODS), size=len(at), p=METHOD_WEIGHTS) if method is None else method,
        kept=1,
    )
