"""ClickHouse's HTTP interface in front of the embedded engine: `python -m infra.clickhouse_front`.

Any client of ClickHouse over HTTP (clickhouse-connect, JDBC, Grafana, Superset) talks to it as to a server. Served:
`/ping`, and queries by GET (read only) or POST, with inline insert data in any format, settings and parameters in the
URL, sessions, `zstd`, `lz4` and `gzip` request bodies. Not served: external tables, `compress=1` block compression,
users and roles, progress headers. Data are kept under `data_dir/clickhouse` and survive `kill -9`.
"""

import base64
import gzip
import hmac
import ipaddress
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import lz4.frame
import uvicorn
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra.clickhouse_engine import READONLY, Answer, Engine, EngineError
from infra.clickhouse_statement import Statement, read_statement
from infra.settings import Settings, load_settings

CONCURRENT_QUERIES = 16
SESSION_LIFETIME_S = 60.0
_AUTHENTICATION_FAILED, _UNKNOWN_COMPRESSION, _NOT_IMPLEMENTED = 516, 89, 48
# URL parameters that speak to the HTTP handler; every other one is a setting of the query.
_HANDLER_PARAMETERS = {
    "add_http_cors_header", "buffer_size", "client_protocol_version", "close_session", "compress", "database",
    "decompress", "default_format", "password", "query", "query_id", "quota_key", "role", "session_check",
    "session_id", "session_timeout", "stacktrace", "user", "wait_end_of_query",
}  # fmt: skip
_BAD_REQUEST = {6, 26, 27, 36, 41, 43, 53, 62, 69, 70, 72, 117, 130, 131, 427, 457}
_NOT_FOUND = {46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 366, 374}
_STATUS = {48: 501, 159: 408, 164: 403, 192: 403, 193: 403, 194: 401, 202: 503, 241: 500, 497: 403, 516: 403}
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.decompress,
    "lz4": lz4.frame.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}
_CONTENT_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8",
    "CSVWithNames": "text/csv; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
}


