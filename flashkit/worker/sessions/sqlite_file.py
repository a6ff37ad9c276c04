"""The SQLite file of the embedded store: its schema, transactions on it, and its errors in our words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flashkit.errors import FlashkitError, StoreFull, StoreMisconfigured, StoreUnavailable

_SET_UP_PAUSE_S: Final = 0.005
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS head (
    ns TEXT, sid TEXT, inc TEXT NOT NULL, fence INTEGER NOT NULL DEFAULT 0, nonce TEXT, owner TEXT NOT NULL DEFAULT '',
    until INTEGER NOT NULL DEFAULT 0, hb INTEGER NOT NULL DEFAULT 0, ttl INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0, last INTEGER NOT NULL DEFAULT 0, snap INTEGER NOT NULL DEFAULT 0,
    turn INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT 'idle', err TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '', info BLOB NOT NULL DEFAULT x'', inbox INTEGER NOT NULL DEFAULT 0,
    posted INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, jb INTEGER NOT NULL DEFAULT 0,
    sb INTEGER NOT NULL DEFAULT 0, hs INTEGER NOT NULL DEFAULT 0, bb INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL, updated INTEGER NOT NULL, keep INTEGER NOT NULL, expires INTEGER NOT NULL,
    unread INTEGER NOT NULL DEFAULT 0, awaits TEXT NOT NULL DEFAULT '', due INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (ns, sid)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS head_expires ON head (expires);
CREATE TABLE IF NOT EXISTS journal (ns TEXT, sid TEXT, seq INTEGER, data BLOB, PRIMARY KEY (ns, sid, seq));
CREATE TABLE IF NOT EXISTS snapshot (ns TEXT, sid TEXT, data BLOB, PRIMARY KEY (ns, sid));
CREATE TABLE IF NOT EXISTS history (ns TEXT, sid TEXT, turn INTEGER, data BLOB, PRIMARY KEY (ns, sid, turn));
CREATE TABLE IF NOT EXISTS inbox (ns TEXT, sid TEXT, position INTEGER, id TEXT, body BLOB,
    PRIMARY KEY (ns, sid, position));
CREATE TABLE IF NOT EXISTS answer (ns TEXT, sid TEXT, id TEXT, position INTEGER, body BLOB, PRIMARY KEY (ns, sid, id));
CREATE TABLE IF NOT EXISTS blob (ns TEXT, sid TEXT, name TEXT, data BLOB, PRIMARY KEY (ns, sid, name));
CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY AUTOINCREMENT, ns TEXT, sid TEXT, body BLOB,
    expires INTEGER);
CREATE INDEX IF NOT EXISTS event_session ON event (ns, sid, number);
CREATE TABLE IF NOT EXISTS claim (ns TEXT, key TEXT, holder TEXT NOT NULL, until INTEGER NOT NULL, result BLOB,
    expires INTEGER NOT NULL, PRIMARY KEY (ns, key)) WITHOUT ROWID;
"""


_LATER_COLUMNS: Final = {
    "unread": "INTEGER NOT NULL DEFAULT 0",
    "awaits": "TEXT NOT NULL DEFAULT ''",
    "due": "INTEGER NOT NULL DEFAULT 0",
}
"""Columns of `head` that files of earlier versions lack."""


class Patience:
    """How long a transaction waits for other processes that have the file."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left of it, not less than none."""
        return max(0.0, self._until - time.monotonic())


class SqliteFile:
    """One file; it is opened by the first transaction, in the thread that makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.patience = Patience(0.0)
        """That of the next transactions."""
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def transaction(self, *, is_read: bool = False, is_synced: bool = False) -> Iterator[sqlite3.Connection]:
        """Give the connection within a transaction, which an exception undoes.

        Args:
            is_read: Do not wait for writers, nor hold them up.
            is_synced: Return only when the disk has it.
        """
        try:
            db = self._connect()
            db.execute(f"PRAGMA busy_timeout={round(self.patience.left_s * 1000)}")
            db.execute("PRAGMA synchronous=FULL" if is_synced else "PRAGMA synchronous=NORMAL")
            db.execute("BEGIN" if is_read else "BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except (sqlite3.Error, OSError) as exc:
            raise self._translate(exc) from exc

    def _connect(self) -> sqlite3.Connection:
        """Return the connection. SQLite's own waiting does not cover a file that two processes set up at once."""
        while self._db is None:
            try:
                self._db = self._open()
            except sqlite3.OperationalError as exc:
                if not exc.sqlite_errorname.startswith("SQLITE_BUSY") or not self.patience.left_s:
                    raise
                time.sleep(_SET_UP_PAUSE_S)
        return self._db

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=self.patience.left_s, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(_SCHEMA)
            _add_columns(db)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _translate(self, exc: Exception) -> FlashkitError:
        name = getattr(exc, "sqlite_errorname", "")
        what = f"the sessions' store {str(self.path)!r} cannot be used: {exc}"
        if name.startswith("SQLITE_FULL"):
            return StoreFull(what, hint="make room on the disk; nothing of this write was applied")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreUnavailable(
                f"the sessions' store {str(self.path)!r} could not be used within {self.patience.seconds:g} s: {exc}",
                hint="another process writes to the file all the time, or was stopped in the middle of a write: "
                "let it go on, or end it, and try again",
            )
        if name.startswith("SQLITE_IOERR"):
            return StoreUnavailable(what, hint="the disk fails; try again")
        return StoreMisconfigured(what, hint="check the file and its folder; FLASHKIT_STATE names another one")


def _add_columns(db: sqlite3.Connection) -> None:
    """Give `head` the columns that it lacks."""
    if not _missing_columns(db):
        return
    with db:
        db.execute("BEGIN IMMEDIATE")
        for name in _missing_columns(db):  # another process may have added them meanwhile
            db.execute(f"ALTER TABLE head ADD COLUMN {name} {_LATER_COLUMNS[name]}")


def _missing_columns(db: sqlite3.Connection) -> list[str]:
    present = {row["name"] for row in db.execute("PRAGMA table_info(head)")}
    return [name for name in _LATER_COLUMNS if name not in present]
