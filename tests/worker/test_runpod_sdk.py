"""Flashkit's loop in real worker processes, under each SDK release it was verified with."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psutil
import pytest

from flashkit.emulator.events import WorkerEvent
from flashkit.errors import JobFailed, JobTimedOut
from flashkit.protocol import JobStatus, PlatformDefaults
from tests.processes import arguments_of
from tests.worker.conftest import Lab, app_endpoint

pytestmark = pytest.mark.timeout(90)


async def failure(lab: Lab, endpoint: str, job_input: dict[str, Any]) -> JobFailed:
    """Return how a job failed."""
    with pytest.raises(JobFailed) as caught:
        await lab.client.endpoint(endpoint).call(job_input, timeout=30)
    return caught.value


def worker_processes(lab: Lab) -> list[psutil.Process]:
    """Return the processes of the emulator's workers."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "flashkit.worker" in arguments_of(child)]


async def test_every_way_of_losing_a_job_ends_in_a_clear_failure(interpreter: str, lab: Lab) -> None:
    """One worker survives them all: it is the same process at the end."""
    await lab.run(app_endpoint(interpreter, "behave", concurrency=4))
    behave = lab.client.endpoint("behave")

    first = await behave.call({"what": "echo", "n": 1}, timeout=30)
    assert first["n"] == 1

    error = await failure(lab, "behave", {"what": "lambda"})
    assert error.report.type == "OutputError"
    assert "no JSON form" in error.report.message

    error = await failure(lab, "behave", {"what": "exit", "n": 3})
    assert error.report.type == "HandlerExit"
    assert error.report.details["exit_code"] == 3

    error = await failure(lab, "behave", {"what": "raise", "n": 7})
    assert (error.report.type, error.report.message) == ("LookupError", "no entry 7")
    assert error.report.where.startswith("worker_app.py:")
    assert error.report.request_id.startswith("sync-")

    error = await failure(lab, "behave", {"what": "big", "n": 25 * 1024 * 1024})
    assert error.report.type == "OutputError"
    assert "25.0 MB is larger than the platform's limit of 20.0 MB" in error.report.message

    error = await failure(lab, "behave", {"what": "cancel-self"})
    assert "cancelled by its own code" in error.report.message

    error = await failure(lab, "behave", {"n": 1})
    assert error.report.code == "input_invalid"
    assert "`what` is missing" in error.report.message

    assert await behave.call({"what": "wrapped-generator", "n": 3}, timeout=30) == [0, 1, 2]
    assert await behave.call({"what": "none"}, timeout=30) is None
    assert await behave.call({"what": "error-dict", "n": 2}, timeout=30) == {"error": "only data", "n": 2}
    assert lab.moments("behave") == ["starting", "ready"]


async def test_a_worker_that_dies_in_a_job_fails_it_after_the_last_attempt(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"), defaults=PlatformDefaults(max_attempts=2))

    error = await failure(lab, "behave", {"what": "os-exit", "n": 9})

    assert error.report.code == "worker_died"
    assert "9" in error.report.message
    assert lab.moments("behave").count("exited") == 2


async def test_a_killed_worker_hands_its_job_to_another_within_two_seconds(interpreter: str, lab: Lab) -> None:
    emulator = await lab.run(app_endpoint(interpreter, "behave"))
    handle = await lab.client.endpoint("behave").run({"what": "sleep", "n": 2})
    while (await handle.status()).status is JobStatus.IN_QUEUE:
        await asyncio.sleep(0.05)

    job = emulator.platform.job(time.monotonic(), "behave", handle.id)
    first_worker = job.worker_id
    (process,) = worker_processes(lab)
    process.kill()
    killed_at = time.monotonic()
    while job.worker_id == first_worker or job.status is not JobStatus.IN_PROGRESS:
        assert time.monotonic() - killed_at < 5
        await asyncio.sleep(0.02)
    retried_after = time.monotonic() - killed_at

    assert await handle.output(30) == "slept"
    assert job.attempt == 2
    assert retried_after < 2.0


async def test_streams_arrive_while_they_run_and_are_collected_at_the_end(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "count"), app_endpoint(interpreter, "letters"))
    count = lab.client.endpoint("count")

    chunks = [(chunk, time.monotonic()) async for chunk in count.stream({"n": 5})]
    assert [chunk for chunk, _ in chunks] == [0, 1, 2, 3, 4]
    assert await count.call({"n": 3}, timeout=30) == [0, 1, 2]
    assert await lab.client.endpoint("letters").call({"text": "abc"}, timeout=30) == ["a", "b", "c"]

    handle = await count.run({"n": 5, "fail_at": 2})
    received: list[int] = []

    async def read_all() -> None:
        async for chunk in handle.stream():
            received.append(chunk)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(JobFailed, match="failed at 2"):
        await read_all()
    assert received == [0, 1]
    state = await handle.status()
    assert (state.status, state.output) == (JobStatus.FAILED, [0, 1])


async def test_a_class_is_built_once_and_set_up_before_its_first_job(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "Model"))
    model = lab.client.endpoint("model")

    await model.call({}, timeout=30)
    assert await model.call({}, timeout=30) == ["init", "setup", "warmup", "run", "run"]

    (process,) = worker_processes(lab)
    process.send_signal(signal.SIGTERM)
    while "exited" not in lab.moments("model"):
        await asyncio.sleep(0.05)
    assert (None, "teardown was called") in lab.lines()


