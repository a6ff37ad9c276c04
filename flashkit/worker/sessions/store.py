"""What sessions ask of a store: plain values, and the `Store` protocol that Redis and SQLite fulfil alike.

The life of a session, as the code above uses it:

    store = open_store("redis://host:6379/0", namespace="my-app")
    await store.check()                                  # refuses what would lose sessions; returns warnings

    lease = await store.acquire("s1", worker_id)         # Lease, or Busy: wait, or leave the job to its owner
    image = await store.load("s1")                       # snapshot and the records after it, verified
    # re-enter the handler; steps whose records are there answer from them, the others:
    lease = await store.commit(lease, [Record(Kind.INTENT, "pay#1")])            # before an effect
    lease = await store.commit(lease, [Record(Kind.RESULT, "pay#1", output)])    # after it: one round trip
    await store.commit(lease, change=Change(snapshot=Snapshot(state, turn=1), status=Status.IDLE, release=True))

Only the owner of the present lease can write: every write carries the session's incarnation, the lease's
fence and nonce and the expected sequence number, and is refused as a whole (`SessionFenced`) when one of
them is not the store's. A lease that has run out still writes as long as nobody took it, so an expired
lease costs liveness, never safety. A write whose reply was lost may be sent again: the store recognises it.
A `Lease` is a value; use the one that the last call returned.

Anybody may `post` into a session's inbox, read it, or list sessions. Messages are consumed by the owner's
commit (`Change.consumed`), in the transaction that records what came of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from flashkit.errors import ConfigurationError, FlashkitError, InputError
from flashkit.settings import Settings
from flashkit.worker.sessions.records import Keyring, Record, Snapshot

DAY_S: Final = 86_400.0
KEPT_SNAPSHOTS: Final = 16
"""States after earlier turns that are kept along with their steps, for forks and comparisons."""
UNCHANGED: Final = object()
"""Stands for "as it is" where None is a value."""

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Status(StrEnum):
    """What a session is doing, as far as the store knows."""

    IDLE = "idle"
    """Between turns; a message or job wakes it."""
    RUNNING = "running"
    """A turn is under way, or its worker died in it: see `Head.until_s`."""
    WAITING = "waiting"
    """For an answer or event; no worker holds it."""
    BLOCKED = "blocked"
    """Not run before a person has looked at it; `Head.reason` says why."""
    DONE = "done"
    FAILED = "failed"


class Durability(StrEnum):
    """What a commit waits for before it counts as acknowledged."""

    DEFAULT = "default"
    """The server applied it. Survives a crash of the server's process, not of its host within a second."""
    FSYNC = "fsync"
    """It is on the server's disk (WAITAOF, or `appendfsync always` where the server is older than 7.2)."""
    REPLICA = "replica"
    """At least one replica has it (WAIT)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes past which a write is refused before it is sent. A tenth-full warning is the caller's business."""

    record_bytes: int = 1 << 20
    """One record's output; larger ones belong into a blob."""
    snapshot_bytes: int = 8 << 20
    blob_bytes: int = 8 << 20
    message_bytes: int = 256 << 10
    session_bytes: int = 32 << 20
    """Journal, snapshots and blobs of one session together, as stored."""
    inbox_messages: int = 32
    """Messages that may wait, together with the events that were taken in and that no turn has asked for."""
    journal_records: int = 1000
    """Records since the last snapshot that trimmed the journal."""


@dataclass(frozen=True, slots=True)
class Head:
    """Everything about a session except its data: cheap to read, and needs no lease."""

    session: str
    incarnation: str
    """Random at birth; differs when a session was lost or deleted and began anew."""
    status: Status
    reason: str
    """Why it is blocked, waiting or failed, for people; else empty."""
    fence: int
    owner: str
    """The worker that has it or had it last: a hint where its cache may be."""
    lease_left_s: float
    """Seconds until the owner's lease ends by the store's clock; 0 when it was given back or ran out."""
    heartbeat: int
    """Changes with every renewal; the witness for `acquire`."""
    seq: int
    """Number of the last record."""
    last_crc: int
    snapshot_seq: int
    """The snapshot stands for all records up to this one; 0 without a snapshot."""
    turn: int
    attempts: int
    """How often it was acquired since it last made progress."""
    code: str
    """Version of the code that ran it last."""
    info: bytes
    """Small value of the session layer, opaque to the store."""
    pending: int
    """Messages in the inbox that were not consumed."""
    consumed: int
    """Position of the last consumed message."""
    stored_bytes: int
    created_ms: int
    updated_ms: int
    unread: int = 0
    """Events that were taken in and that no turn has asked for yet."""
    due_ms: int = 0
    """Time of day at which whoever waits gives up; 0 where nobody waits, or for ever."""
    is_due: bool = False
    """It waits no longer, or its worker's lease is over in the middle of a turn: a job would let it go on."""
    damage: str = ""
    """What of all this makes no sense in the store, for people; else empty."""

    @property
    def is_held(self) -> bool:
        """True while a worker's lease lasts."""
        return self.lease_left_s > 0


