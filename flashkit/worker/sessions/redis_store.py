"""Sessions in Redis or Valkey: one script call a commit, in which every check and every write happens.

Keys of a session share the hash tag `{namespace:session}`, so they are in one slot of a Cluster: `:m` its
head, `:j` the journal (a stream whose ids are sequence numbers, so the server itself refuses a second record
of the same number), `:s` the snapshot, `:h` snapshots of earlier turns, `:i` the inbox, `:q` message ids with
their answers, `:b` large values, `:e` events. All of them end at one time, which is put off when it comes too near.

A commit goes two ways. `commit_soon` sends it and returns; it is one attempt, and enough nearly always. `commit`
takes it from there: it repeats what was not answered, and says what is wrong with what was refused.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from flashkit.errors import StoreMisconfigured
from flashkit.worker.sessions.packing import Packed, Packer, make_head, make_lease, rewritten_fields
from flashkit.worker.sessions.records import Keyring, Record, Snapshot
from flashkit.worker.sessions.redis_check import ServerFacts, check_server
from flashkit.worker.sessions.redis_client import RedisClient, Word, read_script
from flashkit.worker.sessions.redis_index import SessionIndex
from flashkit.worker.sessions.refusals import (
    blocked,
    fenced,
    inbox_full,
    journal_lost,
    journal_too_long,
    not_found,
    require_size,
    session_too_large,
    still_held,
)
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

_ACQUIRE: Final = read_script("acquire")
_APPEND: Final = read_script("append")
_BLOB: Final = read_script("blob")
_CLAIM: Final = read_script("claim", prelude=False)
_COMMIT: Final = read_script("commit")
_DELETE: Final = read_script("delete")
_EMIT: Final = read_script("emit", prelude=False)
_EXPORT: Final = read_script("export")
_HEAD: Final = read_script("head")
_LOAD: Final = read_script("load")
_POST: Final = read_script("post")
_RELEASE: Final = read_script("release")
_RENEW: Final = read_script("renew")
_REWRITE: Final = read_script("rewrite")

_KEPT_EVENTS: Final = 1000
_EVENTS_LIFETIME_MS: Final = 600_000
_LONGEST_BLOCK_S: Final = 2.0
_KEPT_CALLS_BYTES: Final = 4 << 20
"""How much of a lease's latest commits is kept in memory, to put it back after a lossy failover."""
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Call(NamedTuple):
    """A commit as it is sent."""

    seq: int
    """The number of the last record before it."""
    last_crc: int
    packed: Packed
    change: Change


@dataclass(slots=True)
class _Sent:
    """The latest commits under one lease."""

    calls: deque[_Call] = field(default_factory=deque)
    size_bytes: int = 0


