"""One run: the load goes through the platform's state machine, on a clock that jumps from event to event.

The simulation stands where the dispatcher and the workers' processes stand otherwise. It carries out the platform's
effects by putting what follows from them on a heap: a worker that starts asks for work after its cold start, a job
that was handed out is done after its seconds, a worker that is told to leave is gone. Deciding is left to the platform.

A job costs a few dozen microseconds whatever the length of the queue, so that time grows with the number of jobs.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final

from flashkit.emulator.effects import (
    DrainWorker,
    FreezeWorker,
    JobChanged,
    KillWorker,
    StartWorker,
    ThawWorker,
    WakeWorker,
)
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.lifecycle import INIT_TIMEOUT_VARIABLE
from flashkit.emulator.platform import Platform
from flashkit.errors import InputError
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.simulation.load import Load
from flashkit.simulation.policies import Order, Policy, View
from flashkit.spec import EndpointSpec, WorkerBounds

THAW_SECONDS: Final = 2.3
"""Start of a worker that FlashBoot kept: the vendor's own figure (p95 of Whisper, blog post of 2023). Two measurements
by others: 1.4 s with a small model, 7.5 s with a large one."""
FROZEN_SECONDS: Final = PlatformDefaults().frozen_keep
_TOLD_EVERY_JOBS: Final = 2_000


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """What an endpoint's workers spend beside their jobs, in seconds."""

    cold_start: float = 10.0
    """From the platform's wish for a worker until it asks for its first job."""
    thaw: float = THAW_SECONDS
    """The same of a worker that FlashBoot kept; a cold start takes no less."""
    exit: float = 0.0
    """From the platform's signal until the worker is gone, and no longer paid for."""

    def __post_init__(self) -> None:
        for name in ("cold_start", "thaw", "exit"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name}={value!r} is no time of a worker", hint="give seconds, 0 or more")


@dataclass(slots=True)
class Run:
    """What was seen in one run."""

    spec: EndpointSpec
    load: Load
    waits: array[float]
    """Seconds in the queue of each job of the load; of one that never ran, until it was given up."""
    ended: Counter[JobStatus] = field(default_factory=Counter)
    expired: int = 0
    """Jobs that were given up in the queue: their time to live ran out, or no worker came up."""
    cold_starts: int = 0
    warm_starts: int = 0
    """Starts of workers that FlashBoot had kept."""
    cold_jobs: int = 0
    """Jobs that came before the cold start of their worker was over, and so have waited for it."""
    busy_seconds: float = 0.0
    """How long jobs ran, together."""
    until: float = 0.0
    """End of the run: of the load's window, or of the last job."""
    staffing: list[tuple[float, int]] = field(default_factory=list)
    """Workers that came (1) or went (-1), with the time, in its order."""
    floors: list[tuple[float, int]] = field(default_factory=list)
    """The floor from each time on."""


class _Kind(IntEnum):
    DONE = 0
    READY = 1
    GONE = 2
    STEER = 3


