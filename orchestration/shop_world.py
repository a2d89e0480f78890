"""The shop as a source: how many events of which sort there are, and what they look like in the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import msgspec
import numpy as np

from orchestration.happenings import ABSENT, Answers, Happenings, Records, decimal_text, joined, taken
from orchestration.shop import (
    CHECKOUT,
    COUNTRIES,
    EVENT_TYPES,
    METHODS,
    NO_PAGE,
    PURCHASE,
    REQUEST,
    SERVICES,
    STOCK_TAKE,
    Shop,
    page_name,
    product_id,
    user_id,
)
from orchestration.shop_episodes import episodes
from orchestration.shop_operations import Stock, purchases_of, requests, returns
from orchestration.shop_truth import ShopAnswers

EVENTS_PER_USER = 40
FEWEST_USERS = 50

_MOST_PRODUCTS = 200
_USERS_PER_PRODUCT = 5
_REQUEST_SHARE = 0.12
_OPERATIONS_SHARE = 0.13  # requests, deliveries and returns
_COUNT_SHARE = 0.05  # at most, of counts of the stock


class ShopEvent(msgspec.Struct, omit_defaults=True):
    """One event as it is written to the log; what does not apply is left out."""

    event_id: str
    ts: int
    event_type: str
    user_id: str | None = None
    country: str | None = None
    page: str | None = None
    amount: str | None = None
    product: str | None = None
    quantity: int | None = None
    method: str | None = None
    stock_level: int | None = None
    service: str | None = None
    status: int | None = None
    latency_ms: float | None = None


class ShopWorld:
    """A shop with users, stock and services."""

    wrong: ClassVar[Mapping[str, str]] = {"amount": "a lot"}

    def __init__(self, rng: np.random.Generator, users: int) -> None:
        products = min(_MOST_PRODUCTS, max(10, users // _USERS_PER_PRODUCT))
        self._shop = Shop(rng, users, products)
        self._stock = Stock(products)

    def happenings(self, rng: np.random.Generator, start: int, end: int, count: int) -> Happenings:
        """Exactly `count` events within [start, end), both in milliseconds since the epoch."""
        planted = episodes(rng, self._shop, start, end, count, _REQUEST_SHARE)
        counts = self._stock.counts(start, int(count * _COUNT_SHARE))
        left = count - len(planted["at"]) - len(counts["at"])
        visits = self._shop.visits(rng, start, end, left - int(left * _OPERATIONS_SHARE))
        left -= len(visits["at"])
        sold = purchases_of(visits)
        moved = joined([self._stock.deliveries(rng, sold, end), returns(rng, sold, end)])
        moved = taken(moved, rng.permutation(len(moved["at"]))[:left])
        asked = requests(rng, visits, end, left - len(moved["at"]))
        rows = joined([counts, planted, visits, moved, asked])
        rows = taken(rows, np.argsort(rows["at"], kind="stable"))
        columns = {name: column for name, column in rows.items() if name not in {"at", "kept"}}
        return Happenings(rows["at"], rows["kept"] == 1, columns)

    def events(self, records: Records, ids: Iterator[str]) -> Iterator[tuple[bytes, ShopEvent]]:
        """The message key and the event of each record, in order.

        The key is the user, else the product: an event and its copies share a topic partition.
        """
        columns = {name: column.tolist() for name, column in records.columns.items()}
        always = zip(
            ids, records.event_time.tolist(), columns["event_type"], columns["user"], columns["country"],
            columns["page"], columns["cents"], strict=True,
        )  # fmt: skip
        for row, (event_id, ts, kind, user, country, page, cents) in enumerate(always):
            who = user_id(user) if user != ABSENT else None
            event = ShopEvent(event_id, ts, EVENT_TYPES[kind], who)
            if country != ABSENT:
                event.country = COUNTRIES[country]
            if page != NO_PAGE:
                event.page = page_name(page)
                event.amount = decimal_text(cents) if cents else "0.00"
            if kind > CHECKOUT:
                _complete(event, kind, columns, row)
            yield (who or event.product or "").encode(), event

    def answers(self) -> Answers:
        """An empty truth about the shop."""
        return ShopAnswers()


def _complete(event: ShopEvent, kind: int, columns: Mapping[str, list[int]], row: int) -> None:
    """What only purchases, stock events and requests say."""
    if kind == REQUEST:
        event.service = SERVICES[columns["service"][row]]
        event.status = columns["status"][row]
        event.latency_ms = columns["latency_us"][row] / 1000
        return
    if columns["product"][row]:
        event.product = product_id(columns["product"][row])
    if kind == STOCK_TAKE:
        event.stock_level = columns["level"][row]
    elif columns["units"][row]:
        event.quantity = columns["units"][row]
    if kind == PURCHASE:
        event.method = METHODS[columns["method"][row]]
