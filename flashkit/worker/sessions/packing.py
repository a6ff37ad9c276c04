"""What both stores do alike: bytes of a commit and back, their limits, and the head of a session."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from flashkit.errors import FlashkitError, RecordCorrupt, RecordKeyMissing, RecordTooNew
from flashkit.worker.sessions.records import (
    Keyring,
    Kind,
    Place,
    Record,
    Sealed,
    Snapshot,
    decode_record,
    decode_snapshot,
    encode_record,
    encode_snapshot,
    seal,
    unseal,
)
from flashkit.worker.sessions.refusals import damaged, require_size
from flashkit.worker.sessions.store import NO_CHANGE, Change, Head, Image, Lease, Limits, Status, Stored

OWN_THREAD_FROM_BYTES: Final = 64 << 10
"""Compressing or encrypting more than this would hold up the event loop."""
_BEGINNINGS: Final = frozenset((Kind.INTENT, Kind.TURN))
"""What is no progress: each attempt may begin a turn or an effect anew."""


class Packed(NamedTuple):
    """A commit as the store writes it."""

    records: tuple[Sealed, ...]
    last_crc: int
    snapshot: bytes | None
    answers: tuple[tuple[str, bytes], ...]
    fields: tuple[tuple[str, str | bytes | int], ...]
    """What the change sets in the session's head, by the names of `make_head`."""
    makes_progress: bool

    @property
    def size_bytes(self) -> int:
        """How much of it is data."""
        return sum([len(record.data) for record in self.records]) + len(self.snapshot or b"")


