"""A session told for people: its head, turns and steps as plain values that are JSON as they are.

Read from the journal alone, so it is as true as what a resuming worker sees. Turns whose records were
trimmed are not there any more; `flashkit dev` keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from flashkit.errors import RecordCorrupt
from flashkit.worker.sessions.accounts import Account, account_of
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.redaction import hide_in_json
from flashkit.worker.sessions.store import Head, Image, Status
from flashkit.worker.sessions.turn import Memo, Progress

PREVIEW_CHARACTERS: Final = 200
FORK_KEY: Final = "fork"
"""Key of the record with which a forked session begins; it stands before every turn, so nothing replays it."""

DAMAGED: Final = "damaged"
"""Status of a session whose stored data is not whole."""

StepKind = Literal["step", "call", "effect", "event"]


class StepState(StrEnum):
    """How far a step has come."""

    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    """For an event, a job's result, or its next attempt."""
    UNKNOWN = "unknown"
    """Its worker ended inside it: the effect may have happened or not."""
    FAILED = "failed"
    """It raised and the handler went on, or it is a call without a result in a turn that has ended."""


class TurnState(StrEnum):
    """How far a turn has come."""

    DONE = "done"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """Its worker died or left; the next job resumes it."""
    WAITING = "waiting"
    BLOCKED = "blocked"
    FAILED = "failed"
    GIVEN_UP = "given up"
    """Another request came before it was done."""


