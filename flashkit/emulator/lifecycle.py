"""How jobs and workers of the local platform come, move on and go: every change of state is made here.

`Platform` knows who asks; `Lifecycle` knows what follows. It keeps the timers, collects the effects, and is
driven with the time like the platform itself. The rule for timers: whatever gets an earlier deadline sets its
timer, whatever gets a later one is called too early once and sets it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from flashkit.emulator import failures
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
from flashkit.emulator.fleet import ColdStart, Fleet, Stop, Worker
from flashkit.emulator.jobs import Job
from flashkit.emulator.scaling import desired_workers, scaling_due_at
from flashkit.emulator.timers import Timers
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.telemetry.tokens import speaks_of_tokens

FINISHED_JOBS_LIMIT: Final = 100_000
"""Results kept for each endpoint; past it the oldest goes before its retention ends. Bounds the memory."""
DROP_GRACE: Final = 1.0
"""Seconds for which a result is waited for after its worker said that it has no job."""
POLL_SLACK: Final = 1.0
"""A held poll ends this many seconds after `poll_hold` at the latest."""
LONGEST_RESPAWN_DELAY: Final = 30.0
INIT_TIMEOUT_VARIABLE: Final = "RUNPOD_INIT_TIMEOUT"
"""Documented: seconds for a cold start, set in the endpoint's environment."""
WAKE_AGAIN_DELAY: Final = 0.05
"""A worker that was woken for a job and does not come in this time is passed over: its poll may be gone."""


