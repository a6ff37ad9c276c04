"""One turn of a session: which steps are done, who may write, how much may still be used.

A turn is one request to an agent. Its journal begins with a TURN record and holds a record for every
step that completed. When a worker dies, the next one loads the journal and runs the handler again from
its first line: completed steps answer from the journal. The order in which steps are asked for is
recorded too, so code that no longer matches a journal is noticed before it does something twice.

A failure is written down only once the handler goes on after it: its record stands in front of the next one.
From then on it is what came of the step. When it ends the turn all the same, that is written too, and a
retry runs the step again.

Steps are numbered along a path: each branch of a `gather` counts for itself, because branches overtake
each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from flashkit.errors import BudgetExceeded, FlashkitError, JobError, RecordCorrupt, ReplayMismatch
from flashkit.handler import encode_json, parse_json
from flashkit.telemetry import Op, span
from flashkit.worker.job import HandBack
from flashkit.worker.sessions.accounts import Account
from flashkit.worker.sessions.budget import Budget, Move
from flashkit.worker.sessions.failures import NOT_KEPT, comes_back, encode_error, led_to, rebuild_error
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.refusals import damaged, require_size
from flashkit.worker.sessions.scope import StepScope, running_step
from flashkit.worker.sessions.store import Change, Durability, Status, Store
from flashkit.worker.sessions.writer import Writer

T = TypeVar("T")

log = logging.getLogger(__name__)

_ONLY_PLAIN: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
"""Leaves to pydantic what orjson would write in another form."""
_path: ContextVar[str] = ContextVar("flashkit_session_path", default="")


class Fate(StrEnum):
    """What an ERROR record means; in its `extra` under the name `fate`."""

    RAISED = "raised"
    """The step raised this, and the handler went on."""
    RETRY = "retry"
    """A failure of the step ended the turn: it runs again."""
    SETTLED = "settled"
    """A person found out that the effect did not happen."""


class Suspend(BaseException):
    """Ends a handler because its session waits for an event, without holding a worker."""

    def __init__(self, event: str, timeout_s: float | None, *, since_ms: int) -> None:
        super().__init__(event)
        self.event = event
        self.timeout_s = timeout_s
        self.due_ms = 0 if timeout_s is None else since_ms + round(timeout_s * 1000) + 1
        """Time of day at which the waiting is over; 0 for never."""


class Ask(NamedTuple):
    """A step as the code asks for it: where in the turn, under which name, with which input."""

    key: str
    name: str
    path: str
    ordinal: int
    digest: str

    @property
    def extra(self) -> dict[str, Any]:
        """What the journal keeps of the asking, for the replay check."""
        return {"path": self.path, "n": self.ordinal}


@dataclass(slots=True)
class Progress:
    """How far one step has come, from its records."""

    result: Record | None = None
    error: Record | None = None
    """It raised, and the handler went on after that."""
    intent: Record | None = None
    attach: Record | None = None
    failed_attach: Record | None = None
    """The job of an earlier attempt, whose failure ended the turn."""
    note: Record | None = None
    is_counted: bool = False
    """What its function has used is in the turn's budget."""

    @property
    def last(self) -> Record | None:
        """The record that tells most of the step."""
        return self.result or self.error or self.attach or self.intent