@dataclass(frozen=True, slots=True)
class Packer:
    """Seals and opens the data of one namespace."""

    namespace: str
    keyring: Keyring | None
    limits: Limits

    async def pack(self, lease: Lease, records: Sequence[Record], change: Change) -> Packed:
        """Return the bytes of a commit. Raises `PayloadTooLarge`."""
        packed = self.pack_now(lease, records, change)
        return await asyncio.to_thread(self._pack, lease, records, change) if packed is None else packed

    def pack_now(self, lease: Lease, records: Sequence[Record], change: Change) -> Packed | None:
        """Return the bytes of a commit, None if making them takes a thread. Raises `PayloadTooLarge`."""
        size = self._require_sizes(records, change)
        return None if size > OWN_THREAD_FROM_BYTES else self._pack(lease, records, change)

    def _pack(self, lease: Lease, records: Sequence[Record], change: Change) -> Packed:
        place = Place(self.namespace, lease.session, lease.incarnation)
        crc, sealed_records, goes_on = lease.last_crc, [], False
        for seq, record in enumerate(records, lease.seq + 1):
            sealed = seal(place, record.kind, *encode_record(record), seq=seq, previous=crc, keyring=self.keyring)
            sealed_records.append(sealed)
            crc = sealed.crc
            goes_on = goes_on or record.kind not in _BEGINNINGS
        if change is NO_CHANGE:
            return Packed(tuple(sealed_records), crc, None, (), (), goes_on)
        snapshot = None
        if change.snapshot is not None:
            seq, body = lease.seq + len(records), encode_snapshot(change.snapshot)
            snapshot = seal(place, Kind.SNAPSHOT, *body, seq=seq, previous=crc, keyring=self.keyring).data
        return Packed(
            records=tuple(sealed_records),
            last_crc=crc,
            snapshot=snapshot,
            answers=tuple([(name, self.seal_message(lease.session, name, body)) for name, body in change.answers]),
            fields=_fields(change),
            # A worker that ends a turn in order, if only with an error, has not died of it.
            makes_progress=change.release or snapshot is not None or goes_on,
        )

    def _require_sizes(self, records: Sequence[Record], change: Change) -> int:
        """Return how many bytes of data there are, each piece within its limit."""
        size = 0
        for record in records:
            size += len(record.output)
            if len(record.output) > self.limits.record_bytes:
                require_size(f"the output of step {record.key!r}", record.output, self.limits.record_bytes)
        if change is NO_CHANGE:
            return size
        if change.snapshot is not None:
            size += len(change.snapshot.data)
            require_size("the session's state", change.snapshot.data, self.limits.snapshot_bytes)
        for name, body in change.answers:
            require_size(f"the answer to message {name!r}", body, self.limits.message_bytes)
        return size

    async def open_image(self, head: Head, stored: Stored, *, strict: bool) -> Image:
        """Return a session's data, verified; see `Store.load`."""
        size = len(stored.snapshot or b"") + sum(len(data) for _, data in stored.entries)
        if size > OWN_THREAD_FROM_BYTES:
            image = await asyncio.to_thread(self._open_image, head, stored)
        else:
            image = self._open_image(head, stored)
        if strict and isinstance(image.damage, RecordCorrupt):
            raise damaged(head.session, image.damage)
        if strict and image.damage is not None:
            raise image.damage
        return image

    def _open_image(self, head: Head, stored: Stored) -> Image:
        snapshot: Snapshot | None = None
        records: list[Record] = []
        damage: FlashkitError | None = None
        try:
            require_readable(head)
            snapshot, crc_at_snapshot = self._open_snapshot(head, stored.snapshot)
            self._open_records(head, snapshot, crc_at_snapshot, stored.entries, records)
        except (RecordCorrupt, RecordTooNew, RecordKeyMissing) as exc:
            damage = exc
        return Image(head, snapshot, tuple(records), damage)

    def _open_snapshot(self, head: Head, data: bytes | None) -> tuple[Snapshot | None, int]:
        if data is None:
            if head.snapshot_seq or head.turn:
                raise RecordCorrupt(f"the snapshot of session {head.session!r} is gone")
            return None, 0
        opened = unseal(Place(self.namespace, head.session, head.incarnation), data, keyring=self.keyring)
        if opened.seq != head.snapshot_seq:
            raise RecordCorrupt(f"the snapshot stands for record {opened.seq}, not for {head.snapshot_seq}")
        return decode_snapshot(opened), opened.previous

    def _open_records(
        self,
        head: Head,
        snapshot: Snapshot | None,
        crc_at_snapshot: int,
        entries: Sequence[tuple[int, bytes]],
        records: list[Record],
    ) -> None:
        """Append the records to the list as they prove good, so that what comes before damage is not lost."""
        place = Place(self.namespace, head.session, head.incarnation)
        start = snapshot.seq if snapshot else 0
        first = entries[0][0] if entries else start + 1
        if first > start + 1:
            raise RecordCorrupt(f"record {start + 1} is missing: the journal goes on with {first}")
        crc: int | None = 0 if first == 1 else crc_at_snapshot if first == start + 1 else None
        for expected, (seq, data) in enumerate(entries, first):
            if seq != expected:
                raise RecordCorrupt(f"record {expected} is missing: the journal goes on with {seq}")
            opened = unseal(place, data, keyring=self.keyring)
            if opened.seq != seq or (crc is not None and opened.previous != crc):
                raise RecordCorrupt(f"record {seq} does not follow the one before it")
            crc = opened.crc
            if seq == start and crc != crc_at_snapshot:
                raise RecordCorrupt(f"the snapshot does not stand for record {seq}")
            records.append(decode_record(opened))
        last_seq, last_crc = first + len(entries) - 1, crc_at_snapshot if crc is None else crc
        if last_seq != head.seq or last_crc != head.last_crc:
            raise RecordCorrupt(f"the journal ends with record {last_seq}, but {head.seq} were acknowledged")

    def open_past(self, session: str, incarnation: str, stored: Iterable[bytes]) -> tuple[Snapshot, ...]:
        """Return snapshots of earlier turns, oldest first."""
        place = Place(self.namespace, session, incarnation)
        snapshots = (decode_snapshot(unseal(place, data, keyring=self.keyring)) for data in stored)
        return tuple(sorted(snapshots, key=lambda snapshot: snapshot.turn))

    def seal_message(self, session: str, name: str, body: bytes) -> bytes:
        """Return a message or its answer as stored; bound to session and id."""
        return seal(self._apart(session), Kind.MESSAGE, body, previous=_crc(name), keyring=self.keyring).data

    def open_message(self, session: str, name: str, data: bytes) -> bytes:
        """Return a stored message or answer. Raises `RecordCorrupt`."""
        opened = unseal(self._apart(session), data, keyring=self.keyring)
        if opened.kind is not Kind.MESSAGE or opened.previous != _crc(name):
            raise RecordCorrupt(f"message {name!r} of session {session!r} belongs to another id")
        return opened.body

    async def seal_blob(self, session: str, data: bytes) -> tuple[str, bytes]:
        """Return the name of a large value, which is its digest, and its stored bytes."""
        require_size("a large value", data, self.limits.blob_bytes)

        def work() -> tuple[str, bytes]:
            name = hashlib.sha256(data).hexdigest()
            return name, seal(self._apart(session), Kind.BLOB, data, keyring=self.keyring).data

        return await asyncio.to_thread(work)

    async def open_blob(self, session: str, name: str, stored: bytes | None) -> bytes:
        """Return a large value. Raises `RecordCorrupt`."""

        def work(data: bytes) -> bytes:
            body = unseal(self._apart(session), data, keyring=self.keyring).body
            if hashlib.sha256(body).hexdigest() != name:
                raise RecordCorrupt(f"large value {name[:12]}… of session {session!r} is another one")
            return body

        if stored is None:
            raise RecordCorrupt(f"large value {name[:12]}… of session {session!r} is gone")
        return await asyncio.to_thread(work, stored)

    def _apart(self, session: str) -> Place:
        """Where data is bound to that is written without a lease, and so without knowing the incarnation."""
        return Place(self.namespace, session, "")


