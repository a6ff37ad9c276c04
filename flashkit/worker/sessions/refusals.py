"""The errors with which a store refuses; the words are the same for Redis and SQLite."""

from __future__ import annotations

from flashkit.errors import (
    InboxFull,
    JournalLost,
    PayloadTooLarge,
    RecordCorrupt,
    SessionBlocked,
    SessionBusy,
    SessionFenced,
    SessionNotFound,
)
from flashkit.worker.sessions.store import Lease


def require_size(what: str, data: bytes, limit: int) -> None:
    """Raise `PayloadTooLarge` when there is more data than the limit."""
    if len(data) > limit:
        raise PayloadTooLarge(
            f"{what} has {len(data):,} bytes; the limit is {limit:,}",
            hint="keep large values in a blob or on the network volume, and what names them in the session",
            details={"bytes": len(data), "limit": limit},
        )


def session_too_large(session: str, total: int, limit: int) -> PayloadTooLarge:
    """Return the error for a session whose data together is over its limit."""
    return PayloadTooLarge(
        f"session {session!r} would store {total:,} bytes; the limit is {limit:,}",
        hint="take a snapshot more often, keep less history, or make the state smaller",
        details={"bytes": total, "limit": limit},
    )


def journal_too_long(session: str, limit: int) -> PayloadTooLarge:
    """Return the error for a turn with too many steps."""
    return PayloadTooLarge(
        f"the journal of session {session!r} has {limit:,} records, which is the most between two snapshots",
        hint="end the turn, or let the session take a snapshot that trims its journal",
        details={"limit": limit},
    )


def fenced(lease: Lease, incarnation: str, fence: str, owner: str) -> SessionFenced:
    """Return the error for a worker that no longer has the session."""
    if not incarnation:
        reason = "it was deleted, or the store lost it"
    elif incarnation != lease.incarnation:
        reason = "it was lost or deleted, and began anew"
    else:
        reason = f"worker {owner!r} took it over"
    return SessionFenced(
        f"session {lease.session!r} is no longer worker {lease.owner!r}'s: {reason}",
        hint="drop what this worker holds of it; completed steps are in the journal",
        details={"fence": lease.fence, "present_fence": fence, "present_owner": owner},
    )


def blocked(session: str, reason: str) -> SessionBlocked:
    """Return the error for a session that waits for a person."""
    return SessionBlocked(
        f"session {session!r} is blocked: {reason}",
        hint=f"look at it with `flashkit sessions show {session}`, then resume or delete it",
        details={"reason": reason},
    )


def damaged(session: str, found: RecordCorrupt) -> RecordCorrupt:
    """Return the error for a session in which damage was found."""
    return RecordCorrupt(
        f"session {session!r} is damaged: {found.report.message}",
        hint=found.report.hint or f"go back to what is whole: flashkit sessions rewind {session} --to last-good",
        details={**found.report.details, "session": session},
    )


def is_surely_damage(exc: BaseException, session: str) -> bool:
    """True for damage in this session's data, unless another key or setting of the worker would explain it too."""
    if not isinstance(exc, RecordCorrupt):
        return False
    return exc.report.details.get("session") == session and "suspect" not in exc.report.details


def attempts_used_up(attempts: int, owner: str) -> str:
    """Return the reason for blocking a session whose workers keep dying."""
    return f"{attempts} workers in a row ended without progress; the last was {owner}"


def still_held(session: str, owner: str, left_s: float) -> SessionBusy:
    """Return the error for deleting a session that a worker has."""
    return SessionBusy(
        f"worker {owner!r} works on session {session!r} for {left_s:.1f} s more",
        hint="wait, or delete it by force: its worker's next write is refused then",
        details={"owner": owner, "left_s": left_s},
    )


def inbox_full(session: str, waiting: int, limit: int) -> InboxFull:
    """Return the error for a message too many."""
    return InboxFull(
        f"{waiting} messages wait in session {session!r}; the limit is {limit}",
        hint="post it again later, under the same id; the event that the session waits for always has room",
        details={"waiting": waiting, "limit": limit},
    )


def not_found(session: str) -> SessionNotFound:
    """Return the error for a session that does not exist."""
    return SessionNotFound(
        f"there is no session {session!r} in the store",
        hint="check the id and the namespace; sessions are deleted some days after their last change",
    )


def journal_lost(lease: Lease, store_seq: int) -> JournalLost:
    """Return the error for a store whose journal is not the one that this worker wrote."""
    return JournalLost(
        f"session {lease.session!r} has {store_seq} records in the store, not {lease.seq} as this worker wrote, "
        "and they are not the beginning of them",
        hint="the session goes on from what the store has when a worker takes it next",
        details={"store_seq": store_seq, "worker_seq": lease.seq},
    )
