"""Freshness: how long after an event was due to be sent the first query of the serving view shows it.

A load in a process of its own keeps the job busy. Beside it probes are due at times fixed beforehand: events that one
query after the other looks for, and breaches of an alert, whose topic is listened to. What is late in being sent is
late in being seen: latency counts from the time at which it was due.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import TopicPartition

from infra import kafka
from infra.clickhouse import connect, quote
from infra.measure import Meter, machine
from infra.settings import Settings
from metrics.catalog import Catalog
from serving.views import view_name
from speed_layer import published
from speed_layer.bench import text
from speed_layer.bench.load import Load
from speed_layer.bench.own_source import own_source, parts, running
from speed_layer.bench.probes import TARGETS_MS, Probe, histogram, latencies, schedule, spread, steps
from speed_layer.bench.program import Result, carry_out, options, report

RATE = 20_000
PROBES = 300
PROBES_PER_S = 5
WARM_UP_S = 20.0

_MOST_BEHIND_S = 0.2
_START_S = 120.0
_PATIENCE_S = 30.0
_PAUSE_S = 0.01
_QUERY_EVERY_S = 0.1
"""A dashboard asks every second; queries without a pause would take processor time from what they look at."""
_BIN_S = 0.05


class Watch:
    """Probes that have been sent and not been seen: those of the view, and those of the alert."""

    def __init__(self) -> None:
        self.waiting: dict[str, Probe] = {}
        self.alerts: Counter[str] = Counter()
        self.query_s: list[float] = []

    def see(self, name: str, at: float, stored: float | None = None) -> None:
        """Takes note of the first sight of a probe."""
        if probe := self.waiting.pop(name, None):
            probe.seen, probe.stored = at, stored

    def send(self, settings: Settings, catalog: Catalog, probes: list[Probe]) -> None:
        """Sends each probe when it is due; returns once all are acknowledged."""
        client = kafka.producer(settings, {"linger.ms": 0})
        for number, probe in enumerate(probes):
            while (left := probe.due - time.time()) > 0:
                client.poll(left)
            self.waiting[probe.name] = probe
            for at, value in probe.events():
                partition = number % catalog.topic_partitions
                client.produce(catalog.topic, value, partition=partition, timestamp=at, on_delivery=_acked(probe))
        client.flush()

    def query(self, client: Client, catalog: Catalog) -> None:
        """Asks the serving view once for what it is to show, and waits until it is time to ask again."""
        next_s = time.monotonic() + _QUERY_EVERY_S
        if names := [name for name, probe in self.waiting.copy().items() if not probe.breach]:
            metric = catalog.metric("events")
            view = quote(view_name(metric, metric.grains[0]))
            begun = time.time()
            sql = f"SELECT event_type, as_of FROM {view} WHERE event_type IN {{names:Array(String)}}"
            rows = client.query(sql, parameters={"names": names}).result_rows
            now = time.time()
            self.query_s.append(now - begun)
            for name, stored in rows:
                self.see(name, now, stored.timestamp())
        time.sleep(max(0.0, next_s - time.monotonic()))

    def listen(self, settings: Settings, topic: str, over: threading.Event) -> None:
        """Takes note of the messages of an alert's topic."""
        consumer = kafka.consumer(settings, "lockstep-bench")
        consumer.assign([TopicPartition(topic, 0, 0)])
        while not over.is_set():
            for message in consumer.consume(100, 0.1):
                if message.error() is None:
                    user = json.loads(message.value() or b"")["dims"]["user_id"]
                    self.alerts[user] += 1
                    self.see(user, time.time())
        consumer.close()


def main(arguments: Sequence[str]) -> int:
    """Prints the figures; 1 if a target is missed or something is wrong, 2 if something is not there."""
    parser = options("freshness", __doc__)
    parser.add_argument("--rate", type=int, default=RATE, help=f"events per second ({RATE:,})")
    parser.add_argument("--probes", type=int, default=PROBES, help=f"probes of the view, and of the alert ({PROBES})")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S, help=f"seconds before the first ({WARM_UP_S:g})")
    given = parser.parse_args(arguments)
    return carry_out(given, lambda settings: bench(settings, given.rate, given.probes, given.warm_up), text.freshness)


def bench(settings: Settings, rate: int = RATE, probes: int = PROBES, warm_up_s: float = WARM_UP_S) -> Result:
    """Runs a job of its own under load; its topics and its database are removed again.

    Returns:
        name, machine, runs (system and figures), ratios (to the targets; of 1 and less they are met), ok: whether all
        are, and nothing is wrong.
    """
    taken_on = machine()
    with own_source(settings, "freshness.yaml") as (path, catalog):
        figures = _measured(settings, path, catalog, (rate, probes, warm_up_s))
    ratios = {
        f"{what}_{name.removesuffix('_ms')}": round(figures[what][name] / limit, 2)
        for what, limits in TARGETS_MS.items()
        for name, limit in limits.items()
    }
    return {
        "name": "freshness",
        "machine": taken_on,
        "runs": [{"system": "Beam on Flink, checkpoints on, into ClickHouse", "figures": figures}],
        "ratios": ratios,
        "ok": all(ratio <= 1 for ratio in ratios.values()) and not figures["wrong"],
    }


