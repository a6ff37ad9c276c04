"""What each worker was doing, and since when: the lanes of the dashboard, and whose job a printed line is.

A lane is a list of changes, `(time, state)`. A worker that goes from job to job is busy all the time, so the
moments between two of its jobs are left out, and a lane is bounded however many jobs there are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from flashkit.emulator.events import JobEvent, RequestEvent, WorkerEvent, WorkerMoment

LANE_LIMIT: Final = 200
"""Lanes that are kept; the first to go are those of workers that ended long ago."""
CHANGE_LIMIT: Final = 240
"""Changes that are kept of one worker."""

_BETWEEN_JOBS_SECONDS: Final = 0.25
_LATE_LINE_SECONDS: Final = 0.5
_STATES: Final[dict[WorkerMoment, str]] = {
    "initializing": "initializing",
    "starting": "starting",
    "ready": "idle",
    "frozen": "frozen",
    "thawing": "starting",
    "draining": "draining",
    "reclaimed": "draining",
    "killed": "draining",
    "unhealthy": "unhealthy",
    "exited": "exited",
}


class Change(NamedTuple):
    """A worker came to another state."""

    at: float
    """Seconds since 1970."""
    state: str


@dataclass(slots=True)
class Lane:
    """One worker's life."""

    endpoint: str
    worker_id: str
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=CHANGE_LIMIT))
    jobs: dict[str, None] = field(default_factory=dict)
    """What it runs now."""
    last_finished: tuple[str, float] | None = None
    """The job that it let go of last, and when."""
    detail: str = ""
    """What was said about its latest change, a signal's name for one."""
    changed: int = 0
    """Number of the event that changed it last."""

    @property
    def state(self) -> str:
        """What it is doing."""
        return self.changes[-1].state if self.changes else "starting"

    @property
    def is_over(self) -> bool:
        """True when its process has ended."""
        return self.state == "exited"

    def change(self, at: float, state: str) -> None:
        """Take note of a new state; the moment between two jobs is none."""
        if self.changes and self.changes[-1].state == state:
            return
        last = self.changes[-1] if self.changes else None
        was_between_jobs = last is not None and last.state == "idle" and at - last.at < _BETWEEN_JOBS_SECONDS
        if state == "running" and was_between_jobs and len(self.changes) > 1 and self.changes[-2].state == "running":
            self.changes.pop()
        else:
            self.changes.append(Change(at, state))


class Lanes:
    """The lanes of all workers, those that ended lately included."""

    def __init__(self) -> None:
        self.by_worker: OrderedDict[str, Lane] = OrderedDict()
        self._lane_of_job: dict[str, Lane] = {}

    def note_worker(self, n: int, at: float, event: WorkerEvent) -> None:
        """Take note of a point in a worker's life."""
        lane = self._lane(event.endpoint, event.worker_id)
        lane.changed, lane.detail = n, event.detail
        lane.change(at, _STATES.get(event.what, event.what))
        if lane.is_over:
            for job_id in lane.jobs:
                self._lane_of_job.pop(job_id, None)
            lane.jobs.clear()
            lane.last_finished = None

    def _lane(self, endpoint: str, worker_id: str) -> Lane:
        lane = self.by_worker.get(worker_id)
        if lane is None:
            lane = self.by_worker[worker_id] = Lane(endpoint, worker_id)
            if len(self.by_worker) > LANE_LIMIT:
                self._forget_one()
        return lane

    def _forget_one(self) -> None:
        oldest = next((worker_id for worker_id, lane in self.by_worker.items() if lane.is_over), None)
        if oldest is not None:
            del self.by_worker[oldest]

    def note_job(self, n: int, at: float, event: JobEvent) -> None:
        """Take note of where a job is now."""
        left = self._lane_of_job.pop(event.job_id, None)
        is_running = event.worker_id is not None and not event.status.is_final
        joined = self._lane(event.endpoint, str(event.worker_id)) if is_running else None
        if left is not None and left is not joined:
            left.jobs.pop(event.job_id, None)
            left.last_finished = (event.job_id, at)
            left.changed = n
            if not left.jobs and left.state == "running":
                left.change(at, "idle")
        if joined is not None:
            self._lane_of_job[event.job_id] = joined
            joined.jobs[event.job_id] = None
            joined.changed = n
            if joined.state in ("idle", "starting"):
                joined.change(at, "running")

    def note_request(self, n: int, at: float, event: RequestEvent) -> None:
        """Take note that a worker of a load-balanced endpoint was at work until now."""
        lane = self.by_worker.get(event.worker_id or "")
        if lane is None or event.run_ms is None or lane.state != "idle":
            return
        lane.changed = n
        lane.change(max(at - event.run_ms / 1000, lane.changes[-1].at), "running")
        lane.change(at, "idle")

    def job_of_line(self, at: float, worker_id: str) -> str | None:
        """Return the job that a worker runs, when that is one alone, or has just run.

        A line that was printed before the result may be read after it.
        """
        lane = self.by_worker.get(worker_id)
        if lane is None:
            return None
        if len(lane.jobs) == 1:
            return next(iter(lane.jobs))
        if lane.jobs or lane.last_finished is None or at - lane.last_finished[1] > _LATE_LINE_SECONDS:
            return None
        return lane.last_finished[0]