OVER: Final = (TurnState.DONE, TurnState.GIVEN_UP)
"""Nothing runs any more in a turn like this."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One session in a list."""

    session: str
    status: str
    """As the store has it, but `interrupted` for a running one whose worker is gone, and `damaged`."""
    reason: str
    turn: int
    """The last one that was completed."""
    owner: str
    lease_left_s: float
    attempts: int
    code: str
    pending: int
    """Messages that wait for it."""
    stored_bytes: int
    created_ms: int
    updated_ms: int

    @classmethod
    def from_image(cls, image: Image) -> Summary:
        """Tell what a store knows of a session."""
        head, damage = image.head, image.damage
        return cls(
            session=head.session,
            status=DAMAGED if isinstance(damage, RecordCorrupt) else _status_of(head),
            reason=head.reason if damage is None or damage.report.message in head.reason else damage.report.message,
            turn=head.turn,
            owner=head.owner,
            lease_left_s=head.lease_left_s,
            attempts=head.attempts,
            code=head.code,
            pending=head.pending,
            stored_bytes=head.stored_bytes,
            created_ms=head.created_ms,
            updated_ms=head.updated_ms,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a turn."""

    key: str
    kind: StepKind
    state: StepState
    seq: int
    """Number of its last record."""
    started_ms: int | None
    seconds: float | None
    size_bytes: int | None
    """Of its result; None without one, and for one that is in a blob."""
    attempt: int
    code: str
    """Version of the code that ran it."""
    blob: str | None
    job: str | None
    """Of a call: the id of the job."""
    settled: bool
    """A person said what came of it."""
    has_other_input: bool
    """The code asked for it again with another input; what came of the first one was kept."""
    preview: str
    """The beginning of its result's JSON text, or of what it raised."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event that came."""

    name: str
    seq: int
    preview: str


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn."""

    number: int
    state: TurnState
    seq: int
    request: str
    """Id of the job that began it."""
    endpoint: str | None
    code: str
    started_ms: int
    seconds: float
    """From its beginning to the end of its last step."""
    preview: str
    """The beginning of its input's JSON text."""
    steps: tuple[Step, ...]
    events: tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class SessionView:
    """All there is to see of a session."""

    summary: Summary
    forked_from: str | None
    turns: tuple[TurnView, ...]
    damage: str | None
    """Why the journal cannot be read to its end."""
    used: Account
    """What its turns have used; of turns that were given up, nothing is known."""

    @property
    def endpoint(self) -> str | None:
        """The endpoint whose code runs it, where a turn tells."""
        return next((turn.endpoint for turn in reversed(self.turns) if turn.endpoint), None)

    @property
    def open_turn(self) -> TurnView | None:
        """The turn that a job would resume."""
        return self.turns[-1] if self.turns and self.turns[-1].state not in OVER else None


@dataclass(frozen=True, slots=True)
class TurnRecords:
    """A turn as the journal has it: the record that began it, and those after it."""

    head: Record
    records: tuple[Record, ...]

    @property
    def number(self) -> int:
        """The turn's number."""
        return int(self.head.key.partition(":")[2])


def view_session(image: Image) -> SessionView:
    """Tell a session from its data."""
    turns = split_turns(image.records)
    given_up = {request for turn in turns for request in turn.head.extra.get("given_up", ())}
    views = [
        _view_turn(turn, _state_of(turn, given_up, image=image, is_last=turn is turns[-1]), is_held=image.head.is_held)
        for turn in turns
    ]
    marker = next((record for record in image.records if is_fork_marker(record)), None)
    return SessionView(
        summary=Summary.from_image(image),
        forked_from=None if marker is None else str(marker.extra.get("fork")),
        turns=tuple(views),
        damage=None if image.damage is None else image.damage.report.message,
        used=_account_of(image, turns[-1] if views and views[-1].state not in OVER else None),
    )


def _account_of(image: Image, open_turn: TurnRecords | None) -> Account:
    """Return what the finished turns have used, by the snapshot, and what the one under way has used so far."""
    import orjson

    kept = orjson.loads(image.snapshot.data).get("used") if image.snapshot is not None else None
    account = Account.from_json(kept)
    if open_turn is not None:
        steps = Memo.from_records(open_turn.records).steps.values()
        ended = [step.result or step.error for step in steps]
        account.add(account_of(record.extra for record in ended if record is not None))
    return account


def split_turns(records: Iterable[Record]) -> list[TurnRecords]:
    """Return the turns whose beginning is in the journal."""
    groups: list[list[Record]] = []
    for record in records:
        if record.kind is Kind.TURN:
            groups.append([record])
        elif groups and not is_fork_marker(record):
            groups[-1].append(record)
    return [TurnRecords(first, tuple(rest)) for first, *rest in groups]


def is_fork_marker(record: Record) -> bool:
    """True for the first record of a forked session."""
    return record.kind is Kind.ANSWER and record.key == FORK_KEY and "fork" in record.extra


def step_kind(key: str, progress: Progress) -> StepKind:
    """Return what kind of step a key belongs to; see `Session` for how keys are made."""
    name = key.rpartition("/")[2]
    if name.startswith("event:"):
        return "event"
    if name.startswith("call:"):
        return "call"
    return "effect" if progress.intent is not None else "step"


def preview_of(output: bytes) -> str:
    """Return the beginning of a JSON text, without secrets, cut with a mark."""
    text = hide_in_json(output)[: 4 * PREVIEW_CHARACTERS].decode(errors="replace")
    return text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + "…"


def _status_of(head: Head) -> str:
    is_interrupted = head.status is Status.RUNNING and not head.is_held
    return TurnState.INTERRUPTED.value if is_interrupted else head.status.value


def _state_of(turn: TurnRecords, given_up: set[Any], *, image: Image, is_last: bool) -> TurnState:
    if turn.head.extra.get("request") in given_up:
        return TurnState.GIVEN_UP
    snapshot = image.snapshot
    if not is_last or (snapshot is not None and snapshot.turn >= turn.number):
        return TurnState.DONE
    if image.head.is_held:
        return TurnState.RUNNING
    ends = {
        Status.WAITING: TurnState.WAITING,
        Status.BLOCKED: TurnState.BLOCKED,
        Status.FAILED: TurnState.FAILED,
    }
    return ends.get(image.head.status, TurnState.INTERRUPTED)


def _view_turn(turn: TurnRecords, state: TurnState, *, is_held: bool) -> TurnView:
    memo = Memo.from_records(turn.records)
    last_seq = {record.key: record.seq for record in turn.records if record.kind is not Kind.ANSWER}
    is_over = state in OVER
    steps = [
        _view_step(key, progress, seq=last_seq[key], is_over=is_over, is_held=is_held)
        for key, progress in memo.steps.items()
    ]
    ends = [step.started_ms + 1000 * (step.seconds or 0) for step in steps if step.started_ms]
    head = turn.head
    return TurnView(
        number=turn.number,
        state=state,
        seq=head.seq,
        request=str(head.extra.get("request", "")),
        endpoint=head.extra.get("endpoint"),
        code=head.code,
        started_ms=head.started_ms,
        seconds=max(0.0, max(ends, default=head.started_ms) - head.started_ms) / 1000,
        preview=preview_of(head.output),
        steps=tuple(steps),
        events=tuple(Arrival(answer.key, answer.seq, preview_of(answer.output)) for answer in memo.answers),
    )


def _view_step(key: str, progress: Progress, *, seq: int, is_over: bool, is_held: bool) -> Step:
    kind = step_kind(key, progress)
    result, ended = progress.result, progress.result or progress.error
    shown = progress.last
    return Step(
        key=key,
        kind=kind,
        state=_step_state(kind, progress, is_over=is_over, is_held=is_held),
        seq=seq,
        started_ms=(shown.started_ms or None) if shown else None,
        seconds=ended.seconds if ended else None,
        size_bytes=len(result.output) if result and not result.blob else None,
        attempt=result.attempt if result else 1,
        code=shown.code if shown else "",
        blob=result.blob if result else None,
        job=_job_of(progress),
        settled=bool(result and result.extra.get("settled")),
        has_other_input=progress.note is not None,
        preview=preview_of(ended.output) if ended and not ended.blob else "",
    )


def _step_state(kind: StepKind, progress: Progress, *, is_over: bool, is_held: bool) -> StepState:
    if progress.result is not None:
        return StepState.DONE
    if progress.error is not None:
        return StepState.FAILED
    if is_held and not is_over:
        return StepState.WAITING if kind == "event" else StepState.RUNNING
    if kind == "effect":
        return StepState.UNKNOWN
    if kind == "call" and is_over:
        return StepState.FAILED
    return StepState.WAITING


def _job_of(progress: Progress) -> str | None:
    import orjson

    if progress.attach is None:
        return None
    job = orjson.loads(progress.attach.output).get("job")
    return None if job is None else str(job)
