"""Turns a job into a turn of its session: take the session, resume or begin, run the handler, put it down.

A job's input may name its session (`session_id`), and then carries the turn's input or an `event` that
the session waits for; with `"event": null` it only goes on with the turn that is under way. Without a name
the job is a session of its own. A job that comes a second time, or to a second worker, resumes its turn;
one whose turn is over gets the answer that was stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from flashkit.client import Client
from flashkit.errors import (
    BudgetExceeded,
    FlashkitError,
    InputError,
    JobTimedOut,
    OutcomeUnknown,
    PayloadTooLarge,
    RecordTooNew,
    SessionBusy,
    SessionFenced,
)
from flashkit.handler import Contract, Definition, encode_json, parse_json, plain_values
from flashkit.settings import DEFAULT_WORKER_ID, Settings
from flashkit.telemetry import Op, current, span
from flashkit.worker.job import HandBack
from flashkit.worker.sessions.accounts import Account
from flashkit.worker.sessions.budget import Budget
from flashkit.worker.sessions.calls import Allowance, Caller
from flashkit.worker.sessions.history import History
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redaction import hide_in_text
from flashkit.worker.sessions.refusals import is_surely_damage
from flashkit.worker.sessions.session import Session
from flashkit.worker.sessions.state import declared_model, new_state, read_state, state_version
from flashkit.worker.sessions.store import (
    KEPT_SNAPSHOTS,
    Busy,
    Change,
    Image,
    Lease,
    Status,
    Store,
    open_settings_store,
    require_session_id,
)
from flashkit.worker.sessions.timeline import is_fork_marker
from flashkit.worker.sessions.turn import Memo, Suspend, Turn, digest_of, encode_value
from flashkit.worker.sessions.writer import Writer

log = logging.getLogger(__name__)

Emit = Callable[[bytes], Awaitable[None]]
Handle = Callable[[Session[Any], Any], Awaitable[bytes]]

KEPT_RESULTS: Final = 16
"""Answers of the last turns that are kept for jobs that come a second time."""
INLINE_ANSWER_BYTES: Final = 16 << 10
"""Larger answers are kept beside the snapshot, not in it."""
_MOST_TIME_TO_END_S: Final = 10.0
_SHARE_OF_TIME_TO_END: Final = 0.2
_ALIVE: Final = (Status.IDLE, Status.RUNNING, Status.WAITING)
BUSY_POLL_S: Final = (0.02, 0.5)
_SNAPSHOT_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks of its session."""

    session_id: str
    id: str
    """The same on every attempt of the same job."""
    data: Any
    """The handler's input; None to go on with the turn that is under way."""
    event: dict[str, Any] | None = None
    allowance: Allowance = field(default_factory=Allowance)

    @classmethod
    def from_job(cls, job_id: str, data: Any, allowance: Allowance | None = None) -> Request:
        """Read a job's input.

        Raises:
            InputError: The session's id is not one, or the event has no name.
        """
        if not isinstance(data, dict) or "session_id" not in data:
            return cls(job_id, job_id, data, allowance=allowance or Allowance())
        rest = dict(data)
        session_id = require_session_id(rest.pop("session_id"))
        only_goes_on = "event" in rest and len(rest) == 1
        event = rest.pop("event", None)
        if event is not None and not (isinstance(event, dict) and isinstance(event.get("name"), str)):
            raise InputError(
                f"event={event!r} names no event", hint='send {"session_id": ..., "event": {"name": ..., "value": ...}}'
            )
        return cls(session_id, job_id, None if only_goes_on else rest, event, allowance or Allowance())

    @property
    def message_id(self) -> str | None:
        """Id of the event in the session's inbox; None without one."""
        return None if self.event is None else str(self.event.get("id") or f"job:{self.id}")

    @property
    def digest(self) -> str:
        """Digest of the input."""
        return digest_of(self.data)


