"""The tables of sessions in a SQLite file, and the transactions on them: plain calls, for one thread.

Each public method is one transaction and mirrors one Lua script of the Redis store; `head` has the same
fields as its hash. The file is in WAL mode, so several processes of one machine share it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from flashkit.worker.sessions.packing import Packed, rewritten_fields
from flashkit.worker.sessions.records import Sealed
from flashkit.worker.sessions.refusals import (
    attempts_used_up,
    blocked,
    fenced,
    inbox_full,
    journal_lost,
    journal_too_long,
    not_found,
    session_too_large,
    still_held,
)
from flashkit.worker.sessions.sqlite_file import SqliteFile
from flashkit.worker.sessions.store import Change, Durability, Lease, Limits, Raw, Status

_PARTS: Final = ("journal", "snapshot", "history", "inbox", "answer", "blob", "event", "head")
_REMEMBERED_MESSAGES: Final = 64
_KEPT_EVENTS: Final = 1000
_EVENTS_LIFETIME_MS: Final = 600_000
_SWEPT_AT_ONCE: Final = 20

Row = Mapping[str, Any]


class Tables:
    """The sessions of one namespace in one file."""

    def __init__(self, file: SqliteFile, namespace: str, limits: Limits, now_ms: Callable[[], int]) -> None:
        self._file = file
        self._ns = namespace
        self._limits = limits
        self._now = now_ms

    def version(self) -> str:
        """Return the version of SQLite, having written to the file once."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM claim WHERE expires < ?", (self._now(),))
        return sqlite3.sqlite_version

    def acquire(
        self,
        session: str,
        owner: str,
        *,
        incarnation: str,
        nonce: str,
        ttl_ms: int,
        retain_ms: int,
        witness: int | None,
        max_attempts: int,
        unblock: bool,
        info: bytes,
    ) -> tuple[bool, int, Row]:
        """Return whether the lease was taken, the time, and the head before that."""
        with self._file.transaction() as db:
            now = self._now()
            self._sweep(db, now)
            found = self._head(db, session) or {}
            is_held = found.get("owner") not in ("", None, owner) and found["until"] > now
            if is_held and found["hb"] != witness:
                return False, now, found
            if found.get("status") == Status.BLOCKED and not unblock:
                raise blocked(session, found["err"])
            attempts = 0 if unblock else found.get("attempts", 0)
            reason = attempts_used_up(attempts, found.get("owner", "")) if attempts >= max_attempts else None
            if not found:
                self._begin(db, session, incarnation, now=now, retain_ms=retain_ms, status=Status.RUNNING)
            fields = {"updated": now, "expires": now + found.get("keep", retain_ms)}
            if reason is not None:
                self._set(db, session, {**fields, "status": Status.BLOCKED.value, "err": reason})
            else:
                ended = found.get("status") in (Status.DONE, Status.FAILED)
                fields |= {"fence": found.get("fence", 0) + 1, "nonce": nonce, "owner": owner, "until": now + ttl_ms}
                fields |= {"hb": found.get("hb", 0) + 1, "ttl": ttl_ms, "attempts": attempts + 1}
                fields |= {"info": info} if info else {}
                self._set(db, session, fields if ended else {**fields, "status": Status.RUNNING.value})
        if reason is not None:
            raise blocked(session, reason)
        return True, now, found

    def commit(self, lease: Lease, packed: Packed, change: Change) -> int:
        """Apply a commit and return how many messages wait in the inbox."""
        with self._file.transaction(is_synced=change.durability is not Durability.DEFAULT) as db:
            now = self._now()
            head = self._require_mine(db, lease)
            n = len(packed.records)
            until = 0 if change.release else now + round(lease.ttl_s * 1000)
            renewed: dict[str, Any] = {"until": until, "hb": head["hb"] + 1}
            known = head["seq"] - lease.seq
            if known and not _is_applied(head, packed, known):
                raise journal_lost(lease, head["seq"])
            records = packed.records[known:]
            unused = self._unused_blobs(db, lease.session, change) if head["bb"] else {}
            sizes = self._sizes(db, {**head, "bb": head["bb"] - sum(unused.values())}, records, packed.snapshot, change)
            place = (self._ns, lease.session)
            db.executemany(
                "INSERT INTO journal VALUES (?, ?, ?, ?)",
                [(*place, seq, record.data) for seq, record in enumerate(records, head["seq"] + 1)],
            )
            db.executemany(
                "DELETE FROM blob WHERE ns = ? AND sid = ? AND name = ?", [(*place, name) for name in unused]
            )
            if packed.snapshot is not None and change.snapshot is not None:
                sizes |= self._write_snapshot(db, lease, head, packed.snapshot, change)
                renewed |= {"snap": lease.seq + n, "turn": change.snapshot.turn}
            consumed = head["inbox"]
            if change.consumed is not None:
                consumed = max(consumed, min(change.consumed, head["posted"]))
                db.execute("DELETE FROM inbox WHERE ns = ? AND sid = ? AND position <= ?", (*place, consumed))
            self._write_answers(db, lease.session, packed.answers)
            if packed.makes_progress:
                renewed["attempts"] = 0
            named = dict(packed.fields)
            renewed |= {"seq": lease.seq + n, "last": packed.last_crc, "inbox": consumed, "updated": now}
            renewed["expires"] = now + int(named.get("keep") or head["keep"])
            self._set(db, lease.session, {**renewed, **sizes, **named})
            return int(head["posted"] - consumed)

    def renew(self, lease: Lease) -> int:
        """Start a lease anew and return how many messages wait."""
        with self._file.transaction() as db:
            head, now = self._require_mine(db, lease), self._now()
            until = now + round(lease.ttl_s * 1000)
            self._set(db, lease.session, {"until": until, "hb": head["hb"] + 1, "expires": max(head["expires"], until)})
            return int(head["posted"] - head["inbox"])

    def release(self, lease: Lease) -> None:
        """Give a lease back, if it is still held."""
        with self._file.transaction() as db:
            head = self._head(db, lease.session)
            if head is not None and _is_mine(head, lease) and head["until"]:
                self._set(db, lease.session, {"until": 0, "attempts": max(0, head["attempts"] - 1)})

    def head(self, session: str) -> Row | None:
        """Return a session's head."""
        with self._file.transaction(is_read=True) as db:
            return self._head(db, session)

    def load(self, session: str) -> tuple[Row, bytes | None, list[tuple[int, bytes]]]:
        """Return head, snapshot and journal as of one moment."""
        with self._file.transaction(is_read=True) as db:
            head = self._head(db, session)
            if head is None:
                raise not_found(session)
            snapshot = self._one(db, "SELECT data FROM snapshot WHERE ns = ? AND sid = ?", session)
            rows = db.execute(
                "SELECT seq, data FROM journal WHERE ns = ? AND sid = ? ORDER BY seq", (self._ns, session)
            )
            return head, snapshot, [(row["seq"], row["data"]) for row in rows]

    def past(self, session: str) -> tuple[str, list[bytes]]:
        """Return the incarnation, and the snapshots of earlier turns."""
        with self._file.transaction(is_read=True) as db:
            head = self._head(db, session)
            rows = db.execute("SELECT data FROM history WHERE ns = ? AND sid = ?", (self._ns, session))
            return (head["inc"] if head else ""), [row["data"] for row in rows]

    def export(
        self, session: str
    ) -> tuple[Row, bytes | None, list[tuple[int, bytes]], dict[int, bytes], dict[str, bytes]]:
        """Return head, snapshot, journal, earlier snapshots and blobs as of one moment."""
        place = (self._ns, session)
        with self._file.transaction(is_read=True) as db:
            head = self._head(db, session)
            if head is None:
                raise not_found(session)
            snapshot = self._one(db, "SELECT data FROM snapshot WHERE ns = ? AND sid = ?", session)
            journal = db.execute("SELECT seq, data FROM journal WHERE ns = ? AND sid = ? ORDER BY seq", place)
            history = db.execute("SELECT turn, data FROM history WHERE ns = ? AND sid = ?", place)
            blobs = db.execute("SELECT name, data FROM blob WHERE ns = ? AND sid = ?", place)
            return head, snapshot, [tuple(row) for row in journal], dict(map(tuple, history)), dict(map(tuple, blobs))

    def rewrite(self, lease: Lease, raw: Raw) -> None:
        """Put other data in the place of a session's own, and give the lease back."""
        place = (self._ns, lease.session)
        with self._file.transaction(is_synced=True) as db:
            head = self._require_mine(db, lease)
            if head["seq"] != lease.seq:
                raise journal_lost(lease, head["seq"])
            for table in ("journal", "snapshot", "history"):
                db.execute(f"DELETE FROM {table} WHERE ns = ? AND sid = ?", place)  # noqa: S608 - our own
            db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?)", [(*place, *pair) for pair in raw.journal])
            if raw.snapshot is not None:
                db.execute("INSERT INTO snapshot VALUES (?, ?, ?)", (*place, raw.snapshot))
            history = [(*place, *pair) for pair in raw.history.items()]
            db.executemany("INSERT INTO history VALUES (?, ?, ?, ?)", history)
            blobs = [(*place, *pair) for pair in raw.blobs.items()]
            db.executemany("INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?)", blobs)
            now = self._now()
            counted = "SELECT coalesce(sum(length(data)), 0) FROM blob WHERE ns = ? AND sid = ?"
            sizes = {
                "jb": sum(len(data) for _, data in raw.journal),
                "sb": len(raw.snapshot or b""),
                "hs": sum(map(len, raw.history.values())),
                "bb": self._one(db, counted, lease.session),
            }
            state = {"until": 0, "hb": head["hb"] + 1, "attempts": 0, "updated": now, "expires": now + head["keep"]}
            self._set(db, lease.session, {**state, **sizes, **rewritten_fields(raw.head)})

    def latest(self, limit: int, before_ms: int | None) -> list[Row]:
        """Return heads, the last changed first."""
        return self._heads(
            "updated < ? ORDER BY updated DESC, created DESC", 2**62 if before_ms is None else before_ms, limit
        )

    def due(self, limit: int) -> list[Row]:
        """Return heads of running sessions without a lease, and of waiting ones whose time is over."""
        at = "CASE status WHEN 'running' THEN until WHEN 'waiting' THEN nullif(due, 0) END"
        return self._heads(f"{at} <= ? ORDER BY {at}", self._now(), limit)

    def delete(self, session: str, *, force: bool) -> bool:
        """Remove a session; False when there is none."""
        with self._file.transaction() as db:
            head, now = self._head(db, session), self._now()
            if head is None:
                return False
            if head["until"] > now and not force:
                raise still_held(session, head["owner"], (head["until"] - now) / 1000)
            self._remove(db, session)
            return True

    def post(
        self, session: str, message_id: str, body: bytes, *, event: str, incarnation: str, retain_ms: int
    ) -> tuple[Row, Row]:
        """Return the message's entry among the answers (without a body if it is new), and the head."""
        with self._file.transaction() as db:
            now = self._now()
            head = self._head(db, session)
            known = db.execute(
                "SELECT position, body FROM answer WHERE ns = ? AND sid = ? AND id = ?", (self._ns, session, message_id)
            ).fetchone()
            if known is not None and head is not None:
                return {"position": known["position"], "body": known["body"], "is_new": False}, head
            waiting = head["posted"] - head["inbox"] + head["unread"] if head else 0
            is_awaited = bool(event) and head is not None and head["awaits"] == event
            if waiting >= self._limits.inbox_messages and not is_awaited:
                raise inbox_full(session, waiting, self._limits.inbox_messages)
            if head is None:
                self._begin(db, session, incarnation, now=now, retain_ms=retain_ms, status=Status.IDLE)
            position = head["posted"] + 1 if head else 1
            db.execute("INSERT INTO inbox VALUES (?, ?, ?, ?, ?)", (self._ns, session, position, message_id, body))
            db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, NULL)", (self._ns, session, message_id, position))
            oldest = min(position - _REMEMBERED_MESSAGES, head["inbox"] if head else 0)
            db.execute("DELETE FROM answer WHERE ns = ? AND sid = ? AND position <= ?", (self._ns, session, oldest))
            expires = now + (head["keep"] if head else retain_ms)
            self._set(db, session, {"posted": position, "updated": now, "expires": expires})
            if is_awaited:  # it is there: the next one counts as any other
                self._set(db, session, {"awaits": ""})
            return {"position": position, "body": None, "is_new": True}, self._head(db, session) or {}

    def inbox(self, session: str) -> list[tuple[int, str, bytes]]:
        """Return position, id and body of the messages that wait."""
        with self._file.transaction(is_read=True) as db:
            rows = db.execute(
                "SELECT position, id, body FROM inbox WHERE ns = ? AND sid = ? ORDER BY position", (self._ns, session)
            )
            return [(row["position"], row["id"], row["body"]) for row in rows]

    def put_blob(self, session: str, name: str, data: bytes) -> None:
        """Store a large value, once."""
        with self._file.transaction() as db:
            head = self._head(db, session)
            if head is None:
                raise not_found(session)
            if self._one(db, "SELECT 1 FROM blob WHERE ns = ? AND sid = ? AND name = ?", session, name) is not None:
                return
            total = head["jb"] + head["sb"] + head["hs"] + head["bb"] + len(data)
            if total > self._limits.session_bytes:
                raise session_too_large(session, total, self._limits.session_bytes)
            db.execute("INSERT INTO blob VALUES (?, ?, ?, ?)", (self._ns, session, name, data))
            self._set(db, session, {"bb": head["bb"] + len(data)})

    def get_blob(self, session: str, name: str) -> bytes | None:
        """Return a large value as stored."""
        with self._file.transaction(is_read=True) as db:
            data: bytes | None = self._one(
                db, "SELECT data FROM blob WHERE ns = ? AND sid = ? AND name = ?", session, name
            )
            return data

    def claim(self, key: str, holder: str, *, lease_ms: int, keep_ms: int) -> tuple[bool, str, bytes | None]:
        """Return whether the key is the caller's, its holder, and its result."""
        with self._file.transaction() as db:
            now = self._now()
            found = self._claim(db, key, now)
            if found is not None and found["result"] is not None:
                return False, found["holder"], found["result"]
            if found is not None and found["holder"] != holder and found["until"] > now:
                return False, found["holder"], None
            values = (self._ns, key, holder, now + lease_ms, now + keep_ms)
            db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, NULL, ?)", values)
            return True, holder, None

    def settle(self, key: str, holder: str, result: bytes, *, keep_ms: int) -> bool:
        """Write the result of a claimed key."""
        with self._file.transaction() as db:
            now = self._now()
            found = self._claim(db, key, now)
            if found is None or found["holder"] != holder:
                return False
            db.execute(
                "UPDATE claim SET result = coalesce(result, ?), expires = ? WHERE ns = ? AND key = ?",
                (result, now + keep_ms, self._ns, key),
            )
            return True

    def unclaim(self, key: str, holder: str) -> bool:
        """Give a key back that has no result."""
        with self._file.transaction() as db:
            done = db.execute(
                "DELETE FROM claim WHERE ns = ? AND key = ? AND holder = ? AND result IS NULL", (self._ns, key, holder)
            )
            return done.rowcount == 1

    def emit(self, session: str, bodies: Sequence[bytes]) -> None:
        """Append events and drop old ones."""
        with self._file.transaction() as db:
            expires = self._now() + _EVENTS_LIFETIME_MS
            for body in bodies:
                last = db.execute("INSERT INTO event VALUES (NULL, ?, ?, ?, ?)", (self._ns, session, body, expires))
            db.execute(
                "DELETE FROM event WHERE ns = ? AND sid = ? AND number <= "
                "(SELECT number FROM event WHERE ns = ? AND sid = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (self._ns, session, self._ns, session, _KEPT_EVENTS),
            )
            db.execute("DELETE FROM event WHERE expires < ? AND number < ?", (self._now(), last.lastrowid))

    def events(self, session: str, after: int) -> list[tuple[int, bytes]]:
        """Return number and body of later events."""
        with self._file.transaction(is_read=True) as db:
            rows = db.execute(
                "SELECT number, body FROM event WHERE ns = ? AND sid = ? AND number > ? AND expires >= ? "
                "ORDER BY number LIMIT ?",
                (self._ns, session, after, self._now(), _KEPT_EVENTS),
            )
            return [(row["number"], row["body"]) for row in rows]

    def _head(self, db: sqlite3.Connection, session: str) -> Row | None:
        """Return the row of a session that has not expired."""
        row = db.execute("SELECT * FROM head WHERE ns = ? AND sid = ?", (self._ns, session)).fetchone()
        return dict(row) if row is not None and row["expires"] >= self._now() else None

    def _heads(self, condition: str, value: int, limit: int) -> list[Row]:
        with self._file.transaction(is_read=True) as db:
            rows = db.execute(
                f"SELECT * FROM head WHERE ns = ? AND expires >= ? AND {condition} LIMIT ?",  # noqa: S608 - our words
                (self._ns, self._now(), value, limit),
            )
            return [dict(row) for row in rows]

    def _require_mine(self, db: sqlite3.Connection, lease: Lease) -> Row:
        head = self._head(db, lease.session)
        if head is None:
            raise fenced(lease, "", "", "")
        if not _is_mine(head, lease):
            raise fenced(lease, head["inc"], str(head["fence"]), head["owner"])
        return head

    def _begin(
        self, db: sqlite3.Connection, session: str, incarnation: str, *, now: int, retain_ms: int, status: Status
    ) -> None:
        self._remove(db, session)  # one with this id may have expired
        db.execute(
            "INSERT INTO head (ns, sid, inc, status, created, updated, keep, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._ns, session, incarnation, status.value, now, now, retain_ms, now + retain_ms),
        )

    def _set(self, db: sqlite3.Connection, session: str, fields: Mapping[str, Any]) -> None:
        names = ", ".join(f"{name} = ?" for name in fields)
        db.execute(
            f"UPDATE head SET {names} WHERE ns = ? AND sid = ?",  # noqa: S608 - our own column names
            (*fields.values(), self._ns, session),
        )

    def _remove(self, db: sqlite3.Connection, session: str) -> None:
        for table in _PARTS:
            db.execute(f"DELETE FROM {table} WHERE ns = ? AND sid = ?", (self._ns, session))  # noqa: S608 - our own

    def _sweep(self, db: sqlite3.Connection, now: int) -> None:
        """Remove a few sessions and claims of this namespace that have expired; Redis does that by itself."""
        rows = db.execute("SELECT sid FROM head WHERE expires < ? AND ns = ? LIMIT ?", (now, self._ns, _SWEPT_AT_ONCE))
        for row in rows.fetchall():
            self._remove(db, row["sid"])

    def _sizes(
        self,
        db: sqlite3.Connection,
        head: Row,
        records: Sequence[Sealed],
        snapshot: bytes | None,
        change: Change,
    ) -> dict[str, Any]:
        """Return the head's counts of bytes after a commit. Raises `PayloadTooLarge`."""
        trims = snapshot is not None and change.trim
        if records and not trims:
            limit = self._limits.journal_records
            kept = self._one(db, "SELECT count(*) FROM journal WHERE ns = ? AND sid = ?", head["sid"])
            if kept + len(records) > limit:
                raise journal_too_long(head["sid"], limit)
        added = sum(len(record.data) for record in records)
        sizes = {"jb": 0 if trims else head["jb"] + added, "sb": head["sb"], "hs": head["hs"], "bb": head["bb"]}
        if snapshot is not None:
            sizes["sb"] = len(snapshot)
            if _archives(head, change):
                sizes["hs"] += head["sb"]
        total = sum(sizes.values())
        if total > self._limits.session_bytes:
            raise session_too_large(head["sid"], total, self._limits.session_bytes)
        return sizes

    def _unused_blobs(self, db: sqlite3.Connection, session: str, change: Change) -> dict[str, int]:
        """Return names and sizes of what a change leaves unused, also of a worker that died before its record."""
        if change.blobs is None or change.snapshot is None or not change.trim:
            return {}
        rows = db.execute("SELECT name, length(data) FROM blob WHERE ns = ? AND sid = ?", (self._ns, session))
        return {name: size for name, size in rows if name not in change.blobs}

    def _write_snapshot(
        self, db: sqlite3.Connection, lease: Lease, head: Row, data: bytes, change: Change
    ) -> dict[str, Any]:
        """Replace the snapshot, and return the bytes of history if they changed."""
        place = (self._ns, lease.session)
        sizes = {}
        if _archives(head, change):
            db.execute(
                "INSERT OR REPLACE INTO history SELECT ns, sid, ?, data FROM snapshot WHERE ns = ? AND sid = ?",
                (head["turn"], *place),
            )
            db.execute(
                "DELETE FROM history WHERE ns = ? AND sid = ? AND turn NOT IN "
                "(SELECT turn FROM history WHERE ns = ? AND sid = ? ORDER BY turn DESC LIMIT ?)",
                (*place, *place, change.history),
            )
            counted = "SELECT coalesce(sum(length(data)), 0) FROM history WHERE ns = ? AND sid = ?"
            sizes["hs"] = self._one(db, counted, lease.session)
        db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (*place, data))
        if change.trim:
            db.execute("DELETE FROM journal WHERE ns = ? AND sid = ?", place)
        return sizes

    def _write_answers(self, db: sqlite3.Connection, session: str, answers: Sequence[tuple[str, bytes]]) -> None:
        db.executemany(
            "INSERT INTO answer VALUES (?, ?, ?, 0, ?) ON CONFLICT (ns, sid, id) DO UPDATE SET body = excluded.body",
            [(self._ns, session, message_id, body) for message_id, body in answers],
        )

    def _claim(self, db: sqlite3.Connection, key: str, now: int) -> Row | None:
        row: Row | None = db.execute(
            "SELECT * FROM claim WHERE ns = ? AND key = ? AND expires >= ?", (self._ns, key, now)
        ).fetchone()
        return row

    def _one(self, db: sqlite3.Connection, query: str, *values: Any) -> Any:
        """Return the only value of the only row; None without one."""
        row = db.execute(query, (self._ns, *values)).fetchone()
        return None if row is None else row[0]


def _is_mine(head: Row, lease: Lease) -> bool:
    return (head["inc"], head["fence"], head["nonce"]) == (lease.incarnation, lease.fence, lease.nonce)


def _is_applied(head: Row, packed: Packed, known: int) -> bool:
    """True when the journal ends with the first so many records of a commit, whose answer was lost then."""
    return 0 < known <= len(packed.records) and head["last"] == packed.records[known - 1].crc


def _archives(head: Row, change: Change) -> bool:
    """True when a new snapshot sends the present one into the history."""
    snapshot = change.snapshot
    return snapshot is not None and change.history > 0 and head["sb"] > 0 and head["turn"] != snapshot.turn
