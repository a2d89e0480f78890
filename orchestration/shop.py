"""A shop whose users browse, click, fill carts, check out and buy: where the generator's events come from.

Pure and seeded: the same generator state, span and count give the same visits.
"""

from __future__ import annotations

import numpy as np

from orchestration.happenings import ABSENT, DAY_MS, Columns, Ints, joined, taken, zipf

EVENT_TYPES = (
    "page_view", "click", "add_to_cart", "checkout", "purchase", "stock_take", "restock", "return", "request",
)  # fmt: skip
VIEW, CLICK, CART, CHECKOUT, PURCHASE, STOCK_TAKE, RESTOCK, RETURN, REQUEST = range(9)
COUNTRIES = ("DE", "FR", "GB", "US", "ES", "IT", "NL", "PL", "SE", "BR", "IN", "JP")
METHODS = ("card", "wallet", "transfer")
METHOD_WEIGHTS = (0.6, 0.3, 0.1)
SERVICES = ("web", "search", "catalog", "cart", "payment", "login")
HOME_PAGE, CHECKOUT_PAGE, THANKS_PAGE, NO_PAGE = 0, -1, -2, -3

COLUMNS = {
    "event_type": VIEW,
    "user": ABSENT,
    "country": ABSENT,
    "page": NO_PAGE,
    "cents": 0,
    "product": 0,
    "units": 0,
    "method": ABSENT,
    "level": ABSENT,
    "service": ABSENT,
    "status": 0,
    "latency_us": 0,
}
"""The columns of the shop's events, each with what an event has that does not say it.

`event_type`, `country`, `method` and `service` are indices into the names above; `user` and `product` are numbers, of
products from 1; `page` is the number of the product, or one of the `..._PAGE`s; `cents` is the price of what went into
the cart, or of the whole cart at checkout and purchase; `units` were bought, delivered or returned; `level` is what was
counted.
"""

_COUNTRY_WEIGHTS = (18, 12, 12, 20, 7, 7, 5, 5, 4, 4, 4, 2)
_WARM_UP_MS = 600_000  # visits begun this long before a span still send events in it
_SECONDS_PER_STEP = 20.0
_CHECKOUT_SHARE = 0.65  # of visits with something in the cart
_PURCHASE_SHARE = 0.8  # of checkouts
_LAST_STEP = 1 << 20  # checkout and purchase come after every page of a visit
_MANY_USERS = 20_000  # of so many, none visits so often that his own purchases look like a stolen card


def shop_rows(at: Ints, **given: Ints | int) -> Columns:
    """Rows with `at`, `kept` and every column of `COLUMNS`; one that is not given says nothing."""
    columns: dict[str, Ints] = {"at": at, "kept": np.zeros(len(at), dtype=np.int64)}
    for name, default in (COLUMNS | {"kept": 0}).items():
        value = given.get(name, default)
        columns[name] = value if isinstance(value, np.ndarray) else np.full(len(at), value, dtype=np.int64)
    return columns


class Shop:
    """Products with prices, and users with a country and a habit of coming back."""

    def __init__(self, rng: np.random.Generator, users: int, products: int) -> None:
        weights = np.array(_COUNTRY_WEIGHTS, dtype=np.float64)
        self.users = users
        self.products = products
        self.country: Ints = rng.choice(len(COUNTRIES), size=users, p=weights / weights.sum()).astype(np.int64)
        self.price: Ints = np.round(np.exp(rng.normal(7.6, 0.9, products + 1))).astype(np.int64) + 99
        self._product_share = zipf(products)
        self._user_share = zipf(users, exponent=0.6 if users < _MANY_USERS else 0.4)

    def visits(self, rng: np.random.Generator, start: int, end: int, count: int) -> Columns:
        """Exactly `count` events of visits within [start, end), both in milliseconds since the epoch; by `at`."""
        pieces = [shop_rows(np.empty(0, dtype=np.int64))]
        missing = count
        while missing > 0:
            found = self._some_visits(rng, start, end, missing)
            pieces.append(taken(found, slice(0, missing)))
            missing -= min(missing, len(found["at"]))
        together = joined(pieces)
        return taken(together, np.argsort(together["at"], kind="stable"))

    def _some_visits(self, rng: np.random.Generator, start: int, end: int, wanted: int) -> Columns:
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
        page = np.where(kind == CHECKOUT, CHECKOUT_PAGE, THANKS_PAGE)
        page[on_product] = product[first_view[visit[on_product]] + step[on_product]]
        cents = np.zeros(len(kind), dtype=np.int64)
        in_cart = kind == CART
        into_cart = rng.integers(1, 4, int(in_cart.sum()))
        cents[in_cart] = self.price[page[in_cart]] * into_cart
        cart_total = np.bincount(visit, weights=cents, minlength=visits).astype(np.int64)
        paid = kind >= CHECKOUT
        cents[paid] = cart_total[visit[paid]]

        # A purchase names what went into the cart last: of repeated indices, the last value stays.
        last_product, last_units = np.zeros(visits, dtype=np.int64), np.zeros(visits, dtype=np.int64)
        last_product[visit[in_cart]], last_units[visit[in_cart]] = page[in_cart], into_cart
        bought = kind == PURCHASE
        method = rng.choice(len(METHODS), size=len(kind), p=METHOD_WEIGHTS)
        page[(kind == VIEW) & (step == 0)] = HOME_PAGE

        begun = _daily_rhythm(rng, start - _WARM_UP_MS, end, visits)
        pause = (rng.exponential(_SECONDS_PER_STEP * 1000, len(kind)) + 300).astype(np.int64)
        elapsed = np.cumsum(pause)
        first_row = np.searchsorted(visit, np.arange(visits))
        at = begun[visit] + elapsed - elapsed[first_row][visit]
        user = rng.choice(len(self._user_share), size=visits, p=self._user_share).astype(np.int64)
        found = shop_rows(
            at,
            event_type=kind,
            user=user[visit],
            country=self.country[user[visit]],
            page=page.astype(np.int64),
            cents=cents,
            product=np.where(bought, last_product[visit], 0),
            units=np.where(bought, last_units[visit], 0),
            method=np.where(bought, method, ABSENT),
        )
        return taken(found, (at >= start) & (at < end))


def page_name(page: int) -> str:
    """The address of a page by its number."""
    if page > 0:
        return f"/product/{page}"
    return {HOME_PAGE: "/", CHECKOUT_PAGE: "/checkout", THANKS_PAGE: "/thanks"}[page]


def user_id(user: int) -> str:
    """The id of a user by number."""
    return f"u{user:06d}"


def product_id(product: int) -> str:
    """The id of a product by number."""
    return f"p{product}"


def _steps(counts: Ints, kind: int, step: int | None = None) -> tuple[Ints, Ints, Ints]:
    """One row per step of a kind: (visit, number of the step within the visit, kind)."""
    visit = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(visit)) - np.repeat(np.cumsum(counts) - counts, counts)
    if step is not None:
        number = np.full(len(visit), step)
    return visit, number, np.full(len(visit), kind)


def _daily_rhythm(rng: np.random.Generator, start: int, end: int, count: int) -> Ints:
    """Times in [start, end), denser in the evening (UTC) than at night."""
    grid = np.linspace(start, end, 512)
    density = 1.0 + 0.6 * np.sin(2 * np.pi * (grid / DAY_MS - 0.5))
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    times: Ints = np.interp(rng.random(count) * share[-1], share, grid).astype(np.int64)
    return times