class RedisStore:
    """The sessions of one namespace on one server, Sentinel group or Cluster."""

    def __init__(
        self, client: RedisClient, *, namespace: str, keyring: Keyring | None = None, limits: Limits | None = None
    ) -> None:
        self.namespace = namespace
        self.limits = limits or Limits()
        self.keyring = keyring
        self._client = client
        self._packer = Packer(namespace, keyring, self.limits)
        self._index = SessionIndex(client, namespace)
        self._facts: ServerFacts | None = None
        self._sent: dict[str, _Sent] = {}

    def __repr__(self) -> str:
        return f"<sessions {self.namespace!r} at {self._client.shown_url}>"

    async def check(self, *, budget_s: float = 5.0) -> StoreReport:
        """Return what the server is, or raise; see `Store.check`."""
        report, self._facts = await check_server(self._client, self.namespace, budget_s=budget_s)
        return report

    async def close(self) -> None:
        """Write index entries that still wait and close connections."""
        await self._index.close()
        await self._client.close()

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
        chance = secrets.token_hex(16)  # once: asking the kernel takes as long as the rest
        incarnation, nonce = chance[:16], chance[16:]
        asked = time.monotonic()
        keys = self._keys(session)
        reply = await self._client.run(
            _ACQUIRE,
            keys,
            [
                *(session, incarnation, nonce, owner, round(ttl_s * 1000), round(retain_s * 1000)),
                *("" if witness is None else witness, max_attempts, int(unblock), info, int(with_data)),
            ],
        )
        match reply[0]:
            case b"BUSY":
                now, left = int(reply[1]), int(reply[3]) - int(reply[1])
                return Busy(session, reply[2].decode(), left / 1000, int(reply[4]), int(reply[5]), int(reply[6]) / 1000)
            case b"BLOCKED":
                raise blocked(session, reply[1].decode())
        now, fence, fields = reply[1:4]
        lease = make_lease(
            session,
            _pairs(fields),
            owner,
            now_ms=now,
            incarnation=incarnation,
            fence=fence,
            nonce=nonce,
            ttl_s=ttl_s,
            asked=asked,
            stored=_stored(*reply[4:]) if with_data else None,
        )
        self._index.note_change(session, now)
        self._index.note_due(session, now + round(ttl_s * 1000))
        return lease

    async def commit(self, lease: Lease, records: Sequence[Record] = (), change: Change | None = None) -> Lease:
        """Append records and apply a change in one write, all or nothing; see `Store.commit`."""
        change = change or NO_CHANGE
        call = _Call(lease.seq, lease.last_crc, await self._packer.pack(lease, records, change), change)
        asked = time.monotonic()
        reply = await self._send(lease, call, change.durability)
        if reply[0] == b"SEQ":
            reply = await self._put_back(lease, call, int(reply[1]), int(reply[2]))
        self._require_accepted(lease, reply)
        return self._note_commit(lease, call, asked, reply)

    def commit_soon(
        self, lease: Lease, records: Sequence[Record], change: Change | None, then: Callable[[Lease | None], object]
    ) -> bool:
        """Send a commit at once, if that takes no waiting; see `Store.commit_soon`."""
        if not self._client.is_ready or (change is not None and change.durability is not Durability.DEFAULT):
            return False
        packed = self._packer.pack_now(lease, records, change or NO_CHANGE)
        if packed is None:
            return False
        call = _Call(lease.seq, lease.last_crc, packed, change or NO_CHANGE)
        asked = time.monotonic()

        def end(reply: Any) -> None:
            is_accepted = isinstance(reply, list) and reply[0] == b"OK"
            then(self._note_commit(lease, call, asked, reply) if is_accepted else None)

        keys = self._keys(lease.session)
        if call.change is NO_CHANGE:
            self._client.send(_APPEND, keys[:2], self._append_arguments(lease, call), end)
        else:
            self._client.send(_COMMIT, keys, self._commit_arguments(lease, call), end)
        return True

    def _note_commit(self, lease: Lease, call: _Call, asked: float, reply: Any) -> Lease:
        """Return the lease after a commit that was accepted."""
        change = call.change
        if change.release:
            self._sent.pop(lease.nonce, None)
        else:
            self._remember(lease, call)
        if change.release or change.status is not None or change.snapshot is not None:
            self._index.note_change(lease.session, reply[1])
            self._index.note_due(lease.session, _due_after(lease, change, now_ms=reply[1]))
        return lease.moved(
            seq=lease.seq + len(call.packed.records),
            last_crc=call.packed.last_crc,
            deadline=asked if change.release else asked + lease.ttl_s,
            pending=reply[2],
        )

    async def renew(self, lease: Lease) -> Lease:
        """Start the lease anew."""
        asked = time.monotonic()
        arguments = (lease.incarnation, lease.fence, lease.nonce, round(lease.ttl_s * 1000))
        reply = await self._client.run(_RENEW, self._keys(lease.session), arguments)
        self._require_accepted(lease, reply)
        return lease.moved(seq=lease.seq, last_crc=lease.last_crc, deadline=asked + lease.ttl_s, pending=reply[2])

    async def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens if it was lost."""
        self._sent.pop(lease.nonce, None)
        reply = await self._client.run(
            _RELEASE, self._keys(lease.session), [lease.incarnation, lease.fence, lease.nonce]
        )
        if reply[0] == b"OK":
            self._index.note_due(lease.session, reply[1])

    async def head(self, session: str) -> Head | None:
        """Return what is known of a session, None when there is none."""
        now, fields = await self._client.run(_HEAD, self._keys(session), ())
        return make_head(session, _pairs(fields), now) if fields else None

    async def load(self, session: str, *, strict: bool = True, lease: Lease | None = None) -> Image:
        """Return the session's data; see `Store.load`."""
        if lease is not None and lease.stored is not None:
            return await self._packer.open_image(lease.head, lease.stored, strict=strict)
        now, fields, snapshot, entries = await self._client.run(_LOAD, self._keys(session), ())
        if not fields:
            raise not_found(session)
        head = make_head(session, _pairs(fields), now)
        return await self._packer.open_image(head, _stored(snapshot, entries), strict=strict)

    async def past(self, session: str) -> tuple[Snapshot, ...]:
        """Return the snapshots of earlier turns that were kept, oldest first."""
        keys = self._keys(session)
        incarnation = await self._client.command("HGET", keys[0], "inc")
        stored = await self._client.command("HVALS", keys[3])
        return self._packer.open_past(session, (incarnation or b"").decode(), stored)

    async def export(self, session: str) -> Raw:
        """Return the session's data as stored."""
        now, fields, snapshot, entries, history, blobs = await self._client.run(_EXPORT, self._keys(session), ())
        if not fields:
            raise not_found(session)
        journal = tuple((int(name.partition(b"-")[0]), pair[1]) for name, pair in entries)
        past = {int(turn): data for turn, data in _pairs(history).items()}
        return Raw(make_head(session, _pairs(fields), now), journal, snapshot, past, _pairs(blobs))

    async def rewrite(self, lease: Lease, raw: Raw) -> None:
        """Put other data in the place of a session's own; see `Store.rewrite`."""
        fields = rewritten_fields(raw.head)
        reply = await self._client.run(
            _REWRITE,
            self._keys(lease.session),
            [
                *(lease.incarnation, lease.fence, lease.nonce, lease.seq, int(raw.snapshot is not None)),
                *(len(fields), len(raw.history), len(raw.blobs)),
                *(() if raw.snapshot is None else (raw.snapshot,)),
                *(part for pairs in (fields, raw.history, raw.blobs) for pair in pairs.items() for part in pair),
                *(part for pair in raw.journal for part in pair),
            ],
        )
        self._require_accepted(lease, reply)
        self._sent.pop(lease.nonce, None)
        self._index.note_change(lease.session, reply[1])
        self._index.note_due(lease.session, reply[1] if raw.head.status is Status.RUNNING else raw.head.due_ms or None)

    async def sessions(self, *, limit: int = 100, before_ms: int | None = None) -> list[Head]:
        """Return sessions, the last changed first."""
        names = await self._index.latest(limit=limit, before_ms=before_ms)
        heads = await self._heads(names)
        return sorted(heads, key=lambda head: (head.updated_ms, head.created_ms), reverse=True)

    async def due(self, *, limit: int = 100) -> list[Head]:
        """Return sessions that would go on if a job came, the longest due first; see `Store.due`."""
        while True:
            names = await self._index.due(limit=limit)
            heads = await self._heads(names)
            found = [head for head in heads if head.is_due]
            if len(found) == len(names):
                return found
            now_ms = await self._index.now_ms()
            for head in heads:
                if not head.is_due:  # leases are renewed without a word to the index
                    self._index.note_due(head.session, _due_of(head, now_ms))
            if len(names) < limit:
                return found

    async def delete(self, session: str, *, force: bool = False) -> bool:
        """Remove a session and all its data; see `Store.delete`."""
        reply = await self._client.run(_DELETE, self._keys(session), [int(force)])
        if reply[0] == b"BUSY":
            raise still_held(session, reply[1].decode(), reply[2] / 1000)
        self._index.forget(session)
        return bool(reply[0] == b"OK")

    async def post(
        self, session: str, message_id: str, body: bytes, *, event: str = "", retain_s: float = 7 * DAY_S
    ) -> Posted:
        """Put a message into the session's inbox, once per id; see `Store.post`."""
        require_size(f"message {message_id!r}", body, self.limits.message_bytes)
        sealed = self._packer.seal_message(session, message_id, body)
        most = self.limits.inbox_messages
        reply = await self._client.run(
            _POST,
            self._keys(session),
            [session, secrets.token_hex(8), message_id, sealed, most, round(retain_s * 1000), event],
        )
        if reply[0] == b"FULL":
            raise inbox_full(session, reply[1], most)
        _, now, what, pending, status = reply
        if reply[0] == b"OK":
            self._index.note_change(session, now)
            return Posted(what, duplicate=False, answer=None, pending=pending, status=Status(status.decode()))
        number, _, stored = what.partition(b" ")
        answer = self._packer.open_message(session, message_id, stored) if stored else None
        return Posted(int(number), duplicate=True, answer=answer, pending=pending, status=Status(status.decode()))

    async def inbox(self, session: str) -> list[Message]:
        """Return the messages that were not consumed, in order."""
        messages = []
        for name, fields in await self._client.command("XRANGE", self._keys(session)[4], "-", "+"):
            message_id = fields[b"id"].decode()
            body = self._packer.open_message(session, message_id, fields[b"b"])
            messages.append(Message(int(name.partition(b"-")[0]), message_id, body))
        return messages

    async def put_blob(self, session: str, data: bytes) -> str:
        """Store bytes with the session, by content, and return their name."""
        name, sealed = await self._packer.seal_blob(session, data)
        reply = await self._client.run(_BLOB, self._keys(session), [name, sealed, self.limits.session_bytes])
        if reply[0] == b"MISSING":
            raise not_found(session)
        if reply[0] == b"TOOBIG":
            raise session_too_large(session, reply[1], self.limits.session_bytes)
        return name

    async def get_blob(self, session: str, name: str) -> bytes:
        """Return a blob."""
        stored = await self._client.command("HGET", self._keys(session)[6], name)
        return await self._packer.open_blob(session, name, stored)

    async def claim(self, key: str, holder: str, *, lease_s: float = 60.0, keep_s: float = DAY_S) -> Claim:
        """Claim an idempotency key for a job, or learn who has it and what came out."""
        arguments = ("claim", holder, round(lease_s * 1000), round(keep_s * 1000))
        reply = await self._client.run(_CLAIM, [self._claim_key(key)], arguments)
        result = self._packer.open_message(key, "claim", reply[2]) if reply[0] == b"DONE" else None
        return Claim(mine=reply[0] == b"MINE", holder=reply[1].decode(), result=result)

    async def settle(self, key: str, holder: str, result: bytes, *, keep_s: float = DAY_S) -> bool:
        """Write what came of a claimed key; False if it is no longer this holder's."""
        require_size("the result of an idempotent job", result, self.limits.record_bytes)
        sealed = self._packer.seal_message(key, "claim", result)
        arguments = ("settle", holder, 0, round(keep_s * 1000), sealed)
        return bool((await self._client.run(_CLAIM, [self._claim_key(key)], arguments))[0] == b"OK")

    async def unclaim(self, key: str, holder: str) -> bool:
        """Give a claimed key back without a result."""
        reply = await self._client.run(_CLAIM, [self._claim_key(key)], ["unclaim", holder])
        return bool(reply[0] == b"OK")

    async def emit(self, session: str, bodies: Sequence[bytes]) -> None:
        """Append token or progress events."""
        if bodies:
            await self._client.run(_EMIT, [self._keys(session)[7]], [_KEPT_EVENTS, _EVENTS_LIFETIME_MS, *bodies])

    async def events(self, session: str, *, after: str = "0", wait_s: float = 0.0) -> list[Event]:
        """Return events after the one with this id, waiting for the first one if there is none."""
        key, deadline = self._keys(session)[7], time.monotonic() + wait_s
        while True:
            left = min(_LONGEST_BLOCK_S, deadline - time.monotonic())
            block = ["BLOCK", max(1, round(left * 1000))] if left > 0 else []
            reply = await self._client.command("XREAD", "COUNT", _KEPT_EVENTS, *block, "STREAMS", key, after)
            entries = _first_stream(reply)
            if entries or left <= 0:
                return [Event(name.decode(), fields[b"b"]) for name, fields in entries]

    def _keys(self, session: str) -> tuple[str, ...]:
        return session_keys(self.namespace, session)

    def _claim_key(self, key: str) -> str:
        return f"fk1:{{{self.namespace}:idem:{_key_part(key)}}}"

    async def _heads(self, names: Sequence[str]) -> list[Head]:
        """Return the heads of these sessions; those that have expired leave the index."""
        heads = await asyncio.gather(*(self.head(name) for name in names))
        for name, head in zip(names, heads, strict=True):
            if head is None:
                self._index.forget(name)
        return [head for head in heads if head is not None]

    def _append_arguments(self, lease: Lease, call: _Call) -> tuple[Word, ...]:
        limits, packed = self.limits, call.packed
        return (
            *(lease.incarnation, lease.fence, lease.nonce, round(lease.ttl_s * 1000)),
            *(limits.session_bytes, limits.journal_records, call.seq, packed.last_crc, int(packed.makes_progress)),
            *[record.data for record in packed.records],
        )

    def _commit_arguments(self, lease: Lease, call: _Call) -> tuple[Word, ...]:
        seq, _, packed, change = call
        turn = change.snapshot.turn if change.snapshot else 0
        consumed = -1 if change.consumed is None else change.consumed
        first = (
            f"{lease.incarnation} {lease.fence} {lease.nonce} {seq} {round(lease.ttl_s * 1000)} "
            f"{change.release:d} {packed.makes_progress:d} {packed.last_crc} "
            f"{self.limits.session_bytes} {self.limits.journal_records} "
            f"{change.snapshot is not None:d} {turn} {change.trim:d} {change.history} {consumed} "
            f"{len(packed.fields)} {len(packed.answers)} {-1 if change.blobs is None else len(change.blobs)}"
        )
        return (
            first,
            *(() if packed.snapshot is None else (packed.snapshot,)),
            *(part for pair in packed.fields for part in pair),
            *(part for pair in packed.answers for part in pair),
            *(change.blobs or ()),
            *(record.data for record in packed.records),
        )

    async def _send(self, lease: Lease, call: _Call, durability: Durability) -> Any:
        keys, confirm = self._keys(lease.session), self._confirmation(durability)
        if call.change is NO_CHANGE and confirm is None:
            reply = await self._client.run(_APPEND, keys[:2], self._append_arguments(lease, call))
            if reply[0] != b"FULL":
                return reply
        arguments = self._commit_arguments(lease, call)
        if confirm is None:
            return await self._client.run(_COMMIT, keys, arguments)
        return await self._client.run_durably(_COMMIT, keys, arguments, confirm)

    def _confirmation(self, durability: Durability) -> tuple[Any, ...] | None:
        """Return the command that waits until a write is durable; None where there is nothing to wait for."""
        if durability is Durability.DEFAULT:
            return None
        facts = self._facts
        if durability is Durability.FSYNC and facts is not None and facts.syncs_every_write:
            return None
        if self._client.is_cluster:
            raise StoreMisconfigured(
                f"durability={durability.value!r} cannot be confirmed on a Cluster",
                hint="set appendfsync always on its servers, or min-replicas-to-write, and call check() first",
            )
        if durability is Durability.REPLICA:
            return ("WAIT", 1, self._client.confirm_ms)
        if facts is not None and facts.can_wait_for_disk:
            return ("WAITAOF", 1, 0, self._client.confirm_ms)
        raise StoreMisconfigured(
            "durability='fsync' needs a server that confirms writes to disk",
            hint="set appendonly yes, and appendfsync always where the server is older than 7.2; call check() first",
        )

    def _remember(self, lease: Lease, call: _Call) -> None:
        sent = self._sent.get(lease.nonce)
        if sent is None:
            sent = self._sent[lease.nonce] = _Sent()
        sent.calls.append(call)
        sent.size_bytes += call.packed.size_bytes
        while len(sent.calls) > 1 and (
            sent.size_bytes > _KEPT_CALLS_BYTES or len(sent.calls) > self.limits.journal_records
        ):
            sent.size_bytes -= sent.calls.popleft().packed.size_bytes

    async def _put_back(self, lease: Lease, call: _Call, seq: int, last_crc: int) -> Any:
        """Send again what the server forgot in a failover, if this worker knows all of it, and then the call."""
        known = self._sent.get(lease.nonce)
        calls = [*(known.calls if known else ()), call]
        start = next((at for at, sent in enumerate(calls) if (sent.seq, sent.last_crc) == (seq, last_crc)), None)
        if start is None:
            raise journal_lost(lease, seq)
        for sent in calls[start:]:
            reply = await self._send(lease, sent, call.change.durability)
            self._require_accepted(lease, reply)
        return reply

    def _require_accepted(self, lease: Lease, reply: Any) -> None:
        match reply[0]:
            case b"OK":
                return
            case b"FENCED":
                self._sent.pop(lease.nonce, None)
                raise fenced(lease, *(part.decode() for part in reply[1:]))
            case b"TOOBIG":
                raise session_too_large(lease.session, reply[1], self.limits.session_bytes)
            case b"TOOLONG":
                raise journal_too_long(lease.session, self.limits.journal_records)
        raise journal_lost(lease, reply[1])


