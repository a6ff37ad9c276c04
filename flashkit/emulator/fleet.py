"""What the local platform keeps of one endpoint: its jobs, its queue, its workers, and its counts.

Records and what can be read off them; every decision is taken in `platform`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from flashkit.emulator.jobs import Job, JobQueue
from flashkit.emulator.scaling import Load
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
    THROTTLED = "THROTTLED"
    """Never here: the real platform is short of machines. In health answers it counts 0."""


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
    ready_at: float | None = None
    """When it first asked for work."""
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
    failed_check: str | None = None
    """What it reported as unhealthy."""
    is_leaving: bool = False
    is_killed: bool = False
    exit_due_at: float | None = None
    """When it is killed if it has not exited by itself."""

    @property
    def state(self) -> WorkerState:
        """What it is doing."""
        if self.is_leaving:
            return WorkerState.DRAINING
        if self.failed_check is not None:
            return WorkerState.UNHEALTHY
        if self.ready_at is None:
            return WorkerState.INITIALIZING
        return WorkerState.RUNNING if self.is_busy else WorkerState.IDLE

    @property
    def is_busy(self) -> bool:
        """True while it runs something, also what it was told to stop."""
        return bool(self.jobs or self.stopping)

    @property
    def can_take_jobs(self) -> bool:
        """True unless it is on its way out."""
        return not self.is_leaving and self.failed_check is None

    def due_at(self, idle_timeout: float) -> float:
        """Return when time alone ends it: it should have exited, or stopped a job, or was idle for too long."""
        if self.is_killed:
            return math.inf
        if self.exit_due_at is not None:
            return self.exit_due_at
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
    parked: OrderedDict[str, Worker] = field(default_factory=OrderedDict)
    """Those whose last question for work found none, so that a held poll of theirs can be woken."""

    failed_starts: int = 0
    """Workers in a row that ended before they asked for work."""
    may_start_at: float | None = None
    """No worker is started before."""
    submitted: int = 0
    retried: int = 0
    """Jobs put back into the queue, by `retry` or after a worker's death."""
    ended: Counter[JobStatus] = field(default_factory=Counter)

    @property
    def idle_timeout(self) -> float:
        """Seconds for which a worker may be idle now: for ever while no more than the floor are there."""
        return self.spec.idle_timeout if len(self.active) > self.spec.workers.min else math.inf

    @property
    def has_ready_worker(self) -> bool:
        """True when some worker may take jobs."""
        return any(worker.can_take_jobs and worker.ready_at is not None for worker in self.active.values())

    @property
    def load(self) -> Load:
        """What the scaler looks at."""
        first = self.queue.first_urgent
        return Load(
            queued=self.queue.urgent_count,
            running=self.running,
            oldest_queued_at=None if first is None else first.queued_at,
            workers=len(self.active),
            initializing=len(self.initializing),
        )

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
        """Count the worker no longer among the active ones."""
        self.active.pop(worker.id, None)
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
                "inProgress": self.running,
                "inQueue": len(self.queue),
                "retried": self.retried,
            },
            "workers": {
                "idle": idle,
                "initializing": states[WorkerState.INITIALIZING],
                "ready": idle + running,
                "running": running,
                "throttled": 0,
                "unhealthy": states[WorkerState.UNHEALTHY],
            },
        }