class Lifecycle:
    """Makes the changes of state, and remembers what is due and what is to be done because of them."""

    def __init__(
        self, defaults: PlatformDefaults, *, new_worker_id: Callable[[str], str], has_flashboot: bool = False
    ) -> None:
        self.fleets: dict[str, Fleet] = {}
        self.cold_starts: dict[str, ColdStart] = {}
        """By endpoint; others start at once."""
        self.pace = 1.0
        """Seconds of the clock in which a real process gets a second's worth of work done."""
        self._has_flashboot = has_flashboot
        self._defaults = defaults
        self._new_worker_id = new_worker_id
        self._timers: Timers[Job | Worker | Fleet] = Timers()
        self._effects: list[Effect] = []

    def drain_effects(self) -> list[Effect]:
        """Return the effects since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ------------------------------------------------------------------ time

    def next_deadline(self) -> float | None:
        """Return when something is due, None when time alone changes nothing."""
        return self._timers.first()

    def run_due(self, now: float) -> None:
        """Do what has become due by now."""
        while (due := self._timers.pop_due(now)) is not None:
            if isinstance(due, Job):
                self._job_due(now, self.fleets[due.endpoint], due)
            elif isinstance(due, Worker):
                self._worker_due(now, self.fleets[due.endpoint], due)
            else:
                self._wake(now, due, jobs=len(due.queue))
                self.scale(now, due)

    def _job_due(self, now: float, fleet: Fleet, job: Job) -> None:
        if now >= job.expires_at:
            self._expire(now, fleet, job)
        elif now >= job.forgotten_at:
            self._forget(fleet, job)
        elif now >= job.times_out_at:
            self._stop(now, fleet, job)
            self._end(now, fleet, job, JobStatus.TIMED_OUT, error=failures.execution_timed_out(job))
        elif job.dropped_at is not None and now >= job.dropped_at:
            worker = self._leave_worker(fleet, job)
            self._end(now, fleet, job, JobStatus.FAILED, error=failures.job_dropped(job))
            self._note_relief(now, fleet, worker)
        else:
            self._timers.set(job, job.due_at)

    def _worker_due(self, now: float, fleet: Fleet, worker: Worker) -> None:
        if now < worker.due_at(fleet.idle_timeout):
            self._set_worker_timer(fleet, worker)
        elif worker.exit_due_at is not None:
            self.kill(now, fleet, worker, "it should have exited by itself")
        elif worker.phase_ends_at is not None:
            self._enter_next_phase(now, fleet, worker)
        elif worker.is_frozen:
            self.kill(now, fleet, worker, "no job needed it while it was kept frozen")
        elif worker.ready_at is None:
            self._give_up_starting(now, fleet, worker)
        elif worker.stopping:
            self._last_call(now, fleet, worker)
        elif self._has_flashboot and fleet.spec.flashboot:
            self.freeze(now, fleet, worker)
        else:
            self.drain(now, fleet, worker)

    def _set_worker_timer(self, fleet: Fleet, worker: Worker) -> None:
        due_at = worker.due_at(fleet.idle_timeout)
        if due_at < math.inf:
            self._timers.set(worker, due_at)

    # ------------------------------------------------------------------ jobs

    def enqueue(self, now: float, fleet: Fleet, job: Job) -> None:
        """Add a new job, or one that had come to an end, to the end of the queue."""
        fleet.queue.push(job)
        self._timers.set(job, job.due_at)
        self._changed(job)
        self._wake(now, fleet, jobs=1)
        self.scale(now, fleet)

    def hand_out(self, now: float, fleet: Fleet, worker: Worker, *, limit: int) -> list[Job]:
        """Give a worker that asks for work up to `limit` jobs, or remember that it waits for one."""
        jobs = fleet.queue.pop(limit, unless=worker.stopping)
        if jobs:
            fleet.parked.pop(worker.id, None)
            worker.idle_since = None
        else:
            fleet.park(worker)
        for job in jobs:
            job.status = JobStatus.IN_PROGRESS
            job.started_at = now
            job.attempt += 1
            job.worker_id = worker.id
            worker.jobs[job.id] = job
            fleet.running += 1
            self._timers.set(job, job.due_at)
            self._changed(job)
        self._recount_throttled(now, fleet)
        return jobs

    def put_back(self, now: float, fleet: Fleet, job: Job) -> None:
        """Take back a job whose worker never got it, as if it had not been handed out."""
        worker = self._leave_worker(fleet, job)
        job.attempt_limit += 1
        self._requeue_first(fleet, job)
        self._note_relief(now, fleet, worker)
        self._wake(now, fleet, jobs=1)
        self.scale(now, fleet)

    def complete(self, now: float, fleet: Fleet, job: Job, *, error: str | None) -> None:
        """End a running job with what its worker says."""
        worker = self._leave_worker(fleet, job)
        worker.jobs_done += 1
        if not error:
            self._note_success(fleet, worker)
        self._end(now, fleet, job, JobStatus.FAILED if error else JobStatus.COMPLETED, error=error)
        self._note_relief(now, fleet, worker)

    def cancel(self, now: float, fleet: Fleet, job: Job) -> None:
        """End a job that waits or runs as CANCELLED; leave any other as it is."""
        if job.status.is_final:
            return
        self._leave_place(now, fleet, job)
        self._end(now, fleet, job, JobStatus.CANCELLED)

    def keep_result(self, now: float, job: Job, *, seconds: float) -> None:
        """Forget a job this long from now, or from its end if that is to come, unless it is forgotten sooner."""
        age = 0.0 if job.finished_at is None else now - job.finished_at
        job.retention = min(job.retention, age + seconds)
        self._timers.set(job, job.due_at)

    def note_late_result(self, now: float, fleet: Fleet, worker: Worker, job_id: str) -> None:
        """Take note that a worker is done with a job that was taken away from it."""
        if job_id in worker.stopping:
            worker.forget_stop(job_id)
            self._note_relief(now, fleet, worker)
            self._wake(now, fleet, jobs=1)  # a retry of this very job may wait for it

    def show_progress(self, job: Job, value: Any) -> None:
        """Make `value` what the job shows while it runs."""
        job.progress = value
        job.dropped_at = None
        self._changed(job)

    def add_chunk(self, job: Job, chunk: Any, *, size_bytes: int) -> None:
        """Add a partial output; the oldest that nobody reads make room for it."""
        had_dropped = job.unread.has_dropped
        job.unread.add(chunk, size_bytes=size_bytes, limit_bytes=self._defaults.unread_stream_bytes)
        if job.unread.has_dropped and not had_dropped:
            self._effects.append(ChunksDropped(job))
        if speaks_of_tokens(chunk):
            job.usage = chunk
        job.all_chunks_count += 1
        job.dropped_at = None
        self._changed(job)

    def _leave_worker(self, fleet: Fleet, job: Job) -> Worker:
        worker = fleet.workers[job.worker_id or ""]
        del worker.jobs[job.id]
        fleet.running -= 1
        return worker

    def _stop(self, now: float, fleet: Fleet, job: Job) -> None:
        """Take a running job away from its worker and tell it to stop."""
        worker = self._leave_worker(fleet, job)
        worker.stopping[job.id] = Stop(since=now, kill_at=now + self._defaults.stop_grace * self.pace)
        worker.stop_signals.append(job.id)
        self._effects.append(WakeWorker(worker.id))
        self._set_worker_timer(fleet, worker)

    def _leave_place(self, now: float, fleet: Fleet, job: Job) -> None:
        if job.status is JobStatus.IN_QUEUE:
            fleet.queue.remove(job)
            self._recount_throttled(now, fleet)
        elif job.status is JobStatus.IN_PROGRESS:
            self._stop(now, fleet, job)
        else:
            del fleet.finished[job.id]

    def _end(self, now: float, fleet: Fleet, job: Job, status: JobStatus, *, error: str | None = None) -> None:
        """Note the end of a job that is neither in the queue nor with a worker any more."""
        self._close(now, fleet, job, status, error=error)
        fleet.finished[job.id] = job
        self._timers.set(job, job.due_at)
        if len(fleet.finished) > FINISHED_JOBS_LIMIT:
            self._forget(fleet, next(iter(fleet.finished.values())))

    def _close(self, now: float, fleet: Fleet, job: Job, status: JobStatus, *, error: str | None) -> None:
        job.status = status
        job.finished_at = now
        job.dropped_at = None
        job.error = error
        fleet.ended[status] += 1
        self._changed(job)
        if job.webhook:
            self._effects.append(SendWebhook(job))

    def _expire(self, now: float, fleet: Fleet, job: Job) -> None:
        """Delete a job whose time to live ran out; whoever waits for it learns that it timed out."""
        self._leave_place(now, fleet, job)
        if not job.status.is_final:
            self._close(now, fleet, job, JobStatus.TIMED_OUT, error=failures.job_expired(job))
        del fleet.jobs[job.id]

    def _forget(self, fleet: Fleet, job: Job) -> None:
        del fleet.finished[job.id]
        del fleet.jobs[job.id]
        self._timers.drop(job)

    def _changed(self, job: Job) -> None:
        job.generation += 1
        self._effects.append(JobChanged(job))

    # ------------------------------------------------------------------ workers

    def scale(self, now: float, fleet: Fleet) -> None:
        """Start the workers that are missing, as soon as they may start."""
        if fleet.is_closed:
            return
        load, spec = fleet.load, fleet.spec
        if spec.load_balanced:  # the load also decides which idle ones stay
            for worker in fleet.active.values():
                self._set_worker_timer(fleet, worker)
        missing = max(0, desired_workers(spec, load, now=now) - load.workers)
        while missing and fleet.frozen and fleet.free_machines >= 1:
            self.thaw(now, fleet, next(reversed(fleet.frozen.values())))
            missing -= 1
        if not missing:
            due_at = scaling_due_at(spec, fleet.load)
            if due_at is not None:
                self._timers.set(fleet, due_at)
        elif fleet.may_start_at is not None and now < fleet.may_start_at:
            self._timers.set(fleet, fleet.may_start_at)
        else:
            missing = self._start_some(now, fleet, missing)
        self._note_throttled(fleet, missing if fleet.free_machines < 1 else 0)

    def rescale(self, now: float, fleet: Fleet) -> None:
        """Follow bounds that have changed: idle workers that the old floor kept may be due to leave."""
        for worker in fleet.active.values():
            self._set_worker_timer(fleet, worker)
        self.scale(now, fleet)

    def _start_some(self, now: float, fleet: Fleet, missing: int) -> int:
        """Start so many workers, as far as there is room for them, and return how many are still missing."""
        places = fleet.spec.workers.max * 2 - len(fleet.workers)
        count = int(max(0, min(missing, places, fleet.free_machines)))
        for _ in range(count):
            self._start(now, fleet)
        return missing - count

    def _recount_throttled(self, now: float, fleet: Fleet) -> None:
        """Look again at who is wanted for a shorter queue; without throttling, that starts nobody."""
        if fleet.throttled:
            self.scale(now, fleet)

    def _note_throttled(self, fleet: Fleet, count: int) -> None:
        if fleet.throttled != count:
            fleet.throttled = count
            self._effects.append(CapacityChanged(fleet.spec.name, count, fleet.capacity))

    def note_question(self, now: float, fleet: Fleet, worker: Worker, *, limit: int, has_jobs: bool) -> None:
        """Take note of what a worker shows of itself when it asks for work."""
        worker.asked_at = now
        if worker.stopping and worker.has_let_go(limit=limit, has_jobs=has_jobs):
            worker.forget_stops()
            self._note_relief(now, fleet, worker)
        worker.widest_limit = max(worker.widest_limit, limit) if has_jobs else limit
        if not has_jobs and not worker.is_leaving:
            self._note_missing_jobs(now, worker)
        if worker.ready_at is None and worker.can_take_jobs:
            self.note_ready(now, fleet, worker)

    def note_ready(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Take note that a worker can work from now on."""
        worker.ready_at = worker.idle_since = now
        fleet.initializing.discard(worker.id)
        fleet.may_start_at = None
        self._set_worker_timer(fleet, worker)

    def drain(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Tell a worker to finish its jobs and exit; it gets no more. One that does nothing yet ends at once."""
        if worker.is_leaving:
            return
        if worker.is_frozen or not worker.has_process:
            self.kill(now, fleet, worker, "it was frozen" if worker.is_frozen else "it is not wanted any more")
            return
        self._ask_to_exit(now, fleet, worker, grace=self._defaults.drain_grace)

    def reclaim(self, now: float, fleet: Fleet, worker: Worker, *, grace: float) -> None:
        """Take a worker's machine away: it has so many seconds to hand its jobs back."""
        if worker.is_frozen or not worker.has_process:
            self.kill(now, fleet, worker, "its machine was reclaimed")
        elif not worker.is_leaving:
            self._ask_to_exit(now, fleet, worker, grace=grace, is_reclaimed=True)
        elif worker.exit_due_at is not None:
            worker.exit_due_at = min(worker.exit_due_at, now + grace * self.pace)
            self._set_worker_timer(fleet, worker)

    def _ask_to_exit(
        self, now: float, fleet: Fleet, worker: Worker, *, grace: float, is_reclaimed: bool = False
    ) -> None:
        worker.is_leaving = True
        worker.exit_due_at = now + grace * self.pace
        fleet.retire(worker)
        self._effects.append(DrainWorker(worker.endpoint, worker.id, is_reclaimed))
        self._set_worker_timer(fleet, worker)
        self.scale(now, fleet)

    def freeze(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Keep an idle worker as it is, stopped, so that it can go on later instead of another one's cold start."""
        fleet.retire(worker)
        fleet.frozen[worker.id] = worker
        worker.frozen_until = now + self._defaults.frozen_keep
        worker.idle_since = None
        self._effects.append(FreezeWorker(worker.endpoint, worker.id))
        self._set_worker_timer(fleet, worker)
        self.scale(now, fleet)

    def thaw(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Let a frozen worker go on; it is ready once it asks for work."""
        del fleet.frozen[worker.id]
        worker.frozen_until = worker.ready_at = worker.asked_at = None
        worker.started_at = now
        self._effects.append(ThawWorker(worker.endpoint, worker.id))
        self._expect_ready(now, fleet, worker)
        self._join(fleet, worker)

    def distrust(self, now: float, fleet: Fleet, worker: Worker, *, failed_check: str) -> None:
        """Give no more jobs to a worker that found itself unfit; it exits, or is killed later."""
        worker.failed_check = failed_check
        worker.exit_due_at = now + self._defaults.drain_grace * self.pace
        fleet.parked.pop(worker.id, None)
        self._set_worker_timer(fleet, worker)

    def bury(self, now: float, fleet: Fleet, worker: Worker, ended: WorkerExit) -> None:
        """Take note that a worker's process is gone: its jobs go back, or fail."""
        self._forget_worker(fleet, worker)
        for job in reversed(worker.jobs.values()):
            fleet.running -= 1
            self._take_back(now, fleet, job, ended, is_blamed=not worker.is_leaving)
        if worker.is_overdue:
            self._give_up_on_jobs(now, fleet, ended)
        elif not (worker.is_leaving or worker.is_frozen):
            self._note_unwanted_exit(now, fleet, worker, ended)
        self._wake(now, fleet, jobs=len(worker.jobs))
        self.scale(now, fleet)

    def close(self, now: float, fleet: Fleet) -> None:
        """Cancel all jobs, forget them, and let the workers leave."""
        for job in list(fleet.jobs.values()):
            self.cancel(now, fleet, job)
            self._timers.drop(job)
        fleet.jobs.clear()
        fleet.finished.clear()
        fleet.is_closed = True
        self._timers.drop(fleet)
        self._note_throttled(fleet, 0)
        for worker in [*fleet.active.values(), *fleet.frozen.values()]:
            self.drain(now, fleet, worker)

    def _start(self, now: float, fleet: Fleet) -> None:
        name = fleet.spec.name
        phases = self.cold_starts.get(name, ColdStart()).phases
        worker = Worker(id=self._new_worker_id(name), endpoint=name, started_at=now, phases=phases)
        fleet.workers[worker.id] = worker
        self._enter_next_phase(now, fleet, worker)
        self._join(fleet, worker)

    def _enter_next_phase(self, now: float, fleet: Fleet, worker: Worker) -> None:
        if worker.phases:
            phase = worker.phases.pop(0)
            worker.phase, worker.phase_ends_at = phase.name, now + phase.seconds
            self._effects.append(EnterPhase(worker.endpoint, worker.id, phase.name, phase.seconds))
        else:
            worker.phase, worker.phase_ends_at = "", None
            worker.has_process = True
            self._effects.append(StartWorker(worker.endpoint, worker.id))
            self._expect_ready(now, fleet, worker)
        self._set_worker_timer(fleet, worker)

    def _expect_ready(self, now: float, fleet: Fleet, worker: Worker) -> None:
        worker.init_due_at = now + self._init_timeout(fleet) * self.pace

    def _init_timeout(self, fleet: Fleet) -> float:
        own = fleet.spec.env.get(INIT_TIMEOUT_VARIABLE)
        return self._defaults.init_timeout if own is None else float(own)

    def _join(self, fleet: Fleet, worker: Worker) -> None:
        fleet.active[worker.id] = worker
        fleet.initializing.add(worker.id)
        for one in fleet.active.values():  # those kept for the floor may be more than the floor now
            self._set_worker_timer(fleet, one)

    def _give_up_starting(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Kill a worker that was given all the time there is to ask for work, which counts as a failed start."""
        seconds = self._init_timeout(fleet)
        worker.is_overdue = True
        worker.failed_check = f"it was not ready {seconds:g} s after its start (see {INIT_TIMEOUT_VARIABLE})"
        self._note_failed_start(now, fleet)
        self.kill(now, fleet, worker, worker.failed_check)

    def kill(self, now: float, fleet: Fleet, worker: Worker, reason: str) -> None:
        """End a worker at once; its jobs go back to the queue when it is gone, without blame."""
        if worker.is_killed:
            return
        if worker.has_process:
            worker.is_leaving = worker.is_killed = True
            worker.frozen_until = None
            fleet.retire(worker)
            self._effects.append(KillWorker(worker.endpoint, worker.id, reason))
        else:
            self._forget_worker(fleet, worker)
            self._effects.append(GiveUpWorker(worker.endpoint, worker.id, reason))
        self.scale(now, fleet)

    def _forget_worker(self, fleet: Fleet, worker: Worker) -> None:
        fleet.retire(worker)
        del fleet.workers[worker.id]
        self._timers.drop(worker)
        fleet.running_requests -= len(worker.requests)

    def _last_call(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Kill a worker that goes on with a job that it was told to stop.

        One that asked for work meanwhile, or whose poll is held, may have stopped and had no chance to
        show it: it gets until its next poll.
        """
        job_id, stop = min(worker.stopping.items(), key=lambda item: item[1].kill_at)
        is_polling = worker.id in fleet.parked or (worker.asked_at or 0) >= stop.since
        if stop.is_last_call or not is_polling:
            self.kill(now, fleet, worker, f"it went on with job {job_id} after the signal to stop it")
            return
        stop.is_last_call = True
        stop.kill_at = now + (self._defaults.poll_hold + POLL_SLACK) * self.pace
        self._set_worker_timer(fleet, worker)

    def _note_missing_jobs(self, now: float, worker: Worker) -> None:
        """The worker says that it has no job: each one it has is dropped unless its result comes soon."""
        for job in worker.jobs.values():
            if job.dropped_at is None:
                job.dropped_at = now + DROP_GRACE * self.pace
                self._timers.set(job, job.due_at)

    def _note_success(self, fleet: Fleet, worker: Worker) -> None:
        worker.is_proven = True
        fleet.failed_starts = 0

    def _note_relief(self, now: float, fleet: Fleet, worker: Worker) -> None:
        """Start the idle time of a worker that has lost its last job."""
        if not worker.is_busy and worker.idle_since is None:
            worker.idle_since = now
            self._set_worker_timer(fleet, worker)

    def _note_unwanted_exit(self, now: float, fleet: Fleet, worker: Worker, ended: WorkerExit) -> None:
        """Slow down the next start if this worker came to nothing.

        One that cannot set itself up may take a job all the same, to fail it with the reason: what counts is
        that it exits with an error, with no job in hand, and has done nothing well before.
        """
        gave_up = ended.exit_code != 0 and not (worker.is_proven or worker.is_busy)
        if worker.ready_at is not None and not gave_up:
            fleet.failed_starts = 0
            return
        self._note_failed_start(now, fleet)
        self._give_up_on_jobs(now, fleet, ended)

    def _note_failed_start(self, now: float, fleet: Fleet) -> None:
        fleet.failed_starts += 1
        delay = self._defaults.respawn_delay * 2 ** min(fleet.failed_starts - 1, 32)
        fleet.may_start_at = now + min(delay, LONGEST_RESPAWN_DELAY)

    def _give_up_on_jobs(self, now: float, fleet: Fleet, ended: WorkerExit) -> None:
        """Fail what waits once several workers in a row came to nothing: the next one would not fare better.

        Of an app that is known not to import, one is enough.
        """
        is_enough = fleet.problem is not None or fleet.failed_starts >= self._defaults.failed_starts
        if not is_enough or fleet.has_ready_worker:
            return
        for job in list(fleet.queue):
            fleet.queue.remove(job)
            if fleet.problem is not None:
                error = failures.app_broken(job, ended, fleet.problem)
            else:
                error = failures.worker_start_failed(job, ended, failed_starts=fleet.failed_starts)
            self._end(now, fleet, job, JobStatus.FAILED, error=error)

    def _take_back(self, now: float, fleet: Fleet, job: Job, ended: WorkerExit, *, is_blamed: bool) -> None:
        """Put a dead worker's job at the front of the queue, or fail it when it had its attempts."""
        if not is_blamed:
            job.attempt_limit += 1
        if job.attempt >= job.attempt_limit:
            self._end(now, fleet, job, JobStatus.FAILED, error=failures.worker_died(job, ended))
            return
        fleet.retried += 1
        self._requeue_first(fleet, job)

    def _requeue_first(self, fleet: Fleet, job: Job) -> None:
        job.clear_attempt()
        fleet.queue.push_front(job)
        self._changed(job)

    # ------------------------------------------------------------------ requests of load-balanced endpoints

    def add_waiting_request(self, now: float, fleet: Fleet, request_id: str) -> None:
        """Count a request that no worker has room for; workers are started for it as for a job."""
        fleet.waiting_requests[request_id] = now
        self.scale(now, fleet)

    def drop_waiting_request(self, now: float, fleet: Fleet, request_id: str) -> None:
        """Count a request no more among those that wait."""
        if fleet.waiting_requests.pop(request_id, None) is not None:
            self.scale(now, fleet)

    def begin_request(self, now: float, fleet: Fleet, worker: Worker, request_id: str) -> None:
        """Give a request to a worker."""
        self.drop_waiting_request(now, fleet, request_id)
        worker.requests.add(request_id)
        worker.idle_since = None
        fleet.running_requests += 1
        self.scale(now, fleet)

    def end_request(self, now: float, fleet: Fleet, worker: Worker, request_id: str) -> None:
        """Take note that a worker is done with a request."""
        worker.requests.remove(request_id)
        worker.jobs_done += 1
        fleet.running_requests -= 1
        self._note_success(fleet, worker)
        self._note_relief(now, fleet, worker)
        self.scale(now, fleet)

    # ------------------------------------------------------------------ polls

    def _wake(self, now: float, fleet: Fleet, *, jobs: int) -> None:
        """Wake one worker for each of so many waiting jobs, and others soon if those do not come."""
        for _ in range(min(jobs, len(fleet.queue))):
            worker = fleet.pop_parked()
            if worker is None:
                return
            if worker.idle_since is not None:
                worker.idle_since = now
            self._effects.append(WakeWorker(worker.id))
        if fleet.queue and fleet.parked:
            self._timers.set(fleet, now + WAKE_AGAIN_DELAY * self.pace)