async def test_a_failing_setup_is_told_to_the_caller(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "Broken"))

    error = await failure(lab, "broken", {})

    assert error.report.code == "setup_failed"
    assert "the GPU has fallen off the bus" in error.report.message
    assert error.report.where.startswith("worker_app.py:")


async def test_a_failing_setup_costs_a_few_starts_and_not_one_for_each_waiting_job(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "Broken"), defaults=PlatformDefaults(failed_starts=2, respawn_delay=0.05))

    errors = await asyncio.gather(*(failure(lab, "broken", {}) for _ in range(6)))

    assert lab.moments("broken").count("starting") == 2
    assert sorted(error.report.code for error in errors) == ["setup_failed"] * 2 + ["worker_start_failed"] * 4
    assert all("the GPU has fallen off the bus" in error.report.to_json() for error in errors)


async def test_cancelling_reaches_async_and_sync_handlers(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"), app_endpoint(interpreter, "sync"))

    sleeping = await lab.client.endpoint("behave").run({"what": "sleep", "n": 60})
    blocking = await lab.client.endpoint("sync").run({"seconds": 60})
    for handle in (sleeping, blocking):
        while (await handle.status()).status is JobStatus.IN_QUEUE:
            await asyncio.sleep(0.05)
        await handle.cancel()

    # Both workers are free again, without a restart.
    assert await lab.client.endpoint("behave").call({"what": "sleep", "n": 0}, timeout=10) == "slept"
    assert await lab.client.endpoint("sync").call({"seconds": 0}, timeout=10) == {"cancelled": False}
    for name in ("behave", "sync"):
        assert lab.moments(name) == ["starting", "ready"]


async def test_a_blocked_event_loop_is_killed_when_its_time_is_over(interpreter: str, lab: Lab) -> None:
    await lab.run(
        app_endpoint(interpreter, "blocks"), defaults=PlatformDefaults(stop_grace=0.5, execution_timeout_ms=1_000)
    )
    handle = await lab.client.endpoint("blocks").run({}, execution_timeout_ms=5_000)

    with pytest.raises(JobTimedOut):
        await handle.output(30)
    while "killed" not in lab.moments("blocks") and "exited" not in lab.moments("blocks"):
        await asyncio.sleep(0.05)


async def test_progress_arrives_in_order_and_before_the_result(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"))
    handle = await lab.client.endpoint("behave").run({"what": "progress", "n": 5})

    seen = []
    while not (state := await handle.status()).status.is_final:
        if state.output and state.output not in seen:
            seen.append(state.output)
        await asyncio.sleep(0.02)

    assert seen == sorted(seen, key=lambda update: update["step"])
    assert len(seen) >= 3
    assert state.output == "done"


async def test_what_a_handler_prints_carries_the_id_of_its_job(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave", concurrency=4))
    handles = [await lab.client.endpoint("behave").run({"what": "print", "n": n}) for n in range(8)]
    for handle in handles:
        await handle.output(30)

    printed = [(job_id, text) for job_id, text in lab.lines() if text.startswith("line ")]
    assert sorted(printed, key=str) == sorted(((h.id, f"line {n} of {h.id}") for n, h in enumerate(handles)), key=str)


async def test_sigterm_finishes_the_job_and_exits_within_two_seconds_of_it(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"))
    handle = await lab.client.endpoint("behave").run({"what": "sleep", "n": 2})
    while (await handle.status()).status is JobStatus.IN_QUEUE:
        await asyncio.sleep(0.05)

    (process,) = worker_processes(lab)
    process.send_signal(signal.SIGTERM)
    assert await handle.output(30) == "slept"
    finished_at = time.monotonic()
    while "exited" not in lab.moments("behave"):
        await asyncio.sleep(0.02)
    assert time.monotonic() - finished_at < 2.0


async def test_a_second_sigterm_while_it_exits_does_not_make_it_a_death(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"))
    await lab.client.endpoint("behave").call({"what": "slow-exit", "n": 1}, timeout=30)

    (process,) = worker_processes(lab)
    process.send_signal(signal.SIGTERM)
    while (None, "leaving") not in lab.lines():
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    while "exited" not in lab.moments("behave"):
        await asyncio.sleep(0.02)

    (exited,) = (event for event in lab.events if isinstance(event, WorkerEvent) and event.what == "exited")
    assert exited.detail == "exit code 0"


async def test_a_job_may_ask_for_a_new_worker(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"))
    behave = lab.client.endpoint("behave")

    first = await behave.call({"what": "restart"}, timeout=30)
    second = await behave.call({"what": "restart"}, timeout=30)

    assert first != second


async def test_children_of_a_worker_do_not_outlive_it(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave"))
    child = await lab.client.endpoint("behave").call({"what": "fork"}, timeout=30)
    assert psutil.pid_exists(child)

    (process,) = worker_processes(lab)
    os.kill(process.pid, signal.SIGTERM)
    while "exited" not in lab.moments("behave"):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)

    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


async def test_jobs_of_one_worker_run_up_to_its_concurrency(interpreter: str, lab: Lab) -> None:
    await lab.run(app_endpoint(interpreter, "behave", concurrency=4))
    behave = lab.client.endpoint("behave")
    await behave.call({"what": "none"}, timeout=30)

    started = time.monotonic()
    await asyncio.gather(*(behave.call({"what": "sleep", "n": 1}, timeout=30) for _ in range(8)))

    assert 1.9 < time.monotonic() - started < 4.0