def _measured(settings: Settings, path: Path, catalog: Catalog, plan: tuple[int, int, float]) -> dict[str, Any]:
    rate, number, warm_up_s = plan
    topic, partitions = catalog.topic, catalog.topic_partitions
    kafka.ensure_topics(settings, {topic: partitions, catalog.alerts[0].topic: 1})
    watch, over = Watch(), threading.Event()
    first = Probe("first", time.time(), breach=False)
    watch.send(settings, catalog, [first])
    report("starting the job")
    with running(settings, path) as job:
        begun = time.time()
        client = _until_first_seen(settings, catalog, watch, job)
        cold_start_s = time.time() - begun
        listener = threading.Thread(target=watch.listen, args=(settings, catalog.alerts[0].topic, over), daemon=True)
        listener.start()
        with Load(settings, topic, partitions, rate) as load, Meter(parts(settings)) as meter:
            report(f"warming up at {rate:,} events/s for {warm_up_s:g} s")
            probes = schedule(number, PROBES_PER_S, time.time() + warm_up_s)
            sender = threading.Thread(target=watch.send, args=(settings, catalog, probes), daemon=True)
            time.sleep(max(0.0, probes[0].due - time.time() - 0.1))
            report(f"sending {len(probes)} probes in {number / PROBES_PER_S:g} s")
            watch.query_s.clear()
            sender.start()
            before, since = meter.cpu(), time.monotonic()
            while sender.is_alive():
                watch.query(client, catalog)
            used, took = meter.cpu(), time.monotonic() - since
            deadline = time.time() + _PATIENCE_S
            while watch.waiting and time.time() < deadline:
                watch.query(client, catalog)
            now = time.time()
            sent = load.stop()
        report("counting")
        expected = sent.events + sum(len(probe.events()) for probe in [first, *probes])
        counted = _counted(settings, client, catalog)
        over.set()
        listener.join()
    seen, raised = ([p for p in probes if p.breach is breach] for breach in (False, True))
    wrong = {
        f"{expected:,} events sent, {counted:,} counted": counted != expected,
        f"{len(watch.waiting)} probes were not seen": bool(watch.waiting),
        "an alert has not one message": any(watch.alerts[p.name] != 1 for p in raised) or len(watch.alerts) != number,
        f"the load was {sent.behind_s:.2f} s behind": sent.behind_s > _MOST_BEHIND_S,
    }
    return {
        "rate": rate,
        "sent_per_s": round(sent.events / sent.seconds),
        "behind_ms": round(sent.behind_s * 1000, 1),
        "events": expected,
        "counted": counted,
        "probes": number,
        "cold_start_s": round(cold_start_s, 1),
        "view": spread(latencies(seen, now)),
        "alert": spread(latencies(raised, now)),
        "steps": steps(seen),
        "query": spread(watch.query_s) | {"queries": len(watch.query_s)},
        "cores_used": {part: round((used[part] - before[part]) / took, 2) for part in used},
        "peak_bytes": meter.peaks(),
        "histogram": {
            "bin_ms": round(_BIN_S * 1000),
            "view": histogram(latencies(seen, now), _BIN_S),
            "alert": histogram(latencies(raised, now), _BIN_S),
        },
        "wrong": [text for text, holds in wrong.items() if holds],
    }


def _until_first_seen(settings: Settings, catalog: Catalog, watch: Watch, job: Popen[bytes]) -> Client:
    """Waits until the view shows the event that was sent before the job began; the client that saw it.

    Raises:
        TimeoutError: It did not, or the job ended.
    """
    deadline = time.monotonic() + _START_S
    client: Client | None = None
    while watch.waiting:
        if time.monotonic() > deadline or job.poll() is not None:
            msg = f"the view must show an event within {_START_S:g} s of the start; it does not. read the job's log"
            raise TimeoutError(msg)
        try:
            client = client or connect(settings, settings.database(catalog.source))
            watch.query(client, catalog)
        except ClickHouseError:  # neither the database nor the view is there yet
            time.sleep(_PAUSE_S)
    assert client is not None
    return client


def _counted(settings: Settings, client: Client, catalog: Catalog) -> int:
    """The events in the published rows, once all that is in the log is published, or will not be."""
    ends = {number: end for number, (_, end) in kafka.log_offsets(settings, catalog.topic).items()}
    deadline = time.monotonic() + _PATIENCE_S
    while published.frontier(client, catalog) != ends and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    [(counted,)] = client.query("SELECT sum(events) FROM speed_events FINAL").result_rows
    return int(counted)


def _acked(probe: Probe) -> Callable[[object, object], None]:
    def acked(error: object, _: object) -> None:
        if error is None:
            probe.acked = time.time()

    return acked