class Stored(NamedTuple):
    """A session's data as the store has it: for `load` to open."""

    snapshot: bytes | None
    entries: Sequence[tuple[int, bytes]]
    """Numbers and bytes of records."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a session, until somebody else takes it."""

    session: str
    owner: str
    incarnation: str
    fence: int
    nonce: str
    ttl_s: float
    seq: int
    """Number of the last record that the store acknowledged."""
    last_crc: int
    deadline: float
    """`time.monotonic()` until which nobody else can have the session (while the server's clock is steady)."""
    pending: int
    """Messages that waited in the inbox when the last call returned."""
    head: Head = field(repr=False, compare=False)
    """The session as `acquire` found it, with this lease's owner and fence."""
    stored: Stored | None = field(default=None, repr=False, compare=False)
    """Its data as `acquire` found it, if that was asked for; gone with the next call that returns the lease anew."""

    def moved(self, *, seq: int, last_crc: int, deadline: float, pending: int) -> Lease:
        """Return the lease as it is after a write or a renewal."""
        return Lease(
            self.session,
            self.owner,
            self.incarnation,
            self.fence,
            self.nonce,
            self.ttl_s,
            seq,
            last_crc,
            deadline,
            pending,
            self.head,
        )


@dataclass(frozen=True, slots=True)
class Busy:
    """Another worker's lease lasts. A waiter that sees the same heartbeat for twice the lease may steal it."""

    session: str
    owner: str
    left_s: float
    heartbeat: int
    fence: int
    ttl_s: float
    """The length of the owner's lease."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit changes besides appending records; what is None stays as it is."""

    snapshot: Snapshot | None = None
    """State that stands for everything up to and including this commit's records."""
    trim: bool = True
    """With a snapshot: drop the records that it stands for. False keeps them for timelines and forks."""
    history: int = 0
    """With a snapshot: how many earlier turns' snapshots stay readable."""
    blobs: frozenset[str] | None = None
    """With a snapshot that trims: names of the large values that are still used; the others are deleted."""
    status: Status | None = None
    reason: str | None = None
    consumed: int | None = None
    """Position of the last inbox message that this commit has dealt with."""
    answers: tuple[tuple[str, bytes], ...] = ()
    """Message ids with the result that a repeated `post` of them is answered with."""
    info: bytes | None = None
    code: str | None = None
    unread: int | None = None
    """Events that were taken in and that no turn has asked for: they count as if they still waited."""
    awaits: str | None = None
    """The event that the session waits for: the next one of this name has room in any case. Empty for none."""
    due_ms: int | None = None
    """Time of day at which it waits no longer; 0 for never."""
    retain_s: float | None = None
    """From now on, seconds after its last change that the session is kept."""
    release: bool = False
    """Give the lease back in the same write."""
    durability: Durability = Durability.DEFAULT


NO_CHANGE: Final = Change()


@dataclass(frozen=True, slots=True)
class Image:
    """A session's data, decoded and verified."""

    head: Head
    snapshot: Snapshot | None
    records: tuple[Record, ...]
    """In order; with `Change.trim=False` also those that the snapshot stands for."""
    damage: FlashkitError | None = None
    """Only with `load(strict=False)`: why the records end here."""

    @property
    def tail(self) -> tuple[Record, ...]:
        """The records after the snapshot: what a resumed handler must not run again."""
        start = self.snapshot.seq if self.snapshot else 0
        return tuple(record for record in self.records if record.seq > start)


@dataclass(frozen=True, slots=True)
class Raw:
    """A session's data as stored: sealed, whole or damaged."""

    head: Head
    journal: tuple[tuple[int, bytes], ...]
    """Numbers and records, in order."""
    snapshot: bytes | None
    history: Mapping[int, bytes]
    """Snapshots of earlier turns by turn."""
    blobs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an inbox."""

    position: int
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a `post`."""

    position: int
    duplicate: bool
    """The id was posted before; nothing was added."""
    answer: bytes | None
    """The result, if the message with this id was answered already."""
    pending: int
    status: Status


@dataclass(frozen=True, slots=True)
class Claim:
    """Who executes an idempotency key."""

    mine: bool
    """The caller is to execute it."""
    holder: str
    """Job id of the one that does or did."""
    result: bytes | None
    """What came out; None while it runs."""


