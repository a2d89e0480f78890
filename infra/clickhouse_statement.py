"""Reading just enough of a ClickHouse statement to serve it over HTTP: where inline data starts, and which format.

Nothing here understands SQL. A statement is cut into tokens, so that keywords inside strings, comments, quoted
identifiers and parentheses are not mistaken for clauses.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
    (?P<space>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
  | (?P<quoted>'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<number>[0-9][A-Za-z0-9_.]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_AFTER_FORMAT = re.compile(rb"[ \t\f]*(?:\r?\n)?")
_RESULT = {b"SELECT", b"WITH", b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN", b"CHECK", b"VALUES"}
STATEMENT_LIMIT_BYTES = 8 << 20


@dataclass(frozen=True)
class Statement:
    """One statement of a request.

    `sql` is what the engine is given. For an INSERT with inline data, `sql` has the placeholder `{infile}` where the
    data's source belongs, `data_at` is the offset of the first byte of data, and `format` its format. Otherwise
    `data_at` is None and `format` is the FORMAT clause's word, if there is one.
    """

    sql: str
    format: str | None
    data_at: int | None
    returns_rows: bool
    touches_files: bool

    @property
    def leaves_connection(self) -> bool:
        """Whether its connection is the same after it: queries and inline data change neither settings nor database."""
        return self.returns_rows or self.data_at is not None

    def reading(self, path: str) -> str:
        """The INSERT with its data in the file at `path`."""
        return self.sql.replace(INFILE_PLACEHOLDER, f"FROM INFILE '{path}'", 1)


INFILE_PLACEHOLDER = "/*{infile}*/"


def read_statement(body: bytes) -> Statement:
    """Find the clauses of the statement at the beginning of `body`.

    Args:
        body: statement text, followed by the data of an INSERT if it has any. Data may be binary.

    Raises:
        UnicodeDecodeError: the statement (not its data) is not UTF-8.
    """
    words = _top_level_words(body)
    kind = words[0][0] if words else b""
    files = any(word in (b"INFILE", b"OUTFILE") for word, _, _ in words)
    if kind == b"INSERT" or (kind == b"WITH" and any(word == b"INSERT" for word, _, _ in words)):
        return _read_insert(body, words, files)
    named = [_word_after(body, end) for word, _, end in words if word == b"FORMAT"]
    first = re.match(rb"[\s(]*([A-Za-z]+)", body)
    returns = kind in _RESULT or (not words and first is not None and first[1].upper() in _RESULT)
    return Statement(body.decode(), next((n for n in reversed(named) if n), None), None, returns, files)


def _read_insert(body: bytes, words: list[tuple[bytes, int, int]], files: bool) -> Statement:
    """An INSERT: with inline data when FORMAT comes before any SELECT or VALUES."""
    settings_at = None
    for word, start, end in words:
        if word in (b"SELECT", b"VALUES", b"INFILE"):
            break
        if word == b"SETTINGS":
            settings_at = start
        if word == b"FORMAT" and (name := _word_after(body, end)):
            name_end = body.index(name.encode(), end) + len(name)
            if name.upper() == "VALUES":
                break
            gap = _AFTER_FORMAT.match(body, name_end)
            cut = start if settings_at is None else settings_at
            sql = f"{body[:cut].decode()}{INFILE_PLACEHOLDER} {body[cut:name_end].decode()}"
            return Statement(sql, name, gap.end() if gap else name_end, False, files)
    return Statement(body.decode(), None, None, False, files)


def _top_level_words(body: bytes) -> list[tuple[bytes, int, int]]:
    """Upper-case words outside parentheses with their offsets, up to the end of the statement or inline data."""
    words: list[tuple[bytes, int, int]] = []
    depth = position = 0
    inserting = False
    while position < min(len(body), STATEMENT_LIMIT_BYTES):
        token = _TOKEN.match(body, position)
        if token is None:
            break
        position = token.end()
        if token.lastgroup == "other":
            depth += {b"(": 1, b")": -1}.get(token[0], 0)
        elif token.lastgroup == "word" and depth == 0:
            word = token[0].upper()
            words.append((word, token.start(), position))
            inserting = inserting or word == b"INSERT"
            if inserting and word in (b"FORMAT", b"VALUES"):
                break  # data may follow, and data is not to be read as SQL
    return words


def _word_after(body: bytes, position: int) -> str | None:
    found = re.compile(rb"\s+([A-Za-z][A-Za-z0-9_]*)").match(body, position)
    return found[1].decode() if found else None
