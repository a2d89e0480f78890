"""ClickHouse's engine inside this process (chDB), one connection per request so that settings never leak.

Connections run in parallel; one connection serialises its own queries. Opening one and preparing it takes 1 ms, so a
connection that a request has left as it was is kept for the next one that asks for the same database and settings. One
process may have a data directory open.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chdb import _chdb

from infra.clickhouse_statement import Statement

_CODE = re.compile(r"Code:\s*(\d+)\.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
READONLY, SYNTAX_ERROR, UNKNOWN_SETTING, NOT_IMPLEMENTED, SESSION_NOT_FOUND, SESSION_IS_LOCKED = (
    164,
    62,
    115,
    48,
    372,
    373,
)
_UNKNOWN_EXCEPTION = 1002
_MOST_KEPT = 16

_OWN = frozenset({"insert_deduplication_token"})
"""Settings that are other for each request; whatever is kept was told that they are empty, and is told them anew."""

_Prepared = tuple[str | None, tuple[tuple[str, str], ...]]
"""The current database of a connection, and its settings."""


class EngineError(Exception):
    """A refusal of the engine, with ClickHouse's own error code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @classmethod
    def of(cls, code: int, rule: str, name: str) -> "EngineError":
        """An error in ClickHouse's own wording: `Code: 62. DB::Exception: ... (SYNTAX_ERROR)`."""
        return cls(code, f"Code: {code}. DB::Exception: {rule} ({name})")


@dataclass(frozen=True)
class Answer:
    """What a statement gave: bytes in the format asked for, and counts for the summary header."""

    body: bytes
    read_rows: int
    read_bytes: int
    written_rows: int
    elapsed_ns: int

    def summary(self) -> str:
        """JSON of the `X-ClickHouse-Summary` header, numbers as strings as ClickHouse writes them."""
        counts = {
            "read_rows": self.read_rows,
            "read_bytes": self.read_bytes,
            "written_rows": self.written_rows,
            "result_rows": self.written_rows,
            "elapsed_ns": self.elapsed_ns,
        }
        return json.dumps({name: str(value) for name, value in counts.items()})


@dataclass
class _Session:
    connection: Any
    deadline: float
    lock: threading.Lock = field(default_factory=threading.Lock)


