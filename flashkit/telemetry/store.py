"""Where traces are kept: SQLite beside the other state, or Postgres; the same tables and statements in both.

A span may come several times: open, then ended, from its worker; the version that has ended stays. Old spans make room
for new ones. A store is used by one thread at a time.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from flashkit.errors import ConfigurationError, StoreUnavailable
from flashkit.telemetry.otlp import SpanRecord
from flashkit.telemetry.spans import Op

SPAN_LIMIT: Final = 200_000
"""Spans that are kept."""
TRACE_SPAN_LIMIT: Final = 5_000
"""Spans of one trace that are shown."""
_TRIM_EVERY: Final = 10_000
_ROWS_AT_ONCE: Final = 64
"""Their values stay below the 999 that an old SQLite takes in a statement."""
_LEAST_PREFIX: Final = 4
_TASKS: Final = (Op.PLATFORM.value, Op.JOB.value, Op.REQUEST.value)
SQLITE: Final = "sqlite:///"
POSTGRES: Final = ("postgresql://", "postgres://")

_COLUMNS: Final = (
    "trace_id", "span_id", "parent_id", "name", "op", "start_ns", "end_ns", "error", "service", "worker_id", "job_id",
    "session_id", "attributes",
)  # fmt: skip
_CHANGING: Final = [name for name in _COLUMNS if name not in ("trace_id", "span_id")]
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS flashkit_spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT, name TEXT NOT NULL, op TEXT NOT NULL,
        start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL, error TEXT NOT NULL, service TEXT NOT NULL,
        worker_id TEXT NOT NULL, job_id TEXT NOT NULL, session_id TEXT NOT NULL, attributes TEXT NOT NULL,
        PRIMARY KEY (trace_id, span_id))""",
    "CREATE INDEX IF NOT EXISTS flashkit_spans_by_job ON flashkit_spans (job_id) WHERE job_id <> ''",
    "CREATE INDEX IF NOT EXISTS flashkit_spans_by_session ON flashkit_spans (session_id) WHERE session_id <> ''",
    "CREATE INDEX IF NOT EXISTS flashkit_spans_by_start ON flashkit_spans (start_ns)",
)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace in a list."""

    trace_id: str
    name: str
    """Of the endpoint whose job it began with."""
    job_id: str
    start_ns: int
    end_ns: int
    """0 while something in it runs, or ran when it was last heard of."""
    spans: int
    error: str


class TraceStore(Protocol):
    """Keeps spans."""

    def write(self, records: Sequence[SpanRecord]) -> None:
        """Keep spans, in place of what is kept of them.

        Raises:
            StoreUnavailable: They could not be written.
        """

    def spans(self, trace_id: str) -> list[SpanRecord]:
        """Return the spans of a trace, the first begun first."""

    def find(self, text: str) -> list[str]:
        """Return the traces that this names: id of a trace or a job, or the begin of one, or a session's id."""

    def latest(self, limit: int) -> list[TraceSummary]:
        """Return the traces that began last, the newest first."""

    def close(self) -> None:
        """Close it."""


def open_traces(url: str) -> TraceStore:
    """Open a store by its URL: `sqlite:///FILE` or `postgresql://...`.

    Raises:
        ConfigurationError: It is no such URL, or the driver is not installed.
        StoreUnavailable: It cannot be opened.
    """
    if url.startswith(SQLITE):
        return SqlTraces(_Sqlite(Path(url.removeprefix(SQLITE))))
    if url.startswith(POSTGRES):
        return SqlTraces(_Postgres(url))
    raise ConfigurationError(
        f"FLASHKIT_TRACE_STORE={url!r} is no store of traces", hint="write sqlite:///FILE or postgresql://HOST/DATABASE"
    )


class _Database(Protocol):
    """What differs between the two."""

    mark: str
    """Stands for a value in a statement."""

    def cursor(self) -> Any:
        """Return a context manager that gives a cursor, and commits at its end."""

    def close(self) -> None:
        """Close the connection."""


