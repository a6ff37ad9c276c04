"""What the local platform keeps of one endpoint: its jobs, its queue, its workers, and its counts.

Records and what can be read off them; every decision is taken in `platform`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from flashkit.emulator.jobs import Job, JobQueue
from flashkit.emulator.scaling import Load, kept_workers
from flashkit.errors import ErrorReport, InputError
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec


class WorkerState(StrEnum):
    """States of a worker, as health answers count them."""

    INITIALIZING = "INITIALIZING"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    """It reported a failed check and is expected to exit."""
    DRAINING = "DRAINING"
    """It was told to exit, or is being killed: no new jobs."""
    FROZEN = "FROZEN"
    """Kept by FlashBoot: its processes are stopped where they stood, and go on when a job needs a worker."""
    THROTTLED = "THROTTLED"
    """Wanted, but there is no machine for it. Only counted: no worker is ever in this state."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a cold start that comes before the worker's process."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """What a new worker of an endpoint spends its time on before its process starts; a thawed one does not."""

    pull_s: float = 0.0
    """Seconds for pulling the image onto the machine."""
    load_s: float = 0.0
    """Seconds for loading the weights."""

    def __post_init__(self) -> None:
        for name, seconds in (("pull_s", self.pull_s), ("load_s", self.load_s)):
            if not math.isfinite(seconds) or seconds < 0:
                raise InputError(f"ColdStart({name}={seconds!r}) is no time", hint="give seconds, 0 or more")

    @property
    def phases(self) -> list[Phase]:
        """The phases that take time, in order."""
        phases = (Phase("pulling the image", self.pull_s), Phase("loading the weights", self.load_s))
        return [phase for phase in phases if phase.seconds]


