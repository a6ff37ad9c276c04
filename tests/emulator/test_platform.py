"""What clients, workers and the supervisor see of the platform, one behaviour a test; time is a number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flashkit.emulator import lifecycle
from flashkit.emulator.platform import (
    DrainWorker,
    Job,
    JobChanged,
    JobRequest,
    KillWorker,
    Platform,
    SendWebhook,
    StartWorker,
    WakeWorker,
    Worker,
    WorkerState,
)
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

DEFAULTS = PlatformDefaults()


def make_spec(name: str = "tool", **changes: Any) -> EndpointSpec:
    options = {"kind": Kind.CPU, "cpu": "cpu5c-2-4", "workers": WorkerBounds(0, 3)} | changes
    return EndpointSpec(name=name, **options)


class World:
    """A platform with one endpoint, a clock, and the effects sorted by kind."""

    def __init__(self, *, defaults: PlatformDefaults = DEFAULTS, **changes: Any) -> None:
        self.now = 100.0
        self.spec = make_spec(**changes)
        self.platform = Platform(defaults)
        self.seen: list[Any] = []
        self.platform.add_endpoint(self.now, self.spec)

    def effects(self, kind: type | tuple[type, ...] | None = None) -> list[Any]:
        """All effects since the last call of this method, of one kind or of any but JobChanged."""
        found = self.platform.effects()
        return [e for e in found if isinstance(e, kind or object) and (kind or not isinstance(e, JobChanged))]

    def submit(self, value: Any = None, *, sync: bool = False, **options: Any) -> Job:
        return self.platform.submit(self.now, "tool", JobRequest(value, **options), sync=sync)

    def take(self, worker: Worker, *, limit: int = 1, busy: bool | None = None) -> list[Job]:
        busy = bool(worker.jobs) if busy is None else busy
        return self.platform.take(self.now, "tool", worker.id, limit=limit, job_in_progress=busy)

    def finish(self, worker: Worker, job: Job, **result: Any) -> bool:
        return self.platform.finish(self.now, "tool", worker.id, job.id, result)

    def exit(self, worker: Worker, code: int = 1, *lines: str) -> None:
        self.platform.worker_exited(self.now, "tool", worker.id, exit_code=code, log_tail=lines)

    def stop_signals(self, worker: Worker) -> list[str]:
        return self.platform.stop_signals(self.now, "tool", worker.id)

    def pass_time(self, seconds: float) -> None:
        """Let time pass as a driver does: from deadline to deadline."""
        end = self.now + seconds
        while (due := self.platform.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.platform.tick(self.now)
        self.now = end

    @property
    def workers(self) -> tuple[Worker, ...]:
        return self.platform.workers("tool")

    def ready_worker(self) -> Worker:
        """Let one more worker come up; the queue is empty then."""
        while not (new := [worker for worker in self.workers if worker.state is WorkerState.INITIALIZING]):
            self.submit("starts a worker")
            self.pass_time(self.spec.scaler_value)
        self.platform.purge(self.now, "tool")
        assert self.take(new[0]) == []
        self.platform.effects()
        return new[0]

    def running_job(self, **options: Any) -> tuple[Worker, Job]:
        worker = self.ready_worker()
        job = self.submit(**options)
        assert self.take(worker) == [job]
        self.platform.effects()
        return worker, job

    def health(self, part: str) -> dict[str, int]:
        return {name: count for name, count in self.platform.health("tool")[part].items() if count}


def report_of(job: Job) -> ErrorReport:
    assert job.error is not None
    return ErrorReport.from_dict(json.loads(job.error))


# ---------------------------------------------------------------------- a job's way


def test_a_job_goes_from_the_queue_through_a_worker_to_its_result():
    world = World()
    job = world.submit({"question": "why"})
    assert (job.status, job.delay_ms, job.execution_ms) == (JobStatus.IN_QUEUE, None, None)
    (start,) = world.effects(StartWorker)
    (worker,) = world.workers
    assert (start.endpoint, start.worker_id) == ("tool", worker.id)

    world.now += 2.5
    assert world.take(worker) == [job]
    assert (job.status, job.delay_ms, job.attempt, job.worker_id) == (JobStatus.IN_PROGRESS, 2500, 1, worker.id)

    world.now += 0.25
    assert world.finish(worker, job, output={"answer": 42})
    assert (job.status, job.execution_ms, job.output) == (JobStatus.COMPLETED, 250, {"answer": 42})
    assert world.platform.job(world.now, "tool", job.id) is job
    assert world.health("jobs") == {"completed": 1}


def test_every_change_of_a_job_is_announced_and_counted():
    world = World()
    worker = world.ready_worker()
    job = world.submit()
    generations = [job.generation]
    for step in (
        lambda: world.take(worker),
        lambda: world.platform.progress(world.now, "tool", worker.id, job.id, "50 %"),
        lambda: world.platform.partial(world.now, "tool", worker.id, job.id, "chunk"),
        lambda: world.finish(worker, job, output=None),
    ):
        world.platform.effects()
        assert step()
        assert world.effects(JobChanged) == [JobChanged(job)]
        generations.append(job.generation)
    assert generations == sorted(set(generations))


def test_ids_of_sync_jobs_say_so():
    world = World()
    assert world.submit(sync=True).id.startswith("sync-")
    assert not world.submit(sync=False).id.startswith("sync-")


@pytest.mark.parametrize(
    ("result", "status", "error"),
    [
        ({"output": None}, JobStatus.COMPLETED, None),
        ({}, JobStatus.COMPLETED, None),
        ({"output": 1, "error": ""}, JobStatus.COMPLETED, None),
        ({"output": 1, "error": "broken"}, JobStatus.FAILED, "broken"),
        ({"error": {"code": 7}}, JobStatus.FAILED, '{"code": 7}'),
    ],
)
def test_only_a_truthy_error_fails_a_job_and_becomes_text(result, status, error):
    world = World()
    worker, job = world.running_job()
    assert world.finish(worker, job, **result)
    assert (job.status, job.error, job.has_output) == (status, error, "output" in result)
    assert job.output == result.get("output")


def test_jobs_are_handed_out_in_order_and_in_batches():
    world = World()
    worker = world.ready_worker()
    jobs = [world.submit(number) for number in range(5)]
    assert world.take(worker, limit=3) == jobs[:3]
    assert world.take(worker, limit=3) == jobs[3:]
    assert world.take(worker, limit=0) == []


def test_stream_reading_consumes_partial_outputs():
    world = World()
    worker, job = world.running_job()
    for chunk in ("a", "b"):
        assert world.platform.partial(world.now, "tool", worker.id, job.id, chunk)
    assert world.platform.read_stream(world.now, "tool", job.id) == ["a", "b"]
    assert world.platform.partial(world.now, "tool", worker.id, job.id, "c")
    world.finish(worker, job, output=[])
    assert not world.platform.partial(world.now, "tool", worker.id, job.id, "too late")
    assert world.platform.read_stream(world.now, "tool", job.id) == ["c"]
    assert world.platform.read_stream(world.now, "tool", job.id) == []
    assert job.all_chunks_count == 3


def test_progress_after_the_result_is_ignored():
    world = World()
    worker, job = world.running_job()
    world.finish(worker, job, output=1)
    assert not world.platform.progress(world.now, "tool", worker.id, job.id, "99 %")
    assert (job.progress, job.output) == (None, 1)


def test_results_of_strangers_are_ignored():
    world = World()
    worker, job = world.running_job()
    other = world.ready_worker()
    assert not world.finish(other, job, output="wrong worker")
    assert not world.platform.finish(world.now, "tool", "nobody", job.id, {"output": 1})
    assert not world.platform.finish(world.now, "nowhere", worker.id, job.id, {"output": 1})
    assert not world.platform.finish(world.now, "tool", worker.id, "no-such-job", {"output": 1})
    assert world.platform.take(world.now, "tool", "nobody", limit=1, job_in_progress=False) == []
    assert world.platform.stop_signals(world.now, "tool", "nobody") == []
    world.platform.worker_exited(world.now, "tool", "nobody", exit_code=0, log_tail=())
    assert job.status is JobStatus.IN_PROGRESS


def test_finished_jobs_are_announced_to_their_webhook_once():
    world = World()
    worker, job = world.running_job(webhook="http://127.0.0.1/hook")
    world.finish(worker, job, output=1)
    world.finish(worker, job, output=1)
    assert world.effects(SendWebhook) == [SendWebhook(job)]


# ---------------------------------------------------------------------- names that nobody knows


def test_an_unknown_job_is_not_found():
    world = World()
    with pytest.raises(JobNotFound, match="no job 'abc'"):
        world.platform.job(world.now, "tool", "abc")


def test_an_unknown_endpoint_is_an_input_error_with_the_nearest_name():
    world = World()
    with pytest.raises(InputError, match="no endpoint 'tol'") as caught:
        world.platform.submit(world.now, "tol", JobRequest(1), sync=False)
    assert caught.value.report.hint == "there is tool"
    assert caught.value.report.details == {"endpoint": "tol", "endpoints": ["tool"]}


def test_an_endpoint_cannot_be_added_twice():
    world = World()
    with pytest.raises(InputError, match="already"):
        world.platform.add_endpoint(world.now, make_spec())


# ---------------------------------------------------------------------- cancel, retry, purge


def test_a_queued_job_is_cancelled_at_once_and_never_handed_out():
    world = World()
    first, second = world.submit(1), world.submit(2)
    assert world.platform.cancel(world.now, "tool", first.id).status is JobStatus.CANCELLED
    assert world.take(world.workers[0]) == [second]


def test_cancelling_a_running_job_sends_its_worker_one_stop_signal():
    world = World()
    worker, job = world.running_job()
    world.platform.cancel(world.now, "tool", job.id)
    assert job.status is JobStatus.CANCELLED
    assert world.effects(WakeWorker) == [WakeWorker(worker.id)]
    assert world.stop_signals(worker) == [job.id]
    assert world.stop_signals(worker) == []
    assert not world.finish(worker, job, output="late")
    assert (job.status, job.has_output) == (JobStatus.CANCELLED, False)


def test_cancelling_a_finished_job_changes_nothing():
    world = World()
    worker, job = world.running_job()
    world.finish(worker, job, output=1)
    world.platform.effects()
    assert world.platform.cancel(world.now, "tool", job.id).status is JobStatus.COMPLETED
    assert world.platform.effects() == []


def test_retry_starts_a_failed_job_anew_without_its_output():
    world = World()
    worker, job = world.running_job()
    world.finish(worker, job, output="half", error="broken")
    world.now += 10
    assert world.platform.retry(world.now, "tool", job.id) is job
    assert (job.status, job.error, job.has_output, job.delay_ms) == (JobStatus.IN_QUEUE, None, False, None)
    world.now += 1
    assert world.take(worker) == [job]
    assert (job.attempt, job.delay_ms) == (2, 1000)
    assert world.health("jobs") == {"failed": 1, "inProgress": 1, "retried": 1}


def test_only_failed_and_timed_out_jobs_can_be_retried():
    world = World()
    worker, job = world.running_job()
    with pytest.raises(InputError, match="IN_PROGRESS") as caught:
        world.platform.retry(world.now, "tool", job.id)
    assert caught.value.report.details == {"status": "IN_PROGRESS"}
    world.finish(worker, job, output=1)
    with pytest.raises(InputError, match="COMPLETED"):
        world.platform.retry(world.now, "tool", job.id)


def test_purge_cancels_what_waits_and_leaves_what_runs():
    world = World()
    _, running = world.running_job()
    waiting = [world.submit(number) for number in range(3)]
    assert world.platform.purge(world.now, "tool") == 3
    assert {job.status for job in waiting} == {JobStatus.CANCELLED}
    assert running.status is JobStatus.IN_PROGRESS
    assert world.health("jobs") == {"inProgress": 1}


# ---------------------------------------------------------------------- time to live, retention, timeout


def test_a_job_is_deleted_when_its_time_to_live_runs_out_in_the_queue():
    world = World()
    job = world.submit(ttl_ms=10_000, webhook="http://127.0.0.1/hook")
    world.platform.effects()
    world.pass_time(9.99)
    assert world.platform.job(world.now, "tool", job.id) is job
    world.pass_time(0.01)
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "tool", job.id)
    # Whoever holds the job still learns what became of it.
    assert (job.status, report_of(job).code) == (JobStatus.TIMED_OUT, "job_expired")
    assert SendWebhook(job) in world.platform.effects()


def test_a_running_job_whose_time_to_live_runs_out_is_stopped_and_deleted():
    world = World()
    worker, job = world.running_job(ttl_ms=10_000)
    world.pass_time(10)
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "tool", job.id)
    assert world.stop_signals(worker) == [job.id]
    assert not world.finish(worker, job, output="late")


@pytest.mark.parametrize(("sync", "seconds"), [(False, DEFAULTS.run_retention), (True, DEFAULTS.runsync_retention)])
def test_results_are_kept_for_their_retention(sync, seconds):
    world = World()
    worker, job = world.running_job(sync=sync)
    world.finish(worker, job, output=1)
    world.pass_time(seconds - 0.01)
    assert world.platform.job(world.now, "tool", job.id).output == 1
    world.pass_time(0.01)
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "tool", job.id)
    assert world.health("jobs") == {"completed": 1}


def test_the_oldest_results_go_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(lifecycle, "FINISHED_JOBS_LIMIT", 3)
    world = World(workers=WorkerBounds(1, 1))
    worker = world.ready_worker()
    jobs = [world.submit(number) for number in range(5)]
    for job in world.take(worker, limit=5):
        world.finish(worker, job, output=job.input)
    assert world.platform.jobs("tool") == tuple(jobs[2:])
    world.pass_time(DEFAULTS.run_retention)
    assert world.platform.jobs("tool") == ()


def test_a_job_past_its_execution_timeout_is_timed_out_and_its_worker_told():
    world = World()
    worker, job = world.running_job(execution_timeout_ms=5_000)
    world.pass_time(4.99)
    assert job.status is JobStatus.IN_PROGRESS
    world.pass_time(0.01)
    assert (job.status, job.execution_ms) == (JobStatus.TIMED_OUT, 5_000)
    report = report_of(job)
    assert (report.code, report.type, report.request_id) == ("job_timed_out", "JobTimedOut", job.id)
    assert world.effects(WakeWorker) == [WakeWorker(worker.id)]
    assert world.stop_signals(worker) == [job.id]


def test_the_endpoints_execution_timeout_holds_without_a_policy():
    world = World(execution_timeout_ms=7_000)
    assert world.submit().execution_timeout_ms == 7_000


def test_a_worker_that_ignores_a_stop_signal_is_killed_after_the_grace():
    world = World()
    worker, job = world.running_job(execution_timeout_ms=5_000)
    world.pass_time(5 + DEFAULTS.stop_grace - 0.01)
    assert world.effects(KillWorker) == []
    world.pass_time(0.01)
    (kill,) = world.effects(KillWorker)
    assert kill.worker_id == worker.id
    assert job.id in kill.reason
    assert worker.state is WorkerState.DRAINING


@pytest.mark.parametrize("shown_by", ["asking", "late result", "exit"])
def test_a_worker_that_lets_go_of_a_stopped_job_is_not_killed(shown_by):
    world = World(workers=WorkerBounds(1, 1))
    worker, job = world.running_job()
    world.platform.cancel(world.now, "tool", job.id)
    world.pass_time(1)
    if shown_by == "asking":
        world.take(worker, busy=False)
    elif shown_by == "late result":
        world.finish(worker, job, output=1)
    else:
        world.exit(worker, 0)
    world.pass_time(60)
    assert world.effects(KillWorker) == []


def test_a_busy_worker_shows_by_its_free_slots_that_it_let_go():
    world = World()
    worker = world.ready_worker()
    world.take(worker, limit=4, busy=False)
    stopped, other = world.submit(1), world.submit(2)
    world.take(worker, limit=4, busy=False)
    world.platform.cancel(world.now, "tool", stopped.id)
    world.take(worker, limit=2, busy=True)
    assert set(worker.stopping) == {stopped.id}, "two of four slots are taken, one by the other job"
    world.take(worker, limit=3, busy=True)
    assert not worker.stopping
    assert set(worker.jobs) == {other.id}


def test_a_worker_with_a_held_poll_gets_until_its_next_poll_to_show_that_it_let_go():
    """A held poll was sent before the stop signal, so it says nothing about it."""
    world = World()
    worker = world.ready_worker()
    world.take(worker, limit=2, busy=False)
    job = world.submit()
    world.take(worker, limit=2, busy=False)
    world.take(worker, limit=1, busy=True)
    world.platform.cancel(world.now, "tool", job.id)
    world.pass_time(DEFAULTS.poll_hold)
    assert world.effects(KillWorker) == []
    world.take(worker, limit=1, busy=True)
    world.pass_time(DEFAULTS.stop_grace + lifecycle.POLL_SLACK)
    assert [kill.worker_id for kill in world.effects(KillWorker)] == [worker.id]


def test_a_job_is_not_handed_to_a_worker_that_may_still_run_an_earlier_attempt_of_it():
    world = World()
    worker = world.ready_worker()
    world.take(worker, limit=2, busy=False)
    job = world.submit(execution_timeout_ms=5_000)
    world.take(worker, limit=2, busy=False)
    world.pass_time(5)
    world.platform.retry(world.now, "tool", job.id)
    assert world.take(worker, limit=1, busy=True) == []
    assert not world.finish(worker, job, output="of the first attempt")
    assert world.take(worker, limit=1, busy=True) == [job]
    assert world.stop_signals(worker) == [], "the signal was for the first attempt"


def test_a_job_that_waited_for_its_own_earlier_attempt_wakes_the_worker_when_that_ends():
    world = World(workers=WorkerBounds(1, 1))
    worker = world.ready_worker()
    world.take(worker, limit=2, busy=False)
    job = world.submit(execution_timeout_ms=5_000)
    world.take(worker, limit=2, busy=False)
    world.pass_time(5)
    world.platform.retry(world.now, "tool", job.id)
    world.take(worker, limit=1, busy=True)
    world.effects()
    world.finish(worker, job, output="of the first attempt")
    assert world.effects(WakeWorker) == [WakeWorker(worker.id)]


def test_the_first_job_that_is_not_let_go_of_in_time_is_enough_to_kill():
    world = World(workers=WorkerBounds(1, 1))
    worker = world.ready_worker()
    jobs = [world.submit(number) for number in range(2)]
    world.take(worker, limit=2)
    for job in jobs:
        world.now += 3
        world.platform.cancel(world.now, "tool", job.id)
    world.pass_time(DEFAULTS.stop_grace - 3)
    (kill,) = world.effects(KillWorker)
    assert jobs[0].id in kill.reason


# ---------------------------------------------------------------------- workers that die, drop jobs, cannot start


def test_jobs_of_a_crashed_worker_go_back_to_the_front_in_their_order():
    world = World()
    worker = world.ready_worker()
    jobs = [world.submit(number) for number in range(4)]
    world.take(worker, limit=2)
    world.platform.partial(world.now, "tool", worker.id, jobs[0].id, "unread")
    world.exit(worker, -9)
    assert [job.status for job in jobs] == [JobStatus.IN_QUEUE] * 4
    assert jobs[0].chunks == []
    (start,) = world.effects(StartWorker)
    (successor,) = world.workers
    assert start.worker_id == successor.id
    assert world.take(successor, limit=4) == jobs
    assert [job.attempt for job in jobs] == [2, 2, 1, 1]
    assert world.health("jobs") == {"inProgress": 4, "retried": 2}


def test_another_worker_is_woken_for_the_job_of_a_crashed_one():
    world = World(workers=WorkerBounds(2, 2))
    worker, job = world.running_job()
    other = world.ready_worker()
    world.exit(worker, -9)
    assert world.effects(WakeWorker) == [WakeWorker(other.id)]
    assert world.take(other) == [job]


def test_results_of_an_attempt_that_was_given_up_are_ignored():
    world = World()
    worker, job = world.running_job()
    world.exit(worker, -9)
    assert not world.finish(worker, job, output="from the grave")
    assert job.status is JobStatus.IN_QUEUE


def test_a_job_whose_workers_always_die_fails_with_their_last_words():
    world = World()
    job = world.submit()
    for attempt in range(1, DEFAULTS.max_attempts + 1):
        (worker,) = world.workers
        assert world.take(worker) == [job]
        world.exit(worker, -11, f"line of attempt {attempt}")
    assert job.status is JobStatus.FAILED
    report = report_of(job)
    assert (report.code, report.type, report.request_id) == ("worker_died", "JobFailed", job.id)
    assert "was killed by SIGSEGV" in report.message
    assert report.details["signal"] == "SIGSEGV"
    assert report.details["attempts"] == DEFAULTS.max_attempts
    assert report.details["log_tail"] == [f"line of attempt {DEFAULTS.max_attempts}"]


def test_a_job_is_not_blamed_for_a_worker_that_the_platform_ended():
    world = World(defaults=PlatformDefaults(max_attempts=1))
    worker, job = world.running_job()
    world.platform.replace_endpoint(world.now, world.spec)
    world.exit(worker, 0)
    assert job.status is JobStatus.IN_QUEUE
    (successor,) = world.workers
    world.take(successor)
    world.exit(successor, 1)
    assert report_of(job).code == "worker_died"


def test_retry_gives_a_job_all_its_attempts_again():
    world = World(defaults=PlatformDefaults(max_attempts=2))
    job = world.submit()
    for status in (JobStatus.IN_QUEUE, JobStatus.FAILED) * 2:
        if job.status is JobStatus.FAILED:
            world.platform.retry(world.now, "tool", job.id)
        (worker,) = world.workers
        assert world.take(worker) == [job]
        world.exit(worker)
        assert job.status is status
    assert job.attempt == 4


def test_a_job_that_its_worker_forgot_fails_soon():
    world = World()
    worker, job = world.running_job()
    world.take(worker, busy=False)
    world.pass_time(lifecycle.DROP_GRACE - 0.01)
    assert job.status is JobStatus.IN_PROGRESS
    world.take(worker, busy=False)  # asking again gives it no more time
    world.pass_time(0.01)
    assert job.status is JobStatus.FAILED
    assert report_of(job).code == "job_dropped"
    assert worker.state is WorkerState.IDLE
    assert world.take(worker) == []
    assert world.submit() in world.take(worker)


@pytest.mark.parametrize("sign_of_life", ["result", "partial", "progress"])
def test_a_job_that_is_heard_of_was_not_dropped(sign_of_life):
    world = World()
    worker, job = world.running_job()
    world.take(worker, busy=False)
    if sign_of_life == "result":
        assert world.finish(worker, job, output=1)
    else:
        assert getattr(world.platform, sign_of_life)(world.now, "tool", worker.id, job.id, 1)
    world.pass_time(10)
    assert job.status is not JobStatus.FAILED


def test_a_job_handed_out_by_this_very_poll_was_not_dropped():
    world = World()
    worker = world.ready_worker()
    job = world.submit()
    assert world.take(worker, busy=False) == [job]
    world.pass_time(10)
    assert job.status is JobStatus.IN_PROGRESS


def test_queued_jobs_fail_when_no_worker_comes_up():
    world = World()
    job = world.submit()
    for number in range(DEFAULTS.failed_starts):
        (worker,) = world.workers
        world.exit(worker, 1, "ImportError: no module named torch", f"start {number}")
        world.pass_time(10 if number < DEFAULTS.failed_starts - 1 else 0)
    assert job.status is JobStatus.FAILED
    report = report_of(job)
    assert report.code == "worker_start_failed"
    assert report.details["failed_starts"] == DEFAULTS.failed_starts
    assert report.details["log_tail"] == ["ImportError: no module named torch", f"start {DEFAULTS.failed_starts - 1}"]


def test_jobs_are_not_given_up_while_another_worker_can_take_them():
    world = World()
    worker, _ = world.running_job()
    job = world.submit()
    for _ in range(DEFAULTS.failed_starts):
        world.pass_time(20)
        new = next(other for other in world.workers if other is not worker)
        world.exit(new, 1)
    assert job.status is JobStatus.IN_QUEUE


def test_failed_starts_are_repeated_with_doubling_delay():
    world = World(workers=WorkerBounds(1, 1))
    world.effects()
    delays = []
    for _ in range(8):
        (worker,) = world.workers
        died_at = world.now
        world.exit(worker, 1)
        assert world.effects(StartWorker) == []
        while not world.effects(StartWorker):
            world.now = world.platform.next_deadline()
            world.platform.tick(world.now)
        delays.append(world.now - died_at)
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    (worker,) = world.workers
    world.take(worker)
    job = world.submit()
    world.take(worker)
    world.exit(worker, 1)
    assert world.effects(StartWorker), "it came up, so its successor starts at once"
    assert job.status is JobStatus.IN_QUEUE


def test_a_worker_that_comes_up_ends_the_row_of_failed_starts():
    world = World(workers=WorkerBounds(1, 1))
    for _ in range(DEFAULTS.failed_starts - 1):
        world.exit(world.workers[0], 1)
        world.pass_time(30)
    (worker,) = world.workers
    world.take(worker)
    world.exit(worker, 0)
    job = world.submit()
    world.exit(world.workers[0], 1)
    assert job.status is JobStatus.IN_QUEUE


def test_a_worker_that_fails_before_its_first_job_delays_the_next_start():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.take(worker)
    world.effects()
    world.exit(worker, 1)
    assert world.effects(StartWorker) == []
    world.pass_time(DEFAULTS.respawn_delay)
    assert len(world.effects(StartWorker)) == 1


def test_an_unhealthy_worker_gets_no_jobs_and_its_check_explains_the_failed_start():
    world = World(defaults=PlatformDefaults(failed_starts=1))
    job = world.submit()
    (worker,) = world.workers
    world.platform.unhealthy(world.now, "tool", worker.id, "gpu_memory", "RuntimeError: 2 GB free")
    assert worker.state is WorkerState.UNHEALTHY
    assert world.health("workers") == {"unhealthy": 1}
    assert world.take(worker) == []
    world.exit(worker, 1)
    assert "check 'gpu_memory' failed: RuntimeError: 2 GB free" in report_of(job).message


def test_an_unhealthy_worker_that_stays_is_killed():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.platform.unhealthy(world.now, "tool", worker.id, "disk", "full")
    world.pass_time(DEFAULTS.drain_grace)
    assert [kill.worker_id for kill in world.effects(KillWorker)] == [worker.id]


# ---------------------------------------------------------------------- scaling, idling, waking


def test_the_floor_is_started_with_the_endpoint_and_kept():
    world = World(workers=WorkerBounds(2, 3))
    assert len(world.effects(StartWorker)) == 2
    for worker in world.workers:
        world.take(worker)
    world.pass_time(3_600)
    assert world.effects() == []
    world.exit(world.workers[0], 0)
    assert len(world.effects(StartWorker)) == 1


def test_the_first_job_starts_one_worker_and_waits_for_it():
    world = World()
    for number in range(10):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 1
    world.pass_time(60)
    assert world.effects(StartWorker) == []


def test_another_worker_starts_when_the_first_job_has_waited_too_long():
    world = World(scaler_value=4)
    world.running_job()
    world.submit()
    world.pass_time(3.99)
    assert world.effects(StartWorker) == []
    world.pass_time(0.01)
    assert len(world.effects(StartWorker)) == 1


def test_a_new_worker_takes_its_job_before_the_scaler_looks_again():
    world = World()
    world.running_job()
    job = world.submit()
    world.pass_time(30)
    new = world.workers[1]
    world.effects()
    assert world.take(new) == [job]
    assert world.effects(StartWorker) == []


def test_request_count_scaling_starts_as_many_as_the_jobs_need():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=2, workers=WorkerBounds(0, 10))
    for number in range(7):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 4


def test_never_more_workers_than_the_maximum():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1, workers=WorkerBounds(0, 3))
    for number in range(50):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 3


def test_low_priority_jobs_start_no_worker_but_are_worked_off():
    world = World()
    low = world.submit("low", low_priority=True)
    world.pass_time(60)
    assert world.effects(StartWorker) == []
    high = world.submit("high")
    (worker,) = world.workers
    assert world.take(worker, limit=2) == [low, high]


def test_an_idle_worker_above_the_floor_leaves_after_its_idle_timeout():
    world = World(idle_timeout=5)
    worker, job = world.running_job()
    world.pass_time(60)
    world.finish(worker, job, output=1)
    world.take(worker)
    world.pass_time(4.99)
    assert world.effects(DrainWorker) == []
    world.pass_time(0.01)
    assert world.effects(DrainWorker) == [DrainWorker("tool", worker.id)]
    assert worker.state is WorkerState.DRAINING
    job = world.submit()
    assert world.take(worker) == [], "it was told to leave"
    assert len(world.effects(StartWorker)) == 1
    world.exit(worker, 0)
    assert job.status is JobStatus.IN_QUEUE


def test_an_idle_worker_that_was_kept_for_the_floor_may_leave_when_another_has_come():
    world = World(workers=WorkerBounds(1, 2), idle_timeout=5, scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    (first,) = world.workers
    world.take(first)
    world.pass_time(60)
    world.submit(1), world.submit(2)
    second = world.workers[1]
    assert len(world.take(second, limit=2)) == 2
    world.pass_time(5)
    assert world.effects(DrainWorker) == [DrainWorker("tool", first.id)]


def test_a_drained_worker_that_stays_is_killed_after_the_grace():
    world = World()
    worker, job = world.running_job()
    world.finish(worker, job, output=1, stopPod=True)
    assert world.effects(DrainWorker) == [DrainWorker("tool", worker.id)]
    world.pass_time(DEFAULTS.drain_grace)
    assert [kill.worker_id for kill in world.effects(KillWorker)] == [worker.id]


def test_a_worker_that_asks_to_be_replaced_finishes_its_other_jobs():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.take(worker, limit=2)
    one, two, three = (world.submit(number) for number in range(3))
    world.take(worker, limit=2)
    world.effects()
    world.finish(worker, one, output=1, stopPod=True)
    assert len(world.effects(StartWorker)) == 1
    assert world.take(worker) == []
    assert world.finish(worker, two, output=2)
    assert world.take(world.workers[1]) == [three]


def test_workers_that_do_not_exit_do_not_pile_up():
    world = World(workers=WorkerBounds(1, 1))
    for number in range(5):
        job = world.submit(number)
        worker = world.workers[-1]
        if world.take(worker):
            world.finish(worker, job, output=1, stopPod=True)
    assert len(world.workers) == 2


def test_one_worker_is_woken_for_each_job_and_idle_ones_first():
    world = World(workers=WorkerBounds(3, 3))
    busy, *idle = world.workers
    world.submit("for the busy one")
    world.take(busy, limit=2, busy=False)
    for worker in (*idle, busy):
        world.take(worker)
    world.platform.effects()
    woken = []
    for number in range(5):
        world.submit(number)
        woken.append([wake.worker_id for wake in world.effects(WakeWorker)])
    assert woken == [[idle[1].id], [idle[0].id], [busy.id], [], []]


def test_a_woken_worker_that_does_not_come_is_passed_over():
    world = World(workers=WorkerBounds(2, 2))
    for worker in world.workers:
        world.take(worker)
    first, second = world.workers
    world.platform.effects()
    world.submit()
    assert world.effects(WakeWorker) == [WakeWorker(second.id)]
    world.pass_time(lifecycle.WAKE_AGAIN_DELAY)
    assert world.effects(WakeWorker) == [WakeWorker(first.id)]


def test_a_worker_that_was_just_woken_for_a_job_is_not_drained_as_idle():
    world = World(idle_timeout=5)
    worker = world.ready_worker()
    world.pass_time(4.99)
    job = world.submit()
    world.pass_time(0.02)
    assert world.effects(DrainWorker) == []
    assert world.take(worker) == [job]


# ---------------------------------------------------------------------- endpoints that change


def test_a_reload_keeps_jobs_and_replaces_workers():
    world = World(workers=WorkerBounds(1, 3))
    worker, running = world.running_job()
    world.effects()
    waiting = world.submit()
    world.platform.replace_endpoint(world.now, make_spec(workers=WorkerBounds(2, 3)))
    assert {drain.worker_id for drain in world.effects(DrainWorker)} >= {worker.id}
    successor = next(other for other in world.workers if not other.is_leaving)
    assert world.take(worker) == []
    assert world.take(successor) == [waiting]
    assert world.finish(worker, running, output=1), "the old worker finishes what it has"


def test_a_removed_endpoint_cancels_its_jobs_and_is_known_no_more():
    world = World(workers=WorkerBounds(1, 3))
    worker, running = world.running_job()
    waiting = world.submit()
    world.platform.remove_endpoint(world.now, "tool")
    assert {running.status, waiting.status} == {JobStatus.CANCELLED}
    assert world.stop_signals(worker) == [running.id]
    for call in (world.submit, lambda: world.platform.health("tool"), lambda: world.workers):
        with pytest.raises(InputError):
            call()
    world.pass_time(DEFAULTS.drain_grace)
    assert worker.id in {kill.worker_id for kill in world.effects(KillWorker)}
    world.exit(worker, -9)
    assert world.platform.specs == {}


def test_a_removed_endpoint_leaves_nothing_behind():
    world = World(workers=WorkerBounds(2, 3))
    workers = world.workers
    for worker in workers:
        world.take(worker)
    world.submit()
    world.platform.remove_endpoint(world.now, "tool")
    for worker in workers:
        world.exit(worker, 0)
    assert world.platform.next_deadline() is None
    world.platform.effects()
    world.pass_time(100)
    assert world.platform.effects() == []


def test_an_endpoint_can_come_back_while_its_old_workers_leave():
    world = World()
    old, job = world.running_job()
    world.platform.remove_endpoint(world.now, "tool")
    world.platform.add_endpoint(world.now, world.spec)
    assert world.platform.specs == {"tool": world.spec}
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "tool", job.id)
    new_job = world.submit()
    assert world.take(old) == []
    assert not world.finish(old, job, output="late")
    assert world.take(world.workers[-1]) == [new_job]


def test_endpoints_do_not_touch_each_other():
    world = World()
    world.platform.add_endpoint(world.now, make_spec("other"))
    job = world.submit()
    (worker,) = world.workers
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "other", job.id)
    assert world.platform.take(world.now, "other", worker.id, limit=1, job_in_progress=False) == []
    assert world.platform.workers("other") == ()


def test_worker_ids_differ_between_platforms():
    """A worker left over from another run must not be taken for one of ours."""
    ids = {World(workers=WorkerBounds(1, 1)).workers[0].id for _ in range(20)}
    assert len(ids) == 20


def test_health_counts_what_workers_do():
    world = World(workers=WorkerBounds(3, 3))
    running, idle, _ = world.workers
    world.take(running)
    world.submit()
    world.take(running)
    world.take(idle)
    assert world.platform.health("tool")["workers"] == {
        "idle": 1,
        "initializing": 1,
        "ready": 2,
        "running": 1,
        "throttled": 0,
        "unhealthy": 0,
    }


# ---------------------------------------------------------------------- much work


def test_a_long_queue_is_worked_off_quickly_and_leaves_no_timers():
    """Linear searches would take minutes here; the limit only has to tell the two apart."""
    import time

    world = World(workers=WorkerBounds(4, 4))
    began = time.process_time()
    jobs = [world.submit(number, sync=True) for number in range(10_000)]
    for job in jobs[::2]:
        world.platform.cancel(world.now, "tool", job.id)
    done = []
    while len(done) < 5_000:
        for worker in world.workers:
            for job in world.take(worker, limit=2, busy=False):
                world.finish(worker, job, output=1)
                done.append(job)
        world.platform.effects()
    assert done == jobs[1::2]
    world.pass_time(DEFAULTS.runsync_retention)
    assert world.platform.jobs("tool") == ()
    assert time.process_time() - began < 10
