"""The schemas of the local schema registry: kept in memory, and in a compacted Kafka topic that outlives the process.

Records of the topic look like those of Confluent's registry, so that another one can go on from it.
"""

import json
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import fastavro
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from infra import kafka
from infra.avro_compatibility import unreadable
from infra.settings import Settings

TOPIC = "_schemas"
_ACKNOWLEDGED_WITHIN_MS = 10_000
_READ_S = 1.0
_AT_ONCE = 1_000


class InvalidSchemaError(ValueError):
    """A text is no Avro schema."""


class IncompatibleSchemaError(ValueError):
    """A new version could not read what was written with the one before it."""


@dataclass(frozen=True)
class Version:
    """A version of a subject. The same schema has the same id under every subject."""

    subject: str
    version: int
    id: int
    schema: str


class Log(Protocol):
    """Where versions are kept."""

    def read(self) -> list[Version]:
        """All versions, oldest first."""
        ...

    def append(self, version: Version) -> None:
        """Keep a version; once this returns, it is there for good."""
        ...


class SchemaStore:
    """Subjects and their versions. One process at a time writes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = Lock()
        self._subjects: dict[str, dict[int, Version]] = {}
        self._schemas: dict[int, str] = {}
        self._loaded = False

    def subjects(self) -> dict[str, dict[int, Version]]:
        """Versions by number, by subject."""
        with self._lock:
            self._load()
            return {subject: dict(versions) for subject, versions in self._subjects.items()}

    def versions(self, subject: str) -> dict[int, Version]:
        """A subject's versions by number; none for a subject that is not there."""
        return self.subjects().get(subject, {})

    def schema(self, number: int) -> str | None:
        """The schema of an id."""
        with self._lock:
            self._load()
            return self._schemas.get(number)

    def find(self, subject: str, schema: str) -> Version | None:
        """The version of a subject that has this schema.

        Raises:
            InvalidSchemaError: The text is no schema.
        """
        text = canonical(schema)
        return next((each for each in self.versions(subject).values() if each.schema == text), None)

    def cause_against(self, subject: str, schema: str, number: int | None = None) -> str | None:
        """Why a schema cannot follow a version of a subject, by default its newest; None where it can.

        Raises:
            InvalidSchemaError: The text is no schema.
        """
        text, versions = canonical(schema), self.versions(subject)
        before = versions.get(number if number is not None else max(versions, default=0))
        return None if before is None else unreadable(json.loads(text), json.loads(before.schema))

    def register(self, subject: str, schema: str) -> Version:
        """The version of a subject that has a schema; a new one where there is none.

        Raises:
            InvalidSchemaError: The text is no schema.
            IncompatibleSchemaError: It cannot follow the newest version.
            KafkaException: The log does not take it.
        """
        text = canonical(schema)
        with self._lock:
            self._load()
            versions = self._subjects.get(subject, {})
            for each in versions.values():
                if each.schema == text:
                    return each
            newest = max(versions, default=0)
            if newest and (cause := unreadable(json.loads(text), json.loads(versions[newest].schema))):
                msg = f"`{subject}` must stay readable (BACKWARD) from version {newest} on: {cause}"
                raise IncompatibleSchemaError(msg)
            known = [number for number, other in self._schemas.items() if other == text]
            number = known[0] if known else max(self._schemas, default=0) + 1
            version = Version(subject, newest + 1, number, text)
            self._loaded = False  # should it fail, nobody knows whether it was written: then the log is read anew
            self._log.append(version)
            self._loaded = True
            self._add(version)
            return version

    def _load(self) -> None:
        if self._loaded:
            return
        self._subjects, self._schemas = {}, {}
        for version in self._log.read():
            self._add(version)
        self._loaded = True

    def _add(self, version: Version) -> None:
        self._subjects.setdefault(version.subject, {})[version.version] = version
        self._schemas[version.id] = version.schema


class KafkaLog:
    """Versions in a compacted topic."""

    def __init__(self, settings: Settings, topic: str = TOPIC) -> None:
        self._settings = settings
        self._topic = topic

    def read(self) -> list[Version]:
        """All versions, oldest first; the topic is made where it is missing."""
        kafka.ensure_topics(self._settings, {self._topic: 1}, {"cleanup.policy": "compact"})
        consumer = kafka.consumer(self._settings, "lockstep-schemas", {"enable.partition.eof": True})
        found: list[Version] = []
        begin = kafka.log_offsets(self._settings, self._topic)[0][0]
        try:
            consumer.assign([TopicPartition(self._topic, 0, begin)])
            while True:
                for message in consumer.consume(_AT_ONCE, _READ_S):
                    error = message.error()
                    if error is None:
                        found += _version(message.key() or b"{}", message.value())
                    elif error.code() == KafkaError._PARTITION_EOF:
                        return found
                    elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
                        raise KafkaException(error)
        finally:
            consumer.close()

    def append(self, version: Version) -> None:
        """Write a version down.

        Raises:
            KafkaException: It was not acknowledged.
        """
        key = {"keytype": "SCHEMA", "subject": version.subject, "version": version.version, "magic": 1}
        value = {
            "subject": version.subject,
            "version": version.version,
            "id": version.id,
            "schema": version.schema,
            "deleted": False,
        }
        client = kafka.producer(self._settings, {"delivery.timeout.ms": _ACKNOWLEDGED_WITHIN_MS})
        kafka.produce_all(client, self._topic, [{"key": json.dumps(key), "value": json.dumps(value)}])


def canonical(schema: str) -> str:
    """A schema's text without what makes no difference between the lines.

    Raises:
        InvalidSchemaError: The text is no schema.
    """
    try:
        values: Any = json.loads(schema)
        fastavro.parse_schema(values, {})
    except Exception as error:  # whatever is wrong, it is wrong with the text
        msg = f"a schema must be Avro's, as JSON: {error}"
        raise InvalidSchemaError(msg) from error
    return json.dumps(values, separators=(",", ":"))


def _version(key: bytes, value: bytes | None) -> list[Version]:
    """The version that a record of the topic holds; nothing for settings and for what was deleted."""
    named = json.loads(key)
    if named.get("keytype") != "SCHEMA" or value is None:
        return []
    body = json.loads(value)
    return [] if body.get("deleted") else [Version(body["subject"], body["version"], body["id"], body["schema"])]
