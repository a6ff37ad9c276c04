"""Sessions in a SQLite file: the same contract as in Redis, for one machine and without a server.

Transactions run in the store's own thread. A commit survives the death of every process at once; with
`Durability.FSYNC` it is on disk before it is acknowledged, so it survives the machine too.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from flashkit.errors import StoreMisconfigured
from flashkit.worker.sessions.packing import Packer, make_head, make_lease
from flashkit.worker.sessions.records import Keyring, Record, Snapshot
from flashkit.worker.sessions.refusals import require_size
from flashkit.worker.sessions.sqlite_file import Patience, SqliteFile
from flashkit.worker.sessions.sqlite_tables import Row, Tables
from flashkit.worker.sessions.store import (
    DAY_S,
    NO_CHANGE,
    Busy,
    Change,
    Claim,
    Durability,
    Event,
    Head,
    Image,
    Lease,
    Limits,
    Message,
    Posted,
    Raw,
    Status,
    Stored,
    StoreReport,
    require_session_id,
)

P = ParamSpec("P")
T = TypeVar("T")

_POLL_S: Final = 0.05


def wall_clock_ms() -> int:
    """Return the machine's time, which is the store's: all its workers are on one machine."""
    return time.time_ns() // 1_000_000


class SqliteStore:
    """The sessions of one namespace in one file."""

    def __init__(
        self,
        path: Path,
        *,
        namespace: str = "default",
        keyring: Keyring | None = None,
        limits: Limits | None = None,
        budget_s: float = 30.0,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.namespace = namespace
        self.limits = limits or Limits()
        self.keyring = keyring
        self._packer = Packer(namespace, keyring, self.limits)
        self._budget_s = budget_s
        self._file = SqliteFile(path)
        self._tables = Tables(self._file, namespace, self.limits, now_ms)
        self._now = now_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")

    def __repr__(self) -> str:
        return f"<sessions {self.namespace!r} in {self._file.path}>"

    async def check(self, *, budget_s: float = 5.0) -> StoreReport:
        """Return what the store is, or raise; see `Store.check`."""
        version = await self._run_within(budget_s, self._tables.version)
        return StoreReport(f"sqlite {version}")

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._file.close)
        self._thread.shutdown()

    async def acquire(
        self,
        session: str,
        owner: str,
        *,
        ttl_s: float = 15.0,
        retain_s: float = 7 * DAY_S,
        witness: int | None = None,
        max_attempts: int = 5,
        unblock: bool = False,
        info: bytes = b"",
        with_data: bool = False,
    ) -> Lease | Busy:
        """Take the session, or say who has it; see `Store.acquire`."""
        require_session_id(session)
        incarnation, nonce = secrets.token_hex(8), secrets.token_hex(8)
        asked = time.monotonic()
        taken, now, found = await self._run(
            self._tables.acquire,
            session,
            owner,
            incarnation=incarnation,
            nonce=nonce,
            ttl_ms=round(ttl_s * 1000),
            retain_ms=round(retain_s * 1000),
            witness=witness,
            max_attempts=max_attempts,
            unblock=unblock,
            info=info,
        )
        if not taken:
            left_s = (found["until"] - now) / 1000
            return Busy(session, found["owner"], left_s, found["hb"], found["fence"], found["ttl"] / 1000)
        return make_lease(
            session,
            found,
            owner,
            now_ms=now,
            incarnation=incarnation,
            fence=found.get("fence", 0) + 1,
            nonce=nonce,
            ttl_s=ttl_s,
            asked=asked,
            stored=Stored(*(await self._run(self._tables.load, session))[1:]) if with_data else None,
        )

    async def commit(self, lease: Lease, records: Sequence[Record] = (), change: Change | None = None) -> Lease:
        """Append records and apply a change in one write, all or nothing; see `Store.commit`."""
        change = change or NO_CHANGE
        if change.durability is Durability.REPLICA:
            raise StoreMisconfigured(
                "durability='replica' needs a store with replicas, and this one is a SQLite file",
                hint="use durability='fsync' here",
            )
        packed = await self._packer.pack(lease, records, change)
        asked = time.monotonic()
        pending = await self._run(self._tables.commit, lease, packed, change)
        return lease.moved(
            seq=lease.seq + len(packed.records),
            last_crc=packed.last_crc,
            deadline=asked if change.release else asked + lease.ttl_s,
            pending=pending,
        )

    def commit_soon(
        self, lease: Lease, records: Sequence[Record], change: Change | None, then: Callable[[Lease | None], object]
    ) -> bool:
        """Return False: a file's transactions take a thread; see `Store.commit_soon`."""
        return False

    async def renew(self, lease: Lease) -> Lease:
        """Start the lease anew."""
        asked = time.monotonic()
        pending = await self._run(self._tables.renew, lease)
        return lease.moved(seq=lease.seq, last_crc=lease.last_crc, deadline=asked + lease.ttl_s, pending=pending)

    async def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens if it was lost."""
        await self._run(self._tables.release, lease)

    async def head(self, session: str) -> Head | None:
        """Return what is known of a session, None when there is none."""
        row = await self._run(self._tables.head, require_session_id(session))
        return make_head(session, row, self._now()) if row is not None else None

    async def load(self, session: str, *, strict: bool = True, lease: Lease | None = None) -> Image:
        """Return the session's data; see `Store.load`."""
        if lease is not None and lease.stored is not None:
            return await self._packer.open_image(lease.head, lease.stored, strict=strict)
        row, snapshot, entries = await self._run(self._tables.load, require_session_id(session))
        head = make_head(session, row, self._now())
        return await self._packer.open_image(head, Stored(snapshot, entries), strict=strict)

    async def past(self, session: str) -> tuple[Snapshot, ...]:
        """Return the snapshots of earlier turns that were kept, oldest first."""
        incarnation, stored = await self._run(self._tables.past, require_session_id(session))
        return self._packer.open_past(session, incarnation, stored)

    async def export(self, session: str) -> Raw:
        """Return the session's data as stored."""
        row, snapshot, journal, history, blobs = await self._run(self._tables.export, require_session_id(session))
        return Raw(make_head(session, row, self._now()), tuple(journal), snapshot, history, blobs)

    async def rewrite(self, lease: Lease, raw: Raw) -> None:
        """Put other data in the place of a session's own; see `Store.rewrite`."""
        await self._run(self._tables.rewrite, lease, raw)

    async def sessions(self, *, limit: int = 100, before_ms: int | None = None) -> list[Head]:
        """Return sessions, the last changed first."""
        return self._heads(await self._run(self._tables.latest, limit, before_ms))

    async def due(self, *, limit: int = 100) -> list[Head]:
        """Return sessions that would go on if a job came, the longest due first; see `Store.due`."""
        return self._heads(await self._run(self._tables.due, limit))

    async def delete(self, session: str, *, force: bool = False) -> bool:
        """Remove a session and all its data; see `Store.delete`."""
        return await self._run(self._tables.delete, require_session_id(session), force=force)

    async def post(
        self, session: str, message_id: str, body: bytes, *, event: str = "", retain_s: float = 7 * DAY_S
    ) -> Posted:
        """Put a message into the session's inbox, once per id; see `Store.post`."""
        require_size(f"message {message_id!r}", body, self.limits.message_bytes)
        sealed = self._packer.seal_message(require_session_id(session), message_id, body)
        entry, row = await self._run(
            self._tables.post,
            session,
            message_id,
            sealed,
            event=event,
            incarnation=secrets.token_hex(8),
            retain_ms=round(retain_s * 1000),
        )
        stored = entry["body"]
        return Posted(
            position=entry["position"],
            duplicate=not entry["is_new"],
            answer=None if stored is None else self._packer.open_message(session, message_id, stored),
            pending=row["posted"] - row["inbox"],
            status=Status(row["status"]),
        )

    async def inbox(self, session: str) -> list[Message]:
        """Return the messages that were not consumed, in order."""
        rows = await self._run(self._tables.inbox, require_session_id(session))
        return [
            Message(position, name, self._packer.open_message(session, name, body)) for position, name, body in rows
        ]

    async def put_blob(self, session: str, data: bytes) -> str:
        """Store bytes with the session, by content, and return their name."""
        name, sealed = await self._packer.seal_blob(require_session_id(session), data)
        await self._run(self._tables.put_blob, session, name, sealed)
        return name

    async def get_blob(self, session: str, name: str) -> bytes:
        """Return a blob."""
        stored = await self._run(self._tables.get_blob, require_session_id(session), name)
        return await self._packer.open_blob(session, name, stored)

    async def claim(self, key: str, holder: str, *, lease_s: float = 60.0, keep_s: float = DAY_S) -> Claim:
        """Claim an idempotency key for a job, or learn who has it and what came out."""
        mine, present, stored = await self._run(
            self._tables.claim, key, holder, lease_ms=round(lease_s * 1000), keep_ms=round(keep_s * 1000)
        )
        result = None if stored is None else self._packer.open_message(key, "claim", stored)
        return Claim(mine=mine, holder=present, result=result)

    async def settle(self, key: str, holder: str, result: bytes, *, keep_s: float = DAY_S) -> bool:
        """Write what came of a claimed key; False if it is no longer this holder's."""
        require_size("the result of an idempotent job", result, self.limits.record_bytes)
        sealed = self._packer.seal_message(key, "claim", result)
        return await self._run(self._tables.settle, key, holder, sealed, keep_ms=round(keep_s * 1000))

    async def unclaim(self, key: str, holder: str) -> bool:
        """Give a claimed key back without a result."""
        return await self._run(self._tables.unclaim, key, holder)

    async def emit(self, session: str, bodies: Sequence[bytes]) -> None:
        """Append token or progress events."""
        if bodies:
            await self._run(self._tables.emit, require_session_id(session), bodies)

    async def events(self, session: str, *, after: str = "0", wait_s: float = 0.0) -> list[Event]:
        """Return events after the one with this id, waiting for the first one if there is none."""
        deadline = time.monotonic() + wait_s
        while True:
            rows = await self._run(self._tables.events, require_session_id(session), int(after))
            if rows or time.monotonic() >= deadline:
                return [Event(str(number), body) for number, body in rows]
            await asyncio.sleep(_POLL_S)

    def _heads(self, rows: Sequence[Row]) -> list[Head]:
        return [make_head(row["sid"], row, self._now()) for row in rows]

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a transaction in the store's thread; it is carried out even if the caller is cancelled."""
        return await self._run_within(self._budget_s, function, *args, **kwargs)

    async def _run_within(self, budget_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a transaction that waits so long for other processes, from now on: those before it may wait too."""
        patience = Patience(budget_s)

        def work() -> T:
            self._file.patience = patience
            return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