def open_redis_store(
    url: str, *, namespace: str, keyring: Keyring | None, limits: Limits | None, budget_s: float
) -> RedisStore:
    """Return the store at a URL. Raises `ConfigurationError`."""
    return RedisStore(RedisClient(url, budget_s=budget_s), namespace=namespace, keyring=keyring, limits=limits)


@lru_cache(maxsize=4096)
def session_keys(namespace: str, session: str) -> tuple[str, ...]:
    """Return the keys of a session, in the order of the scripts' KEYS."""
    tag = f"fk1:{{{namespace}:{_key_part(require_session_id(session))}}}"
    return tuple(f"{tag}:{name}" for name in "mjshiqbe")


def _key_part(name: str) -> str:
    """Return an id as it stands in keys: itself, or its digest where it could be mistaken for another part."""
    if _PLAIN_ID.fullmatch(name):
        return name
    return "~" + base64.b32encode(hashlib.sha256(name.encode()).digest()[:20]).decode().lower()


def _pairs(flat: Sequence[bytes]) -> Mapping[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _stored(snapshot: bytes | None, entries: Sequence[Any]) -> Stored:
    return Stored(snapshot, [(int(name.partition(b"-")[0]), pair[1]) for name, pair in entries])


def _due_after(lease: Lease, change: Change, *, now_ms: int) -> int | None:
    """Return the time at which a session wants to be looked at after a commit, None when it is at rest."""
    if change.status in (None, Status.RUNNING):
        return now_ms if change.release else now_ms + round(lease.ttl_s * 1000)
    if change.status is Status.WAITING:
        return (lease.head.due_ms if change.due_ms is None else change.due_ms) or None
    return None


def _due_of(head: Head, now_ms: int) -> int | None:
    """Return the time at which a session wants to be looked at that is not due."""
    if head.status is Status.RUNNING:
        return now_ms + round(head.lease_left_s * 1000)
    return (head.due_ms or None) if head.status is Status.WAITING else None


def _first_stream(reply: Any) -> Sequence[Any]:
    """Return the entries of the only stream in an answer to XREAD, in either of redis-py's shapes."""
    if not reply:
        return ()
    entries: Sequence[Any] = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
    return entries
