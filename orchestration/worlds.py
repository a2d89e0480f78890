"""Which world a catalog describes: the generator makes the events of the shop, or of the devices, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import msgspec.structs
import numpy as np

from metrics.catalog import Catalog
from orchestration.devices import EVENTS_PER_DEVICE, FEWEST_DEVICES, DeviceEvent, DeviceWorld
from orchestration.happenings import World
from orchestration.shop_world import EVENTS_PER_USER, FEWEST_USERS, ShopEvent, ShopWorld
from orchestration.traffic import TrafficError


@dataclass(frozen=True)
class Kind:
    """A kind of source that the generator knows.

    Attributes:
        name: what its events are of.
        event_class: the event as it is written; only fields with a default can be absent.
        key: the field by which messages are keyed.
        events: records of history, unless asked for otherwise.
        rate: live records a second, unless asked for otherwise.
        per_actor: records for each user or device.
        fewest: users or devices, at least.
        live_actors: users or devices of the demo's live part, which goes on for long.
        make: the world with so many users or devices.
    """

    name: str
    event_class: type[msgspec.Struct]
    key: str
    events: int
    rate: float
    per_actor: int
    fewest: int
    live_actors: int
    make: Callable[[np.random.Generator, int], World]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of its events, in their order."""
        return self.event_class.__struct_fields__

    @property
    def always(self) -> frozenset[str]:
        """The fields that every one of its events has."""
        return frozenset(each.name for each in msgspec.structs.fields(self.event_class) if each.required)

    def actors(self, records: int) -> int:
        """How many users or devices make so many records."""
        return max(self.fewest, records // self.per_actor)


SHOP = Kind(
    name="the shop",
    event_class=ShopEvent,
    key="user_id",
    events=200_000,
    rate=200.0,
    per_actor=EVENTS_PER_USER,
    fewest=FEWEST_USERS,
    live_actors=20_000,
    make=ShopWorld,
)
DEVICES = Kind(
    name="the devices",
    event_class=DeviceEvent,
    key="device",
    events=20_000,
    rate=20.0,
    per_actor=EVENTS_PER_DEVICE,
    fewest=FEWEST_DEVICES,
    live_actors=40,
    make=DeviceWorld,
)
KINDS = (SHOP, DEVICES)


def kind_of(catalog: Catalog) -> Kind:
    """The kind of source that a catalog describes: the one that shares most fields with it.

    Raises:
        TrafficError: it describes events that the generator does not make.
    """
    kind = max(KINDS, key=lambda each: len(set(each.fields) & set(catalog.fields)))
    out = "use a catalog of the demo, or `lockstep ingest` for your own events"
    wanted = {catalog.event_id, catalog.event_time_field, *catalog.fields} - {
        name for name, each in catalog.fields.items() if not each.required
    }
    missing = sorted(wanted - set(kind.fields))
    if missing:
        made = "; ".join(f"{each.name}, with the fields {', '.join(sorted(each.fields))}" for each in KINDS)
        needed = f"the catalog of source `{catalog.source}` needs `{missing[0]}`"
        message = f"the generator makes events of {made}; {needed}. {out}"
        raise TrafficError(message)
    seldom = sorted(wanted - kind.always)
    if seldom:
        message = (
            f"not every event of {kind.name} has `{seldom[0]}`; the catalog of source `{catalog.source}` requires it. "
            "remove `required`, or such events are dead letters"
        )
        raise TrafficError(message)
    same: dict[str, tuple[str | None, str]] = {
        "event_id": (catalog.event_id, "event_id"),
        "event_time": (catalog.event_time_field, "ts"),
        "unit": (catalog.event_time_unit, "ms"),
        "key": (catalog.key, kind.key),
        "format": (catalog.format, "json"),  # the broken records are broken JSON
    }
    for name, (got, expected) in same.items():
        if got != expected:
            message = f"the generator needs a catalog with `{name}` `{expected}`; got `{got}`. {out}"
            raise TrafficError(message)
    return kind