class _Sqlite:
    mark = "?"

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, check_same_thread=False, timeout=10.0)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
        except (OSError, sqlite3.Error) as exc:
            raise self._failure(exc) from exc

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        try:
            with self._connection:
                yield self._connection.cursor()
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def close(self) -> None:
        self._connection.close()

    def _failure(self, exc: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"traces cannot be kept in {self._file}: {exc}", hint="make room on the disk, or remove a damaged file"
        )


class _Postgres:
    mark = "%s"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as exc:
            raise ConfigurationError(
                "traces in Postgres need the package psycopg", hint="pip install 'flashkit-serverless[postgres]'"
            ) from exc
        self._error: type[Exception] = psycopg.Error
        self._url = url
        self._psycopg: Any = psycopg
        self._connection: Any = None
        with self.cursor():
            pass  # so that a wrong address is told now

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._psycopg.connect(self._url, connect_timeout=10)
            with self._connection.transaction(), self._connection.cursor() as cursor:
                yield cursor
            self._connection.commit()
        except self._error as exc:
            raise StoreUnavailable(
                f"the Postgres for traces does not answer: {str(exc).partition(chr(10))[0]}",
                hint="check FLASHKIT_TRACE_STORE, and that the server runs",
            ) from exc

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class SqlTraces:
    """Traces in an SQL database."""

    def __init__(self, database: _Database, *, span_limit: int = SPAN_LIMIT, trim_every: int = _TRIM_EVERY) -> None:
        self._database = database
        self._span_limit = span_limit
        self._trim_every = trim_every
        self._written = 0
        self._lock = threading.Lock()  # one connection, and a statement at a time on it
        with self._lock, database.cursor() as cursor:
            for statement in _TABLES:
                cursor.execute(statement)

    def write(self, records: Sequence[SpanRecord]) -> None:
        """Keep spans, in place of what is kept of them."""
        rows = _rows_of(records)
        with self._lock, self._database.cursor() as cursor:
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                part = rows[first : first + _ROWS_AT_ONCE]
                cursor.execute(_upsert(self._database.mark, len(part)), [value for row in part for value in row])
            self._written += len(rows)
            if self._written >= self._trim_every:
                self._written = 0
                self._trim(cursor)

    def spans(self, trace_id: str) -> list[SpanRecord]:
        """Return the spans of a trace, the first begun first."""
        rows = self._select("WHERE trace_id = {0} ORDER BY start_ns LIMIT {1}", trace_id, TRACE_SPAN_LIMIT)
        return [_record_of(row) for row in rows]

    def find(self, text: str) -> list[str]:
        """Return the traces that this names, the newest first."""
        wanted = text.removeprefix("sync-")
        prefix = _escape_like(wanted) + "%"
        conditions = ["trace_id = {0}", "job_id = {0}", "job_id = 'sync-' || {0}", "session_id = {0}"]
        values: list[Any] = [text]
        if len(wanted) >= _LEAST_PREFIX:
            conditions += [f"{name} LIKE {{1}} ESCAPE '!'" for name in ("trace_id", "job_id")]
            conditions.append("job_id LIKE 'sync-' || {1} ESCAPE '!'")
            values.append(prefix)
        for condition in conditions:  # what fits exactly goes before what only begins so
            if rows := self._select(f"WHERE {condition} ORDER BY start_ns DESC LIMIT 100", *values):
                return list(dict.fromkeys(str(row[0]) for row in rows))
        return []

    def latest(self, limit: int) -> list[TraceSummary]:
        """Return the traces that began last, the newest first."""
        tasks = ", ".join(f"'{each}'" for each in _TASKS)
        rows = self._select(f"WHERE op IN ({tasks}) ORDER BY start_ns DESC LIMIT {{0}}", max(1, limit) * 20)
        newest = list(dict.fromkeys(str(row[0]) for row in rows))[:limit]
        return [summary for trace_id in newest if (summary := summarize(self.spans(trace_id))) is not None]

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def _select(self, rest: str, *values: Any) -> list[Any]:
        """Return rows; `{0}` in the statement stands for the first value, as often as it is named."""
        import re

        used = [values[int(number)] for number in re.findall(r"\{(\d)\}", rest)]
        statement = re.sub(r"\{\d\}", self._database.mark, rest)
        if self._database.mark == "%s":
            statement = statement.replace("'%'", "'%%'")
        with self._lock, self._database.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(_COLUMNS)} FROM flashkit_spans {statement}", used)  # noqa: S608
            return list(cursor.fetchall())

    def _trim(self, cursor: Any) -> None:
        mark = self._database.mark
        cursor.execute(
            f"SELECT start_ns FROM flashkit_spans ORDER BY start_ns DESC LIMIT 1 OFFSET {mark}",  # noqa: S608
            (self._span_limit,),
        )
        if row := cursor.fetchone():
            cursor.execute(f"DELETE FROM flashkit_spans WHERE start_ns <= {mark}", (row[0],))  # noqa: S608