@dataclass(slots=True)
class _Saved:
    """A snapshot's content."""

    state: Any = None
    state_version: int = 1
    history: Sequence[dict[str, Any]] = ()
    results: Sequence[dict[str, Any]] = ()
    events: Sequence[dict[str, Any]] = ()
    given_up: Sequence[str] = ()
    """Ids of the requests whose turns others took the place of."""
    used: Mapping[str, Any] | None = None
    """What the finished turns have used."""

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot | None) -> _Saved:
        if snapshot is None:
            return cls()
        data = parse_json(snapshot.data)
        if data["format"] > _SNAPSHOT_FORMAT:
            raise RecordTooNew(
                f"the session's snapshot has content {data['format']}; this flashkit reads up to {_SNAPSHOT_FORMAT}",
                hint="a newer flashkit wrote it: update this worker, or let the newer one go on with the session",
            )
        return cls(**{each.name: data[each.name] for each in fields(cls) if each.name in data})

    def result_for(self, request: Request) -> dict[str, Any] | None:
        """Return what is kept of a request's earlier turn, None when it had none."""
        for each in self.results:
            is_its_event = request.event is not None and request.message_id in each.get("messages", ())
            if is_its_event or request.id in (each["request"], each.get("began_by")):
                return each
        return None


@dataclass(slots=True)
class Opened:
    """A session that this worker has, and what is to be done with it."""

    request: Request
    lease: Lease
    saved: _Saved
    has_room: bool = True
    """The records of past turns leave room for those of another one."""
    answer: bytes | None = None
    """Not None: the request was answered before."""
    turn: Turn | None = None
    session: Session[Any] | None = None
    data: Any = None
    began_by: str = ""
    """Id of the request with which the turn began; another one may have gone on with it."""
    given_up: Sequence[str] = ()
    """Ids of the requests whose turns this one took the place of, and of those before them."""
    events: list[Record] = field(default_factory=list)
    """Those that came and that no turn has taken."""
    has_mail: bool = False
    """Messages came while the turn was suspended, so that it may go on."""