def application(settings: Settings, engine: Engine) -> Starlette:
    """The web application over an engine that is already open; closing the application closes the engine."""
    limiter = anyio.CapacityLimiter(CONCURRENT_QUERIES)

    async def query(request: Request) -> Response:
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        headers = {"X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Timezone": "UTC"}
        try:
            body = await request.body()
            work = partial(_serve, settings, engine, request, body)
            statement, answer = await anyio.to_thread.run_sync(work, limiter=limiter)
        except EngineError as error:
            headers["X-ClickHouse-Exception-Code"] = str(error.code)
            return PlainTextResponse(error.text + "\n", status_code=_status(error.code), headers=headers)
        headers["X-ClickHouse-Summary"] = answer.summary()
        output = statement.format or _default_format(request)
        if statement.returns_rows:
            headers["X-ClickHouse-Format"] = output
        media = _CONTENT_TYPES.get(output, "application/octet-stream")
        return Response(answer.body, headers=headers, media_type=media)

    async def ping(_: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        engine.close()

    routes = [Route("/ping", ping), Route("/replicas_status", ping), Route("/", query, methods=["GET", "POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


def _serve(settings: Settings, engine: Engine, request: Request, body: bytes) -> tuple[Statement, Answer]:
    _check_caller(settings, request)
    if "multipart/form-data" in request.headers.get("content-type", ""):
        raise EngineError.of(
            _NOT_IMPLEMENTED, "external tables are not served by the embedded engine", "NOT_IMPLEMENTED"
        )
    url = request.query_params
    if url.get("compress", "0") not in ("0", "") or url.get("decompress", "0") not in ("0", ""):
        rule = "`compress` and `decompress` are not served by the embedded engine. use HTTP content encodings"
        raise EngineError.of(_NOT_IMPLEMENTED, rule, "NOT_IMPLEMENTED")
    body = _decode(request.headers.get("content-encoding", ""), body)
    if "query" in url:  # ClickHouse reads the URL's text first, the body after it
        body = url["query"].encode() + (b"\n" + body if body else b"")
    try:
        statement = read_statement(body)
    except UnicodeDecodeError as error:
        raise EngineError.of(62, f"the statement is not UTF-8: {error}", "SYNTAX_ERROR") from error
    data = memoryview(body)[statement.data_at or len(body) :]
    names = [name for name in url if name not in _HANDLER_PARAMETERS and not name.startswith("param_")]
    options = {name: url[name] for name in names}
    if request.method == "GET":
        options.setdefault("readonly", "2")
    session = None
    if "session_id" in url:
        session = (url["session_id"], float(url.get("session_timeout", SESSION_LIFETIME_S)))
    return statement, engine.run(
        statement,
        data,
        database=url.get("database") or request.headers.get("x-clickhouse-database"),
        default_format=_default_format(request),
        settings=options,
        parameters={name.removeprefix("param_"): url[name] for name in url if name.startswith("param_")},
        session=session,
    )


def _default_format(request: Request) -> str:
    return request.query_params.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated"


def _decode(encoding: str, body: bytes) -> bytes:
    decoder = _DECODERS.get(encoding.lower())
    if decoder is None:
        known = ", ".join(name for name in _DECODERS if name)
        rule = f"unknown content encoding `{encoding}`; the embedded engine reads {known}"
        raise EngineError.of(_UNKNOWN_COMPRESSION, rule, "UNKNOWN_COMPRESSION_METHOD")
    try:
        return decoder(body)
    except (OSError, EOFError, RuntimeError, zstandard.ZstdError) as error:
        raise EngineError.of(
            _UNKNOWN_COMPRESSION, f"the body is not valid {encoding}: {error}", "CANNOT_DECOMPRESS"
        ) from error


def _check_caller(settings: Settings, request: Request) -> None:
    """Refuse web pages of other sites (the server listens on loopback without a password), and wrong passwords."""
    origin = request.headers.get("origin")
    if origin and re.sub(r"^https?://", "", origin) != request.headers.get("host"):
        raise EngineError.of(READONLY, f"a page of {origin} may not query this server", "READONLY")
    if _is_loopback(settings.host) and not _is_loopback(request.url.hostname or ""):
        rule = f"a server on {settings.host} does not answer to the name {request.url.hostname}"
        raise EngineError.of(READONLY, rule, "READONLY")
    if settings.clickhouse_password:
        user, password = _credentials(request)
        expected = settings.clickhouse_password.encode()
        if user != settings.clickhouse_user or not hmac.compare_digest(password.encode(), expected):
            raise EngineError.of(_AUTHENTICATION_FAILED, f"{user}: Authentication failed.", "AUTHENTICATION_FAILED")


def _credentials(request: Request) -> tuple[str, str]:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password
    url, headers = request.query_params, request.headers
    user = url.get("user") or headers.get("x-clickhouse-user") or "default"
    return user, url.get("password") or headers.get("x-clickhouse-key") or ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _status(code: int) -> int:
    """HTTP status of an error code, as ClickHouse maps them."""
    if code in _BAD_REQUEST:
        return 400
    return 404 if code in _NOT_FOUND else _STATUS.get(code, 500)


def main() -> int:
    """Serve until SIGTERM, then finish running queries, close the engine and exit 0."""
    settings = load_settings()
    path = settings.data_dir.absolute() / "clickhouse"
    try:
        engine = Engine(path, threads=settings.clickhouse_threads, memory_bytes=settings.clickhouse_memory_bytes)
    except RuntimeError as error:
        print(f"the embedded ClickHouse could not open {path}: {error}", file=sys.stderr)
        return 1
    # uvicorn raises the signal again once it has shut down; an ordered stop is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        application(settings, engine),
        host=settings.host,
        port=settings.clickhouse_port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=20,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