@dataclass(slots=True)
class Memo:
    """The records of one turn, by step and by place."""

    steps: dict[str, Progress] = field(default_factory=dict)
    asked: dict[tuple[str, int], str] = field(default_factory=dict)
    answers: list[Record] = field(default_factory=list)

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> Memo:
        """Sort a journal."""
        memo = cls()
        for record in records:
            memo.add(record)
        return memo

    def add(self, record: Record) -> None:
        """Take in one record."""
        if record.kind is Kind.ANSWER:
            self.answers.append(record)
            return
        progress = self.steps.setdefault(record.key, Progress())
        if record.kind is Kind.RESULT:
            progress.result = record
        elif record.kind is Kind.INTENT:
            progress.intent = record
        elif record.kind is Kind.ATTACH:
            progress.attach = record
        elif record.kind is Kind.NOTE:
            progress.note = record
            return
        elif record.kind is Kind.ERROR and not self._take_error(progress, record):
            return
        if "n" in record.extra:
            self.asked[record.extra.get("path", ""), record.extra["n"]] = record.key

    def _take_error(self, progress: Progress, record: Record) -> bool:
        """Take in what became of a step; False when its place is open again."""
        match record.extra.get("fate", Fate.SETTLED):
            case Fate.RAISED:
                progress.error = record
            case Fate.RETRY:
                if progress.error is not None:
                    self._forget_order_after(progress.error)
                progress.error = None
                if record.extra.get("job_is_over"):
                    progress.failed_attach, progress.attach = progress.attach, None
                return False
            case _:
                progress.intent = None
        return True

    def _forget_order_after(self, error: Record) -> None:
        """Let the handler take another way from a failure on: the steps after it followed from it.

        Unless it began an effect or a call there. Those cannot be undone, so another way is a mismatch still.
        """
        places = list(self.asked)
        place = (error.extra.get("path", ""), error.extra["n"])
        later = places[places.index(place) :] if place in self.asked else []
        reached_out = (self.steps[self.asked[each]] for each in later[1:])
        if any(progress.intent or progress.attach for progress in reached_out):
            later = later[:1]
        for each in later:
            del self.asked[each]