class SessionRunner:
    """Runs the turns of one endpoint's sessions in this worker."""

    def __init__(self, settings: Settings, definition: Definition, contract: Contract) -> None:
        self._settings = settings
        self._owner = owner_name(settings)
        self._store: Store = open_settings_store(settings)
        self._client = Client(settings)
        self._endpoint = definition.spec.name
        self._contract = contract
        self._model = declared_model(definition.function)
        self._code = code_version(definition.function)
        self._turns: set[Turn] = set()
        self._held: set[str] = set()
        self._is_leaving = False

    async def start(self) -> None:
        """Check the store.

        Raises:
            ConfigurationError: It would lose sessions, or is not one.
            StoreUnavailable: It cannot be reached.
        """
        for warning in (await self._store.check()).warnings:
            log.warning("session store: %s", warning)

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()
        await self._store.close()

    def hand_back(self) -> None:
        """Let every running turn end at its next step, without a result: another worker goes on with it."""
        self._is_leaving = True
        for turn in self._turns:
            turn.is_leaving = True

    async def run(
        self,
        job_id: str,
        data: Any,
        handle: Handle,
        *,
        emit: Emit,
        budget_s: float,
        limit_s: float | None = None,
        deadline_ms: int | None = None,
        retries: int | None = None,
    ) -> bytes:
        """Return the output of a job's turn as JSON text.

        Args:
            job_id: The platform's id of the job.
            data: Its input.
            handle: Runs the handler with a session and its input, and encodes what it returns.
            emit: Sends a partial output.
            budget_s: Seconds to wait for a session that another worker has.
            limit_s: Seconds after which the platform ends the job; a turn that runs is stopped a little before.
            deadline_ms: Time of day until which the session that made the job waits for it.
            retries: How often the turn's calls may be made again, all together; None leaves it to each of them.

        Raises:
            SessionError: The session cannot be used, or the journal does not fit the code.
            JobTimedOut: The turn was stopped; another job goes on with it.
            HandBack: The worker leaves; the job is to be run again elsewhere.
        """
        ends_at = None if limit_s is None else asyncio.get_running_loop().time() + limit_s - _time_to_end(limit_s)
        request = Request.from_job(job_id, data, Allowance(deadline_ms, retries))
        current().set("flashkit.session.id", request.session_id)
        if deadline_ms is not None:
            budget_s = min(budget_s, deadline_ms / 1000 - time.time())
        if request.event is not None:
            await self._post_event(request)
        opened = await self.open(request, emit=emit, budget_s=budget_s)
        output = await self._answer(opened, handle, ends_at)
        while opened.has_mail:
            try:
                opened = await self.open(request, emit=emit, budget_s=0.0)
            except (SessionBusy, SessionFenced, InputError):
                return output  # whoever has taken the session meanwhile takes its messages too
            output = await self._answer(opened, handle, ends_at)
        return output

    async def open(self, request: Request, *, emit: Emit, budget_s: float) -> Opened:
        """Take the session and rebuild its turn from the journal, or begin one."""
        give_up_at = time.monotonic() + budget_s
        await self._wait_for_own_turns(request, give_up_at)
        self._held.add(request.session_id)
        try:
            return await self._rebuild(request, await self._acquire(request, give_up_at), emit)
        except BaseException:
            self._held.discard(request.session_id)
            raise

    async def abandon(self, opened: Opened) -> None:
        """Give an opened session back as it is."""
        self._held.discard(opened.request.session_id)
        if opened.turn is None:
            await self._put_back(opened.lease)
        else:
            self._turns.discard(opened.turn)
            await opened.turn.writer.abandon()

    async def _put_back(self, lease: Lease) -> None:
        """Give a session back of which nothing was written, as it was when it was taken."""
        if change := _undo_of(lease):
            lease = await self._store.commit(lease, change=change)
        await self._store.release(lease)

    async def _block(self, lease: Lease, exc: BaseException) -> None:
        change = Change(status=Status.BLOCKED, reason=_reason_of(exc), release=True)
        try:
            await self._store.commit(lease, change=change)
        except FlashkitError as store_error:
            log.warning("session %s: that it is damaged could not be written down: %s", lease.session, store_error)

    async def _answer(self, opened: Opened, handle: Handle, ends_at: float | None) -> bytes:
        if opened.answer is None:
            return await self._run_turn(opened, handle, ends_at)
        await self.abandon(opened)
        return opened.answer

    async def _wait_for_own_turns(self, request: Request, give_up_at: float) -> None:
        """Return when no other job of this worker has the session: the store would let us take it from that one."""
        while request.session_id in self._held:
            self._check_waiting(request, self._owner, give_up_at)
            await asyncio.sleep(BUSY_POLL_S[0])

    def _check_waiting(self, request: Request, owner: str, give_up_at: float) -> None:
        if self._is_leaving:
            raise HandBack
        if time.monotonic() <= give_up_at:
            return
        if request.event is None:
            raise SessionBusy(
                f"session {request.session_id!r} is held by worker {owner!r}",
                hint="send the job again when that turn is over",
                details={"owner": owner},
            )
        raise SessionBusy(
            f"worker {owner!r} has session {request.session_id!r}, for which event {request.event['name']!r} is kept",
            hint="do not send the event again: the turn under way finds it when it waits for it, or else the next one",
            details={"owner": owner, "kept_event": request.event["name"]},
        )

    async def _acquire(self, request: Request, give_up_at: float) -> Lease:
        """Take the session, waiting while another worker has it.

        A job that was handed out again is taken from the worker that had it: the platform holds that one
        for dead, and a fence keeps it from writing if it is not.
        """
        pause, witness = BUSY_POLL_S[0], _Witness()
        while True:
            found = await self._store.acquire(
                request.session_id,
                self._owner,
                ttl_s=self._settings.lease_seconds,
                witness=witness.heartbeat,
                info=request.id.encode(),
                with_data=True,
            )
            if isinstance(found, Lease):
                return found
            self._check_waiting(request, found.owner, give_up_at)
            head = await self._store.head(request.session_id)
            same_job = head is not None and head.info == request.id.encode()
            witness.see(found, at_once=same_job and found.owner != self._owner)
            if witness.heartbeat is None:
                await asyncio.sleep(min(pause, max(found.left_s, BUSY_POLL_S[0])))
                pause = min(pause * 1.5, BUSY_POLL_S[1])

    async def _rebuild(self, request: Request, lease: Lease, emit: Emit) -> Opened:
        try:
            image = await self._load(lease)
            saved = _Saved.from_snapshot(image.snapshot if image else None)
            result = saved.result_for(request)
            if result is not None:
                return Opened(request, lease, saved, answer=await self._stored_answer(lease.session, result))
            _require_not_given_up(request, saved.given_up)
            state = self._read_state(saved)
        except BaseException as exc:
            if is_surely_damage(exc, lease.session):
                await self._block(lease, exc)
            else:
                await self._put_back(lease)
            raise
        opened = Opened(request, lease, saved, has_room=self._has_room(image))
        task = asyncio.current_task()
        writer = Writer(self._store, lease, on_lost=task.cancel if task else lambda: None)
        try:
            opened.turn = await self._open_turn(opened, writer, image)
            opened.events += await opened.turn.take_messages(unread=len(opened.events))
            opened.session = self._make_session(opened, state, emit)
            if lease.head.reason and writer.lease.seq == lease.seq:  # what it waited for, or failed of, is over
                await writer.append(change=Change(status=Status.RUNNING, reason=""))
        except BaseException as exc:
            if writer.broken is None:
                if writer.lease.seq == lease.seq and (change := _undo_of(lease)):
                    await writer.append(change=change)
                await writer.abandon()
            _raise_loss(writer, exc)
            raise
        self._turns.add(opened.turn)
        opened.turn.is_leaving = self._is_leaving
        return opened

    async def _open_turn(self, opened: Opened, writer: Writer, image: Image | None) -> Turn:
        request = opened.request
        tail = image.tail if image else ()
        began = next((index for index in range(len(tail) - 1, -1, -1) if tail[index].kind is Kind.TURN), None)
        current = None if began is None else tail[began]
        opened.events = _left_events(opened.saved, tail)
        opened.given_up = () if current is None else current.extra.get("given_up", ())
        opened.began_by = request.id if current is None else str(current.extra["request"])
        if current is not None and began is not None and self._continues(request, current):
            opened.data = parse_json(current.output)
            records: Sequence[Record] = tail[began + 1 :]
            number = int(current.key.partition(":")[2])
        else:
            if current is not None:
                opened.given_up = (*opened.given_up, current.extra["request"])
            number = await self._begin(opened, writer, current, image)
            opened.data, opened.began_by = request.data, request.id
            records = ()
        memo = Memo.from_records(records)
        return Turn(number=number, store=self._store, writer=writer, memo=memo, budget=Budget(), code=self._code)

    async def _load(self, lease: Lease) -> Image | None:
        is_new = lease.seq == 0 and lease.head.snapshot_seq == 0
        return None if is_new else await self._store.load(lease.session, lease=lease)

    def _has_room(self, image: Image | None) -> bool:
        limits = self._store.limits
        return image is None or (
            len(image.records) < limits.journal_records // 2 and image.head.stored_bytes < limits.session_bytes // 2
        )

    def _continues(self, request: Request, current: Record) -> bool:
        """True when a job goes on with the turn that is under way.

        Raises:
            SessionFenced: The job's turn was given up for a later one.
            InputError: There is nothing to go on with.
        """
        _require_not_given_up(request, current.extra.get("given_up", ()))
        return request.data is None or current.extra["request"] == request.id or current.digest == request.digest

    async def _begin(self, opened: Opened, writer: Writer, current: Record | None, image: Image | None) -> int:
        request = opened.request
        if request.data is None:
            raise InputError(
                f"session {request.session_id!r} has no turn under way that could go on",
                hint="send the handler's input together with session_id",
            )
        self._contract.parse_input(request.data)  # before it takes the place of a turn that waits
        last = int(current.key.partition(":")[2]) if current else image.snapshot.turn if image and image.snapshot else 0
        record = Record(
            Kind.TURN,
            f"turn:{last + 1}",
            encode_json(request.data),
            digest=request.digest,
            started_ms=round(time.time() * 1000),
            code=self._code,
            extra={"request": request.id, "given_up": opened.given_up[-KEPT_RESULTS:], "endpoint": self._endpoint},
        )
        head = opened.lease.head
        # Taking a session that is alive has set its status already: its record is all there is to write.
        is_all = head.status in _ALIVE and not head.reason and head.code == self._code
        change = None if is_all else Change(status=Status.RUNNING, reason="", code=self._code)
        await writer.append(record, change=change)
        return last + 1

    async def _post_event(self, request: Request) -> None:
        event = request.event or {}
        body = encode_json({"name": event["name"], "value": event.get("value")})
        await self._store.post(request.session_id, str(request.message_id), body, event=event["name"])

    def _read_state(self, saved: _Saved) -> Any:
        if self._model is None:
            return None
        if saved.state is None:
            return new_state(self._model)
        return read_state(self._model, saved.state, saved.state_version)

    def _make_session(self, opened: Opened, state: Any, emit: Emit) -> Session[Any]:
        assert opened.turn is not None  # noqa: S101 - _rebuild has just made it
        allowance = _left_of(opened.request.allowance, opened.turn.memo)
        namespace = self._settings.state_namespace
        caller = Caller(self._client, namespace=namespace, emit=emit, allowance=allowance)
        history = History.from_json(opened.saved.history)
        return Session(opened.turn, caller, state=state, history=history, events=opened.events)

    async def _run_turn(self, opened: Opened, handle: Handle, ends_at: float | None) -> bytes:
        turn, session = opened.turn, opened.session
        assert turn is not None  # noqa: S101 - there is no answer yet
        assert session is not None  # noqa: S101
        turn.guard = asyncio.timeout_at(ends_at)
        try:
            return await self._run_handler(opened, turn, session, handle)
        except BaseException as exc:
            _raise_loss(turn.writer, exc)
            raise
        finally:
            self._turns.discard(turn)
            self._held.discard(turn.session)

    async def _run_handler(self, opened: Opened, turn: Turn, session: Session[Any], handle: Handle) -> bytes:
        try:
            output = await _in_time(turn, _handle(handle, session, opened.data, turn))
            await self._finish(opened, turn, session, output)
            _tell_end(turn, "completed")
        except Suspend as exc:
            _tell_end(turn, "waiting")
            output = await self._suspend(turn, exc, unread=len(session.unread_events))
            opened.has_mail = turn.writer.lease.pending > 0
            return output
        except HandBack:
            _tell_end(turn, "handed_back")
            await turn.writer.abandon()
            raise
        except asyncio.CancelledError as exc:
            _tell_end(turn, "failed")
            await self._note_failure(turn, exc, Change(status=Status.FAILED, reason="cancelled", release=True))
            raise
        except BaseException as exc:
            _tell_end(turn, "over_budget" if isinstance(exc, BudgetExceeded) else "failed")
            needs_person = isinstance(exc, OutcomeUnknown) or is_surely_damage(exc, turn.session)
            status = Status.BLOCKED if needs_person else Status.FAILED
            await self._note_failure(turn, exc, Change(status=status, reason=_reason_of(exc), release=True))
            raise
        return output

    async def _finish(self, opened: Opened, turn: Turn, session: Session[Any], output: bytes) -> None:
        if turn.writer.broken is not None:  # the handler did not let itself be cancelled
            raise turn.writer.broken
        taken = [step.result.extra for step in turn.memo.steps.values() if step.result is not None]
        messages = [extra["message"] for extra in taken if "message" in extra]
        ids = {"request": opened.request.id, "began_by": opened.began_by, "messages": messages}
        result: dict[str, Any] = {**ids, "digest": opened.request.digest}
        if len(output) > INLINE_ANSWER_BYTES:
            result["blob"] = await self._store.put_blob(turn.session, output)
        else:
            result["output"] = parse_json(output)
        saved = {
            "format": _SNAPSHOT_FORMAT,
            "state": plain_values(session.state),
            "state_version": state_version(self._model) if self._model else 1,
            "history": session.history.to_json(),
            "results": [*opened.saved.results, result][-KEPT_RESULTS:],
            "events": [await self._kept_event(turn, event) for event in session.unread_events],
            "given_up": [*opened.saved.given_up, *opened.given_up][-KEPT_RESULTS:],
            "used": _used_by(opened.saved, turn),
        }
        snapshot = Snapshot(encode_value(saved), turn=turn.number)
        keeps_steps = self._settings.keep_journals and opened.has_room
        used = [*opened.saved.results, result] if self._settings.keep_journals else saved["results"]
        change = Change(
            snapshot=snapshot,
            trim=not keeps_steps,
            blobs=frozenset(each["blob"] for each in (*used, *saved["events"]) if "blob" in each),
            history=KEPT_SNAPSHOTS if self._settings.keep_journals else 0,
            status=Status.IDLE,
            reason="",
            unread=len(session.unread_events),
            awaits="",
            release=True,
        )
        with span(Op.COMMIT, "turn", {"flashkit.session.id": turn.session}):
            await turn.writer.close(*(turn.take_unwritten() if keeps_steps else ()), change=change)

    async def _kept_event(self, turn: Turn, event: Record) -> dict[str, Any]:
        """Return an event that nobody asked for, as it goes into the snapshot."""
        if event.blob is None and len(event.output) <= INLINE_ANSWER_BYTES:
            return {"name": event.key, "value": parse_json(event.output)}
        return {"name": event.key, "blob": event.blob or await self._store.put_blob(turn.session, event.output)}

    async def _stored_answer(self, session: str, result: dict[str, Any]) -> bytes:
        if "blob" in result:
            return await self._store.get_blob(session, result["blob"])
        return encode_json(result["output"])

    async def _suspend(self, turn: Turn, exc: Suspend, *, unread: int) -> bytes:
        change = Change(
            status=Status.WAITING,
            reason=f"waits for event {exc.event!r}",
            unread=unread,
            awaits=exc.event,
            due_ms=exc.due_ms,
            release=True,
        )
        await turn.writer.close(*turn.take_unwritten(), change=change)
        return encode_json(
            {"status": "waiting", "session_id": turn.session, "event": exc.event, "timeout": exc.timeout_s}
        )

    async def _note_failure(self, turn: Turn, exc: BaseException, change: Change) -> None:
        try:
            try:
                await turn.writer.close(*turn.records_of_failure(exc), change=change)
            except PayloadTooLarge:  # the journal is full: the failure itself still has room
                await turn.writer.close(change=change)
        except FlashkitError as store_error:
            log.warning("session %s: its failure could not be written down: %s", turn.session, store_error)


