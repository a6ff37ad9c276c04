"""Carries out faults, around the emulator and not inside it: without rules not one line of it runs.

It stands in front of every HTTP request, where it delays, breaks and refuses, and it watches the events, from
which it learns whose worker has which job. What strikes is decided in `faults`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashkit.emulator.answers import error_body, send_body
from flashkit.emulator.connections import break_connection
from flashkit.emulator.events import Event, FaultEvent, JobEvent
from flashkit.emulator.faults import Fault, FaultKind, FaultPlan, refuse_store_faults
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus

_POLL: Final = "/job-take"
_TAKES: Final = ("job-take", "job-take-batch")
_DELIVERIES: Final = ("job-done", "job-stream")
_CLIENT_ACTIONS: Final = frozenset(
    {"run", "runsync", "status", "stream", "cancel", "retry", "purge-queue", "health", "openai"}
)
_DEADLY: Final = (FaultKind.OOM, FaultKind.KILL, FaultKind.RECLAIM)
_OUT_OF_MEMORY: Final = "out of memory: the worker was killed (injected fault)"
_AT_ONCE_S: Final = 0.02
"""Enough for a worker to have got the job from which it is to die."""
_STORE_POLL_S: Final = 0.1


class Workers(Protocol):
    """What faults do to worker processes."""

    def kill(self, worker_id: str) -> None:
        """End one at once."""

    def note(self, worker_id: str, text: str) -> None:
        """Write a line into its log."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A request of the job API or of a worker."""

    endpoint: str
    action: str
    worker_id: str
    job_id: str
    scope: Scope
    receive: Receive
    send: Send


@dataclass(frozen=True, slots=True)
class _Held:
    """A job that a worker has."""

    worker_id: str
    attempt: int


