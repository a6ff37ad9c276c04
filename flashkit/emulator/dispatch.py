"""The pure platform in real time: its clock, its timer, its effects, and everybody who waits for it.

`Platform` decides and never waits; routes wait and never decide. Between them stands the `Dispatcher`: each
call of the platform goes through `apply`, which passes the time and carries out the effects at once, in
the same step of the event loop. So there is no lock, and no moment at which an effect is due but not done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from flashkit.emulator.bodies import encode_json
from flashkit.emulator.clock import Clock, Timer
from flashkit.emulator.connections import WorkerConnections
from flashkit.emulator.events import CapacityEvent, ClockEvent, Event, JobEvent, LogLine, WorkerEvent, WorkerMoment
from flashkit.emulator.failures import WorkerExit
from flashkit.emulator.platform import (
    CapacityChanged,
    ChunksDropped,
    DrainWorker,
    EnterPhase,
    FreezeWorker,
    GiveUpWorker,
    Job,
    JobChanged,
    JobRequest,
    KillWorker,
    Platform,
    SendWebhook,
    StartWorker,
    ThawWorker,
    WakeWorker,
    WorkerState,
)
from flashkit.errors import ErrorReport, InputError
from flashkit.protocol import JobStatus

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_SHORTEST_TIMER_SECONDS: Final = 0.001
_REASON_CHARACTERS: Final = 2_000


class Processes(Protocol):
    """What the dispatcher needs of the supervisor."""

    def start(self, endpoint: str, worker_id: str) -> None:
        """Start a worker's process; its end is reported later, whatever it was."""

    def terminate(self, worker_id: str) -> None:
        """Ask a worker's process to finish and exit (SIGTERM)."""

    def kill(self, worker_id: str) -> None:
        """End a worker's whole process group at once (SIGKILL)."""

    def freeze(self, worker_id: str) -> Collection[int]:
        """Stop a worker's whole process group where it stands (SIGSTOP), and return the ports it talks from."""

    def thaw(self, worker_id: str) -> None:
        """Let a worker's process group go on (SIGCONT)."""


class OnSubmit(Protocol):
    """What is called for each job that was submitted."""

    def __call__(self, endpoint: str, request: JobRequest, *, sync: bool) -> None:
        """Take note of it."""


class Bells:
    """Futures that wait for something named to happen; one ring answers all of them."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[asyncio.Future[None]]] = {}

    def listen(self, name: str) -> asyncio.Future[None]:
        """Return a future that the next ring of this name completes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners.setdefault(name, []).append(future)
        return future

    def forget(self, name: str, future: asyncio.Future[None]) -> None:
        """Stop listening; harmless when the bell has rung already."""
        listeners = self._listeners.get(name)
        if listeners and future in listeners:
            listeners.remove(future)
            if not listeners:
                del self._listeners[name]

    def ring(self, name: str) -> None:
        """Complete everything that listens to this name."""
        for future in self._listeners.pop(name, ()):
            _complete(future)

    def ring_all(self) -> None:
        """Complete everything that listens to anything."""
        for name in list(self._listeners):
            self.ring(name)


def _complete(future: asyncio.Future[None]) -> None:
    """Complete the future unless somebody else did."""
    if not future.done():
        future.set_result(None)


async def _wait(bells: Bells, name: str, seconds: float | None) -> None:
    bell = bells.listen(name)
    timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, _complete, bell)
    try:
        await bell
    finally:
        bells.forget(name, bell)
        if timer is not None:
            timer.cancel()


@dataclass(frozen=True, slots=True)
class _ColdStart:
    """A worker's start, until its first job has been told of it."""

    ready_at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class HandOut:
    """One hand-out of a job."""

    job_id: str
    attempt: int


@dataclass(slots=True)
class _Record:
    """What is remembered of a job until its end, for its events."""

    input_bytes: int
    output_bytes: int = 0
    cold_start_ms: int | None = None
    told: tuple[JobStatus, int] | None = None
    """Status and attempt of its last event."""


