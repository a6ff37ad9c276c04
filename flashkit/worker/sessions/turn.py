"""One turn of a session: which steps are done, who may write, how much may still be used.

A turn is one request to an agent. Its journal begins with a TURN record and holds a record for every
step that completed. When a worker dies, the next one loads the journal and runs the handler again from
its first line: completed steps answer from the journal. The order in which steps are asked for is
recorded too, so code that no longer matches a journal is noticed before it does something twice.

Steps are numbered along a path: each branch of a `gather` counts for itself, because branches overtake
each other.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from flashkit.errors import ReplayMismatch
from flashkit.handler import encode_json
from flashkit.worker.job import HandBack
from flashkit.worker.sessions.budget import Budget, Move
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Durability, Store
from flashkit.worker.sessions.writer import Writer

T = TypeVar("T")

_ONLY_PLAIN: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
"""Leaves to pydantic what orjson would write in another form."""
_path: ContextVar[str] = ContextVar("flashkit_session_path", default="")


class Suspend(BaseException):
    """Ends a handler because its session waits for an event, without holding a worker."""

    def __init__(self, event: str, timeout_s: float | None) -> None:
        super().__init__(event)
        self.event = event
        self.timeout_s = timeout_s


@dataclass(frozen=True, slots=True)
class Ask:
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
    intent: Record | None = None
    attach: Record | None = None


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
        elif record.kind is Kind.ERROR:  # a person has found out that the effect did not happen
            progress.intent = None
        if "n" in record.extra:
            self.asked[record.extra.get("path", ""), record.extra["n"]] = record.key


class Turn:
    """What a `Session` works on while its handler runs."""

    def __init__(self, *, number: int, store: Store, writer: Writer, memo: Memo, budget: Budget, code: str) -> None:
        self.number = number
        self.store = store
        self.writer = writer
        self.memo = memo
        self.budget = budget
        self.code = code
        self.is_leaving = False
        self._uses: Counter[str] = Counter()
        self._ordinals: Counter[str] = Counter()
        self._branches: Counter[str] = Counter()
        self._used_keys: set[str] = set()

    @property
    def session(self) -> str:
        """The session's id."""
        return self.writer.lease.session

    @property
    def goes_on_elsewhere(self) -> bool:
        """True when another worker has the session or will have it, and waits for the same jobs."""
        return self.is_leaving or self.writer.broken is not None

    def ask(self, name: str, arguments: Any) -> Ask:
        """Register that the code asks for a step, and return where it stands.

        Raises:
            ReplayMismatch: The journal has another step in this place.
            BudgetExceeded: A ceiling is hit.
        """
        path = _path.get()
        digest = digest_of(arguments)
        ask = Ask(self._next_key(path, name), name, path, self._ordinals[path], digest)
        self._ordinals[path] += 1
        self._check_replay(ask)
        self.budget.admit(Move(name, digest))
        return ask

    def branch(self) -> str:
        """Return the path of the next fan-out; its branches are numbered below it."""
        path = _path.get()
        self._branches[path] += 1
        name = f"gather{self._branches[path]}"
        return f"{path}/{name}" if path else name

    def done(self, ask: Ask) -> Record | None:
        """Return the record of a step that completed before, None when it is to run."""
        progress = self.memo.steps.get(ask.key)
        return progress.result if progress else None

    async def once(self, ask: Ask, run: Callable[[], Awaitable[Any]], encode: Callable[[Any], bytes]) -> bytes:
        """Return a step's result as JSON text, running it unless the journal has it."""
        record = self.done(ask)
        if record is None:
            self.check_leaving()
            started_ms, started = round(time.time() * 1000), time.monotonic()
            output = encode(await run())
            record = await self.write_result(ask, output, started_ms=started_ms, seconds=time.monotonic() - started)
        return await self.output_of(record)

    def check_leaving(self) -> None:
        """End the handler here if its worker has to go."""
        if self.writer.broken is not None:
            raise self.writer.broken
        if self.is_leaving:
            raise HandBack

    async def write(self, kind: Kind, ask: Ask, output: bytes = b"null", **more: Any) -> Record:
        """Append one record of a step; `durability` may ask for more than the default."""
        durability = more.pop("durability", Durability.DEFAULT)
        extra = {**ask.extra, **more.pop("extra", {})}
        record = Record(kind, ask.key, output, digest=ask.digest, code=self.code, extra=extra, **more)
        await self.writer.append(record, durability=durability)
        self.memo.add(record)
        return record

    async def write_result(self, ask: Ask, output: bytes, **more: Any) -> Record:
        """Append a step's result; one that is too large for the journal goes into a blob first."""
        if len(output) > self.store.limits.record_bytes:
            more["blob"] = await self.store.put_blob(self.session, output)
            output = b"null"
        return await self.write(Kind.RESULT, ask, output, **more)

    async def output_of(self, record: Record) -> bytes:
        """Return a record's output, from its blob where it has one."""
        return record.output if record.blob is None else await self.store.get_blob(self.session, record.blob)

    def _next_key(self, path: str, name: str) -> str:
        scoped = f"{path}/{name}" if path else name
        self._uses[scoped] += 1
        key = scoped if self._uses[scoped] == 1 else f"{scoped}#{self._uses[scoped]}"
        if key in self._used_keys:  # a step that the user named like the second use of another one
            return self._next_key(path, name)
        self._used_keys.add(key)
        return key

    def _check_replay(self, ask: Ask) -> None:
        recorded = self.memo.asked.get((ask.path, ask.ordinal))
        if recorded is None or recorded == ask.key:
            return
        progress = self.memo.steps[recorded]
        record = progress.result or progress.attach or progress.intent
        version = f" (written by code {record.code})" if record and record.code else ""
        raise ReplayMismatch(
            f"session {self.session!r}: the code asks for step {ask.key!r} where the journal has {recorded!r}{version}",
            hint="the steps before this point must be asked for in the same order as when they ran: put what differs "
            "between runs (time, random numbers, environment) into a step, or finish the turn with the old code",
            details={"asked": ask.key, "recorded": recorded, "code": self.code},
        )


async def in_branch(call: Awaitable[T], path: str, index: int) -> T:
    """Await one branch of a fan-out, with its own numbering of steps."""
    _path.set(f"{path}[{index}]")
    return await call


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
