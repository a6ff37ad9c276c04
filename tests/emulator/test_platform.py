"""What clients see of the platform, and what becomes of a job, one behaviour a test."""

from __future__ import annotations

import pytest
from platform_world import DEFAULTS, World, make_spec, report_of

from flashkit.emulator import lifecycle
from flashkit.emulator.platform import (
    ChunksDropped,
    JobChanged,
    JobRequest,
    KillWorker,
    SendWebhook,
    StartWorker,
    WakeWorker,
    WorkerState,
)
from flashkit.errors import InputError, JobNotFound
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import WorkerBounds

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


def test_partial_outputs_that_nobody_reads_are_kept_up_to_a_size():
    world = World(defaults=PlatformDefaults(unread_stream_bytes=10_000))
    worker, job = world.running_job()

    def send(chunk, size_bytes):
        assert world.platform.partial(world.now, "tool", worker.id, job.id, chunk, size_bytes=size_bytes)

    for chunk in range(100):
        send(chunk, 1_800)
    assert [effect.job for effect in world.effects(ChunksDropped)] == [job]
    assert world.platform.read_stream(world.now, "tool", job.id) == [95, 96, 97, 98, 99]
    send("larger than all", 20_000)
    assert world.platform.read_stream(world.now, "tool", job.id) == ["larger than all"]
    assert job.all_chunks_count == 101


def test_partial_outputs_that_are_read_in_time_are_never_dropped():
    world = World(defaults=PlatformDefaults(unread_stream_bytes=10_000))
    worker, job = world.running_job()
    for chunk in range(100):
        world.platform.partial(world.now, "tool", worker.id, job.id, chunk, size_bytes=9_000)
        assert world.platform.read_stream(world.now, "tool", job.id) == [chunk]
    assert not world.effects(ChunksDropped)


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