def _used_by(saved: _Saved, turn: Turn) -> dict[str, Any]:
    """Return what all turns have used, with this one."""
    account = Account.from_json(saved.used)
    account.add(turn.account)
    account.add_spent(tokens=turn.budget.tokens, cost_usd=turn.budget.cost_usd)
    return account.to_json()


def _tell_end(turn: Turn, outcome: str) -> None:
    """Say on the job's span how its turn ended, and what all of it has used."""
    job = current()
    job.set("flashkit.turn.outcome", outcome)
    job.set("flashkit.turn.tokens", turn.budget.tokens)


async def _handle(handle: Handle, session: Session[Any], data: Any, turn: Turn) -> bytes:
    """Return the handler's output; what ended the turn is raised also when the handler caught it."""
    try:
        output = await handle(session, data)
        turn.check_ended()
    except (Exception, Suspend) as exc:
        if exc is not turn.ended_by:
            turn.check_ended()
        raise
    turn.check_complete()
    return output


class _Witness:
    """Watches the heartbeat of another worker's lease on this worker's own clock."""

    def __init__(self) -> None:
        self.heartbeat: int | None = None
        self._seen: int | None = None
        self._since = 0.0

    def see(self, busy: Busy, *, at_once: bool) -> None:
        """Take note; `heartbeat` is set once the lease may be taken although its time is not over."""
        if busy.heartbeat != self._seen:
            self._seen, self._since = busy.heartbeat, time.monotonic()
        stood_still = time.monotonic() - self._since > 2 * busy.ttl_s
        self.heartbeat = busy.heartbeat if at_once or stood_still else None