def simulate(
    spec: EndpointSpec,
    load: Load,
    times: WorkerTimes | None = None,
    *,
    policy: Policy | None = None,
    defaults: PlatformDefaults | None = None,
    ttl_ms: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Run:
    """Return what this load does to the endpoint.

    Args:
        spec: The endpoint with its bounds, scaler, timeouts, concurrency and FlashBoot.
        load: The jobs.
        times: What its workers spend beside jobs.
        policy: Steers the endpoint from outside; by default its own scaler is alone.
        defaults: Behaviour that the real platform does not document.
        ttl_ms: Time to live of the jobs; the platform's default without it.
        on_progress: Called now and then with the number of jobs that have arrived.

    Raises:
        InputError: With these settings no job could ever run, or the endpoint has no queue.
    """
    times, defaults = times or WorkerTimes(), defaults or PlatformDefaults()
    if policy is not None:
        spec = policy.settings(spec)
    check_settings(spec, times, defaults)
    world = _World(spec, load, times, policy=policy, defaults=defaults, ttl_ms=ttl_ms)
    world.run(on_progress or _ignore)
    return world.seen


def check_settings(spec: EndpointSpec, times: WorkerTimes, defaults: PlatformDefaults | None = None) -> None:
    """Refuse settings with which there is nothing to simulate.

    Raises:
        InputError: The endpoint is load-balanced, or its workers are given up before they have started.
    """
    if spec.load_balanced:
        raise InputError(
            f"endpoint {spec.name!r} is load-balanced: it has no queue to simulate",
            hint="name an endpoint that takes jobs with --endpoint",
        )
    limit = float(spec.env.get(INIT_TIMEOUT_VARIABLE, (defaults or PlatformDefaults()).init_timeout))
    if times.cold_start >= limit:
        raise InputError(
            f"no worker of endpoint {spec.name!r} would ever start: a cold start takes {times.cold_start:g} s, and the "
            f"platform gives a worker up after {limit:g} s",
            hint=f"set {INIT_TIMEOUT_VARIABLE} in the endpoint's env, or make the start shorter",
        )


class _World:
    """The platform with its workers as numbers."""

    def __init__(
        self,
        spec: EndpointSpec,
        load: Load,
        times: WorkerTimes,
        *,
        policy: Policy | None,
        defaults: PlatformDefaults,
        ttl_ms: int | None,
    ) -> None:
        self.seen = Run(spec, load, array("d", bytes(8 * len(load))))
        self._spec, self._times, self._ttl_ms = spec, times, ttl_ms
        self._floor = spec.workers.min
        self._numbers = 0
        # Results are nobody's to read: forgotten at once, so that memory does not grow with the load.
        defaults = replace(defaults, run_retention=0.0)
        self._platform = Platform(defaults, new_id=self._next_id, has_flashboot=True)
        self._heap: list[tuple[float, int, _Kind, str, str]] = []
        self._hands: dict[str, set[str]] = {}
        """Jobs of each worker that is ready."""
        self._ready_at: dict[str, float] = {}
        """When each worker's cold start was over."""
        self._leaving: set[str] = set()
        self._frozen: set[str] = set()
        self._open = len(load)
        self._steering = None if policy is None else policy.steer()
        self._carry_out: dict[type, Callable[[float, Any], None]] = {
            JobChanged: self._job_changed,
            WakeWorker: self._wake_worker,
            StartWorker: self._start_worker,
            FreezeWorker: self._freeze_worker,
            ThawWorker: self._thaw_worker,
            DrainWorker: self._drain_worker,
            KillWorker: self._kill_worker,
        }

    def _next_id(self) -> str:
        self._numbers += 1
        return f"{self._numbers:08x}"

    def run(self, on_progress: Callable[[int], None]) -> None:
        """Go from event to event until the last job has ended and the window is over."""
        arrivals, heap, platform = self.seen.load.arrivals, self._heap, self._platform
        count, coming, window = len(arrivals), 0, self.seen.load.window_seconds
        now = -self._times.cold_start - 1.0  # workers of the floor are up when the load begins
        platform.add_endpoint(now, self._spec)
        self.seen.floors.append((now, self._floor))
        if self._steering is not None:
            self._obey(now, next(self._steering))
        self._settle(now)
        while True:
            arrival = arrivals[coming] if coming < count else math.inf
            event = heap[0][0] if heap else math.inf
            due = platform.next_deadline()
            due = math.inf if due is None else due
            at = min(arrival, event, due)
            if (not self._open and at > window) or at == math.inf:
                break
            now = max(now, at)
            if event <= at:
                self._happen(now)
            elif due <= at:
                platform.tick(now)
            else:
                self._submit(now, coming)
                coming += 1
                if coming % _TOLD_EVERY_JOBS == 0:
                    on_progress(coming)
            self._settle(now)
        self.seen.until = max(window, self.seen.until)
        on_progress(count)

    def _submit(self, now: float, index: int) -> None:
        request = JobRequest(index, ttl_ms=self._ttl_ms)
        self._platform.submit(now, self._spec.name, request, sync=False)

    def _push(self, when: float, kind: _Kind, worker_id: str = "", job_id: str = "") -> None:
        self._numbers += 1
        heapq.heappush(self._heap, (when, self._numbers, kind, worker_id, job_id))

    def _happen(self, now: float) -> None:
        _, _, kind, worker_id, job_id = heapq.heappop(self._heap)
        if kind is _Kind.DONE:
            self._finish(now, worker_id, job_id)
        elif kind is _Kind.READY:
            self._be_ready(now, worker_id)
        elif kind is _Kind.GONE:
            self._be_gone(now, worker_id)
        else:
            self._steer(now)

    def _settle(self, now: float) -> None:
        """Carry out what the platform wants, and what follows from that at once."""
        while effects := self._platform.effects():
            for effect in effects:
                if act := self._carry_out.get(type(effect)):
                    act(now, effect)

    # ------------------------------------------------------------------ jobs

    def _job_changed(self, now: float, effect: JobChanged) -> None:
        job = effect.job
        if not job.status.is_final:
            return
        seen = self.seen
        seen.ended[job.status] += 1
        self._open -= 1
        seen.until = now
        if job.started_at is None:
            seen.expired += 1
            seen.waits[job.input] = now - job.submitted_at
        else:
            seen.busy_seconds += now - job.started_at

    def _ask(self, now: float, worker_id: str) -> None:
        """Let a worker ask until it has no room or gets nothing, as its polls do."""
        hands = self._hands.get(worker_id)
        if hands is None or worker_id in self._leaving or worker_id in self._frozen:
            return
        seen, ready_at = self.seen, self._ready_at[worker_id]
        while (room := self._spec.concurrency - len(hands)) > 0:
            jobs = self._platform.take(now, self._spec.name, worker_id, limit=room, job_in_progress=bool(hands))
            for job in jobs:
                hands.add(job.id)
                seen.waits[job.input] = now - job.submitted_at
                seen.cold_jobs += job.submitted_at < ready_at
                self._push(now + seen.load.seconds[job.input], _Kind.DONE, worker_id, job.id)
            if not jobs:
                return

    def _finish(self, now: float, worker_id: str, job_id: str) -> None:
        hands = self._hands.get(worker_id)
        if hands is None or job_id not in hands:  # it was stopped, or its worker is gone
            return
        hands.remove(job_id)
        self._platform.finish(now, self._spec.name, worker_id, job_id, _RESULT)
        if worker_id in self._leaving and not hands:
            self._push(now + self._times.exit, _Kind.GONE, worker_id)
        self._ask(now, worker_id)

    def _wake_worker(self, now: float, effect: WakeWorker) -> None:
        """Let the worker look: stop the jobs that were taken from it, and ask for others."""
        hands = self._hands.get(effect.worker_id)
        if hands is not None:
            hands.difference_update(self._platform.stop_signals(now, self._spec.name, effect.worker_id))
        self._ask(now, effect.worker_id)

    # ------------------------------------------------------------------ workers

    def _start_worker(self, now: float, effect: StartWorker) -> None:
        self.seen.cold_starts += 1
        self.seen.staffing.append((now, 1))
        self._push(now + self._times.cold_start, _Kind.READY, effect.worker_id)

    def _be_ready(self, now: float, worker_id: str) -> None:
        if worker_id in self._leaving or worker_id in self._frozen:
            return
        if worker_id not in self._hands:  # else it was frozen
            self._hands[worker_id] = set()
            self._ready_at[worker_id] = now
        self._ask(now, worker_id)

    def _freeze_worker(self, now: float, effect: FreezeWorker) -> None:
        self._frozen.add(effect.worker_id)
        self.seen.staffing.append((now, -1))

    def _thaw_worker(self, now: float, effect: ThawWorker) -> None:
        self._frozen.discard(effect.worker_id)
        self.seen.warm_starts += 1
        self.seen.staffing.append((now, 1))
        self._push(now + min(self._times.thaw, self._times.cold_start), _Kind.READY, effect.worker_id)

    def _drain_worker(self, now: float, effect: DrainWorker) -> None:
        self._leaving.add(effect.worker_id)
        if not self._hands.get(effect.worker_id):
            self._push(now + self._times.exit, _Kind.GONE, effect.worker_id)

    def _kill_worker(self, now: float, effect: KillWorker) -> None:
        self._leaving.add(effect.worker_id)
        self._push(now, _Kind.GONE, effect.worker_id)

    def _be_gone(self, now: float, worker_id: str) -> None:
        if worker_id not in self._leaving:
            return
        self._leaving.discard(worker_id)
        self._hands.pop(worker_id, None)
        self._ready_at.pop(worker_id, None)
        if worker_id in self._frozen:
            self._frozen.discard(worker_id)
        else:
            self.seen.staffing.append((now, -1))
        self._platform.worker_exited(now, self._spec.name, worker_id, exit_code=0, log_tail=())

    # ------------------------------------------------------------------ policies

    def _steer(self, now: float) -> None:
        if self._steering is not None:
            queued = self._platform.health(self._spec.name)["jobs"]["inQueue"]
            self._obey(now, self._steering.send(View(now, queued, self._workers())))

    def _obey(self, now: float, order: Order) -> None:
        if order.floor is not None and order.floor != self._floor:
            self._floor = order.floor
            self.seen.floors.append((now, order.floor))
            self._set_floor(now, order.floor)
        if order.more:
            self._set_floor(now, self._workers() + order.more)
            self._set_floor(now, self._floor)
        if order.next_at < math.inf and (self._open or order.next_at <= self.seen.load.window_seconds):
            self._push(max(order.next_at, now), _Kind.STEER)

    def _workers(self) -> int:
        """Workers that take jobs or are starting up."""
        workers = self._platform.workers(self._spec.name)
        return sum(worker.can_take_jobs for worker in workers)

    def _set_floor(self, now: float, floor: int) -> None:
        most = self._spec.workers.max
        self._platform.set_workers(now, self._spec.name, WorkerBounds(min(floor, most), most))


_RESULT: Final = {"output": None}


def _ignore(arrived: int) -> None:
    """Tell nobody."""
