"""The owner's pen: everything one worker writes to one session goes through here, in order.

Records of steps that finish at the same time share one write. The lease is renewed while the handler
works. Once another worker has the session, or the store stays away past its budget, the writer is broken:
it refuses everything with that reason, so a superseded worker cannot do harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from flashkit.errors import FlashkitError, SessionError, StoreUnavailable
from flashkit.worker.sessions.records import Record
from flashkit.worker.sessions.store import Change, Durability, Lease, Store

log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3


@dataclass(slots=True)
class _Entry:
    """Records that wait to be written, and who waits for them."""

    records: tuple[Record, ...]
    change: Change | None
    written: asyncio.Future[None]


class Writer:
    """Commits records under one lease; one per opened session."""

    def __init__(self, store: Store, lease: Lease, *, on_lost: Callable[[], object]) -> None:
        self._store = store
        self._lease = lease
        self._on_lost = on_lost
        self._waiting: list[_Entry] = []
        self._is_writing = False
        self._at_rest: asyncio.Future[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._renew_later()
        self.broken: FlashkitError | None = None

    @property
    def lease(self) -> Lease:
        """The lease as the store last confirmed it."""
        return self._lease

    async def append(
        self, *records: Record, change: Change | None = None, durability: Durability = Durability.DEFAULT
    ) -> None:
        """Return once the records are in the store.

        Raises:
            SessionFenced: Another worker has the session.
            StoreUnavailable: The store stayed away for longer than its budget.
            PayloadTooLarge: A record is over its limit; the others of this write are in.
        """
        if self.broken is not None:
            raise self.broken
        if durability is not Durability.DEFAULT:
            change = change or Change(durability=durability)
        entry = _Entry(records, change, self._loop.create_future())
        self._waiting.append(entry)
        if not self._is_writing:
            self._write_next()
        await entry.written  # nobody else awaits it: a step that is cancelled here leaves the write alone

    async def close(self, *records: Record, change: Change | None = None) -> None:
        """Write the last records and change and give the lease back; quietly, if the session is lost."""
        self._stop_renewing()
        if self.broken is not None:
            return
        await self.append(*records, change=change or Change(release=True))

    async def abandon(self) -> None:
        """Give the lease back without writing anything."""
        self._stop_renewing()
        if self._is_writing:
            self._at_rest = self._loop.create_future()
            await self._at_rest
        if self.broken is None:
            await self._store.release(self._lease)

    def _write_next(self) -> None:
        """Write what waits, if anything does; in a task of its own where it takes more than sending it."""
        self._is_writing = bool(self._waiting)
        if self._waiting:
            batch = self._next_batch()
            if not self._send(batch):
                self._write_slowly(batch)
        elif self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    def _send(self, batch: list[_Entry]) -> bool:
        """Send a batch at once; False when it was not, for whatever reason."""
        records = [record for entry in batch for record in entry.records]
        try:
            return self._store.commit_soon(self._lease, records, batch[-1].change, partial(self._end_soon, batch))
        except Exception:  # noqa: BLE001 - `commit` meets it again, and tells everybody who waits
            return False

    def _end_soon(self, batch: list[_Entry], lease: Lease | None) -> None:
        if self.broken is not None:  # a renewal has found out meanwhile
            _refuse(batch, self.broken)
            self._write_next()
        elif lease is None:
            self._write_slowly(batch)
        else:
            self._lease = lease
            _let_go_on(batch)
            self._write_next()

    def _write_slowly(self, batch: list[_Entry]) -> None:
        self._writing = self._loop.create_task(self._write_and_go_on(batch))

    async def _write_and_go_on(self, batch: list[_Entry]) -> None:
        try:
            await self._write(batch)
        finally:
            self._write_next()

    def _next_batch(self) -> list[_Entry]:
        """Return the entries up to and including the first that changes more than the journal."""
        if len(self._waiting) == 1:
            batch, self._waiting = self._waiting, []
            return batch
        size = next((i + 1 for i, entry in enumerate(self._waiting) if entry.change is not None), len(self._waiting))
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch

    async def _write(self, batch: Sequence[_Entry]) -> None:
        records = [record for entry in batch for record in entry.records]
        try:
            self._lease = await self._store.commit(self._lease, records, batch[-1].change)
        except Exception as exc:
            if not isinstance(exc, FlashkitError):
                log.exception("session %s could not be written", self._lease.session)
                exc = StoreUnavailable(f"session {self._lease.session!r} could not be written: {exc!r}")
            if len(batch) > 1 and not _is_lost(exc):
                for entry in batch:  # one of them cannot be written; the others can
                    await self._write([entry])
            elif _is_lost(exc):
                self._lose(exc, batch)
            else:
                _refuse(batch, exc)
        else:
            _let_go_on(batch)

    def _lose(self, exc: FlashkitError, batch: Sequence[_Entry] = ()) -> None:
        is_first = self.broken is None
        self.broken = self.broken or exc
        self._stop_renewing()
        waiting, self._waiting = self._waiting, []
        if is_first:
            self._on_lost()
        _refuse([*batch, *waiting], exc)

    def _renew_later(self) -> None:
        self._timer = self._loop.call_later(self._lease.ttl_s / RENEWALS_PER_LEASE, self._start_renewing)

    def _start_renewing(self) -> None:
        self._renewing = self._loop.create_task(self._renew())

    def _stop_renewing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None and self._renewing is not asyncio.current_task():
            self._renewing.cancel()

    async def _renew(self) -> None:
        """Start the lease anew. Writes may go on meanwhile: of the answer, only the time counts."""
        try:
            renewed = await self._store.renew(self._lease)
        except FlashkitError as exc:
            log.warning("session %s: %s", self._lease.session, exc)
            self._lose(exc)
            return
        lease = self._lease
        deadline = max(lease.deadline, renewed.deadline)
        self._lease = lease.moved(seq=lease.seq, last_crc=lease.last_crc, deadline=deadline, pending=renewed.pending)
        self._renew_later()


def _let_go_on(entries: Sequence[_Entry]) -> None:
    """Let the steps know that wait for these entries."""
    for entry in entries:
        if not entry.written.done():
            entry.written.set_result(None)


def _refuse(entries: Sequence[_Entry], exc: FlashkitError) -> None:
    """Let the steps fail that wait for these entries."""
    for entry in entries:
        if not entry.written.done():
            entry.written.set_exception(exc)
            entry.written.exception()  # looked at, also when the step that waits was cancelled meanwhile


def _is_lost(exc: FlashkitError) -> bool:
    """True when nothing more can be written under this lease."""
    return not isinstance(exc, SessionError) or exc.code not in ("payload_too_large",)
