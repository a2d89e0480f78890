"""A registry that refuses credentials says so at once; one that is away is waited for."""

from typing import NoReturn

import pytest
from confluent_kafka.schema_registry import SchemaRegistryError

from infra.registry import Registry, RegistryUnavailableError


class Refusing:
    """A client whose registry answers everything with a status."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.asked = 0

    def _refuse(self, *_: object) -> NoReturn:
        self.asked += 1
        raise SchemaRegistryError(self._status, self._status * 100 + 1, "not for you")

    get_subjects = get_schema = register_schema = _refuse


class WaitedError(Exception):
    pass


def registry(status: int) -> Registry:
    def sleep(_: float) -> NoReturn:
        raise WaitedError

    made = Registry("http://name:secret@schemas:8081", None, sleep)
    made.__dict__["_client"] = Refusing(status)
    return made


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once_with_the_way_out(status: int) -> None:
    with pytest.raises(RegistryUnavailableError) as refused:
        registry(status).schema(7)
    assert str(refused.value) == (
        "the schema registry at `http://schemas:8081` does not let these credentials at schema 7: not for you (HTTP "
        f"status code {status}, SR code {status}01). put a name and a password that may read it into the URL of "
        "`LOCKSTEP_SCHEMA_REGISTRY`, or of the catalog's `registry`: http://NAME:PASSWORD@HOST"
    )
    with pytest.raises(RegistryUnavailableError, match="does not let these credentials at subject `events-value`"):
        registry(status).register("events-value", {"type": "string"})


def test_credentials_that_may_not_list_subjects_may_read_schemas() -> None:
    registry(403).require()
    with pytest.raises(RegistryUnavailableError, match="does not let these credentials at its subjects"):
        registry(401).require()


def test_a_registry_with_a_fault_is_waited_for() -> None:
    for ask in (Registry.require, lambda made: made.schema(7)):
        with pytest.raises(WaitedError):
            ask(registry(500))
