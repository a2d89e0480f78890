"""Devices that send a reading now and then: the second source of the demo, with their truth.

A device has a site and a temperature that follows the hour; four of five have a battery, which runs down and is
changed. Some fail for a while: then they say so, and run hot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from orchestration.happenings import (
    ABSENT,
    DAY_MS,
    Answers,
    Columns,
    Flags,
    Happenings,
    Ints,
    Records,
    decimal_text,
    joined,
    taken,
)
from orchestration.truth_rules import breaches
from orchestration.truth_table import Table, by_day, counts

SITES = ("berlin", "lyon", "leeds", "austin")
EVENTS_PER_DEVICE = 500
FEWEST_DEVICES = 12
EVENTS_PER_EPISODE = 2_500
FAILURES, FAILING_WITHIN_MS = 3, 600_000

_SITE_TEMPERATURE = (1_900, 2_300, 1_600, 2_900)  # hundredths of a degree
_OK_SHARE = 0.995
_MAINS_EVERY = 5  # device in so many has no battery
_BATTERY_DAYS = 30
_EPISODE_MS = 480_000
_SMALLEST_SPAN = 500


class DeviceEvent(msgspec.Struct, omit_defaults=True):
    """One reading as it is written to the log; a device on mains has no battery."""

    event_id: str
    ts: int
    device: str
    site: str
    temperature: str
    ok: bool
    battery: float | None = None


class DeviceWorld:
    """Devices at a few sites; the number of a device says its site."""

    wrong: ClassVar[Mapping[str, str]] = {"temperature": "warm"}

    def __init__(self, rng: np.random.Generator, devices: int) -> None:
        self._devices = devices
        self._warmth: Ints = rng.integers(-200, 200, devices)
        self._charged: Ints = rng.integers(0, _BATTERY_DAYS * DAY_MS, devices)

    def happenings(self, rng: np.random.Generator, start: int, end: int, count: int) -> Happenings:
        """Exactly `count` readings within [start, end), both in milliseconds since the epoch."""
        failing = self._failing(rng, start, end, count)
        calm = count - len(failing["at"])
        at = start + np.sort((rng.random(calm) * (end - start)).astype(np.int64))
        device = rng.integers(0, self._devices, calm)
        ok = (rng.random(calm) < _OK_SHARE).astype(np.int64)
        rows = joined([{"at": at, "device": device, "ok": ok, "kept": np.zeros(calm, dtype=np.int64)}, failing])
        rows = taken(rows, np.argsort(rows["at"], kind="stable"))
        at, device = rows["at"], rows["device"]
        hour = np.sin(2 * np.pi * (at / DAY_MS - 0.4))
        usual = np.array(_SITE_TEMPERATURE)[device % len(SITES)] + self._warmth[device] + 400 * hour
        hot = np.where(rows["kept"] == 1, 5_000, 0)
        temperature = np.round(usual + hot + rng.normal(0, 60, count)).astype(np.int64)
        drained = (at + self._charged[device]) % (_BATTERY_DAYS * DAY_MS)
        battery = 1_000 - drained * 900 // (_BATTERY_DAYS * DAY_MS)
        battery = np.where(device % _MAINS_EVERY == 0, ABSENT, battery)
        columns = {"device": device, "temperature": temperature, "battery": battery, "ok": rows["ok"]}
        return Happenings(at, rows["kept"] == 1, columns)

    def events(self, records: Records, ids: Iterator[str]) -> Iterator[tuple[bytes, DeviceEvent]]:
        """The message key, which is the device, and the event of each record, in order."""
        columns = (records.columns[name].tolist() for name in ("device", "temperature", "ok", "battery"))
        rows = zip(ids, records.event_time.tolist(), *columns, strict=True)
        for event_id, ts, device, temperature, ok, battery in rows:
            name = device_id(device)
            event = DeviceEvent(event_id, ts, name, SITES[device % len(SITES)], decimal_text(temperature), bool(ok))
            if battery != ABSENT:
                event.battery = battery / 10
            yield name.encode(), event

    def answers(self) -> Answers:
        """An empty truth about the devices."""
        return DeviceAnswers()

    def _failing(self, rng: np.random.Generator, start: int, end: int, count: int) -> Columns:
        """Readings of devices that fail several times within minutes; all kept undisturbed."""
        pieces: list[Columns] = [{name: np.empty(0, dtype=np.int64) for name in ("at", "device", "ok", "kept")}]
        episodes = max(1, round(count / EVENTS_PER_EPISODE)) if count >= _SMALLEST_SPAN else 0
        for turn in range(episodes):
            part = (end - start) / episodes
            begun = start + int(part * (turn + rng.uniform(0.05, 0.45)))
            size = int(rng.integers(5, 10))
            at = begun + np.sort(rng.integers(0, max(1, int(min(_EPISODE_MS, part / 2))), size))
            device = np.full(size, rng.integers(self._devices))
            pieces.append({"at": at, "device": device, "ok": np.zeros_like(at), "kept": np.ones_like(at)})
        return joined(pieces)


class DeviceAnswers:
    """Keeps the readings and answers from them."""

    def __init__(self) -> None:
        self._readings = Table({"device": np.int32, "temperature": np.int32, "battery": np.int16, "ok": np.int8})

    def add(self, records: Records, late: Flags) -> None:
        """Take note of well-formed readings, each of them once; `late` says which are late."""
        self._readings.add(records, late)

    def total(self, *, with_late: bool) -> dict[str, Any]:
        """The answers over all readings, as plain values."""
        readings = self._readings.rows(with_late=with_late)
        return _answers(readings) | {"alerts": {"device_failing": _failures(readings)}}

    def by_day(self, days: Iterable[int], *, with_late: bool) -> dict[int, dict[str, Any]]:
        """The answers over each day's readings; an alert is of the day of its breach."""
        readings = self._readings.rows(with_late=with_late)
        raised = _failures(readings)
        return {
            day: _answers(rows)
            | {"alerts": {"device_failing": [each for each in raised if each["breached_at"] // DAY_MS == day]}}
            for day, rows in by_day(readings, days).items()
        }


def device_id(device: int) -> str:
    """The id of a device by number."""
    return f"d{device:04d}"


def _answers(readings: Columns) -> dict[str, Any]:
    return {
        "events": len(readings["device"]),
        "readings_by_site": counts(readings["device"] % len(SITES), SITES),
        "failures_by_site": counts(readings["device"][readings["ok"] == 0] % len(SITES), SITES),
        "temperature_by_device": _temperatures(readings),
        "lowest_battery_by_device": _lowest_battery(readings),
    }


def _temperatures(readings: Columns) -> dict[str, dict[str, Any]]:
    """Lowest, highest, mean and last temperature; of readings at one time the last is the one sent last."""
    ordered = taken(readings, np.lexsort((readings["event_time"], readings["device"])))
    devices, first = np.unique(ordered["device"], return_index=True)
    temperature = ordered["temperature"]
    found: dict[str, dict[str, Any]] = {}
    for device, begin, end in zip(devices.tolist(), first, [*first[1:], len(temperature)], strict=True):
        own = temperature[begin:end]
        found[device_id(device)] = {
            "site": SITES[device % len(SITES)],
            "min": decimal_text(int(own.min())),
            "max": decimal_text(int(own.max())),
            "mean": int(own.sum()) / 100 / len(own),
            "last": decimal_text(int(own[-1])),
        }
    return found


def _lowest_battery(readings: Columns) -> dict[str, float]:
    """The lowest charge, in percent, of each device that has a battery."""
    charged = taken(readings, readings["battery"] != ABSENT)
    ordered = taken(charged, np.lexsort((charged["battery"], charged["device"])))
    devices, first = np.unique(ordered["device"], return_index=True)
    lowest = ordered["battery"][first]
    return {device_id(device): tenths / 10 for device, tenths in zip(devices.tolist(), lowest.tolist(), strict=True)}


def _failures(readings: Columns) -> list[dict[str, Any]]:
    """Every device that failed more than `FAILURES` times within the time, when it did."""
    failed = taken(readings, readings["ok"] == 0)
    found = breaches(
        failed["device"], failed["event_time"], failed["ok"], FAILING_WITHIN_MS, lambda _, events: events > FAILURES
    )
    return [
        {
            "device": device_id(device),
            "site": SITES[device % len(SITES)],
            "breached_at": at,
            "until": until,
            "value": events,
        }
        for device, at, _, events, until in zip(*map(np.ndarray.tolist, found), strict=True)
    ]