def make_head(session: str, fields: Mapping[str, Any], now_ms: int) -> Head:
    """Return the head that a store's fields tell of (text, bytes or numbers); absent ones have their first value.

    So have those that make no sense, and `Head.damage` names them: a list shows such a session along with others.
    """
    wrong: list[str] = []

    def number(name: str) -> int:
        try:
            return int(fields.get(name) or 0)
        except ValueError:
            wrong.append(name)
            return 0

    def text(name: str) -> str:
        value = fields.get(name) or b""
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def status() -> Status:
        try:
            return Status(text("status") or Status.IDLE)
        except ValueError:
            wrong.append("status")
            return Status.BLOCKED

    state, left_ms, due_ms = status(), max(0, number("until") - now_ms), number("due")
    head = Head(
        session=session,
        incarnation=text("inc"),
        status=state,
        reason=text("err"),
        fence=number("fence"),
        owner=text("owner"),
        lease_left_s=left_ms / 1000,
        heartbeat=number("hb"),
        seq=number("seq"),
        last_crc=number("last"),
        snapshot_seq=number("snap"),
        turn=number("turn"),
        attempts=number("attempts"),
        code=text("code"),
        info=bytes(fields.get("info") or b""),
        pending=number("posted") - number("inbox"),
        consumed=number("inbox"),
        stored_bytes=number("jb") + number("sb") + number("hs") + number("bb"),
        created_ms=number("created"),
        updated_ms=number("updated"),
        unread=number("unread"),
        due_ms=due_ms,
        is_due=(state is Status.RUNNING and not left_ms) or (state is Status.WAITING and 0 < due_ms <= now_ms),
    )
    if not wrong:
        return head
    named = ", ".join(f"{name}={text(name)[:40]}" for name in dict.fromkeys(wrong))
    return replace(head, damage=f"its head has values that make no sense: {named}")


def require_readable(head: Head) -> None:
    """Raise `RecordCorrupt` for a head with values that make no sense."""
    if head.damage:
        raise RecordCorrupt(
            head.damage, hint=f"nothing can be brought back: flashkit sessions delete {head.session} --force"
        )


def rewritten_fields(head: Head) -> dict[str, str | int]:
    """Return what `Store.rewrite` takes over of a head, by the names of `make_head`; sizes are the store's to count."""
    numbers = {"seq": head.seq, "last": head.last_crc, "snap": head.snapshot_seq, "turn": head.turn}
    return {**numbers, "status": head.status.value, "err": head.reason, "code": head.code, "due": head.due_ms}


def make_lease(
    session: str,
    fields: Mapping[str, Any],
    owner: str,
    *,
    now_ms: int,
    incarnation: str,
    fence: int,
    nonce: str,
    ttl_s: float,
    asked: float,
    stored: Stored | None,
) -> Lease:
    """Return the lease that `acquire` got for a session of which a store's fields told before.

    Args:
        session: Its id.
        fields: As `make_head` takes them.
        owner: Who has it now.
        now_ms: The store's time.
        incarnation: Of a session that begins with this.
        fence: The lease's.
        nonce: The lease's.
        ttl_s: Its length.
        asked: When it was asked for, by `time.monotonic()`.
        stored: The session's data, if that was asked for.

    Raises:
        RecordCorrupt: The fields make no sense.
    """
    taken = {"inc": fields.get("inc") or incarnation, "fence": fence, "owner": owner}
    head = make_head(session, {**fields, **taken, "until": now_ms + round(ttl_s * 1000)}, now_ms)
    try:
        require_readable(head)
    except RecordCorrupt as exc:
        raise damaged(session, exc) from exc
    return Lease(
        session=session,
        owner=owner,
        incarnation=head.incarnation,
        fence=fence,
        nonce=nonce,
        ttl_s=ttl_s,
        seq=head.seq,
        last_crc=head.last_crc,
        deadline=asked + ttl_s,
        pending=head.pending,
        head=head,
        stored=stored,
    )


def _fields(change: Change) -> tuple[tuple[str, str | bytes | int], ...]:
    fields: list[tuple[str, str | bytes | int]] = []
    if change.status is not None:
        fields += [("status", change.status.value), ("err", change.reason or "")]
    elif change.reason is not None:
        fields.append(("err", change.reason))
    if change.info is not None:
        fields.append(("info", change.info))
    if change.code is not None:
        fields.append(("code", change.code))
    if change.unread is not None:
        fields.append(("unread", change.unread))
    if change.awaits is not None:
        fields.append(("awaits", change.awaits))
    if change.due_ms is not None:
        fields.append(("due", change.due_ms))
    if change.retain_s is not None:
        fields.append(("keep", round(change.retain_s * 1000)))
    return tuple(fields)


def _crc(name: str) -> int:
    return zlib.crc32(name.encode())
