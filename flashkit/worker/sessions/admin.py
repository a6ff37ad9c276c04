"""What people do with sessions: look, resume, settle, copy, compare, delete. `flashkit sessions` is made of these.

Nothing here runs a handler. Looking takes no lease; what writes takes the session for one commit, as a
worker would, and is refused while a worker has it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import orjson

from flashkit.errors import InputError, SessionBlocked, SessionBusy, SessionNotFound
from flashkit.settings import Settings
from flashkit.worker.sessions.comparing import Difference, compare
from flashkit.worker.sessions.forking import KEEPING_HINT, UNCHANGED, ForkPoint, plan_copy, turn_under_way, write_copy
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Busy, Change, Image, Lease, Status, Store, open_settings_store
from flashkit.worker.sessions.timeline import SessionView, StepState, Summary, TurnView, view_session
from flashkit.worker.sessions.turn import Memo

PERSON: Final = "person-"
"""Begins the name under which a session is taken here."""
STORE_BUDGET_S: Final = 5.0
"""How long a person waits for a store that does not answer."""
_COMPARED: Final = ("state", "state_version", "history", "events")
_SETTLED_AGAIN: Final = b'{"code": "settled", "message": "a person found that it did not happen"}'


@dataclass(frozen=True, slots=True)
class Wake:
    """The job that makes a session go on."""

    endpoint: str | None
    """None where the journal does not tell."""
    input: dict[str, Any]


def open_session_store(settings: Settings, *, url: str | None = None) -> Store:
    """Return the store that workers with these settings use, or the one at another URL."""
    return open_settings_store(settings, url=url, budget_s=STORE_BUDGET_S)


async def list_sessions(store: Store, *, limit: int = 100, before_ms: int | None = None) -> tuple[Summary, ...]:
    """Return sessions, the last changed first; see `Store.sessions`."""
    return tuple(Summary.from_head(head) for head in await store.sessions(limit=limit, before_ms=before_ms))


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
        SessionBlocked: A person has to settle a step first.
        SessionBusy: A worker runs it.
        InputError: No turn is under way.
    """
    view = await describe(store, session)
    turn = view.open_turn
    if view.summary.lease_left_s > 0:
        _refuse_busy(session, view.summary.owner)
    if turn is None:
        raise InputError(
            f"session {session!r} has no turn under way that could go on",
            hint=f"""begin the next one: flashkit run ENDPOINT '{{"session_id": "{session}", ...}}'""",
        )
    if view.summary.status == Status.BLOCKED:
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
        return Wake(view.endpoint, {"session_id": session, "event": event})
    await store.post(session, str(event["id"]), orjson.dumps({"name": name, "value": value}))
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
    """Return what differs between the states of two sessions, or of one session after two turns.

    Args:
        store: Where they are.
        first: A session's id, and the turn after which its state is meant; None for the last one.
        second: The other one.
    """
    before = await state_after(store, first[0], turn=first[1])
    return tuple(compare(before, await state_after(store, second[0], turn=second[1])))


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
            f"step {step!r} of session {session!r} is none whose outcome is unknown",
            hint=f"those are: {', '.join(unknown)}" if unknown else "there are none: nothing is to be settled",
        )
    intent = Memo.from_records(turn.records).steps[step].intent
    assert intent is not None  # noqa: S101 - only a step with one is unknown
    return intent


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