class FaultInjector:
    """Stands between the server and the application, and makes the plan's faults happen."""

    def __init__(
        self,
        *,
        workers: Workers,
        reclaim: Callable[[str], None],
        tell: Callable[[Event], None],
        freeze_store: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without rules.

        Args:
            workers: The worker processes.
            reclaim: Takes a worker's machine away, given its id.
            tell: Gets an event for each fault that struck.
            freeze_store: Makes the store of sessions stop answering, or answer again; None where it is not ours.
            clock: Seconds, for the windows of the rules.
        """
        self.plan = FaultPlan()
        self._workers = workers
        self._reclaim = reclaim
        self._tell = tell
        self._freeze_store = freeze_store
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._doomed: dict[str, Fault] = {}
        """Jobs whose workers are to die with the job in hand, however quick they are."""
        self._tries: dict[str, Counter[str]] = {}
        self._requests: Counter[str] = Counter()
        self._starts: Counter[str] = Counter()
        self._is_store_down = False
        self._store_watch: asyncio.Task[None] | None = None

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the application with faults."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return serve

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        # A poll may be held for long, and meet rules that came after it.
        concerns_us = scope["type"] == "http" and (self.plan.is_active or _POLL in scope["path"])
        call = _read_call(scope, receive, send) if concerns_us else None
        if call is None:
            await app(scope, receive, send)
        elif call.action in _TAKES:
            await self._take(app, call)
        elif call.action in _DELIVERIES:
            await self._deliver(app, call)
        elif call.action not in _CLIENT_ACTIONS or not await self._refuse(call):
            await app(scope, receive, send)

    def notice(self, event: Event) -> None:
        """Learn from an event who has which job."""
        if not isinstance(event, JobEvent):
            return
        if event.status is JobStatus.IN_PROGRESS and event.worker_id is not None:
            self._held[event.job_id] = _Held(event.worker_id, event.attempt)
            return
        if event.status is JobStatus.IN_QUEUE and not event.attempt:
            self.plan.count_job(event.endpoint, event.job_id)
        self._held.pop(event.job_id, None)
        self._doomed.pop(event.job_id, None)
        if event.status.is_final:
            self._tries.pop(event.job_id, None)
            self.plan.forget_job(event.job_id)

    def fails_to_start(self, endpoint: str, worker_id: str) -> bool:
        """Return True when a worker that is being started is to come to nothing."""
        if not self.plan.is_active:
            return False
        self._starts[endpoint] += 1
        fault = self.plan.strikes(FaultKind.START, endpoint, "", self._starts[endpoint], now=self._clock())
        if fault is not None:
            self._report(fault, endpoint, worker_id=worker_id)
        return fault is not None

    def set(self, faults: Iterable[Fault], *, seed: int | None = None) -> None:
        """Replace the rules; their windows begin now.

        Raises:
            InputError: A rule is about the store of sessions, and that is not the platform's own.
        """
        faults = tuple(faults)
        if self._freeze_store is None:
            refuse_store_faults(faults)
        self.plan.set(faults, now=self._clock(), seed=seed)
        concerns_store = any(fault.kind is FaultKind.STORE for fault in self.plan.faults)
        if concerns_store and self._freeze_store is not None and self._store_watch is None:
            self._store_watch = asyncio.get_running_loop().create_task(self._watch_store())

    async def close(self) -> None:
        """Let the store answer again."""
        if self._store_watch is not None:
            self._store_watch.cancel()
            await asyncio.wait([self._store_watch])
        self._set_store(is_down=False)

    async def _watch_store(self) -> None:
        while True:
            self._set_store(is_down=self.plan.is_down(self._clock()))
            await asyncio.sleep(_STORE_POLL_S)

    def _set_store(self, *, is_down: bool) -> None:
        if self._freeze_store is None or is_down == self._is_store_down:
            return
        self._is_store_down = is_down
        self._freeze_store(is_down)
        self._tell(FaultEvent("", None, None, FaultKind.STORE.value, "down" if is_down else "up again"))

    async def _take(self, app: ASGIApp, call: _Call) -> None:
        answer = _Answer(self.plan, call.send)
        await app(call.scope, call.receive, answer.keep)
        job_ids = _job_ids(answer.body)
        delay_s = sum([self._hold_up(call.endpoint, job_id, len(answer.body)) for job_id in job_ids])
        if delay_s:
            await asyncio.sleep(delay_s)
        if any(self._strikes(FaultKind.DROP, call.endpoint, job_id) for job_id in job_ids):
            await break_connection(call.scope)
            return
        await answer.send_on()
        for job_id in job_ids:
            self._plan_death(call.endpoint, job_id, call.worker_id)

    async def _deliver(self, app: ASGIApp, call: _Call) -> None:
        endpoint, job_id = call.endpoint, call.job_id
        doom = self._doomed.get(job_id) if call.action == "job-done" else None
        if doom is not None:  # it was quicker than its death
            self._end_worker(doom, endpoint, job_id, call.worker_id)
            await break_connection(call.scope)
            return
        turn = self._count(job_id, call.action)
        if self._strikes(FaultKind.DROP, endpoint, job_id, turn):
            await break_connection(call.scope)
            return
        if call.action == "job-done" and self._strikes(FaultKind.ERROR, endpoint, job_id, turn):
            await send_body(call.send, 500, error_body(_injected("internal_error", "at this result"), job_id))
            return
        fault = self._strikes(FaultKind.SLOW, endpoint, job_id, turn)
        receive = call.receive if fault is None else _slowed(call.receive, fault.bytes_per_s)
        await app(call.scope, receive, call.send)

    async def _refuse(self, call: _Call) -> bool:
        self._requests[call.endpoint] += 1
        for kind, code in ((FaultKind.TOO_MANY, "rate_limited"), (FaultKind.BROKEN, "internal_error")):
            fault = self.plan.strikes(kind, call.endpoint, "", self._requests[call.endpoint], now=self._clock())
            if fault is not None:
                self._report(fault, call.endpoint)
                await send_body(call.send, int(kind.value), error_body(_injected(code, "at this request")))
                return True
        return False

    def _hold_up(self, endpoint: str, job_id: str, size_bytes: int) -> float:
        """Return how long the hand-out of a job takes more."""
        seconds = 0.0
        if fault := self._strikes(FaultKind.LATENCY, endpoint, job_id):
            seconds += self.plan.latency_s(fault, endpoint, job_id, self._attempt(job_id))
        if fault := self._strikes(FaultKind.SLOW, endpoint, job_id):
            seconds += size_bytes / fault.bytes_per_s
        return seconds

    def _plan_death(self, endpoint: str, job_id: str, worker_id: str) -> None:
        for kind in _DEADLY:
            if fault := self._strikes(kind, endpoint, job_id, report=False):
                if not fault.seconds:
                    self._doomed[job_id] = fault
                loop = asyncio.get_running_loop()
                loop.call_later(fault.seconds or _AT_ONCE_S, self._end_worker, fault, endpoint, job_id, worker_id)
                return

    def _end_worker(self, fault: Fault, endpoint: str, job_id: str, worker_id: str) -> None:
        held = self._held.get(job_id)
        self._doomed.pop(job_id, None)
        if held is None or held.worker_id != worker_id:
            return  # it is done with the job
        self._report(fault, endpoint, job_id)
        if fault.kind is FaultKind.RECLAIM:
            self._reclaim(worker_id)
            return
        if fault.kind is FaultKind.OOM:
            self._workers.note(worker_id, _OUT_OF_MEMORY)
        self._workers.kill(worker_id)

    def _strikes(
        self, kind: FaultKind, endpoint: str, job_id: str, turn: int | None = None, *, report: bool = True
    ) -> Fault | None:
        turn = self._attempt(job_id) if turn is None else turn
        fault = self.plan.strikes(kind, endpoint, job_id, turn, now=self._clock())
        if fault is not None and report:
            self._report(fault, endpoint, job_id)
        return fault

    def _attempt(self, job_id: str) -> int:
        held = self._held.get(job_id)
        return held.attempt if held else 0

    def _count(self, job_id: str, action: str) -> int:
        if job_id not in self._held:
            return 0
        tries = self._tries.setdefault(job_id, Counter())
        tries[action] += 1
        return tries[action]

    def _report(self, fault: Fault, endpoint: str, job_id: str | None = None, *, worker_id: str | None = None) -> None:
        held = self._held.get(job_id or "")
        worker_id = worker_id or (None if held is None else held.worker_id)
        self._tell(FaultEvent(endpoint, job_id, worker_id, fault.kind.value, str(fault)))


class _Answer:
    """A response that is looked at before it is sent, if there are rules when it begins."""

    def __init__(self, plan: FaultPlan, send: Send) -> None:
        self._plan = plan
        self._send = send
        self._messages: list[Message] = []
        self._is_kept = False
        self.body = b""

    async def keep(self, message: Message) -> None:
        """Take a part of it."""
        if message["type"] == "http.response.start":
            self._is_kept = self._plan.is_active
        if not self._is_kept:
            await self._send(message)
            return
        self._messages.append(message)
        self.body += message.get("body", b"")

    async def send_on(self) -> None:
        """Send what was kept."""
        for message in self._messages:
            await self._send(message)


def _read_call(scope: Scope, receive: Receive, send: Send) -> _Call | None:
    """Return what a request is about; None when it is none of the job API's or a worker's."""
    path: str = scope["path"]
    parts = (path + "////").split("/")
    if parts[1] != "v2" or not parts[3]:
        return None
    return _Call(parts[2], parts[3], parts[4], parts[5], scope, receive, send)


def _job_ids(body: bytes) -> Sequence[str]:
    """Return the ids of the jobs that an answer hands out."""
    if not body:
        return ()
    jobs: Any = orjson.loads(body)
    return [job["id"] for job in (jobs if isinstance(jobs, list) else [jobs]) if "id" in job]


def _slowed(receive: Receive, bytes_per_s: float) -> Receive:
    async def receive_slowly() -> Message:
        message = await receive()
        await asyncio.sleep(len(message.get("body", b"")) / bytes_per_s)
        return message

    return receive_slowly


def _injected(code: str, where: str) -> ErrorReport:
    return ErrorReport(
        code=code,
        type="PlatformError",
        message=f"a fault was injected {where}",
        hint="it is one of the rules that GET /_/faults lists",
        details={"injected": True},
    )