def _time_to_end(limit_s: float) -> float:
    """Return how many seconds before the platform ends a job its turn is stopped, to write that down and answer."""
    return min(_MOST_TIME_TO_END_S, limit_s * _SHARE_OF_TIME_TO_END)


async def _in_time(turn: Turn, work: Awaitable[bytes]) -> bytes:
    """Await the handler; cancel it when its time is over. A function in a thread runs on, without being waited for."""
    try:
        async with turn.guard:
            return await work
    except TimeoutError as exc:
        if not turn.guard.expired():
            raise
        done = sum(step.result is not None for step in turn.memo.steps.values())
        raise JobTimedOut(
            f"turn {turn.number} of session {turn.session!r} was stopped before its job's execution timeout; "
            f"{done} completed steps are kept",
            hint=f"let it go on from there: flashkit sessions resume {turn.session}; for longer turns, raise "
            "execution_timeout_ms of the endpoint",
            details={"session_id": turn.session, "completed_steps": done},
        ) from exc


def _undo_of(lease: Lease) -> Change | None:
    """Return what makes a session look again as before it was taken, None when it still does."""
    before = lease.head
    is_changed = before.status in (Status.IDLE, Status.WAITING)
    return Change(status=before.status, reason=before.reason) if is_changed else None


def _reason_of(exc: BaseException) -> str:
    return hide_in_text(f"{type(exc).__name__}: {exc}")[:500]