@dataclass(frozen=True, slots=True)
class Event:
    """One token or progress event; lossy, never used for recovery."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What the start check found."""

    server: str
    """Name and version, as `redis 7.0.15`."""
    warnings: tuple[str, ...] = ()


class Store(Protocol):
    """A place for sessions. Every method may raise `StoreUnavailable` once its retries have used up the budget."""

    namespace: str
    limits: Limits
    keyring: Keyring | None

    async def check(self, *, budget_s: float = 5.0) -> StoreReport:
        """Return what the store is, or raise `StoreMisconfigured` or `StoreUnavailable`; to be called at start."""
        ...

    async def close(self) -> None:
        """Write index entries that still wait and close connections."""
        ...

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
        """Take the session, which begins if there is none, or say who has it.

        Args:
            session: Its id.
            owner: This worker; acquiring one's own session again gives a new fence too.
            ttl_s: Length of the lease; each commit and `renew` starts it anew.
            retain_s: How long a new session is kept after its last change.
            witness: Heartbeat that the caller saw unchanged for longer than two leases on its own clock:
                take the session although the store's clock says that the lease lasts.
            max_attempts: Acquisitions without progress after which the session is blocked.
            unblock: Take a blocked session and count its attempts from zero.
            info: Takes the place of `Head.info` with the lease; empty leaves it as it is.
            with_data: Let the lease bring the session's data along, for `load`.

        Raises:
            SessionBlocked: It is blocked, or has just been for its attempts.
        """
        ...

    async def commit(self, lease: Lease, records: Sequence[Record] = (), change: Change | None = None) -> Lease:
        """Append records and apply a change in one write, all or nothing, and renew the lease.

        Raises:
            SessionFenced: Another worker has the session, or it was deleted.
            PayloadTooLarge: Something is over its limit; nothing was written.
            JournalLost: The store forgot acknowledged records, and they could not be put back.
        """
        ...

    def commit_soon(
        self, lease: Lease, records: Sequence[Record], change: Change | None, then: Callable[[Lease | None], object]
    ) -> bool:
        """Send a commit at once, if the store can do that without waiting; False when nothing was sent.

        The usual case, without a task for each commit. It is one attempt: `then` is called with the new lease, or
        with None, after which the same has to be committed by `commit`. That finds out whether it was written.

        Raises:
            PayloadTooLarge: Something is over its limit; nothing was sent.
        """
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Start the lease anew. Raises `SessionFenced`."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give the lease back so that another worker can go on at once; nothing happens if it was lost."""
        ...

    async def head(self, session: str) -> Head | None:
        """Return what is known of a session, None when there is none."""
        ...

    async def load(self, session: str, *, strict: bool = True, lease: Lease | None = None) -> Image:
        """Return the session's data.

        Args:
            session: Its id.
            lease: One that came with the data: it is opened, and the store is not asked.
            strict: Raise at damage. Otherwise what comes before it is returned, and `Image.damage` tells.

        Raises:
            SessionNotFound: There is none.
            RecordCorrupt: Bytes are damaged, records are missing, or one belongs elsewhere.
            RecordTooNew: A newer flashkit wrote it.
            RecordKeyMissing: It is encrypted with a key that is not in the keyring.
        """
        ...

    async def past(self, session: str) -> tuple[Snapshot, ...]:
        """Return the snapshots of earlier turns that were kept, oldest first."""
        ...

    async def export(self, session: str) -> Raw:
        """Return the session's data as stored, without a look at whether it is whole.

        Raises:
            SessionNotFound: There is none.
        """
        ...

    async def rewrite(self, lease: Lease, raw: Raw) -> None:
        """Put other data in the place of a session's own, all or nothing, and give the lease back.

        Journal, snapshot and earlier snapshots are those of `raw`; its blobs are added. Of its head, the
        numbers that belong to them, status, reason and code are taken over.

        Raises:
            SessionFenced: Another worker has the session, or it was deleted.
            JournalLost: It is not as the lease knows it.
        """
        ...

    async def sessions(self, *, limit: int = 100, before_ms: int | None = None) -> list[Head]:
        """Return sessions, the last changed first; `before_ms` is the last page's last `updated_ms`."""
        ...

    async def due(self, *, limit: int = 100) -> list[Head]:
        """Return sessions that would go on if a job came, the longest due first.

        Those are running ones whose owner let the lease run out, and waiting ones whose time is over.
        """
        ...

    async def delete(self, session: str, *, force: bool = False) -> bool:
        """Remove a session and all its data; False when there is none.

        Raises:
            SessionBusy: A worker has it, and `force` is not set; with it, that worker is fenced.
        """
        ...

    async def post(
        self, session: str, message_id: str, body: bytes, *, event: str = "", retain_s: float = 7 * DAY_S
    ) -> Posted:
        """Put a message into the session's inbox, once per id (of the last 64 and all that wait).

        Args:
            session: Its id; it begins if there is none.
            message_id: The message's id.
            body: The message.
            event: The name of the event that it brings: one that the session waits for always has room.
            retain_s: How long a new session is kept after its last change.

        Raises:
            InboxFull: Too many wait.
        """
        ...

    async def inbox(self, session: str) -> list[Message]:
        """Return the messages that were not consumed, in order."""
        ...

    async def put_blob(self, session: str, data: bytes) -> str:
        """Store bytes with the session, by content, and return their name; it must exist already."""
        ...

    async def get_blob(self, session: str, name: str) -> bytes:
        """Return a blob. Raises `RecordCorrupt` when it is damaged or gone."""
        ...

    async def claim(self, key: str, holder: str, *, lease_s: float = 60.0, keep_s: float = DAY_S) -> Claim:
        """Claim an idempotency key for a job, or learn who has it and what came out.

        A key is the caller's when it is new, when the same holder claimed it before, or when its holder
        neither renewed (by claiming again) nor settled it within its lease.
        """
        ...

    async def settle(self, key: str, holder: str, result: bytes, *, keep_s: float = DAY_S) -> bool:
        """Write what came of a claimed key; False if it is no longer this holder's."""
        ...

    async def unclaim(self, key: str, holder: str) -> bool:
        """Give a claimed key back without a result, so that the next one executes it."""
        ...

    async def emit(self, session: str, bodies: Sequence[bytes]) -> None:
        """Append token or progress events; about the last 1000 are kept, for ten minutes."""
        ...

    async def events(self, session: str, *, after: str = "0", wait_s: float = 0.0) -> list[Event]:
        """Return events after the one with this id, waiting for the first one if there is none."""
        ...


