"""The local platform as a pure state machine: jobs, workers, time; no I/O, no clock, no asyncio.

Every method takes `now`, seconds of any clock that does not go back, and returns at once. What has to happen
outside comes out of `effects()`: call it after every other call. `next_deadline()` says when `tick` has
something to do. Documented behaviour follows Runpod's docs; everything else is a value of `PlatformDefaults`
or a constant of `lifecycle`. Choices that a reader might look for:

* A worker's death is held against its jobs (`max_attempts`) only if the platform did not cause it: jobs of a
  worker that was drained or killed go back to the queue with one more attempt.
* `workers.max` bounds the workers that take jobs. Leaving ones come on top, so that a reload need not wait
  for them, but all together are never more than twice the maximum.
* A worker is counted as a failed start when it ends with an error, has no job in hand, and has done nothing
  well before; one that has a job in hand is held against that job instead.
* With FlashBoot, an idle worker is frozen instead of stopped. A frozen one is not among `workers.max`, but is
  thawed before any other is started, so that both together are never more than the maximum.
* Low-priority jobs start no worker, not even the first: they wait until another job brings one.
* `purge` leaves the jobs behind as CANCELLED, so that whoever waits for them is told.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashkit.catalog import nearest_names
from flashkit.emulator.effects import (
    CapacityChanged,
    ChunksDropped,
    DrainWorker,
    Effect,
    EnterPhase,
    FreezeWorker,
    GiveUpWorker,
    JobChanged,
    KillWorker,
    SendWebhook,
    StartWorker,
    ThawWorker,
    WakeWorker,
)
from flashkit.emulator.failures import WorkerExit
from flashkit.emulator.fleet import ColdStart, Fleet, Worker, WorkerState
from flashkit.emulator.jobs import Job, JobRequest
from flashkit.emulator.lifecycle import INIT_TIMEOUT_VARIABLE, Lifecycle
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import EndpointSpec, WorkerBounds

__all__ = [
    "CapacityChanged",
    "ChunksDropped",
    "ColdStart",
    "DrainWorker",
    "Effect",
    "EnterPhase",
    "FreezeWorker",
    "GiveUpWorker",
    "Job",
    "JobChanged",
    "JobRequest",
    "KillWorker",
    "Platform",
    "SendWebhook",
    "StartWorker",
    "ThawWorker",
    "WakeWorker",
    "Worker",
    "WorkerState",
    "check_spec",
    "random_id",
    "seeded_id",
]


def random_id() -> str:
    """Return an id that nobody has."""
    return str(uuid.uuid4())


def seeded_id(generator: random.Random) -> str:
    """Return the next id of a run that repeats."""
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


class Platform:
    """Runs the endpoints of one local platform."""

    def __init__(
        self,
        defaults: PlatformDefaults | None = None,
        *,
        new_id: Callable[[], str] = random_id,
        has_flashboot: bool = False,
    ) -> None:
        """Start without endpoints.

        Args:
            defaults: Behaviour that the real platform does not document.
            new_id: Makes ids of jobs; workers are numbered, and carry a part of one id as this platform's mark.
            has_flashboot: Freeze idle workers of endpoints that want FlashBoot instead of stopping them.
        """
        self._defaults = defaults or PlatformDefaults()
        self._new_id = new_id
        # A worker left over from another run that finds the same port must not pass for one of ours.
        self._mark = new_id()[:8]
        self._workers_started = 0
        self._lifecycle = Lifecycle(self._defaults, new_worker_id=self._new_worker_id, has_flashboot=has_flashboot)
        self._fleets = self._lifecycle.fleets
        self._capacities: dict[str, int | None] = {}

    def _new_worker_id(self, endpoint: str) -> str:
        self._workers_started += 1
        return f"{endpoint}-{self._workers_started}-{self._mark}"

    # ------------------------------------------------------------------ endpoints

    @property
    def specs(self) -> dict[str, EndpointSpec]:
        """The endpoints by name."""
        return {name: fleet.spec for name, fleet in self._fleets.items() if not fleet.is_closed}

    def add_endpoint(self, now: float, spec: EndpointSpec) -> None:
        """Add an endpoint and start the workers of its floor.

        Raises:
            InputError: There is one of this name, or its init timeout is no number.
        """
        if spec.name in self.specs:
            raise InputError(f"there is an endpoint {spec.name!r} already", hint="use replace_endpoint")
        check_spec(spec)
        fleet = self._fleets.setdefault(spec.name, Fleet(spec))
        fleet.reopen(spec)
        fleet.capacity = self._capacities.get(spec.name)
        self._lifecycle.scale(now, fleet)

    def replace_endpoint(self, now: float, spec: EndpointSpec) -> None:
        """Let new workers take over: jobs stay, workers that run now finish theirs and leave.

        Raises:
            InputError: There is no endpoint of this name, or its init timeout is no number.
        """
        fleet = self._fleet(spec.name)
        check_spec(spec)
        fleet.reopen(spec)
        for worker in [*fleet.frozen.values(), *fleet.active.values()]:
            self._lifecycle.drain(now, fleet, worker)
        self._lifecycle.scale(now, fleet)

    def set_workers(self, now: float, name: str, workers: WorkerBounds) -> None:
        """Change an endpoint's bounds without replacing its workers: missing ones start, idle ones may leave.

        Raises:
            InputError: There is no endpoint of this name.
        """
        fleet = self._fleet(name)
        fleet.spec = dataclasses.replace(fleet.spec, workers=workers)
        self._lifecycle.rescale(now, fleet)

    def set_problem(self, now: float, name: str, problem: ErrorReport | None) -> None:
        """Say why new workers of this endpoint cannot come up, or that nothing is known to be in their way.

        With a problem, jobs fail with it as soon as a start fails; without one, starts are tried anew at once.

        Raises:
            InputError: There is no endpoint of this name.
        """
        fleet = self._fleet(name)
        fleet.problem = problem
        if problem is None:
            fleet.reopen(fleet.spec)
            self._lifecycle.scale(now, fleet)

    def set_cold_start(self, name: str, cold_start: ColdStart) -> None:
        """Let new workers of this endpoint spend time before their process starts; it may be yet to come."""
        self._lifecycle.cold_starts[name] = cold_start

    def set_capacity(self, now: float, name: str, capacity: int | None) -> None:
        """Say how many workers of this endpoint there are machines for, None for any number; it may be yet to come.

        Workers that run stay when there are fewer machines; those that are missing start as machines come back.

        Raises:
            InputError: It is negative.
        """
        if capacity is not None and capacity < 0:
            raise InputError(f"capacity={capacity!r} is no number of machines", hint="give 0 or more, or None")
        self._capacities[name] = capacity
        fleet = self._fleets.get(name)
        if fleet is not None:
            fleet.capacity = capacity
            self._lifecycle.scale(now, fleet)

    def set_pace(self, pace: float) -> None:
        """Say how many seconds of the clock a real process needs for a second's worth of work.

        Graces that real processes are given grow with it, and with nothing else: a clock that runs fast should
        not kill a worker for being a process.
        """
        self._lifecycle.pace = max(1.0, pace)

    def remove_endpoint(self, now: float, name: str) -> None:
        """Cancel its jobs, let its workers leave, and know neither any more.

        Raises:
            InputError: There is no endpoint of this name.
        """
        fleet = self._fleet(name)
        self._lifecycle.close(now, fleet)
        self._drop_if_over(fleet)

    def _drop_if_over(self, fleet: Fleet) -> None:
        if fleet.is_closed and not fleet.workers:
            del self._fleets[fleet.spec.name]

    def _fleet(self, name: str) -> Fleet:
        fleet = self._fleets.get(name)
        if fleet is None or fleet.is_closed:
            names = list(self.specs)
            near = nearest_names(name, names) or names
            raise InputError(
                f"there is no endpoint {name!r}",
                hint=f"there is {' and '.join(near)}" if near else None,
                details={"endpoint": name, "endpoints": names},
            )
        return fleet

    # ------------------------------------------------------------------ clients

    def submit(self, now: float, endpoint: str, request: JobRequest, *, sync: bool) -> Job:
        """Put a new job into the queue and return it.

        Raises:
            InputError: There is no such endpoint.
        """
        fleet = self._fleet(endpoint)
        job = self._new_job(now, fleet.spec, request, sync=sync)
        fleet.jobs[job.id] = job
        fleet.submitted += 1
        self._lifecycle.enqueue(now, fleet, job)
        return job

    def _new_job(self, now: float, spec: EndpointSpec, request: JobRequest, *, sync: bool) -> Job:
        defaults = self._defaults
        timeout_ms, ttl_ms = request.execution_timeout_ms, request.ttl_ms
        return Job(
            id=f"sync-{self._new_id()}" if sync else self._new_id(),
            endpoint=spec.name,
            input=request.input,
            sync=sync,
            submitted_at=now,
            queued_at=now,
            execution_timeout_ms=spec.execution_timeout_ms if timeout_ms is None else timeout_ms,
            ttl_ms=defaults.ttl_ms if ttl_ms is None else ttl_ms,
            low_priority=request.low_priority,
            webhook=request.webhook,
            extra=request.extra,
            retention=defaults.runsync_retention if sync else defaults.run_retention,
            attempt_limit=defaults.max_attempts,
        )

    def job(self, now: float, endpoint: str, job_id: str) -> Job:
        """Return the job.

        Raises:
            InputError: There is no such endpoint.
            JobNotFound: Never submitted here, expired, or past its retention.
        """
        job = self._fleet(endpoint).jobs.get(job_id)
        if job is None:
            raise JobNotFound(
                f"endpoint {endpoint!r} has no job {job_id!r}",
                hint="it never had it, or the job's time to live or the retention of its result is over",
                request_id=job_id,
            )
        return job

    def keep_result(self, now: float, endpoint: str, job_id: str, *, seconds: float) -> Job:
        """Return the job, and keep its result no longer than this: `/status?ttl=`.

        Raises:
            InputError: There is no such endpoint.
            JobNotFound: As `job`.
        """
        job = self.job(now, endpoint, job_id)
        self._lifecycle.keep_result(now, job, seconds=seconds)
        return job

    def read_stream(self, now: float, endpoint: str, job_id: str) -> list[Any]:
        """Return the partial outputs that nobody has read yet, and count them as read.

        Raises:
            InputError: There is no such endpoint.
            JobNotFound: As `job`.
        """
        return self.job(now, endpoint, job_id).unread.take()

    def cancel(self, now: float, endpoint: str, job_id: str) -> Job:
        """End the job as CANCELLED, with a stop signal if it runs; a finished one stays as it is.

        Raises:
            InputError: There is no such endpoint.
            JobNotFound: As `job`.
        """
        job = self.job(now, endpoint, job_id)
        self._lifecycle.cancel(now, self._fleets[endpoint], job)
        return job

    def retry(self, now: float, endpoint: str, job_id: str) -> Job:
        """Put a FAILED or TIMED_OUT job into the queue again, without its old output.

        Raises:
            InputError: There is no such endpoint, or the job is in another state (`details` has `status`).
            JobNotFound: As `job`.
        """
        job = self.job(now, endpoint, job_id)
        if job.status not in (JobStatus.FAILED, JobStatus.TIMED_OUT):
            raise InputError(
                f"job {job_id!r} is {job.status}, so it cannot be retried",
                hint="only FAILED and TIMED_OUT jobs can be retried",
                details={"status": job.status.value},
                request_id=job_id,
            )
        fleet = self._fleets[endpoint]
        del fleet.finished[job_id]
        fleet.retried += 1
        job.clear_attempt()
        job.queued_at = now
        job.attempt_limit = job.attempt + self._defaults.max_attempts
        self._lifecycle.enqueue(now, fleet, job)
        return job

    def purge(self, now: float, endpoint: str) -> int:
        """Cancel all jobs in the queue and return their number.

        Raises:
            InputError: There is no such endpoint.
        """
        fleet = self._fleet(endpoint)
        jobs = list(fleet.queue)
        for job in jobs:
            self._lifecycle.cancel(now, fleet, job)
        return len(jobs)

    def health(self, endpoint: str) -> dict[str, dict[str, int]]:
        """Return the counts of `/health`; those of finished jobs are totals since the endpoint was added.

        Raises:
            InputError: There is no such endpoint.
        """
        return self._fleet(endpoint).describe_health()

    def jobs(self, endpoint: str) -> tuple[Job, ...]:
        """Return the endpoint's jobs in any state, in the order of submission.

        Raises:
            InputError: There is no such endpoint.
        """
        return tuple(self._fleet(endpoint).jobs.values())

    def has_waiting_jobs(self, endpoint: str) -> bool:
        """Return True when jobs wait in the endpoint's queue.

        Raises:
            InputError: There is no such endpoint.
        """
        return len(self._fleet(endpoint).queue) > 0

    def has_waiting_jobs_for(self, endpoint: str, worker_id: str) -> bool:
        """Return True when jobs wait that this worker could take; False for one that is not known."""
        worker = self._worker(endpoint, worker_id)
        return worker is not None and worker.can_take_jobs and self.has_waiting_jobs(endpoint)

    def has_jobs(self, endpoint: str, worker_id: str) -> bool:
        """Return True when the worker has jobs; False for one that is not known."""
        worker = self._worker(endpoint, worker_id)
        return worker is not None and bool(worker.jobs)

    def workers(self, endpoint: str) -> tuple[Worker, ...]:
        """Return the endpoint's workers, leaving ones included, oldest first.

        Raises:
            InputError: There is no such endpoint.
        """
        return tuple(self._fleet(endpoint).workers.values())

    # ------------------------------------------------------------------ workers

    def take(self, now: float, endpoint: str, worker_id: str, *, limit: int, job_in_progress: bool) -> list[Job]:
        """Hand out up to `limit` jobs; none to workers that are leaving or not known.

        A held poll asks again, with the same arguments, whenever the worker is woken. A job that was handed
        out before counts as dropped when the worker says that it has none and no result follows.
        """
        worker = self._worker(endpoint, worker_id)
        if worker is None:
            return []
        if worker.is_frozen:  # it asked just before it was stopped
            return []
        fleet = self._fleets[endpoint]
        is_new = worker.ready_at is None
        self._lifecycle.note_question(now, fleet, worker, limit=limit, has_jobs=job_in_progress)
        is_served = worker.can_take_jobs and limit > 0
        jobs = self._lifecycle.hand_out(now, fleet, worker, limit=limit) if is_served else []
        if is_new:  # the scaler waited for it, and looks at what it leaves
            self._lifecycle.scale(now, fleet)
        return jobs

    def put_back(self, now: float, endpoint: str, worker_id: str, job_id: str, *, attempt: int) -> bool:
        """Hand a job out again whose worker never got it; False when it shows that it did, or is done with it."""
        job = self._job_of(endpoint, worker_id, job_id)
        if job is None or job.attempt != attempt or job.all_chunks_count or job.progress is not None:
            return False
        self._lifecycle.put_back(now, self._fleets[endpoint], job)
        return True

    def finish(self, now: float, endpoint: str, worker_id: str, job_id: str, result: Mapping[str, Any]) -> bool:
        """Take the result of a job; False when the job is not this worker's (any more) and it is ignored."""
        worker = self._worker(endpoint, worker_id)
        if worker is None:
            return False
        fleet = self._fleets[endpoint]
        job = worker.jobs.get(job_id)
        if job is None:
            self._lifecycle.note_late_result(now, fleet, worker, job_id)
        else:
            job.has_output = "output" in result
            job.output = result.get("output")
            self._lifecycle.complete(now, fleet, job, error=_error_text(result.get("error")))
        if result.get("stopPod"):
            self._lifecycle.drain(now, fleet, worker)
        return job is not None

    def progress(self, now: float, endpoint: str, worker_id: str, job_id: str, value: Any) -> bool:
        """Show `value` as the output of a running job; False when the job is not this worker's (any more)."""
        job = self._job_of(endpoint, worker_id, job_id)
        if job is not None:
            self._lifecycle.show_progress(job, value)
        return job is not None

    def partial(
        self, now: float, endpoint: str, worker_id: str, job_id: str, chunk: Any, *, size_bytes: int = 0
    ) -> bool:
        """Add a partial output of this size to a running job; False when the job is not this worker's (any more)."""
        job = self._job_of(endpoint, worker_id, job_id)
        if job is not None:
            self._lifecycle.add_chunk(job, chunk, size_bytes=size_bytes)
        return job is not None

    def stop_signals(self, now: float, endpoint: str, worker_id: str) -> list[str]:
        """Return ids of jobs that the worker has to stop; each is returned once."""
        worker = self._worker(endpoint, worker_id)
        if worker is None:
            return []
        signals, worker.stop_signals = worker.stop_signals, []
        return signals

    def worker_exited(
        self, now: float, endpoint: str, worker_id: str, *, exit_code: int, log_tail: Sequence[str]
    ) -> None:
        """Take note that a worker's process is gone, whoever wanted it; its jobs go back or fail."""
        worker = self._worker(endpoint, worker_id)
        if worker is None:
            return
        fleet = self._fleets[endpoint]
        ended = WorkerExit(worker_id, exit_code, tuple(log_tail), worker.failed_check)
        self._lifecycle.bury(now, fleet, worker, ended)
        self._drop_if_over(fleet)

    def unhealthy(self, now: float, endpoint: str, worker_id: str, check: str, reason: str) -> None:
        """Take a worker that reported a failed check out of service; it exits by itself or is killed."""
        worker = self._worker(endpoint, worker_id)
        if worker is not None and worker.can_take_jobs:
            failed_check = f"check {check!r} failed: {reason}"
            self._lifecycle.distrust(now, self._fleets[endpoint], worker, failed_check=failed_check)

    def find_worker(self, worker_id: str) -> Worker:
        """Return a worker of any endpoint.

        Raises:
            InputError: There is none of this id (any more).
        """
        for fleet in self._fleets.values():
            if worker_id in fleet.workers:
                return fleet.workers[worker_id]
        raise InputError(
            f"there is no worker {worker_id!r}",
            hint="it may have exited: GET /_/state lists the workers",
            details={"worker_id": worker_id},
        )

    def kill_worker(self, now: float, worker_id: str, *, reason: str = "somebody asked for it") -> None:
        """End a worker at once; its jobs go back to the queue without blame.

        Raises:
            InputError: There is no such worker.
        """
        worker = self.find_worker(worker_id)
        fleet = self._fleets[worker.endpoint]
        self._lifecycle.kill(now, fleet, worker, reason)
        self._drop_if_over(fleet)

    def kill_workers(self, now: float, endpoint: str) -> int:
        """End all workers of an endpoint at once, frozen ones too, and return their number: the next start is cold.

        Raises:
            InputError: There is no such endpoint.
        """
        workers = self.workers(endpoint)
        for worker in workers:
            self._lifecycle.kill(now, self._fleets[endpoint], worker, "the endpoint is made cold")
        return len(workers)

    def reclaim_worker(self, now: float, worker_id: str, *, grace_s: float | None = None) -> None:
        """Take a worker's machine away, as a spot market does: SIGTERM, SIGKILL later; its jobs go back.

        Raises:
            InputError: There is no such worker.
        """
        worker = self.find_worker(worker_id)
        fleet = self._fleets[worker.endpoint]
        grace = self._defaults.reclaim_grace if grace_s is None else grace_s
        self._lifecycle.reclaim(now, fleet, worker, grace=grace)
        self._drop_if_over(fleet)

    def freeze_worker(self, now: float, worker_id: str) -> None:
        """Freeze an idle worker now, whether or not its endpoint has FlashBoot.

        Raises:
            InputError: There is no such worker, or it is not idle.
        """
        worker = self._worker_in(worker_id, WorkerState.IDLE, "frozen")
        self._lifecycle.freeze(now, self._fleets[worker.endpoint], worker)

    def thaw_worker(self, now: float, worker_id: str) -> None:
        """Let a frozen worker go on now.

        Raises:
            InputError: There is no such worker, it is not frozen, or there is no machine for it.
        """
        worker = self._worker_in(worker_id, WorkerState.FROZEN, "thawed")
        fleet = self._fleets[worker.endpoint]
        if fleet.free_machines < 1:
            raise InputError(
                f"worker {worker_id!r} cannot be thawed: there is no machine for it", hint="raise the capacity"
            )
        self._lifecycle.thaw(now, fleet, worker)

    def _worker_in(self, worker_id: str, state: WorkerState, what: str) -> Worker:
        worker = self.find_worker(worker_id)
        if worker.state is not state:
            raise InputError(
                f"worker {worker_id!r} is {worker.state}, so it cannot be {what}",
                hint=f"only a worker that is {state} can be {what}",
                details={"worker_id": worker_id, "state": worker.state.value},
            )
        return worker

    def _worker(self, endpoint: str, worker_id: str) -> Worker | None:
        fleet = self._fleets.get(endpoint)
        return None if fleet is None else fleet.workers.get(worker_id)

    def _job_of(self, endpoint: str, worker_id: str, job_id: str) -> Job | None:
        worker = self._worker(endpoint, worker_id)
        return None if worker is None else worker.jobs.get(job_id)

    # ------------------------------------------------------------------ load-balanced endpoints

    def worker_ready(self, now: float, endpoint: str, worker_id: str) -> bool:
        """Take note that a worker can work, which nobody asks for; False if that is known or of no use."""
        worker = self._worker(endpoint, worker_id)
        if worker is None or not worker.can_take_jobs or worker.ready_at is not None:
            return False
        fleet = self._fleets[endpoint]
        self._lifecycle.note_ready(now, fleet, worker)
        self._lifecycle.scale(now, fleet)
        return True

    def has_given_up(self, endpoint: str) -> bool:
        """True when several workers in a row came to nothing, so that whoever waits for one waits in vain."""
        fleet = self._fleets.get(endpoint)
        return fleet is not None and fleet.failed_starts >= self._defaults.failed_starts and not fleet.has_ready_worker

    def request_waits(self, now: float, endpoint: str, request_id: str) -> None:
        """Count a request that no worker has room for as load of the endpoint.

        Raises:
            InputError: There is no such endpoint.
        """
        self._lifecycle.add_waiting_request(now, self._fleet(endpoint), request_id)

    def request_leaves(self, now: float, endpoint: str, request_id: str) -> None:
        """Count a request no more: it gave up waiting. One that does not wait changes nothing."""
        if fleet := self._fleets.get(endpoint):
            self._lifecycle.drop_waiting_request(now, fleet, request_id)

    def request_begins(self, now: float, endpoint: str, worker_id: str, request_id: str) -> bool:
        """Give a request to a worker; False when it is not ready, frozen, leaving or gone: choose another."""
        worker = self._worker(endpoint, worker_id)
        if worker is None or not worker.can_take_jobs or worker.ready_at is None:
            return False
        self._lifecycle.begin_request(now, self._fleets[endpoint], worker, request_id)
        return True

    def request_ends(self, now: float, endpoint: str, worker_id: str, request_id: str) -> None:
        """Take note that a worker is done with a request, however it ended; of a worker that is gone, nothing."""
        worker = self._worker(endpoint, worker_id)
        if worker is not None and request_id in worker.requests:
            self._lifecycle.end_request(now, self._fleets[endpoint], worker, request_id)

    # ------------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """Do what has become due by `now`."""
        self._lifecycle.run_due(now)

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to look at, None when time alone changes nothing."""
        return self._lifecycle.next_deadline()

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        return self._lifecycle.drain_effects()


def check_spec(spec: EndpointSpec) -> None:
    """Refuse a description with which no worker can be run.

    Raises:
        InputError: Its init timeout is no number.
    """
    value = spec.env.get(INIT_TIMEOUT_VARIABLE)
    if value is None:
        return
    try:
        is_time = 0 < float(value) < math.inf
    except ValueError:
        is_time = False
    if not is_time:
        raise InputError(
            f"{INIT_TIMEOUT_VARIABLE}={value!r} of endpoint {spec.name!r} is no number of seconds",
            hint="write for example 900 for fifteen minutes",
        )


def _error_text(error: Any) -> str | None:
    """Return the error as text, as the job's field is documented; only a truthy one counts."""
    if not error:
        return None
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False, default=str)
