"""The platform against a naive model of it, with worker processes that live, lie, hang, freeze and die.

The model keeps each job's times and looks at all of them whenever time passes; the platform has heaps, queues
and counters. After every step both must tell the same, and every job must be in exactly one place.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from flashkit.emulator.lifecycle import DROP_GRACE, POLL_SLACK
from flashkit.emulator.platform import (
    CapacityChanged,
    ColdStart,
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
    Worker,
    WorkerState,
)
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

DEFAULTS = PlatformDefaults(
    ttl_ms=150_000,
    run_retention=40.0,
    runsync_retention=10.0,
    max_attempts=2,
    failed_starts=2,
    drain_grace=12.0,
    init_timeout=45.0,
    frozen_keep=25.0,
)
DISTURBANCES = ["purge", "reload", "unhealthy", "kill", "cool", "capacity", "reclaim", "reclaim", *["exit"] * 5]
STEPS = st.sampled_from([0.0, 0.04, 0.5, 0.5, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 12.0, 31.0])
RETRIABLE = (JobStatus.FAILED, JobStatus.TIMED_OUT)


@dataclass(eq=False)
class ModelJob:
    """What a job must look like."""

    id: str
    submitted_at: float
    timeout: float
    ttl: float
    retention: float
    status: JobStatus = JobStatus.IN_QUEUE
    owner: str | None = None
    attempt: int = 0
    attempt_limit: int = DEFAULTS.max_attempts
    started_at: float = math.inf
    finished_at: float = math.inf
    dropped_at: float = math.inf
    is_gone: bool = False
    unread: list[int] = field(default_factory=list)

    def end(self, status: JobStatus, now: float) -> None:
        self.status, self.finished_at, self.dropped_at = status, now, math.inf

    def wait(self) -> None:
        self.status, self.owner, self.unread = JobStatus.IN_QUEUE, None, []
        self.started_at = self.finished_at = self.dropped_at = math.inf

    def let_time_pass(self, now: float) -> None:
        running = self.status is JobStatus.IN_PROGRESS
        if now >= self.submitted_at + self.ttl or now >= self.finished_at + self.retention:
            self.is_gone = True
        elif running and now >= self.started_at + self.timeout:
            self.end(JobStatus.TIMED_OUT, now)
        elif running and now >= self.dropped_at:
            self.end(JobStatus.FAILED, now)


@dataclass(eq=False)
class Process:
    """A worker process as it is, whatever the platform thinks of it."""

    id: str
    concurrency: int
    running: dict[str, int] = field(default_factory=dict)
    """Job id to the attempt that it runs."""
    has_lost_jobs: bool = False
    is_proven: bool = False
    is_draining: bool = False
    is_frozen: bool = False


class PlatformMachine(RuleBasedStateMachine):
    """One endpoint under every event that can come, in any order."""

    @initialize(
        bounds=st.sampled_from([(0, 1), (0, 3), (1, 2), (2, 4)]),
        scaler=st.sampled_from([(ScalerType.QUEUE_DELAY, 4), (ScalerType.REQUEST_COUNT, 2)]),
        concurrency=st.sampled_from([1, 1, 2, 4]),
        has_flashboot=st.booleans(),
        cold_start=st.sampled_from([None, None, ColdStart(pull_s=3), ColdStart(pull_s=2, load_s=0.5)]),
        capacity=st.sampled_from([None, None, 0, 1, 2]),
    )
    def start(
        self,
        *,
        bounds: tuple[int, int],
        scaler: tuple[ScalerType, int],
        concurrency: int,
        has_flashboot: bool,
        cold_start: ColdStart | None,
        capacity: int | None,
    ) -> None:
        serial = iter(range(1_000_000))
        self.now = 0.0
        self.platform = Platform(DEFAULTS, new_id=lambda: f"id{next(serial)}", has_flashboot=has_flashboot)
        self.has_flashboot = has_flashboot
        if cold_start is not None:
            self.platform.set_cold_start("e", cold_start)
        self.capacity = capacity
        self.platform.set_capacity(self.now, "e", capacity)
        self.spec = EndpointSpec(
            name="e",
            kind=Kind.CPU,
            cpu="cpu5c-2-4",
            workers=WorkerBounds(*bounds),
            scaler_type=scaler[0],
            scaler_value=scaler[1],
            execution_timeout_ms=20_000,
        )
        self.concurrency = concurrency
        self.model: dict[str, ModelJob] = {}
        self.processes: dict[str, Process] = {}
        self.started: set[str] = set()
        self.waiting_requests: set[str] = set()
        self.running_requests: dict[str, str] = {}
        self.serial = 0
        self.totals: Counter[JobStatus] = Counter()
        self.retried = 0
        self.chunk = 0
        self.platform.add_endpoint(self.now, self.spec)
        self.settle()

    # ------------------------------------------------------------------ clients

    @rule(
        count=st.integers(1, 4),
        sync=st.booleans(),
        low=st.sampled_from([False, False, True]),
        timeout=st.sampled_from([None, 5_000, 60_000]),
        ttl=st.sampled_from([None, None, 10_000, 30_000]),
        is_polled_for=st.booleans(),
    )
    def submit(
        self, *, count: int, sync: bool, low: bool, timeout: int | None, ttl: int | None, is_polled_for: bool
    ) -> None:
        hook = "http://127.0.0.1/hook" if sync else None
        request = JobRequest({}, low_priority=low, execution_timeout_ms=timeout, ttl_ms=ttl, webhook=hook)
        for _ in range(count):
            job = self.platform.submit(self.now, "e", request, sync=sync)
            self.model[job.id] = ModelJob(
                id=job.id,
                submitted_at=self.now,
                timeout=(timeout or self.spec.execution_timeout_ms) / 1000,
                ttl=(ttl or DEFAULTS.ttl_ms) / 1000,
                retention=DEFAULTS.runsync_retention if sync else DEFAULTS.run_retention,
            )
            self.settle()
        if is_polled_for:
            self.ask_all()

    def pick(self, data: st.DataObject) -> ModelJob | None:
        known = [job for job in self.model.values() if not job.is_gone]
        return data.draw(st.sampled_from(known)) if known else None

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is None:
            return
        if not job.status.is_final:
            job.end(JobStatus.CANCELLED, self.now)
            self.totals[JobStatus.CANCELLED] += 1
        assert self.platform.cancel(self.now, "e", job.id).status is job.status
        self.settle()

    @rule(data=st.data())
    def retry_any(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is None:
            return
        if job.status in RETRIABLE:
            self.retry(job)
            return
        with pytest.raises(InputError):
            self.platform.retry(self.now, "e", job.id)

    @rule()
    def retry_all(self) -> None:
        for job in self.known():
            if job.status in RETRIABLE:
                self.retry(job)

    def retry(self, job: ModelJob) -> None:
        job.wait()
        job.attempt_limit = job.attempt + DEFAULTS.max_attempts
        self.retried += 1
        self.platform.retry(self.now, "e", job.id)
        self.settle()

    @rule(what=st.sampled_from(DISTURBANCES), data=st.data())
    def disturb(self, what: str, data: st.DataObject) -> None:
        """One rule for what ends everything else, so that enough happens between two of these."""
        workers = self.workers()
        if what == "purge":
            self.purge()
        elif what == "reload":
            self.reload()
        elif what == "capacity":
            self.capacity = data.draw(st.sampled_from([None, None, 0, 1, 3]))
            self.platform.set_capacity(self.now, "e", self.capacity)
        elif what == "cool":
            assert self.platform.kill_workers(self.now, "e") == len(workers)
            assert all(worker.is_killed or worker.id not in self.fleet.workers for worker in workers)
        elif workers and what in ("kill", "reclaim"):
            self.end_worker(data.draw(st.sampled_from(workers)), what)
        elif self.processes and what == "unhealthy":
            self.platform.unhealthy(self.now, "e", data.draw(st.sampled_from(list(self.processes))), "disk", "full")
        elif self.processes and what == "exit":
            process = data.draw(st.sampled_from(list(self.processes.values())))
            self.bury(process, data.draw(st.sampled_from([0, 1, -9])))
        self.settle()

    def end_worker(self, worker: Worker, what: str) -> None:
        if what == "kill":
            self.platform.kill_worker(self.now, worker.id)
        else:
            self.platform.reclaim_worker(self.now, worker.id, grace_s=2.0)
            assert worker.exit_due_at is None or worker.exit_due_at <= self.now + 2.0
        assert worker.is_leaving or worker.id not in self.fleet.workers

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def freeze_or_thaw(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(list(self.processes.values())))
        worker = self.fleet.workers[process.id]
        change = self.platform.thaw_worker if process.is_frozen else self.platform.freeze_worker
        has_machine = self.fleet.free_machines >= 1
        if worker.state is WorkerState.IDLE or (worker.state is WorkerState.FROZEN and has_machine):
            change(self.now, process.id)
        else:
            with pytest.raises(InputError):
                change(self.now, process.id)
        self.settle()

    # ------------------------------------------------------------------ requests of load-balanced endpoints

    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        """A request comes, is given to some worker that may not take it, and goes."""
        known = [*self.waiting_requests, *self.running_requests]
        if not known or data.draw(st.booleans()):
            self.serial += 1
            self.waiting_requests.add(f"r{self.serial}")
            self.platform.request_waits(self.now, "e", f"r{self.serial}")
        else:
            self.move_request(data.draw(st.sampled_from(sorted(known))), data)
        self.settle()

    def move_request(self, request_id: str, data: st.DataObject) -> None:
        if request_id in self.running_requests:
            worker_id = self.running_requests.pop(request_id)
            self.platform.request_ends(self.now, "e", worker_id, request_id)
            self.processes[worker_id].is_proven = True
        elif self.workers() and data.draw(st.booleans()):
            worker = data.draw(st.sampled_from(self.workers()))
            is_fit = worker.state in (WorkerState.IDLE, WorkerState.RUNNING)
            assert self.platform.request_begins(self.now, "e", worker.id, request_id) is is_fit
            if is_fit:
                self.waiting_requests.remove(request_id)
                self.running_requests[request_id] = worker.id
        else:
            self.waiting_requests.remove(request_id)
            self.platform.request_leaves(self.now, "e", request_id)

    @precondition(lambda self: self.awake())
    @rule(data=st.data())
    def ready_without_asking(self, data: st.DataObject) -> None:
        worker = self.fleet.workers[self.draw_process(data).id]
        is_new = worker.state is WorkerState.INITIALIZING
        assert self.platform.worker_ready(self.now, "e", worker.id) is is_new
        self.settle()

    def purge(self) -> None:
        waiting = [job for job in self.known() if job.status is JobStatus.IN_QUEUE]
        for job in waiting:
            job.end(JobStatus.CANCELLED, self.now)
            self.totals[JobStatus.CANCELLED] += 1
        assert self.platform.purge(self.now, "e") == len(waiting)

    @rule(data=st.data())
    def read_stream(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is None:
            return
        assert self.platform.read_stream(self.now, "e", job.id) == job.unread
        job.unread = []

    def reload(self) -> None:
        before = self.workers()
        self.platform.replace_endpoint(self.now, self.spec)
        assert all(worker.is_leaving or worker.id not in self.fleet.workers for worker in before)

    # ------------------------------------------------------------------ workers

    def awake(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.is_frozen]

    def draw_process(self, data: st.DataObject) -> Process:
        return data.draw(st.sampled_from(self.awake()))

    @precondition(lambda self: self.awake())
    @rule(data=st.data(), is_answer_lost=st.sampled_from([False, False, True]))
    def take(self, data: st.DataObject, is_answer_lost: bool) -> None:
        self.ask_for_work(self.draw_process(data), is_answer_lost=is_answer_lost)

    @precondition(lambda self: any(process.is_frozen for process in self.processes.values()))
    @rule()
    def take_just_before_the_freeze(self) -> None:
        """The request was under way when its worker was stopped."""
        for process in self.processes.values():
            if process.is_frozen:
                assert self.platform.take(self.now, "e", process.id, limit=1, job_in_progress=False) == []
                assert self.fleet.workers[process.id].is_frozen
        self.settle()

    @precondition(lambda self: self.awake())
    @rule()
    def all_take(self) -> None:
        self.ask_all()

    def ask_all(self) -> None:
        for process in self.awake():
            self.ask_for_work(process)

    def ask_for_work(self, process: Process, *, is_answer_lost: bool = False) -> None:
        limit = process.concurrency - len(process.running)
        if limit < 1:
            return
        owned = {job.id: job for job in self.known() if self.is_owned(job, process)}
        stale = {job_id for job_id in process.running if job_id not in owned}
        if not process.running and not process.is_draining:
            for job in owned.values():
                job.dropped_at = min(job.dropped_at, self.now + DROP_GRACE)
        queue = [job.id for job in self.fleet.queue]
        jobs = self.platform.take(self.now, "e", process.id, limit=limit, job_in_progress=bool(process.running))
        worker = self.fleet.workers[process.id]
        if not process.has_lost_jobs:
            assert stale <= set(worker.stopping), "nobody knows that these have ended"
            assert stale or not worker.stopping, "free slots show that all have ended"
        expected = (
            [] if not worker.can_take_jobs else [job_id for job_id in queue if job_id not in worker.stopping][:limit]
        )
        assert [job.id for job in jobs] == expected
        for job in jobs:
            self.accept(process, job)
        if is_answer_lost:
            self.lose_answer(process, jobs)
        self.settle()

    def lose_answer(self, process: Process, jobs: list[Job]) -> None:
        for job in reversed(jobs):
            model = self.model[job.id]
            del process.running[job.id]
            assert not self.platform.put_back(self.now, "e", process.id, job.id, attempt=job.attempt - 1)
            assert self.platform.put_back(self.now, "e", process.id, job.id, attempt=job.attempt)
            assert not self.platform.put_back(self.now, "e", process.id, job.id, attempt=job.attempt)
            model.wait()
            model.attempt_limit += 1
        first = [job.id for job in self.fleet.queue][: len(jobs)]
        assert first == [job.id for job in jobs], "they are the first in the queue again, in their order"

    def accept(self, process: Process, job: Job) -> None:
        model = self.model[job.id]
        assert model.status is JobStatus.IN_QUEUE
        assert not process.is_draining
        assert process.has_lost_jobs or job.id not in process.running, "two attempts in one worker"
        model.status, model.owner, model.started_at = JobStatus.IN_PROGRESS, process.id, self.now
        model.attempt += 1
        assert job.attempt == model.attempt
        process.running[job.id] = model.attempt

    @precondition(lambda self: any(process.running for process in self.awake()))
    @rule(data=st.data(), outcome=st.sampled_from(["output", "output", "error", "refresh"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        process = self.draw_busy(data)
        job_id = data.draw(st.sampled_from(list(process.running)))
        attempt = process.running.pop(job_id)
        job = self.model[job_id]
        is_current = self.is_owned(job, process) and attempt == job.attempt
        result = {"error": "broken"} if outcome == "error" else {"output": attempt}
        if outcome == "refresh":
            result["stopPod"] = True
        assert self.platform.finish(self.now, "e", process.id, job_id, result) is is_current
        if is_current:
            job.end(JobStatus.FAILED if outcome == "error" else JobStatus.COMPLETED, self.now)
            process.is_proven |= outcome != "error"
            self.totals[job.status] += 1
        self.settle()
        assert outcome != "refresh" or process.is_draining

    def draw_busy(self, data: st.DataObject) -> Process:
        return data.draw(st.sampled_from([process for process in self.awake() if process.running]))

    @precondition(lambda self: any(process.running for process in self.awake()))
    @rule(data=st.data())
    def stream(self, data: st.DataObject) -> None:
        process = self.draw_busy(data)
        job_id = data.draw(st.sampled_from(list(process.running)))
        job = self.model[job_id]
        is_current = self.is_owned(job, process)
        self.chunk += 1
        assert self.platform.partial(self.now, "e", process.id, job_id, self.chunk) is is_current
        assert self.platform.progress(self.now, "e", process.id, job_id, self.chunk) is is_current
        if is_current:
            job.unread.append(self.chunk)
            job.dropped_at = math.inf
        self.settle()

    @precondition(lambda self: self.model and self.awake())
    @rule(data=st.data())
    def foreign_result(self, data: st.DataObject) -> None:
        process = self.draw_process(data)
        job = data.draw(st.sampled_from(list(self.model.values())))
        if job.id not in process.running and not self.is_owned(job, process):
            stopping = dict(self.fleet.workers[process.id].stopping)
            if job.id not in stopping:
                assert not self.platform.finish(self.now, "e", process.id, job.id, {"output": "foreign"})
        assert not self.platform.finish(self.now, "e", "nobody", job.id, {"output": "foreign"})
        assert self.platform.take(self.now, "e", "nobody", limit=9, job_in_progress=False) == []
        self.settle()

    @precondition(lambda self: any(process.running for process in self.awake()))
    @rule(data=st.data())
    def lose_job(self, data: st.DataObject) -> None:
        process = self.draw_busy(data)
        job_id = data.draw(st.sampled_from(list(process.running)))
        if self.is_owned(self.model[job_id], process):
            process.has_lost_jobs = True
        del process.running[job_id]

    @precondition(lambda self: self.awake())
    @rule(data=st.data(), obeys=st.booleans())
    def poll_stops(self, data: st.DataObject, obeys: bool) -> None:
        process = self.draw_process(data)
        for job_id in self.platform.stop_signals(self.now, "e", process.id):
            assert not self.is_owned(self.model[job_id], process) or process.has_lost_jobs
            if obeys:
                process.running.pop(job_id, None)
        assert self.platform.stop_signals(self.now, "e", process.id) == []
        self.settle()

    # ------------------------------------------------------------------ time

    @rule(seconds=STEPS)
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        self.tick()
        for _ in range(10_000):
            due = self.platform.next_deadline()
            if due is None or due > end:
                break
            self.check_nothing_happens_before(due)
            self.now = due
            self.tick()
        else:
            raise AssertionError("time does not pass")
        self.now = end
        self.tick()

    def check_nothing_happens_before(self, due: float) -> None:
        if due <= self.now:
            return
        self.now += (due - self.now) / 2
        self.platform.tick(self.now)
        assert self.platform.effects() == []
        self.check_jobs()

    def tick(self) -> None:
        self.platform.tick(self.now)
        for job in self.known():
            before = job.status
            job.let_time_pass(self.now)
            if job.is_gone and not before.is_final:
                self.totals[JobStatus.TIMED_OUT] += 1
            elif job.status is not before:
                self.totals[job.status] += 1
        due = self.platform.next_deadline()
        assert due is None or due > self.now, "what was due has been done"
        self.settle()

    # ------------------------------------------------------------------ effects

    def settle(self) -> None:
        """Carry out effects like a supervisor: kills take effect at once, drains whenever the worker likes."""
        while effects := self.platform.effects():
            wakes = [effect.worker_id for effect in effects if isinstance(effect, WakeWorker)]
            to_stop = {worker.id for worker in self.workers() if worker.stop_signals}
            assert len(set(wakes) - to_stop) <= len(self.fleet.queue), "more workers woken than jobs wait"
            for effect in effects:
                self.carry_out(effect)

    def carry_out(self, effect: object) -> None:  # noqa: C901 - one case for each effect
        match effect:
            case StartWorker(endpoint="e", worker_id=worker_id):
                assert worker_id not in self.started
                self.started.add(worker_id)
                self.processes[worker_id] = Process(worker_id, self.concurrency)
            case EnterPhase(endpoint="e", worker_id=worker_id):
                assert worker_id not in self.started
            case GiveUpWorker(endpoint="e", worker_id=worker_id):
                assert worker_id not in self.started
                assert worker_id not in self.fleet.workers
            case FreezeWorker(endpoint="e", worker_id=worker_id):
                self.freeze(self.processes[worker_id])
            case ThawWorker(endpoint="e", worker_id=worker_id):
                assert self.processes[worker_id].is_frozen
                self.processes[worker_id].is_frozen = False
            case CapacityChanged(endpoint="e", throttled=throttled, capacity=self.capacity):
                assert throttled >= 0
            case DrainWorker(endpoint="e", worker_id=worker_id):
                assert not self.processes[worker_id].is_draining
                assert not self.processes[worker_id].is_frozen, "it could not hear the signal"
                self.processes[worker_id].is_draining = True
            case KillWorker(endpoint="e", worker_id=worker_id):
                self.processes[worker_id].is_draining = True
                self.bury(self.processes[worker_id], -9)
            case WakeWorker(worker_id=worker_id):
                assert worker_id in self.processes
            case JobChanged(job=job) | SendWebhook(job=job):
                assert job.id in self.model
            case _:
                raise AssertionError(effect)

    def freeze(self, process: Process) -> None:
        assert not process.is_frozen
        assert not process.is_draining
        assert not any(self.is_owned(job, process) for job in self.known()), "its job would stand still"
        assert process.id not in self.running_requests.values()
        process.is_frozen = True

    def bury(self, process: Process, code: int) -> None:
        worker = self.fleet.workers[process.id]
        came_to_nothing = code != 0 and not (process.is_proven or worker.is_busy)
        is_unwanted = not (worker.is_leaving or worker.is_frozen)
        is_failed_start = worker.is_overdue or (is_unwanted and (worker.ready_at is None or came_to_nothing))
        del self.processes[process.id]
        self.running_requests = {
            request_id: owner for request_id, owner in self.running_requests.items() if owner != process.id
        }
        for job in self.known():
            if self.is_owned(job, process):
                job.attempt_limit += worker.is_leaving
                if job.attempt >= job.attempt_limit:
                    job.end(JobStatus.FAILED, self.now)
                    self.totals[JobStatus.FAILED] += 1
                else:
                    job.wait()
                    self.retried += 1
        self.platform.worker_exited(self.now, "e", process.id, exit_code=code, log_tail=["last words"])
        if is_failed_start and self.fleet.failed_starts >= DEFAULTS.failed_starts and not self.fleet.has_ready_worker:
            for job in self.known():
                if job.status is JobStatus.IN_QUEUE:
                    job.end(JobStatus.FAILED, self.now)
                    self.totals[JobStatus.FAILED] += 1

    # ------------------------------------------------------------------ what must always hold

    @property
    def fleet(self):
        return self.platform._fleets["e"]

    def known(self) -> list[ModelJob]:
        return [job for job in self.model.values() if not job.is_gone]

    def workers(self) -> tuple[Worker, ...]:
        return self.platform.workers("e")

    def is_owned(self, job: ModelJob, process: Process) -> bool:
        return not job.is_gone and job.status is JobStatus.IN_PROGRESS and job.owner == process.id

    @invariant()
    def check_jobs(self) -> None:
        for model in self.model.values():
            if model.is_gone:
                with pytest.raises(JobNotFound):
                    self.platform.job(self.now, "e", model.id)
                continue
            job = self.platform.job(self.now, "e", model.id)
            assert (job.status, job.attempt, job.unread.values) == (model.status, model.attempt, model.unread)
            assert model.owner is None or job.worker_id == model.owner
            if job.error and job.error != "broken":
                assert ErrorReport.from_job_error(job.error).request_id == job.id

    @invariant()
    def check_places(self) -> None:
        fleet = self.fleet
        places = Counter(job.id for job in fleet.queue)
        places.update(list(fleet.finished))
        for worker in fleet.workers.values():
            places.update(list(worker.jobs))
        assert places == Counter(list(fleet.jobs)), "every job is in exactly one place"
        assert all(job.status is JobStatus.IN_QUEUE for job in fleet.queue)
        assert all(job.status.is_final for job in fleet.finished.values())
        assert all(
            (job.status, job.worker_id) == (JobStatus.IN_PROGRESS, worker.id)
            for worker in fleet.workers.values()
            for job in worker.jobs.values()
        )

    @invariant()
    def check_counts(self) -> None:
        states = Counter(job.status for job in self.known())
        fleet, health = self.fleet, self.platform.health("e")
        assert health["jobs"] == {
            "completed": self.totals[JobStatus.COMPLETED],
            "failed": self.totals[JobStatus.FAILED] + self.totals[JobStatus.TIMED_OUT],
            "inProgress": states[JobStatus.IN_PROGRESS] + len(self.running_requests),
            "inQueue": states[JobStatus.IN_QUEUE] + len(self.waiting_requests),
            "retried": self.retried,
        }
        gone = sum(job.is_gone for job in self.model.values())
        assert fleet.submitted == len(fleet.queue) + fleet.running + len(fleet.finished) + gone
        shown = health["workers"]
        hidden = sum(worker.is_leaving or worker.is_frozen for worker in self.workers())
        assert shown["ready"] + shown["initializing"] + shown["unhealthy"] == len(self.workers()) - hidden
        assert shown["throttled"] == fleet.throttled

    @invariant()
    def check_workers(self) -> None:
        fleet, bounds = self.fleet, self.spec.workers
        assert {worker.id for worker in self.workers() if worker.has_process} == set(self.processes)
        assert len(fleet.active) + len(fleet.frozen) <= bounds.max
        assert len(fleet.workers) <= 2 * bounds.max
        awake = {worker.id for worker in self.workers() if not (worker.is_leaving or worker.is_frozen)}
        assert set(fleet.active) == awake
        assert set(fleet.frozen) == {process.id for process in self.processes.values() if process.is_frozen} - {
            worker.id for worker in self.workers() if worker.is_leaving
        }
        is_held_back = fleet.may_start_at is not None and self.now < fleet.may_start_at
        is_full = len(fleet.workers) == 2 * bounds.max or fleet.free_machines < 1
        assert len(fleet.active) >= bounds.min or is_held_back or is_full
        assert fleet.throttled == 0 or self.capacity is not None
        assert fleet.throttled == 0 or fleet.load.queued or len(fleet.active) < bounds.min
        grace = DEFAULTS.stop_grace + DEFAULTS.poll_hold + POLL_SLACK
        for worker in fleet.workers.values():
            assert worker.exit_due_at is None or worker.exit_due_at > self.now
            assert worker.is_leaving or all(stop.since + grace > self.now for stop in worker.stopping.values())

    @invariant()
    def check_requests(self) -> None:
        fleet = self.fleet
        assert set(fleet.waiting_requests) == self.waiting_requests
        assert fleet.running_requests == len(self.running_requests)
        given = {request_id: worker.id for worker in self.workers() for request_id in worker.requests}
        assert given == self.running_requests

    @invariant()
    def check_memory(self) -> None:
        timers = self.platform._lifecycle._timers
        assert len(timers) <= len(self.fleet.jobs) + len(self.fleet.workers) + 1
        assert len(timers._heap) <= 2 * len(timers) + 65

    def teardown(self) -> None:
        """When every worker dies as soon as it starts, no job stays in progress, and in the end none is left."""
        if not hasattr(self, "platform"):
            return
        for _ in range(40):
            for process in list(self.processes.values()):
                self.bury(process, 1)
                self.settle()
            self.pass_time(5.0)
            assert not any(job.status is JobStatus.IN_PROGRESS for job in self.known())
        assert self.known() == []
        assert self.fleet.jobs == {}
        self.check_counts()


TestPlatformMachine = PlatformMachine.TestCase
TestPlatformMachine.settings = settings(
    max_examples=200, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