def _left_events(saved: _Saved, tail: Sequence[Record]) -> list[Record]:
    """Return the events that no completed `wait_for` has taken, oldest first; also those of turns given up."""
    left = [
        Record(Kind.ANSWER, event["name"], encode_json(event.get("value")), blob=event.get("blob"))
        for event in saved.events
    ]
    left += [record for record in tail if record.kind is Kind.ANSWER and not is_fork_marker(record)]
    taken = [str(record.extra["event"]) for record in tail if record.kind is Kind.RESULT and "event" in record.extra]
    for name in taken:
        found = next((event for event in left if event.key == name), None)
        if found is not None:
            left.remove(found)
    return left


def _left_of(allowance: Allowance, memo: Memo) -> Allowance:
    """Return what is left of an allowance after the retries that the journal tells of."""
    if allowance.retries is None:
        return replace(allowance)
    used = sum(step.last.attempt - 1 for step in memo.steps.values() if step.last is not None)
    return replace(allowance, retries=max(0, allowance.retries - used))


def _require_not_given_up(request: Request, given_up: Sequence[str]) -> None:
    if request.id in given_up:
        raise SessionFenced(
            f"session {request.session_id!r} has gone on with another request meanwhile",
            hint="send the request again as a new job",
        )


def _raise_loss(writer: Writer, exc: BaseException) -> None:
    """Raise why the lease was lost, in place of the cancellation with which that ended the job's task."""
    if writer.broken is None or not (isinstance(exc, asyncio.CancelledError) or exc is writer.broken):
        return
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        task.uncancel()
    raise writer.broken from None


def owner_name(settings: Settings) -> str:
    """Return the name under which this worker takes sessions; outside of a platform no two processes share one."""
    if settings.worker_id != DEFAULT_WORKER_ID:
        return settings.worker_id
    return f"{DEFAULT_WORKER_ID}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def code_version(function: Callable[..., Any]) -> str:
    """Return a short digest of the handler's source, to tell deployments apart."""
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        source = getattr(function, "__qualname__", "")
    return hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