class Turn:
    """What a `Session` works on while its handler runs."""

    def __init__(self, *, number: int, store: Store, writer: Writer, memo: Memo, budget: Budget, code: str) -> None:
        self.number = number
        self.store = store
        self.writer = writer
        self.memo = memo
        self.budget = budget
        self.code = code
        self.account = Account()
        """What its calls have used."""
        self.is_leaving = False
        self.guard = asyncio.timeout(None)
        """Cancels the handler a little before the platform would end its job."""
        self.ended_by: Exception | None = None
        """What ended the turn, whatever the handler does with it."""
        self._commit_attributes = {"flashkit.session.id": writer.lease.session}
        self._asked = ""
        """The step that was asked for last."""
        self._uses: Counter[str] = Counter()
        self._ordinals: Counter[str] = Counter()
        self._branches: Counter[str] = Counter()
        self._used_keys: set[str] = set()
        self._recorded = _last_ordinals(memo)
        self._unwritten: list[Record] = []
        self._raised: dict[str, Exception] = {}
        self._taking = asyncio.Lock()  # of two branches that look into the inbox, one moves what is there
        self.catches: dict[str, type[Exception]] = {}
        """Classes of the user's, by name, as which recorded errors come back."""
        self.given_up_calls: set[str] = set()
        """Keys of calls whose job was cancelled because nobody waited for it any more."""

    @property
    def session(self) -> str:
        """The session's id."""
        return self.writer.lease.session

    def span_attributes(self, ask: Ask) -> dict[str, Any]:
        """Return what the span of a step says besides its name."""
        return {"flashkit.session.id": self.session, "flashkit.step.name": ask.name, "flashkit.turn": self.number}

    @property
    def goes_on_elsewhere(self) -> bool:
        """True when another worker has the session or will have it, or another job, and waits for the same jobs."""
        return self.is_leaving or self.writer.broken is not None or self.guard.expired()

    def ask(self, name: str, arguments: Any) -> Ask:
        """Register that the code asks for a step, and return where it stands.

        Raises:
            ReplayMismatch: The journal has another step in this place.
            BudgetExceeded: A ceiling is hit.
        """
        self.check_ended()
        path = _path.get()
        digest = digest_of(arguments)
        ask = Ask(self._next_key(path, name), name, path, self._ordinals[path], digest)
        self._asked = ask.key
        self._ordinals[path] += 1
        try:
            self._check_replay(ask)
            self._check_input(ask)
            self.budget.admit(Move(name, digest), path)
        except (ReplayMismatch, BudgetExceeded) as exc:
            self.end(exc)
            raise
        return ask

    def end(self, exc: Exception) -> None:
        """Let the turn end with an error that is not what came of a step; the first one counts."""
        if isinstance(exc, NOT_KEPT):
            self.ended_by = self.ended_by or exc

    def check_ended(self) -> None:
        """Raise again what ended the turn, in case that the handler caught it."""
        if self.ended_by is not None:
            raise self.ended_by.with_traceback(None)

    def spend(self, *, tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Count what the agent has used; what a step's function has used goes into the step's record too.

        Raises:
            BudgetExceeded: It is more than a ceiling.
        """
        if scope := running_step():
            scope.tokens += tokens
            scope.cost_usd += cost_usd
        try:
            self.budget.spend(tokens=tokens, cost_usd=cost_usd)
        except BudgetExceeded as exc:
            self.end(exc)
            raise

    def branch(self) -> str:
        """Return the path of the next fan-out; its branches are numbered below it."""
        path = _path.get()
        self._branches[path] += 1
        name = f"gather{self._branches[path]}"
        return f"{path}/{name}" if path else name

    def done(self, ask: Ask) -> Record | None:
        """Return the record of a step that completed before, None when it is to run; raise what it raised."""
        progress = self.memo.steps.get(ask.key)
        if progress is None:
            return None
        if (record := progress.result or progress.error) and not progress.is_counted:
            progress.is_counted = True
            self.account.add_call(record.extra.get("used"))
            self.spend(**record.extra.get("spent", {}))
        if progress.result is None and progress.error is not None:
            error = rebuild_error(progress.error.output, self.catches)
            self._raised[ask.key] = error
            raise error
        return progress.result

    async def once(
        self, ask: Ask, run: Callable[[], Awaitable[Any]], encode: Callable[[Any], bytes], *, op: Op = Op.STEP
    ) -> bytes:
        """Return a step's result as JSON text, running it unless the journal has it."""
        record = self.done(ask)
        if record is None:
            self.check_may_begin()
            started_ms, started = round(time.time() * 1000), time.monotonic()
            with span(op, ask.key, self.span_attributes(ask)) as step, StepScope(ask.key) as scope:
                try:
                    output, took = encode(await run()), time.monotonic() - started
                    scope.warn_of_changes(self.session)
                    scope.tell(step)
                    record = await self.write_result(
                        ask, output, started_ms=started_ms, seconds=took, extra=scope.spent
                    )
                except Exception as exc:
                    took = time.monotonic() - started
                    self.note_error(ask, exc, started_ms=started_ms, seconds=took, extra=scope.spent)
                    raise
        return await self.output_of(record)

    def note_error(self, ask: Ask, exc: Exception, **more: Any) -> None:
        """Remember what a step raised; it is written in front of the next record, if the handler goes on."""
        if isinstance(exc, NOT_KEPT):
            self.end(exc)
            return
        self._raised[ask.key] = exc
        extra = {**ask.extra, **more.pop("extra", {}), "fate": Fate.RAISED}
        output = encode_error(exc)
        self._unwritten.append(
            Record(Kind.ERROR, ask.key, output, digest=ask.digest, code=self.code, extra=extra, **more)
        )

    def check_leaving(self) -> None:
        """End the handler here if its worker has to go."""
        if self.writer.broken is not None:
            raise self.writer.broken
        if self.guard.expired():  # the handler did not let itself be cancelled
            raise asyncio.CancelledError
        if self.is_leaving:
            raise HandBack(self._asked)

    def check_may_begin(self) -> None:
        """End the handler here, before it begins what another run would begin again."""
        self.check_ended()
        self.check_leaving()

    async def write(
        self,
        kind: Kind,
        ask: Ask,
        output: bytes = b"null",
        *,
        blob: str | None = None,
        started_ms: int = 0,
        seconds: float = 0.0,
        attempt: int = 1,
        extra: Mapping[str, Any] | None = None,
        durability: Durability = Durability.DEFAULT,
    ) -> Record:
        """Append one record of a step; `durability` may ask for more than the default."""
        extra = {**ask.extra, **extra} if extra else ask.extra
        record = Record(kind, ask.key, output, ask.digest, blob, started_ms, seconds, attempt, self.code, extra)
        before = self.take_unwritten() if self._unwritten else []
        try:
            with span(Op.COMMIT, kind.name.lower(), self._commit_attributes):
                await self.writer.append(*before, record, durability=durability)
        except FlashkitError:
            self._unwritten[:0] = before
            raise
        self.memo.add(record)
        return record

    def take_unwritten(self) -> list[Record]:
        """Return the failures and notes that belong in front of the next write."""
        taken, self._unwritten = self._unwritten, []
        for record in taken:
            self.memo.add(record)
            self._warn_of_class(record)
        return taken

    def records_of_failure(self, exc: BaseException) -> list[Record]:
        """Return the records by which the steps that ended the turn run again when it is retried."""
        ended = {*led_to(exc, {id(error): key for key, error in self._raised.items()}), *self.given_up_calls}
        ended.update(record.key for record in self._unwritten)
        records = []
        for key in sorted(ended & self.memo.steps.keys()):
            step = self.memo.steps[key]
            is_over = bool(step.attach) and (key in self.given_up_calls or isinstance(self._raised.get(key), JobError))
            if step.result is None and (step.error or is_over):
                extra = {"fate": Fate.RETRY, "job_is_over": is_over}
                records.append(Record(Kind.ERROR, key, code=self.code, extra=extra))
        return records

    async def take_messages(self, *, unread: int) -> list[Record]:
        """Move the inbox into the journal, so that each event is seen once, and return what was there.

        Args:
            unread: How many events were taken in before that no `wait_for` has asked for.
        """
        async with self._taking:
            if not self.writer.lease.pending:
                return []
            messages = await self.store.inbox(self.session)
            records = []
            for message in messages:
                body = parse_json(message.body)
                output, extra = encode_json(body["value"]), {"message": message.id}
                records.append(Record(Kind.ANSWER, body["name"], output, code=self.code, extra=extra))
            if records:
                consumed, unread = messages[-1].position, unread + len(records)
                change = Change(consumed=consumed, status=Status.RUNNING, reason="", unread=unread)
                await self.writer.append(*records, change=change)
                for record in records:
                    self.memo.add(record)
            return records

    async def write_result(self, ask: Ask, output: bytes, **more: Any) -> Record:
        """Append a step's result; one that is too large for the journal goes into a blob first."""
        if len(output) > self.store.limits.record_bytes:
            require_size(f"the output of step {ask.key!r}", output, self.store.limits.blob_bytes)
            more["blob"] = await self.store.put_blob(self.session, output)
            output = b"null"
        return await self.write(Kind.RESULT, ask, output, **more)

    async def output_of(self, record: Record) -> bytes:
        """Return a record's output, from its blob where it has one."""
        if record.blob is None:
            return record.output
        try:
            return await self.store.get_blob(self.session, record.blob)
        except RecordCorrupt as exc:
            error = damaged(self.session, exc)
            self.end(error)
            raise error from exc
        except FlashkitError as exc:
            self.end(exc)
            raise

    def _next_key(self, path: str, name: str) -> str:
        scoped = f"{path}/{name}" if path else name
        self._uses[scoped] += 1
        key = scoped if self._uses[scoped] == 1 else f"{scoped}#{self._uses[scoped]}"
        if key in self._used_keys:  # a step that the user named like the second use of another one
            return self._next_key(path, name)
        self._used_keys.add(key)
        return key

    def check_complete(self, path: str = "") -> None:
        """Check that the code has asked for every recorded step of a path, now that it is at its end.

        Raises:
            ReplayMismatch: The journal holds a later one.
        """
        asked = self._ordinals[path]
        if self._recorded.get(path, -1) < asked:
            return
        missed = [key for (place, number), key in self.memo.asked.items() if place == path and number >= asked]
        if missed:
            raise ReplayMismatch(
                f"session {self.session!r}: the code has ended without asking for step {missed[0]!r}, "
                f"which the journal has{_version_of(self.memo.steps[missed[0]])}",
                hint="the journal's steps must be asked for again: finish the turn with the old code, or give the "
                "session another request, with which a new turn begins",
                details={"asked": None, "recorded": missed[0], "code": self.code},
            )

    def _check_input(self, ask: Ask) -> None:
        """Warn where a recorded step has another input now: what came of it then is kept."""
        progress = self.memo.steps.get(ask.key)
        record = progress.last if progress else None
        if progress is None or record is None or not record.digest or not ask.digest or record.digest == ask.digest:
            return
        log.warning(
            "session %s: step %r has another input now than when it ran; what came of it then is kept",
            self.session,
            ask.key,
        )
        if progress.note is None or progress.note.digest != ask.digest:
            self._unwritten.append(Record(Kind.NOTE, ask.key, b'"other input"', digest=ask.digest, code=self.code))

    def _warn_of_class(self, record: Record) -> None:
        error = self._raised.get(record.key) if record.kind is Kind.ERROR else None
        if error is not None and not comes_back(error, self.catches):
            log.warning(
                "session %s: step %r raised %s, which comes back as another class if the session is resumed: "
                "name it with session.catches(%s)",
                self.session,
                record.key,
                type(error).__name__,
                type(error).__name__,
            )

    def _check_replay(self, ask: Ask) -> None:
        recorded = self.memo.asked.get((ask.path, ask.ordinal))
        if recorded is None or recorded == ask.key:
            return
        version = _version_of(self.memo.steps[recorded])
        raise ReplayMismatch(
            f"session {self.session!r}: the code asks for step {ask.key!r} where the journal has {recorded!r}{version}",
            hint="the steps before this point must be asked for in the same order as when they ran: put what differs "
            "between runs (time, random numbers, environment) into a step, or finish the turn with the old code",
            details={"asked": ask.key, "recorded": recorded, "code": self.code},
        )


async def in_branch(turn: Turn, call: Awaitable[T], path: str, index: int) -> T:
    """Await one branch of a fan-out, with its own numbering of steps."""
    branch = f"{path}[{index}]"
    _path.set(branch)
    result = await call
    turn.check_ended()
    try:
        turn.check_complete(branch)
    except ReplayMismatch as exc:
        turn.end(exc)
        raise
    return result


def _last_ordinals(memo: Memo) -> dict[str, int]:
    """Return the number of the last recorded step on each path."""
    last: dict[str, int] = {}
    for path, number in memo.asked:
        last[path] = max(number, last.get(path, -1))
    return last


def _version_of(progress: Progress) -> str:
    record = progress.last
    return f" (written by code {record.code})" if record and record.code else ""


def encode_value(value: Any) -> bytes:
    """Return a value as JSON text, as `encode_json` does, but quicker for plain values, which most are."""
    try:
        return orjson.dumps(value, option=_ONLY_PLAIN)
    except TypeError:
        return encode_json(value)


def digest_of(arguments: Any) -> str:
    """Return a short digest of a step's input; empty for what has no JSON form, which then matches anything."""
    try:
        data = _sorted_json(arguments)
    except (TypeError, ValueError):
        return ""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _sorted_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_read_for_digest, option=_ONLY_PLAIN | orjson.OPT_SORT_KEYS)
    except TypeError as exc:
        if exc.__cause__ is not None:
            raise
        return orjson.dumps(orjson.loads(encode_json(value)), option=orjson.OPT_SORT_KEYS)


def _read_for_digest(value: Any) -> Any:
    if isinstance(value, Iterator):
        raise TypeError("reading an iterator would use up what the step is to get")
    return orjson.loads(encode_json(value))