class Dispatcher:
    """Runs a platform: time goes in, effects come out, waiters are woken."""

    def __init__(
        self,
        platform: Platform,
        *,
        processes: Processes,
        send_webhook: Callable[[Job], None],
        on_event: Callable[[Event], None],
        on_submit: OnSubmit = lambda endpoint, request, *, sync: None,
        clock: Clock | None = None,
    ) -> None:
        self.platform = platform
        self.clock = Clock() if clock is None else clock
        self.connections = WorkerConnections()
        self.is_closing = False
        self._processes = processes
        self._send_webhook = send_webhook
        self._on_event = on_event
        self._on_submit = on_submit
        self._polls = Bells()
        self._jobs = Bells()
        self._draining: set[str] = set()
        self._frozen: set[str] = set()
        self._starting: dict[str, float] = {}
        self._cold: dict[str, _ColdStart] = {}
        self._records: dict[str, _Record] = {}
        self._timer: Timer | None = None
        self._timer_due = float("inf")
        self._carry_out: dict[type, Callable[[Any], None]] = {
            EnterPhase: self._enter_phase,
            StartWorker: self._start_worker,
            GiveUpWorker: self._give_up_worker,
            FreezeWorker: self._freeze_worker,
            ThawWorker: self._thaw_worker,
            DrainWorker: self._drain_worker,
            KillWorker: self._kill_worker,
            WakeWorker: self._wake_worker,
            JobChanged: self._job_changed,
            ChunksDropped: self._chunks_dropped,
            SendWebhook: self._webhook_due,
            CapacityChanged: self._capacity_changed,
        }
        platform.set_pace(self.clock.speed)
        self.clock.on_change = self._clock_changed
        self.clock.is_quiet = self.is_quiet

    def apply(self, action: Callable[Concatenate[float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the platform with the time of now, and carry out what follows from it."""
        try:
            return action(self.clock.now(), *args, **kwargs)
        finally:
            self._settle()

    async def wait_for_job(self, job: Job, *, seconds: float | None = None) -> None:
        """Return when the job has changed in any way, after this time, or when the emulator closes."""
        if not self.is_closing:
            await _wait(self._jobs, job.id, seconds)

    async def wait_for_worker(self, worker_id: str, *, seconds: float | None = None) -> None:
        """Return when a poll of this worker should look again, or after this time."""
        await _wait(self._polls, worker_id, seconds)

    def wake_job(self, job_id: str) -> None:
        """Make those who wait for a job look again."""
        self._jobs.ring(job_id)

    def wake_worker(self, worker_id: str) -> None:
        """Make the held polls of a worker look again."""
        self._polls.ring(worker_id)

    def is_leaving(self, worker_id: str) -> bool:
        """True for a worker that was asked to exit: its polls are to be answered soon, with nothing."""
        return self.is_closing or worker_id in self._draining

    def is_frozen(self, worker_id: str) -> bool:
        """True for a worker that is stopped: a request of its own that comes in now is from before."""
        return worker_id in self._frozen

    def submit(self, endpoint: str, request: JobRequest, *, sync: bool, size_bytes: int) -> Job:
        """Queue a job that came as a request of this size."""
        job = self.platform.submit(self.clock.now(), endpoint, request, sync=sync)
        self._records[job.id] = _Record(size_bytes)
        self._settle()
        self._on_submit(endpoint, request, sync=sync)
        return job

    def take(self, endpoint: str, worker_id: str, *, limit: int, job_in_progress: bool) -> Sequence[Job]:
        """Return jobs for a worker that asks; none once the emulator closes."""
        if self.is_closing:
            return ()
        if worker_id in self._starting:
            self._note_ready(endpoint, worker_id)
        return self.apply(self.platform.take, endpoint, worker_id, limit=limit, job_in_progress=job_in_progress)

    def put_back(self, endpoint: str, worker_id: str, hand_outs: Sequence[HandOut]) -> None:
        """Hand out again what was in an answer that its worker never got."""
        for hand_out in reversed(hand_outs):  # each goes to the front of the queue
            self.apply(self.platform.put_back, endpoint, worker_id, hand_out.job_id, attempt=hand_out.attempt)

    def worker_ready(self, endpoint: str, worker_id: str) -> None:
        """Take note that a worker of a load-balanced endpoint can take requests; say it as often as you like."""
        if self.apply(self.platform.worker_ready, endpoint, worker_id) and worker_id in self._starting:
            self._note_ready(endpoint, worker_id)

    def finish(self, endpoint: str, worker_id: str, job_id: str, result: Mapping[str, Any], *, size_bytes: int) -> None:
        """Take a result of this size; one that is late or not the worker's changes nothing."""
        if record := self._records.get(job_id):
            record.output_bytes = size_bytes
        self.apply(self.platform.finish, endpoint, worker_id, job_id, result)

    def worker_unhealthy(self, endpoint: str, worker_id: str, *, check: str, reason: str) -> None:
        """Take note that a worker reported a failed check of its own; strangers may say what they like."""
        try:
            self.platform.find_worker(worker_id)
        except InputError:
            return
        check, reason = check[:_REASON_CHARACTERS], reason[:_REASON_CHARACTERS]
        self._tell_of_worker(endpoint, worker_id, "unhealthy", f"{check}: {reason}")
        self.apply(self.platform.unhealthy, endpoint, worker_id, check, reason)

    def worker_exited(self, endpoint: str, worker_id: str, *, exit_code: int, log_tail: Sequence[str]) -> None:
        """Take note of a worker's end."""
        self._forget_worker(worker_id)
        ended = WorkerExit(worker_id, exit_code, log_tail)
        self._tell_of_worker(endpoint, worker_id, "exited", ended.signal_name or f"exit code {exit_code}")
        self.apply(self.platform.worker_exited, endpoint, worker_id, exit_code=exit_code, log_tail=log_tail)

    def is_quiet(self, *, spares_jobs: bool) -> bool:
        """Return True when no worker process is coming up or going down, about to take a job, or (to spare) has one."""
        for endpoint in self.platform.specs:
            workers = self.platform.workers(endpoint)
            if any(worker.is_changing or (spares_jobs and worker.is_busy) for worker in workers):
                return False
            if self.platform.has_waiting_jobs(endpoint) and any(w.state is WorkerState.IDLE for w in workers):
                return False
        return True

    def close(self) -> None:
        """Answer every waiting poll and request, and let nobody wait any more."""
        self.is_closing = True
        self._polls.ring_all()
        self._jobs.ring_all()
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self) -> None:
        for effect in self.platform.effects():
            self._carry_out[type(effect)](effect)
        self._set_timer()

    def _set_timer(self) -> None:
        due = self.platform.next_deadline()
        if due is None or due >= self._timer_due or self.is_closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.clock.call_at(max(due, self.clock.now() + _SHORTEST_TIMER_SECONDS), self._tick)
        self._timer_due = due

    def _tick(self) -> None:
        self._timer = None
        self._timer_due = float("inf")
        self.apply(self.platform.tick)

    def _clock_changed(self, advanced_s: float) -> None:
        self.platform.set_pace(self.clock.speed)
        self.tell(ClockEvent(self.clock.now(), advanced_s, self.clock.speed))

    def _enter_phase(self, effect: EnterPhase) -> None:
        self._starting.setdefault(effect.worker_id, self.clock.now())
        detail = f"{effect.phase} for {effect.seconds:g} s"
        self._tell_of_worker(effect.endpoint, effect.worker_id, "initializing", detail)

    def _give_up_worker(self, effect: GiveUpWorker) -> None:
        self._forget_worker(effect.worker_id)
        self._tell_of_worker(effect.endpoint, effect.worker_id, "exited", f"before its start: {effect.reason}")

    def _freeze_worker(self, effect: FreezeWorker) -> None:
        """Stop it first: it must not see its connections break before it is thawed."""
        self._frozen.add(effect.worker_id)
        ports = self._processes.freeze(effect.worker_id)
        self.connections.break_all(effect.worker_id, ports=ports)
        self._tell_of_worker(effect.endpoint, effect.worker_id, "frozen")

    def _thaw_worker(self, effect: ThawWorker) -> None:
        self._frozen.discard(effect.worker_id)
        self._starting[effect.worker_id] = self.clock.now()
        self._tell_of_worker(effect.endpoint, effect.worker_id, "thawing")
        self._processes.thaw(effect.worker_id)

    def _chunks_dropped(self, effect: ChunksDropped) -> None:
        job = effect.job
        text = f"job {job.id} has too many partial outputs that nobody reads: /stream will be without the oldest"
        self.tell(LogLine(job.endpoint, job.worker_id or "", job.id, "WARN", text))

    def _capacity_changed(self, effect: CapacityChanged) -> None:
        self.tell(CapacityEvent(effect.endpoint, effect.throttled, effect.capacity))

    def _forget_worker(self, worker_id: str) -> None:
        self._draining.discard(worker_id)
        self._frozen.discard(worker_id)
        self._starting.pop(worker_id, None)
        self._cold.pop(worker_id, None)

    def _start_worker(self, effect: StartWorker) -> None:
        if self.is_closing:  # the floor of workers does not count any more
            return
        self._starting.setdefault(effect.worker_id, self.clock.now())
        self._tell_of_worker(effect.endpoint, effect.worker_id, "starting")
        self._processes.start(effect.endpoint, effect.worker_id)

    def _drain_worker(self, effect: DrainWorker) -> None:
        self._draining.add(effect.worker_id)
        what: WorkerMoment = "reclaimed" if effect.is_reclaimed else "draining"
        self._tell_of_worker(effect.endpoint, effect.worker_id, what)
        # The signal goes first: a worker that sees its poll answered before it takes another round.
        self._processes.terminate(effect.worker_id)
        self._polls.ring(effect.worker_id)

    def _kill_worker(self, effect: KillWorker) -> None:
        self._tell_of_worker(effect.endpoint, effect.worker_id, "killed", effect.reason)
        self._processes.kill(effect.worker_id)

    def _wake_worker(self, effect: WakeWorker) -> None:
        self._polls.ring(effect.worker_id)

    def _webhook_due(self, effect: SendWebhook) -> None:
        self._send_webhook(effect.job)

    def _job_changed(self, effect: JobChanged) -> None:
        job = effect.job
        self._jobs.ring(job.id)
        record = self._records.get(job.id)
        if record is None:  # it had come to an end before, and is retried
            record = self._records[job.id] = _Record(len(encode_json(job.input)))
        if record.told == (job.status, job.attempt):
            return
        record.told = (job.status, job.attempt)
        if job.status is JobStatus.IN_PROGRESS and job.worker_id in self._cold:
            cold = self._cold.pop(job.worker_id)
            record.cold_start_ms = round(cold.seconds * 1000) if job.queued_at < cold.ready_at else None
        if job.status.is_final:
            del self._records[job.id]
        self.tell(_describe(job, record))

    def _note_ready(self, endpoint: str, worker_id: str) -> None:
        now = self.clock.now()
        seconds = now - self._starting.pop(worker_id)
        self._cold[worker_id] = _ColdStart(now, seconds)
        self._tell_of_worker(endpoint, worker_id, "ready", f"after {seconds:.1f} s")

    def _tell_of_worker(self, endpoint: str, worker_id: str, what: WorkerMoment, detail: str = "") -> None:
        self.tell(WorkerEvent(endpoint, worker_id, what, detail))

    def tell(self, event: Event) -> None:
        """Give the event to whoever watches; a watcher that fails must not fail a job."""
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - code of the embedding program
            _log.exception("the receiver of events failed on %r", event)


def _describe(job: Job, record: _Record) -> JobEvent:
    return JobEvent(
        endpoint=job.endpoint,
        job_id=job.id,
        status=job.status,
        attempt=job.attempt,
        worker_id=job.worker_id,
        delay_ms=job.delay_ms,
        execution_ms=job.execution_ms,
        cold_start_ms=record.cold_start_ms,
        error=None if job.error is None else ErrorReport.from_job_error(job.error, request_id=job.id),
        input_bytes=record.input_bytes,
        output_bytes=record.output_bytes,
    )