class Engine:
    """The engine over one data directory."""

    def __init__(self, path: Path, *, threads: int, memory_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        # Merges of small tables on a small machine: 16 background threads would only take memory.
        self._address = (
            f"{path}?background_pool_size=4&background_schedule_pool_size=8"
            # Embedded, the engine's own count of all memory only grows, whatever the process has: a limit on it would
            # refuse every query after some hours. So queries are limited one by one.
            f"&max_server_memory_usage_to_ram_ratio=1000&mark_cache_size={memory_bytes // 10}"
        )
        # async_insert=0: an insert that has returned is readable, without waiting for a buffer to be flushed.
        self._defaults = f"SET max_threads = {threads}, async_insert = 0, max_memory_usage = {memory_bytes}"
        self._sessions: dict[str, _Session] = {}
        self._kept: list[tuple[_Prepared, Any]] = []
        self._guard = threading.Lock()
        self._anchor = self._connect()  # while one connection is open, the engine stays up

    def close(self) -> None:
        """Close every session and stop the engine; the data directory may then be opened by another process."""
        with self._guard:
            for session in self._sessions.values():
                session.connection.close()
            self._sessions.clear()
            for _, connection in self._kept:
                connection.close()
            self._kept.clear()
        self._anchor.close()

    def run(  # noqa: PLR0913 - one argument per part of a request
        self,
        statement: Statement,
        data: memoryview,
        *,
        database: str | None,
        default_format: str,
        settings: Mapping[str, str],
        parameters: Mapping[str, str],
        session: tuple[str, float] | None = None,
    ) -> Answer:
        """Execute one statement.

        Args:
            statement: the statement; `data` holds its inline data.
            data: inline data of an INSERT, in `statement.format`; empty otherwise.
            database: the current database; None for the session's, or `default`.
            default_format: result format where the statement names none.
            settings: ClickHouse settings for this statement only.
            parameters: values of `{name:Type}` placeholders, escaped as in TSV.
            session: session id and its lifetime in seconds; None for a connection of its own.

        Raises:
            EngineError: the engine refused; nothing else is raised for a bad statement.
        """
        if statement.touches_files:
            rule = "INFILE and OUTFILE name files of the server and are not allowed over HTTP"
            raise EngineError.of(NOT_IMPLEMENTED, rule, "NOT_IMPLEMENTED")
        if session is None:
            own = {name: settings[name] for name in _OWN & settings.keys()}
            prepared = (database, tuple(sorted({**settings, **dict.fromkeys(own, "")}.items())))
            with self._prepared(prepared, keep=statement.leaves_connection) as connection:
                _apply(connection, own, remember=False)
                return _run(connection, statement, data, default_format, parameters)
        with self._of_session(session) as connection:
            restore = _apply(connection, settings, remember=True)
            try:
                _use(connection, database)
                return _run(connection, statement, data, default_format, parameters)
            finally:
                if restore:
                    _execute(connection, restore)

    @contextmanager
    def _prepared(self, prepared: _Prepared, *, keep: bool) -> Iterator[Any]:
        """A connection with a current database and settings; it is closed if it may have been changed, or failed."""
        with self._guard:
            found = [index for index, (known, _) in enumerate(self._kept) if known == prepared]
            connection = self._kept.pop(found[-1])[1] if found else None
        fresh, done = connection is None, False
        connection = connection or self._connect()
        try:
            if fresh:
                _apply(connection, dict(prepared[1]), remember=False)
                _use(connection, prepared[0])
            yield connection
            done = True
        finally:
            if done and keep:
                with self._guard:
                    self._kept.append((prepared, connection))
                    connection = self._kept.pop(0)[1] if len(self._kept) > _MOST_KEPT else None
            if connection:
                connection.close()

    @contextmanager
    def _of_session(self, session: tuple[str, float]) -> Iterator[Any]:
        held = self._session(*session)
        if not held.lock.acquire(blocking=False):
            rule = f"Session {session[0]} is locked by a concurrent client."
            raise EngineError.of(SESSION_IS_LOCKED, rule, "SESSION_IS_LOCKED")
        try:
            yield held.connection
        finally:
            held.deadline = time.monotonic() + session[1]
            held.lock.release()

    def _session(self, name: str, lifetime_s: float) -> _Session:
        now = time.monotonic()
        with self._guard:
            for old in [n for n, s in self._sessions.items() if s.deadline < now and not s.lock.locked()]:
                self._sessions.pop(old).connection.close()
            if name not in self._sessions:
                self._sessions[name] = _Session(self._connect(), now + lifetime_s)
            return self._sessions[name]

    def _connect(self) -> Any:  # noqa: ANN401 - a native type without stubs
        connection = _chdb.connect(self._address)
        _execute(connection, self._defaults)
        return connection


def _run(connection: Any, statement: Statement, data: memoryview, default_format: str, parameters: Mapping) -> Answer:
    if statement.data_at is not None:
        return _insert(connection, statement, data, parameters)
    if connection.classify_query(statement.sql)["statement_count"] > 1:
        raise EngineError.of(SYNTAX_ERROR, "Multi-statements are not allowed.", "SYNTAX_ERROR")
    return _execute(connection, statement.sql, default_format, parameters)


def _insert(connection: Any, statement: Statement, data: memoryview, parameters: Mapping) -> Answer:
    """Hand inline data over as an anonymous in-memory file: any format, any bytes, nothing written to disk."""
    if not len(data):
        return Answer(b"", 0, 0, 0, 0)
    file = os.memfd_create("insert")
    try:
        written = 0
        while written < len(data):
            written += os.write(file, data[written:])
        return _execute(connection, statement.reading(f"/proc/self/fd/{file}"), "TabSeparated", parameters)
    finally:
        os.close(file)


def _apply(connection: Any, settings: Mapping[str, str], *, remember: bool) -> str | None:
    """Apply settings; with `remember`, return the statement that puts the old values back."""
    if not settings:
        return None
    for name in settings:
        if not _NAME.match(name):
            raise EngineError.of(UNKNOWN_SETTING, f"Unknown setting '{name}'.", "UNKNOWN_SETTING")
    old = None
    if remember:
        names = ", ".join(f"'{name}'" for name in settings)
        answer = _execute(connection, f"SELECT name, value FROM system.settings WHERE name IN ({names})", "JSON")
        rows = json.loads(answer.body)["data"]
        old = _set({row["name"]: row["value"] for row in rows})
    # `readonly` goes last: after it, no other setting can be changed.
    ordered = dict(sorted(settings.items(), key=lambda item: item[0] == "readonly"))
    _execute(connection, _set(ordered))
    return None if "readonly" in settings else old


def _use(connection: Any, database: str | None) -> None:  # noqa: ANN401
    if database:
        _execute(connection, f"USE `{_escape(database)}`")


def _set(settings: Mapping[str, str]) -> str:
    return "SET " + ", ".join(f"{name} = '{_escape(value, quote=chr(39))}'" for name, value in settings.items())


def _escape(value: str, quote: str = "`") -> str:
    return value.replace("\\", "\\\\").replace(quote, "\\" + quote)


def _execute(connection: Any, sql: str, output: str = "Null", parameters: Mapping[str, str] | None = None) -> Answer:
    started = time.perf_counter_ns()
    try:
        result = connection.query(sql, output, params=dict(parameters or {}))
    except RuntimeError as error:
        text = str(error)
        code = _CODE.search(text)
        raise EngineError(int(code[1]) if code else _UNKNOWN_EXCEPTION, text) from error
    return Answer(
        body=bytes(result.bytes()),
        read_rows=result.rows_read(),
        read_bytes=result.bytes_read(),
        written_rows=result.rows_written(),
        elapsed_ns=time.perf_counter_ns() - started,
    )
