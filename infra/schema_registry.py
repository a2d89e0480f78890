"""The local stack's schema registry: the routes of Confluent's protocol that its clients use, for Avro, BACKWARD.

`python -m infra.schema_registry` serves it until a signal ends it. It is a service of its own, so that a client is
configured for it as for any other registry, and it is only there for catalogs that ask for it: others need not pay
for a process. Its schemas are in Kafka; it may be killed at any time.
"""

import sys
from http import HTTPStatus
from typing import Any

import uvicorn
from confluent_kafka import KafkaException
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from infra import kafka
from infra.schema_store import IncompatibleSchemaError, InvalidSchemaError, KafkaLog, SchemaStore, Version
from infra.settings import load_settings

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "BACKWARD"
_LARGEST_VERSION = 2**31 - 1


class Problem(Exception):
    """An answer that is an error: HTTP status, the protocol's error code, text."""

    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class NewSchema(BaseModel):
    """What a client sends: a schema's text and its type; the protocol's other members are not looked at."""

    schema_: str
    schemaType: str = "AVRO"  # noqa: N815 - the protocol's spelling
    references: list[Any] = []

    model_config = {"alias_generator": lambda name: name.rstrip("_")}

    @property
    def text(self) -> str:
        """The schema's text.

        Raises:
            Problem: It is of a kind that is not kept here.
        """
        if self.schemaType != "AVRO" or self.references:
            raise Problem(422, 42201, "this registry keeps Avro schemas without references. use another for the rest")
        return self.schema_


def create_app(store: SchemaStore) -> FastAPI:
    """The registry over a store of schemas."""
    app = FastAPI(title="Lockstep's schema registry", version="1", docs_url=None, redoc_url=None)
    _add_problems(app)

    @app.get("/")
    def root() -> dict[str, Any]:
        """200 once the schemas have been read."""
        store.subjects()
        return {}

    @app.get("/schemas/types")
    def types() -> list[str]:
        return ["AVRO"]

    @app.get("/config")
    @app.get("/config/{subject:path}")
    def config() -> dict[str, str]:
        return {"compatibilityLevel": COMPATIBILITY}

    @app.get("/schemas/ids/{number}")
    def schema(number: int) -> dict[str, str]:
        text = store.schema(number)
        if text is None:
            raise Problem(404, 40403, f"Schema {number} not found")
        return {"schema": text}

    @app.get("/subjects")
    def subjects() -> list[str]:
        return sorted(store.subjects())

    @app.get("/subjects/{subject}/versions")
    def versions(subject: str) -> list[int]:
        return sorted(_versions(store, subject))

    @app.get("/subjects/{subject}/versions/{number}")
    def version(subject: str, number: str) -> dict[str, Any]:
        return _as_json(_version(store, subject, number))

    @app.post("/subjects/{subject}/versions")
    def register(subject: str, new: NewSchema) -> dict[str, Any]:
        return {"id": store.register(subject, new.text).id}

    @app.post("/subjects/{subject}")
    def look_up(subject: str, new: NewSchema) -> dict[str, Any]:
        _versions(store, subject)
        found = store.find(subject, new.text)
        if found is None:
            raise Problem(404, 40403, "Schema not found")
        return _as_json(found)

    @app.post("/compatibility/subjects/{subject}/versions/{number}")
    def compatibility(subject: str, number: str, new: NewSchema) -> dict[str, Any]:
        cause = store.cause_against(subject, new.text, _version(store, subject, number).version)
        return {"is_compatible": cause is None, "messages": [cause] if cause else []}

    return app


def _versions(store: SchemaStore, subject: str) -> dict[int, Version]:
    found = store.versions(subject)
    if not found:
        raise Problem(404, 40401, f"Subject '{subject}' not found.")
    return found


def _version(store: SchemaStore, subject: str, number: str) -> Version:
    found = _versions(store, subject)
    if number not in {"latest", "-1"} and not (number.isdecimal() and 0 < int(number) <= _LARGEST_VERSION):
        raise Problem(422, 42202, f"The specified version '{number}' is not a valid version id.")
    wanted = int(number) if number.isdecimal() else max(found)
    if wanted not in found:
        raise Problem(404, 40402, f"Version {wanted} not found.")
    return found[wanted]


def _as_json(version: Version) -> dict[str, Any]:
    return {"subject": version.subject, "version": version.version, "id": version.id, "schema": version.schema}


def _add_problems(app: FastAPI) -> None:
    def answer(status: int, code: int, text: str) -> JSONResponse:
        return JSONResponse({"error_code": code, "message": text}, status, media_type=MEDIA_TYPE)

    @app.exception_handler(Problem)
    def problem(_: Request, error: Problem) -> JSONResponse:
        return answer(error.status, error.code, error.text)

    @app.exception_handler(InvalidSchemaError)
    def invalid(_: Request, error: InvalidSchemaError) -> JSONResponse:
        return answer(422, 42201, str(error))

    @app.exception_handler(RequestValidationError)
    def misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, 42201, str(error.errors()))

    @app.exception_handler(IncompatibleSchemaError)
    def incompatible(_: Request, error: IncompatibleSchemaError) -> JSONResponse:
        return answer(HTTPStatus.CONFLICT, HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(KafkaException)
    @app.exception_handler(kafka.KafkaUnavailableError)
    def away(_: Request, error: Exception) -> JSONResponse:
        return answer(500, 50001, f"Error in the backend data store: {error}")


def main() -> int:
    """Serve until a signal ends it."""
    settings = load_settings()
    app = create_app(SchemaStore(KafkaLog(settings)))
    uvicorn.run(app, host=settings.host, port=settings.schema_registry_port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
