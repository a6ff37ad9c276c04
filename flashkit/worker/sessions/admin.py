"""What people do with sessions: look, resume, settle, copy, rewind, compare, delete; `flashkit sessions` in functions.

Nothing here runs a handler. Looking takes no lease; what writes takes the session for one commit, as a
worker would, and is refused while a worker has it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import orjson

from flashkit.errors import InputError, RecordCorrupt, SessionBlocked, SessionBusy, SessionNotFound
from flashkit.settings import Settings
from flashkit.worker.sessions.comparing import Difference, compare
from flashkit.worker.sessions.forking import KEEPING_HINT, ForkPoint, plan_copy, turn_under_way, write_copy
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.redaction import HIDDEN, hide_in_value, is_secret_path
from flashkit.worker.sessions.salvage import RewindPoint, Salvage
from flashkit.worker.sessions.store import (
    UNCHANGED,
    Busy,
    Change,
    Image,
    Lease,
    Raw,
    Status,
    Store,
    open_settings_store,
)
from flashkit.worker.sessions.timeline import SessionView, StepState, Summary, TurnView, view_session
from flashkit.worker.sessions.turn import Memo

PERSON: Final = "person-"
"""Begins the name under which a session is taken here."""
STORE_BUDGET_S: Final = 5.0
"""How long a person waits for a store that does not answer."""
_READ_AT_ONCE: Final = 8
_ID_CHARACTERS: Final = 100
"""What of a long id begins the id of its copy."""
_COMPARED: Final = ("state", "state_version", "history", "events")
_SETTLED_AGAIN: Final = b'{"code": "settled", "message": "a person found that it did not happen"}'


@dataclass(frozen=True, slots=True)
class Wake:
    """The job that makes a session go on."""

    endpoint: str | None
    """None where the journal does not tell."""
    input: dict[str, Any]
    awaits: tuple[str, ...] = ()
    """The events that the session waits for."""


@dataclass(frozen=True, slots=True)
class Rewound:
    """What came of a rewind."""

    view: SessionView
    copy: str | None
    """The session that has all the bytes as they were; None where nothing was taken off."""
    records: int
    """How many were taken off."""
    effects: tuple[str, ...]
    """Effects among them that had happened: they are asked for again, under the same idempotency keys."""


def open_session_store(settings: Settings, *, url: str | None = None) -> Store:
    """Return the store that workers with these settings use, or the one at another URL."""
    return open_settings_store(settings, url=url, budget_s=STORE_BUDGET_S)


async def list_sessions(store: Store, *, limit: int = 100, before_ms: int | None = None) -> tuple[Summary, ...]:
    """Return sessions, the last changed first; see `Store.sessions`. Each is read, so that damage shows."""
    several = asyncio.Semaphore(_READ_AT_ONCE)

    async def summary(session: str) -> Summary | None:
        async with several:
            try:
                return Summary.from_image(await store.load(session, strict=False))
            except SessionNotFound:  # deleted meanwhile
                return None

    heads = await store.sessions(limit=limit, before_ms=before_ms)
    found = await asyncio.gather(*(summary(head.session) for head in heads))
    return tuple(each for each in found if each is not None)


async def describe(store: Store, session: str) -> SessionView:
    """Return a session's timeline; that of a damaged one up to the damage.

    Raises:
        SessionNotFound: There is none.
    """
    return view_session(await store.load(session, strict=False))


async def wake(store: Store, session: str) -> Wake:
    """Return the job with which a turn that failed, was interrupted or waited too long goes on.

    A session that was blocked because worker after worker ended in it is opened again.

    Raises:
        SessionNotFound: There is none.
        SessionBlocked: It is damaged, or a person has to settle a step first.
        SessionBusy: A worker runs it.
        InputError: No turn is under way.
    """
    image = await store.load(session, strict=False)
    _require_whole(image)
    view = view_session(image)
    turn = view.open_turn
    is_blocked = view.summary.status == Status.BLOCKED
    if view.summary.lease_left_s > 0:
        _refuse_busy(session, view.summary.owner)
    if turn is None:
        begin = f"""begin the next one: flashkit run ENDPOINT '{{"session_id": "{session}", ...}}'"""
        raise InputError(
            f"session {session!r} has no turn under way that could go on",
            hint=f"open it again: flashkit sessions rewind {session} --to last-good" if is_blocked else begin,
        )
    if is_blocked:
        _require_settled(view, turn)
        lease = await _take(store, session)
        await store.commit(lease, change=Change(status=Status.RUNNING, reason="", release=True))
    return Wake(view.endpoint, {"session_id": session, "event": None})


async def bring_event(store: Store, session: str, name: str, value: Any) -> Wake | None:
    """Return the job that brings an event to the turn under way.

    Without one the event is kept for the next turn, and None is returned.

    Raises:
        SessionNotFound: There is no such session.
        InboxFull: Too many events wait already.
    """
    view = await describe(store, session)
    event = {"name": name, "value": value, "id": f"event:{secrets.token_hex(8)}"}
    if view.open_turn is not None:
        return Wake(view.endpoint, {"session_id": session, "event": event}, _awaited(view.open_turn))
    await store.post(session, str(event["id"]), orjson.dumps({"name": name, "value": value}), event=name)
    return None


async def settle(store: Store, session: str, step: str, *, result: Any = None, again: bool = False) -> None:
    """Write down what came of a step whose worker died inside it; then the session can be resumed.

    Args:
        store: Where it is.
        session: Its id.
        step: The step's key.
        result: The step happened, and this is what it returned.
        again: It did not happen, and is to run.

    Raises:
        InputError: The step is not one whose outcome is unknown.
        SessionBusy: A worker has the session.
    """
    image = await store.load(session)
    intent = _unknown_step(image, step)
    lease = await _take(store, session)
    if lease.seq != image.head.seq:
        await store.release(lease)
        _refuse_busy(session, lease.head.owner)
    if again:
        record = replace(intent, kind=Kind.ERROR, output=_SETTLED_AGAIN, seq=0)
    else:
        extra = {**intent.extra, "settled": True}
        record = replace(intent, kind=Kind.RESULT, output=orjson.dumps(result), extra=extra, seq=0)
    await store.commit(lease, [record], Change(status=Status.RUNNING, reason="", release=True))


async def delete(store: Store, session: str, *, force: bool = False) -> None:
    """Remove a session and all its data.

    Raises:
        SessionNotFound: There is none.
        SessionBusy: A worker has it, and `force` is not set.
    """
    if not await store.delete(session, force=force):
        raise SessionNotFound(f"there is no session {session!r}", hint="see: flashkit sessions list")


async def fork(
    store: Store, session: str, new: str, at: ForkPoint | None = None, *, state: Any = UNCHANGED
) -> SessionView:
    """Copy a session, or its beginning, into a new one, which goes on by itself when it is resumed.

    Steps of the copy have idempotency keys of their own: an effect that runs again in it is another effect.

    Args:
        store: Where both are.
        session: The one to copy.
        new: The copy's id.
        at: What runs again in the copy; None copies everything.
        state: Takes the place of the state with which the copied turn begins.

    Raises:
        InputError: There is a session of the new name, or no such step or turn.
        SessionError: The state before that turn was not kept.
    """
    plan = await plan_copy(store, session, at or ForkPoint())
    if state is not UNCHANGED:
        plan = plan.with_state(state)
    if await store.head(new) is not None:
        raise InputError(f"there is a session {new!r} already", hint="choose another id, or delete that one")
    lease = await _take(store, new)
    try:
        await write_copy(store, lease, plan)
    except BaseException:
        await store.delete(new, force=True)
        raise
    return await describe(store, new)


async def quarantine(store: Store, session: str, *, reason: str | None = None) -> str:
    """Let no worker run a session before a person has looked at it; its bytes stay as they are. Return the reason.

    Args:
        store: Where it is.
        session: Its id.
        reason: Why; by default what is damaged.

    Raises:
        SessionNotFound: There is none.
        SessionBusy: A worker has it.
    """
    damage = (await store.load(session, strict=False)).damage
    why = reason or (damage.report.message if damage else "a person wants to look at it")
    reason = f"quarantined: {why}"
    await store.commit(await _take(store, session), change=Change(status=Status.BLOCKED, reason=reason, release=True))
    return reason


async def rewind(store: Store, session: str, to: RewindPoint | None = None) -> Rewound:
    """Let a session end at a point, from which the next job goes on; all of it as it was is kept as another session.

    Steps that run again have the idempotency keys that they had, so endpoints and services that know these do
    not repeat them.

    Args:
        store: Where it is.
        session: Its id.
        to: What stays; None for all that is whole.

    Raises:
        SessionNotFound: There is none.
        SessionBusy: A worker has it.
        InputError: There is no such step or turn.
        SessionError: Nothing is whole.
    """
    before = await store.load(session, strict=False)
    lease = await _take(store, session)
    opened = Change(status=lease.head.status, reason=lease.head.reason, release=True)
    try:
        raw = await store.export(session)
        salvage = Salvage(raw, namespace=store.namespace, keyring=store.keyring)
        whole = salvage.end_at(to or RewindPoint())
        copy = None
        if _differ(raw, whole):
            copy = await _set_aside(store, salvage, before)
            await store.rewrite(lease, whole)
        elif opened.status is Status.BLOCKED:
            opened = replace(opened, status=whole.head.status, reason="")
    except BaseException:
        await store.commit(lease, change=opened)
        raise
    if copy is None:
        await store.commit(lease, change=opened)
    return Rewound(
        view=await describe(store, session),
        copy=copy,
        records=raw.head.seq - whole.head.seq,
        effects=_effects_after(before, whole.head.seq),
    )


async def state_after(store: Store, session: str, *, turn: int | None = None) -> dict[str, Any]:
    """Return a session's state, history, unread events and answer after a turn; None for the last one that is over.

    Raises:
        SessionNotFound: There is no such session.
        InputError: The turn is not over, or its state was not kept.
    """
    image = await store.load(session)
    found = image.snapshot
    if turn is not None and (found is None or found.turn != turn):
        found = next((each for each in await store.past(session) if each.turn == turn), None)
        if found is None:
            raise InputError(f"session {session!r} has no state after turn {turn}", hint=KEEPING_HINT)
    data = orjson.loads(found.data) if found else {}
    result = (data.get("results") or [{}])[-1]
    answer = orjson.loads(await store.get_blob(session, result["blob"])) if "blob" in result else result.get("output")
    return {**{name: data.get(name) for name in _COMPARED}, "answer": answer}


async def diff(store: Store, first: tuple[str, int | None], second: tuple[str, int | None]) -> tuple[Difference, ...]:
    """Return what differs between the states of two sessions, or of one session after two turns; secrets are hidden.

    Args:
        store: Where they are.
        first: A session's id, and the turn after which its state is meant; None for the last one.
        second: The other one.
    """
    before = await state_after(store, first[0], turn=first[1])
    after = await state_after(store, second[0], turn=second[1])
    return tuple(_without_secrets(each) for each in compare(before, after))


def _without_secrets(found: Difference) -> Difference:
    if not is_secret_path(found.path):
        return replace(found, before=hide_in_value(found.before), after=hide_in_value(found.after))
    before, after = (None if side is None else HIDDEN for side in (found.before, found.after))
    return replace(found, before=before, after=after)


def _require_whole(image: Image) -> None:
    if isinstance(image.damage, RecordCorrupt):
        session = image.head.session
        raise SessionBlocked(
            f"session {session!r} is damaged: {image.damage.report.message}",
            hint=f"go back to what is whole: flashkit sessions rewind {session} --to last-good",
        ) from image.damage
    if image.damage is not None:
        raise image.damage


def _differ(raw: Raw, whole: Raw) -> bool:
    kept = (whole.journal, whole.snapshot, whole.history)
    place = (whole.head.seq, whole.head.last_crc, whole.head.snapshot_seq, whole.head.turn)
    return kept != (raw.journal, raw.snapshot, raw.history) or place != (
        raw.head.seq, raw.head.last_crc, raw.head.snapshot_seq, raw.head.turn,
    )  # fmt: skip


async def _set_aside(store: Store, salvage: Salvage, before: Image) -> str:
    """Keep all the bytes as a session that no worker runs, and return its id."""
    session = before.head.session
    copy = f"{session[:_ID_CHARACTERS]}.aside-{secrets.token_hex(4)}"
    reason = f"set aside when {session} was rewound"
    if before.damage is not None:
        reason += f": {before.damage.report.message}"
    lease = await _take(store, copy)
    try:
        moved = salvage.moved_to(copy, lease.incarnation)
        head = replace(moved.head, status=Status.BLOCKED, reason=reason)
        await store.rewrite(lease, replace(moved, head=head))
    except BaseException:
        await store.delete(copy, force=True)
        raise
    return copy


def _effects_after(image: Image, seq: int) -> tuple[str, ...]:
    begun = {record.key for record in image.records if record.kind is Kind.INTENT}
    done = [record.key for record in image.records if record.seq > seq and record.kind is Kind.RESULT]
    return tuple(key for key in done if key in begun and not key.rpartition("/")[2].startswith(("event:", "call:")))


def _require_settled(view: SessionView, turn: TurnView) -> None:
    session = view.summary.session
    unknown = [step.key for step in turn.steps if step.state is StepState.UNKNOWN]
    if unknown and view.summary.reason.startswith("OutcomeUnknown"):
        raise SessionBlocked(
            f"session {session!r} is blocked: nobody knows whether step {unknown[0]!r} happened",
            hint=f"find out, then: flashkit sessions settle {session} {unknown[0]} --result JSON (it did), or --again",
        )


def _unknown_step(image: Image, step: str) -> Record:
    """Return the record that says that the step was about to run.

    Raises:
        InputError: It is not a step whose outcome is unknown.
        SessionBusy: A worker has the session.
    """
    session, turn = image.head.session, turn_under_way(image)
    if image.head.is_held:
        _refuse_busy(session, image.head.owner)
    steps = view_session(image).turns[-1].steps if turn else ()
    unknown = [each.key for each in steps if each.state is StepState.UNKNOWN]
    if turn is None or step not in unknown:
        raise InputError(
            f"what came of step {step!r} of session {session!r} is not in question",
            hint=f"these steps can be settled: {', '.join(unknown)}"
            if unknown
            else "none of its steps is to be settled",
        )
    intent = Memo.from_records(turn.records).steps[step].intent
    assert intent is not None  # noqa: S101 - only a step with one is unknown
    return intent


def _awaited(turn: TurnView) -> tuple[str, ...]:
    waiting = [step.key for step in turn.steps if step.kind == "event" and step.state is StepState.WAITING]
    return tuple(key.rpartition("/")[2].partition("#")[0].removeprefix("event:") for key in waiting)


async def _take(store: Store, session: str) -> Lease:
    found = await store.acquire(session, f"{PERSON}{secrets.token_hex(4)}", unblock=True)
    if isinstance(found, Busy):
        _refuse_busy(session, found.owner)
    return found


def _refuse_busy(session: str, owner: str) -> NoReturn:
    raise SessionBusy(
        f"worker {owner!r} works on session {session!r}",
        hint="wait until its turn is over, or until its lease has run out",
        details={"owner": owner},
    )
