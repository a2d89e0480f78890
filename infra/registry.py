"""The client of a schema registry that speaks Confluent's protocol: where it is, and what it says of schemas.

That the registry is away is never taken for an answer: only its own word that it has no such schema is. It is waited
for, but not one that refuses the credentials: they will not get better.
"""

import json
import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from infra.settings import Settings
from metrics.catalog import Catalog

ANSWER_WITHIN_S = 10.0
_RETRY_S = 1.0
_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA = 40401, 40402, 40403
_UNAUTHORIZED, _FORBIDDEN, _INCOMPATIBLE, _INVALID = 401, 403, 409, 422

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RegistryUnavailableError(ConnectionError):
    """No schema registry answered, or none that lets us in."""


class UnknownSchemaError(LookupError):
    """The registry has no schema of an id."""


class SchemaRefusedError(ValueError):
    """The registry does not take a schema: it cannot read what was written with the one before it, or is invalid."""


def registry_address(settings: Settings, catalog: Catalog) -> str:
    """The URL of a source's schema registry: the catalog's, else the settings', else the local one's."""
    return catalog.registry.rstrip("/") if catalog.registry else settings.schema_registry_address


def uses_local_registry(settings: Settings, catalog: Catalog) -> bool:
    """Whether a source needs a schema registry that the local stack has to start."""
    return catalog.format != "json" and not settings.schema_registry and not catalog.registry


def require_registry(settings: Settings, catalog: Catalog, patience_s: float = ANSWER_WITHIN_S) -> None:
    """Make sure, before work begins, that the schema registry answers, for a catalog whose format needs one.

    Raises:
        RegistryUnavailableError: It did not answer in time, or does not let these credentials in.
    """
    if catalog.format != "json":
        Registry(registry_address(settings, catalog), patience_s).require()


class Registry:
    """A schema registry. It connects on first use.

    Args:
        address: Its URL; it may hold a name and a password.
        patience_s: How long one that is away is waited for; None: for ever.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, address: str, patience_s: float | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._address = address
        self._patience_s = patience_s
        self._sleep = sleep

    def require(self) -> None:
        """Ask for anything.

        Raises:
            RegistryUnavailableError: It did not answer in time, or does not let these credentials in.
        """
        self._ask("its subjects", self._subjects)

    def schema(self, number: int) -> tuple[Any, list[Any]]:
        """The plain values of the schema of an id, and of those that it refers to, what is referred to first.

        Raises:
            UnknownSchemaError: The registry says that it has none.
            RegistryUnavailableError: It did not answer in time, or does not let these credentials in.
        """
        found = self._ask(f"schema {number}", lambda: self._client.get_schema(number))
        if found.schema_type != "AVRO":
            return found.schema_type, []
        return _values(found.schema_str), self._referred(found.references or [])

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """The id of a schema under a subject, where it becomes the newest version unless it is one already.

        Raises:
            SchemaRefusedError: The registry does not take it.
            RegistryUnavailableError: It did not answer in time, or does not let these credentials in.
        """
        from confluent_kafka.schema_registry import Schema  # noqa: PLC0415 - see `_client`

        text = json.dumps(schema)
        client = self._client
        return int(self._ask(f"subject `{subject}`", lambda: client.register_schema(subject, Schema(text, "AVRO"))))

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401
        # It takes 0.4 s to import, for one format of two.
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415

        return SchemaRegistryClient({"url": self._address, "timeout": ANSWER_WITHIN_S, "max.retries": 0})

    def _subjects(self) -> list[str]:
        from confluent_kafka.schema_registry import SchemaRegistryError  # noqa: PLC0415 - see `_client`

        try:
            return list(self._client.get_subjects())
        except SchemaRegistryError as error:
            if error.http_status_code == _FORBIDDEN:
                return []  # who may not list them may read schemas all the same
            raise

    def _referred(self, references: list[Any]) -> list[Any]:
        found: list[Any] = []
        for reference in references:
            what = f"version {reference.version} of `{reference.subject}`"
            version = self._ask(what, partial(self._client.get_version, reference.subject, reference.version))
            found += [*self._referred(version.schema.references or []), _values(version.schema.schema_str)]
        return found

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        """The answer to a question, asked again for as long as patience lasts where there is none."""
        from confluent_kafka.schema_registry import SchemaRegistryError  # noqa: PLC0415 - see `_client`

        begun = time.monotonic()
        while True:
            try:
                return question()
            except SchemaRegistryError as error:
                if error.error_code in {_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA}:
                    msg = f"the schema registry has no {what}"
                    raise UnknownSchemaError(msg) from error
                if error.http_status_code in {_INCOMPATIBLE, _INVALID}:
                    msg = f"the schema registry refuses {what}: {error.error_message}"
                    raise SchemaRefusedError(msg) from error
                if error.http_status_code in {_UNAUTHORIZED, _FORBIDDEN}:
                    msg = (
                        f"the schema registry at `{_shown(self._address)}` does not let these credentials at {what}: "
                        f"{error}. put a name and a password that may read it into the URL of "
                        "`LOCKSTEP_SCHEMA_REGISTRY`, or of the catalog's `registry`: http://NAME:PASSWORD@HOST"
                    )
                    raise RegistryUnavailableError(msg) from error
                reason = str(error)
            except Exception as error:  # the HTTP library's, the resolver's, TLS's, a page that is no JSON
                reason = f"{type(error).__name__} {error}"
            if self._patience_s is not None and time.monotonic() - begun >= self._patience_s:
                msg = (
                    f"no schema registry answered at `{_shown(self._address)}` when asked for {what}: {reason}. start "
                    "the stack with `lockstep up`, or check `LOCKSTEP_SCHEMA_REGISTRY` and the catalog's `registry`"
                )
                raise RegistryUnavailableError(msg)
            logger.warning("schema registry %s: %s; waiting", _shown(self._address), reason)
            self._sleep(_RETRY_S)


def _values(text: str) -> Any:  # noqa: ANN401
    """A schema's plain values; the name of a type may stand there without quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(address: str) -> str:
    """The URL without name and password."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