def open_store(
    url: str,
    *,
    namespace: str = "default",
    keyring: Keyring | None = None,
    limits: Limits | None = None,
    budget_s: float = 30.0,
) -> Store:
    """Return the store at a URL; nothing is connected before the first call.

    Args:
        url: `sqlite:///path`, `redis://`, `rediss://`, `unix:///path`, `redis+cluster://`,
            `redis+sentinel://host:26379,host2:26379/service/db`, or the same with `valkey` for `redis`.
        namespace: Separates apps and tenants that share a server.
        keyring: Keys with which data is encrypted; plain without one.
        limits: Sizes past which writes are refused.
        budget_s: How long one call retries while the store is away.

    Raises:
        ConfigurationError: The URL or namespace is wrong, or a package for it is not installed.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            f"{namespace!r} is not a namespace for sessions", hint="use 1 to 64 letters, digits and _ . -"
        )
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from flashkit.worker.sessions.sqlite_store import SqliteStore

        return SqliteStore(Path(rest[1:]), namespace=namespace, keyring=keyring, limits=limits, budget_s=budget_s)
    if separator and (scheme == "unix" or scheme.startswith(("redis", "valkey"))):
        from flashkit.worker.sessions.redis_store import open_redis_store

        return open_redis_store(url, namespace=namespace, keyring=keyring, limits=limits, budget_s=budget_s)
    raise ConfigurationError(
        f"{without_password(url)!r} is not a store for sessions",
        hint="write it as sqlite:///path/to/file.db, redis://host:6379/0, rediss://… or unix:///path/to/socket",
    )


def without_password(url: str) -> str:
    """Return a store's URL as it may be shown, also one that is written wrongly.

    What stands before the last @ goes, and what stands behind a question mark: either may be secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, separator, rest = "", "", url
    address, _, query = rest.partition("?")
    shown = address.rpartition("@")[2]
    if "@" in query:  # an unescaped ? in the password
        shown = query.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{separator}{shown}"


def open_settings_store(settings: Settings, *, url: str | None = None, budget_s: float = 30.0) -> Store:
    """Return the store that workers with these settings use, or the one at another URL, with their keys.

    Raises:
        ConfigurationError: The settings name no store, or their keys are not keys.
    """
    keyring = Keyring.from_text(settings.state_keys) if settings.state_keys else None
    return open_store(url or settings.state_url, namespace=settings.state_namespace, keyring=keyring, budget_s=budget_s)


def require_session_id(session: object) -> str:
    """Return the id. Raises `InputError` when it is not one."""
    if not isinstance(session, str) or not _SESSION_ID.fullmatch(session):
        raise InputError(
            f"session_id={session!r} is not a session's id",
            hint="use 1 to 128 letters, digits and . _ : - and start with a letter or digit",
        )
    return session