@dataclass(slots=True)
class Stop:
    """A job that its worker was told to stop and may still be running."""

    since: float
    kill_at: float
    is_last_call: bool = False
    """The worker has been given all the time there is."""


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One worker, from the wish for it to the report of its end."""

    id: str
    endpoint: str
    started_at: float
    """When it was wished for, or its latest thaw began."""
    phases: list[Phase] = field(default_factory=list)
    """What is to come before its process starts."""
    phase: str = ""
    """What it is at before it has a process."""
    phase_ends_at: float | None = None
    has_process: bool = False
    init_due_at: float = math.inf
    """When it is killed if it has not asked for work by then."""
    ready_at: float | None = None
    """When it first asked for work, since its latest thaw if it was frozen."""
    idle_since: float | None = None
    """Since when it could work and does not; being woken for a job starts it anew. None while it works."""
    asked_at: float | None = None
    """When it last asked for work, or a held poll of it looked again."""
    widest_limit: int = 0
    """Most jobs it asked for at once since it last had none: its concurrency, as far as one can see."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """Jobs it has, by id, in the order of hand-out."""
    stopping: dict[str, Stop] = field(default_factory=dict)
    """Jobs taken away from it, by id, until it is seen to have let go of them."""
    stop_signals: list[str] = field(default_factory=list)
    """Job ids that its next job-stop poll gets."""
    jobs_done: int = 0
    is_proven: bool = False
    """It has done something to the end without an error."""
    requests: set[str] = field(default_factory=set)
    """Ids of HTTP requests that it works on, if it is one of a load-balanced endpoint."""
    failed_check: str | None = None
    """What it reported as unhealthy, or why it was given up before it was ready."""
    frozen_until: float | None = None
    """When it is killed if no job needs it; None unless it is frozen."""
    is_leaving: bool = False
    is_killed: bool = False
    is_overdue: bool = False
    """It is killed because it was not ready in time."""
    exit_due_at: float | None = None
    """When it is killed if it has not exited by itself."""

    @property
    def state(self) -> WorkerState:
        """What it is doing."""
        if self.is_leaving:
            return WorkerState.DRAINING
        if self.is_frozen:
            return WorkerState.FROZEN
        if self.failed_check is not None:
            return WorkerState.UNHEALTHY
        if self.ready_at is None:
            return WorkerState.INITIALIZING
        return WorkerState.RUNNING if self.is_busy else WorkerState.IDLE

    @property
    def is_busy(self) -> bool:
        """True while it runs something, also what it was told to stop."""
        return bool(self.jobs or self.stopping or self.requests)

    @property
    def is_frozen(self) -> bool:
        """True while its processes are stopped."""
        return self.frozen_until is not None

    @property
    def can_take_jobs(self) -> bool:
        """True unless it is frozen or on its way out."""
        return not self.is_leaving and not self.is_frozen and self.failed_check is None

    @property
    def is_changing(self) -> bool:
        """True while its process is coming up, going down, stopping a job, or about to send a result."""
        is_moving = self.is_leaving or self.state is WorkerState.INITIALIZING or bool(self.stopping)
        return self.has_process and (is_moving or any(job.dropped_at is not None for job in self.jobs.values()))

    def due_at(self, idle_timeout: float) -> float:
        """Return when time alone changes it: its phase is over, or it took or was idle or frozen for too long."""
        if self.is_killed:
            return math.inf
        for due_at in (self.exit_due_at, self.phase_ends_at, self.frozen_until):
            if due_at is not None:
                return due_at
        if self.ready_at is None:
            return self.init_due_at
        if self.stopping:
            return min(stop.kill_at for stop in self.stopping.values())
        return math.inf if self.idle_since is None else self.idle_since + idle_timeout

    def has_let_go(self, *, limit: int, has_jobs: bool) -> bool:
        """True when asking for `limit` jobs shows that nothing is running beyond the jobs it has.

        Either it says so, or it has room for as many jobs as it ever had.
        """
        return not has_jobs or limit + len(self.jobs) >= self.widest_limit

    def forget_stop(self, job_id: str) -> None:
        """Take note that it does not run this job any more."""
        if self.stopping.pop(job_id, None) is not None and job_id in self.stop_signals:
            self.stop_signals.remove(job_id)

    def forget_stops(self) -> None:
        """Take note that it runs no job that was taken away from it."""
        self.stopping.clear()
        self.stop_signals.clear()


@dataclass(slots=True, eq=False)
class Fleet:
    """One endpoint. Each job is in `queue`, in one worker's `jobs`, or in `finished`."""

    spec: EndpointSpec
    is_closed: bool = False
    """The endpoint was removed; kept until its last worker has exited."""
    jobs: dict[str, Job] = field(default_factory=dict)
    queue: JobQueue = field(default_factory=JobQueue)
    running: int = 0
    finished: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    """Jobs that came to an end, oldest first."""

    workers: dict[str, Worker] = field(default_factory=dict)
    """All whose processes may be alive."""
    active: dict[str, Worker] = field(default_factory=dict)
    """Those that were not told to leave."""
    initializing: set[str] = field(default_factory=set)
    """Those of the active ones that have not asked for work yet."""
    frozen: dict[str, Worker] = field(default_factory=dict)
    """Those that FlashBoot keeps, the latest last; they are not among the active ones."""
    parked: OrderedDict[str, Worker] = field(default_factory=OrderedDict)
    """Those whose last question for work found none, so that a held poll of theirs can be woken."""

    capacity: int | None = None
    """Workers that there are machines for; None for any number."""
    throttled: int = 0
    """Workers that are wanted and have no machine."""
    waiting_requests: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """HTTP requests that no worker has room for, by id, with the time when they came."""
    running_requests: int = 0

    failed_starts: int = 0
    """Workers in a row that came to nothing: they ended before they had done anything without an error."""
    may_start_at: float | None = None
    """No worker is started before."""
    problem: ErrorReport | None = None
    """Why the app does not import any more, if it does not: what jobs fail with when a start fails."""
    submitted: int = 0
    retried: int = 0
    """Jobs put back into the queue, by `retry` or after a worker's death."""
    ended: Counter[JobStatus] = field(default_factory=Counter)

    @property
    def idle_timeout(self) -> float:
        """Seconds for which a worker may be idle now: for ever while no more are there than are kept."""
        kept = kept_workers(self.spec, self.load) if self.spec.load_balanced else self.spec.workers.min
        return self.spec.idle_timeout if len(self.active) > kept else math.inf

    @property
    def has_ready_worker(self) -> bool:
        """True when some worker may take jobs."""
        return any(worker.can_take_jobs and worker.ready_at is not None for worker in self.active.values())

    @property
    def load(self) -> Load:
        """What the scaler looks at."""
        first = self.queue.first_urgent
        oldest = [next(iter(self.waiting_requests.values()))] if self.waiting_requests else []
        if first is not None:
            oldest.append(first.queued_at)
        return Load(
            queued=self.queue.urgent_count + len(self.waiting_requests),
            running=self.running + self.running_requests,
            oldest_queued_at=min(oldest, default=None),
            workers=len(self.active),
            initializing=len(self.initializing),
        )

    @property
    def free_machines(self) -> float:
        """How many more workers there are machines for; a frozen one takes none."""
        return math.inf if self.capacity is None else self.capacity - (len(self.workers) - len(self.frozen))

    def reopen(self, spec: EndpointSpec) -> None:
        """Go on with this spec, as if no worker had ever failed to start."""
        self.spec = spec
        self.is_closed = False
        self.failed_starts = 0
        self.may_start_at = None

    def park(self, worker: Worker) -> None:
        """Note that the worker waits for a job, as the latest of all."""
        self.parked[worker.id] = worker
        self.parked.move_to_end(worker.id)

    def pop_parked(self) -> Worker | None:
        """Take out the worker that should be woken for a job: an idle one, the latest to come.

        The latest, so that the others' idle time runs on and fewer workers do the same work.
        """
        if not self.parked:
            return None
        idle = next((worker for worker in reversed(self.parked.values()) if not worker.is_busy), None)
        chosen = idle or next(reversed(self.parked.values()))
        del self.parked[chosen.id]
        return chosen

    def retire(self, worker: Worker) -> None:
        """Count the worker no longer among the active or frozen ones."""
        self.active.pop(worker.id, None)
        self.frozen.pop(worker.id, None)
        self.initializing.discard(worker.id)
        self.parked.pop(worker.id, None)

    def describe_health(self) -> dict[str, dict[str, int]]:
        """Return the answer of `/health`. Undocumented: `ready` counts idle and running workers."""
        states = Counter(worker.state for worker in self.workers.values())
        idle, running = states[WorkerState.IDLE], states[WorkerState.RUNNING]
        return {
            "jobs": {
                "completed": self.ended[JobStatus.COMPLETED],
                "failed": self.ended[JobStatus.FAILED] + self.ended[JobStatus.TIMED_OUT],
                "inProgress": self.running + self.running_requests,
                "inQueue": len(self.queue) + len(self.waiting_requests),
                "retried": self.retried,
            },
            "workers": {
                "idle": idle,
                "initializing": states[WorkerState.INITIALIZING],
                "ready": idle + running,
                "running": running,
                "throttled": self.throttled,
                "unhealthy": states[WorkerState.UNHEALTHY],
            },
        }