def summarize(records: Sequence[SpanRecord]) -> TraceSummary | None:
    """Return what a list says of a trace; None for one without spans."""
    if not records:
        return None
    ids = {record.span_id for record in records}
    tops = [record for record in records if record.parent_id not in ids] or list(records)
    top = min(tops, key=lambda record: (record.op not in _TASKS, record.start_ns))
    job = next((record for record in records if record.job_id), top)
    is_open = top.end_ns == 0
    return TraceSummary(
        top.trace_id, top.name, top.job_id or job.job_id, min(record.start_ns for record in records),
        0 if is_open else max(record.end_ns for record in records), len(records),
        top.error or next((record.error for record in records if record.error and record.op in _TASKS), ""),
    )  # fmt: skip


@cache
def _upsert(mark: str, count: int) -> str:
    """Return the statement that writes so many spans: one for all, as each has Python's lock change hands."""
    marks = f"({', '.join([mark] * len(_COLUMNS))})"
    changes = ", ".join(f"{name} = excluded.{name}" for name in _CHANGING)
    return (
        f"INSERT INTO flashkit_spans ({', '.join(_COLUMNS)}) VALUES {', '.join([marks] * count)} "  # noqa: S608
        f"ON CONFLICT (trace_id, span_id) DO UPDATE SET {changes} "
        "WHERE excluded.end_ns > 0 OR flashkit_spans.end_ns = 0"
    )


def _rows_of(records: Sequence[SpanRecord]) -> list[tuple[Any, ...]]:
    """Return a row for each span, the version that counts where there are several."""
    latest: dict[tuple[str, str], SpanRecord] = {}
    for record in records:
        key = (record.trace_id, record.span_id)
        if record.end_ns or not (key in latest and latest[key].end_ns):
            latest[key] = record
    return [_row_of(record) for record in latest.values()]


def _row_of(record: SpanRecord) -> tuple[Any, ...]:
    import orjson

    attributes = orjson.dumps(dict(record.attributes), option=orjson.OPT_NON_STR_KEYS, default=str).decode()
    texts = (record.name, record.op, record.error, record.service, record.worker_id, record.job_id)
    name, op, error, service, worker_id, job_id = (text.replace("\0", "") for text in texts)
    session_id = str(record.attributes.get("flashkit.session.id", "")).replace("\0", "") if record.job_id else ""
    return (
        record.trace_id, record.span_id, record.parent_id, name, op, record.start_ns, record.end_ns, error, service,
        worker_id, job_id, session_id, attributes.replace("\\u0000", ""),
    )  # fmt: skip


def _record_of(row: Sequence[Any]) -> SpanRecord:
    import orjson

    values: Mapping[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    kept = {name: values[name] for name in SpanRecord.__slots__ if name != "attributes"}
    return SpanRecord(**kept, attributes=orjson.loads(values["attributes"]))


def _escape_like(text: str) -> str:
    for each in ("!", "%", "_"):
        text = text.replace(each, f"!{each}")
    return text
