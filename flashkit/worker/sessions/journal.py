"""The journal of a session in an embedded store: one row a completed step, values as JSON text.

The store is SQLite (`sqlite:///path`), one file that several workers on one machine share. Every write is
durable before the call returns: the file is in WAL mode and each step is one transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from flashkit.errors import ConfigurationError, SessionError

T = TypeVar("T")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS steps (
    session TEXT NOT NULL,
    step TEXT NOT NULL,
    output BLOB NOT NULL,
    seconds REAL NOT NULL,
    written_at REAL NOT NULL,
    PRIMARY KEY (session, step)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A completed step: its key in the session, what it returned (JSON text), how long it took."""

    step: str
    output: bytes
    seconds: float


class Journal:
    """Completed steps of all sessions in one SQLite file. Its thread is the only one that uses the connection."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None

    async def read(self, session: str) -> dict[str, Record]:
        """Return the session's completed steps by key; empty for a session that is new."""
        return await self._run(self._read, session)

    async def write(self, session: str, record: Record) -> Record:
        """Write a completed step and return it; if another worker wrote it first, return that one."""
        return await self._run(self._write, session, record)

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._close)
        self._thread.shutdown()

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run one access in the journal's thread, with SQLite's errors translated."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, function, *arguments)
        except (sqlite3.Error, OSError) as exc:
            raise SessionError(
                f"the session journal {str(self._path)!r} cannot be used: {exc}",
                hint="check the disk and the file; FLASHKIT_STATE names another one",
            ) from exc

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=10.0, isolation_level=None)
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.execute(_SCHEMA)
            except sqlite3.Error:
                self._close()
                raise
        return self._connection

    def _read(self, session: str) -> dict[str, Record]:
        rows = self._connect().execute("SELECT step, output, seconds FROM steps WHERE session = ?", (session,))
        return {step: Record(step, output, seconds) for step, output, seconds in rows}

    def _write(self, session: str, record: Record) -> Record:
        connection = self._connect()
        connection.execute(
            "INSERT INTO steps VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (session, record.step, record.output, record.seconds, time.time()),
        )
        row = connection.execute(
            "SELECT step, output, seconds FROM steps WHERE session = ? AND step = ?", (session, record.step)
        ).fetchone()
        return Record(*row)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def open_journal(url: str) -> Journal:
    """Return the journal at a store's URL.

    Raises:
        ConfigurationError: The URL names a store that this version does not have.
    """
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite" or not separator or not path:
        raise ConfigurationError(f"FLASHKIT_STATE={url!r} is not a store", hint="write it as sqlite:///path/to/file.db")
    return Journal(Path(path))
