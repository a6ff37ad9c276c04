"""What clients may rely on, and what workers of the SDK make of it: the same tests for every release, and on Runpod."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from flashkit.errors import ErrorReport
from tests.conformance.conftest import World

CLIENT = Path(__file__).with_name("use_runpod_client.py")
pytestmark = pytest.mark.timeout(900)


async def test_an_output_comes_back_as_it_was(world: World):
    values = [0, "", [], {"a": {"b": [1, 2.5, "é"]}}, "text", True]
    states = await asyncio.gather(*(world.finish({"do": "echo", "value": value}) for value in values))
    assert [(state["status"], state["output"]) for state in states] == [("COMPLETED", value) for value in values]


async def test_run_answers_with_an_id_before_the_job_is_done(world: World):
    status, body = await world.ask("POST", f"{world.actions}/run", {"input": {"do": "sleep", "seconds": 0.5}})
    assert status == 200
    assert body["status"] == "IN_QUEUE"
    state = await world.wait_for(body["id"], "COMPLETED")
    assert state["id"] == body["id"]
    assert state["executionTime"] >= 400
    assert state["delayTime"] >= 0


async def test_runsync_answers_with_the_finished_job(world: World):
    await world.finish({"do": "echo", "value": 1})  # a worker is up
    status, body = await world.ask("POST", f"{world.actions}/runsync", {"input": {"do": "echo", "value": 2}})
    assert (status, body["status"], body["output"]) == (200, "COMPLETED", 2)
    assert body["id"].startswith("sync-")


async def test_runsync_that_takes_longer_answers_with_id_and_status(world: World):
    path = f"{world.actions}/runsync?wait=1000"
    status, body = await world.ask("POST", path, {"input": {"do": "sleep", "seconds": 2.5}})
    assert status == 200
    assert body["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert (await world.wait_for(body["id"], "COMPLETED"))["output"] == "slept"


async def test_the_handler_sees_id_and_other_fields_of_the_request(world: World):
    state = await world.finish({"do": "job"}, s3Config={"bucketName": "b"})
    job = state["output"]["job"]
    assert job["id"] == state["id"]
    assert job["input"] == {"do": "job"}
    assert job["s3Config"] == {"bucketName": "b"}


async def test_an_error_in_the_result_fails_the_job(world: World):
    state = await world.finish({"do": "error"})
    assert state["status"] == "FAILED"
    assert "no such model" in str(state["error"])


async def test_an_exception_fails_the_job_and_is_named(world: World):
    state = await world.finish({"do": "raise"})
    assert state["status"] == "FAILED"
    assert "ValueError" in state["error"]
    assert "the input made no sense" in state["error"]


async def test_progress_is_seen_while_the_job_runs(world: World):
    job_id = await world.run({"do": "progress", "seconds": 1.5})
    seen = []
    while (state := await world.state(job_id))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
        if "output" in state:
            seen.append(state["output"])
        await asyncio.sleep(0.05)
    assert {"percent": 50} in seen
    assert state["output"] == "done"


async def test_a_running_job_is_cancelled_and_its_worker_goes_on(world: World):
    job_id = await world.run({"do": "sleep", "seconds": 120})
    await world.wait_for(job_id, "IN_PROGRESS")
    status, body = await world.ask("POST", f"{world.actions}/cancel/{job_id}")
    assert (status, body["status"]) == (200, "CANCELLED")
    assert (await world.finish({"do": "echo", "value": "next"}))["output"] == "next"
    assert (await world.state(job_id))["status"] == "CANCELLED"


async def test_a_failed_job_is_retried_under_its_id(world: World):
    state = await world.finish({"do": "raise"})
    status, body = await world.ask("POST", f"{world.actions}/retry/{state['id']}")
    assert (status, body["id"], body["status"]) == (200, state["id"], "IN_QUEUE")
    assert (await world.wait_for(state["id"], "FAILED"))["id"] == state["id"]


async def test_a_completed_job_is_not_retried(world: World):
    state = await world.finish({"do": "echo", "value": 1})
    status, _ = await world.ask("POST", f"{world.actions}/retry/{state['id']}")
    assert status >= 400


async def test_a_generator_s_parts_are_streamed_and_read_once(world: World):
    state = await world.finish({"count": 3}, endpoint=world.parts)
    assert state["status"] == "COMPLETED"
    _, first = await world.ask("GET", f"{world.parts}/stream/{state['id']}")
    _, second = await world.ask("GET", f"{world.parts}/stream/{state['id']}")
    assert [part["output"] for part in first["stream"]] == [{"number": number} for number in range(3)]
    assert second["stream"] == []


async def test_parts_come_while_the_generator_runs(world: World):
    job_id = await world.run({"count": 4, "pause": 0.5}, endpoint=world.parts)
    parts, statuses = [], set()
    while len(parts) < 4:
        _, body = await world.ask("GET", f"{world.parts}/stream/{job_id}")
        if body["stream"]:
            parts += body["stream"]
            statuses.add(body["status"])
        await asyncio.sleep(0.05)
    assert "IN_PROGRESS" in statuses


async def test_a_generator_that_breaks_keeps_its_parts(world: World):
    state = await world.finish({"count": 3, "fail_at": 2}, endpoint=world.parts)
    assert state["status"] == "FAILED"
    assert "broke in the middle" in str(state["error"])
    _, body = await world.ask("GET", f"{world.parts}/stream/{state['id']}")
    assert len(body["stream"]) == 2


async def test_aggregated_parts_are_the_result(world: World):
    state = await world.finish({"count": 3}, endpoint=world.aggregating)
    assert state["output"] == [{"number": number} for number in range(3)]


async def test_one_worker_runs_as_many_jobs_as_it_says(world: World):
    await world.finish({"do": "echo", "value": 0})
    states = await asyncio.gather(*(world.finish({"do": "sleep", "seconds": 1.0}) for _ in range(4)))
    assert {state["status"] for state in states} == {"COMPLETED"}
    assert len({state["workerId"] for state in states}) == 1


async def test_a_worker_that_asks_for_it_is_replaced(world: World):
    first = await world.finish({"do": "refresh"})
    second = await world.finish({"do": "refresh"})
    assert first["output"]["pid"] != second["output"]["pid"]
    assert "refresh_worker" not in first["output"]


async def test_health_counts_jobs_and_workers(world: World):
    status, body = await world.ask("GET", f"{world.actions}/health")
    assert status == 200
    assert {"completed", "failed", "inProgress", "inQueue", "retried"} <= set(body["jobs"])
    assert {"idle", "running"} <= set(body["workers"])


async def test_a_queue_is_purged(world: World):
    running = [await world.run({"do": "sleep", "seconds": 4}) for _ in range(4)]
    await asyncio.gather(*(world.wait_for(job_id, "IN_PROGRESS") for job_id in running))
    waiting = [await world.run({"do": "echo", "value": number}) for number in range(3)]
    status, body = await world.ask("POST", f"{world.actions}/purge-queue")
    assert (status, body["status"]) == (200, "completed")
    assert body["removed"] == len(waiting)
    for job_id in running:
        await world.ask("POST", f"{world.actions}/cancel/{job_id}")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "{actions}/run", {"prompt": "no input"}, 400),
        ("POST", "{actions}/run", {"input": {}, "policy": {"executionTimeout": 1}}, 400),
        ("GET", "{actions}/status/no-such-job", None, 404),
        ("POST", "no-such-endpoint/run", {"input": {}}, 404),
    ],
)
async def test_requests_that_make_no_sense_are_refused(world: World, method, path, body, expected):
    status, _ = await world.ask(method, path.format(actions=world.actions), body)
    assert status == expected


async def test_a_wrong_key_is_refused(world: World):
    status, _ = await world.ask("GET", f"{world.actions}/health", headers={"Authorization": "Bearer wrong"})
    assert status == 401


async def test_a_bare_key_is_accepted(world: World):
    status, _ = await world.ask("GET", f"{world.actions}/health", headers={"Authorization": world.api_key})
    assert status == 200


async def test_the_runpod_package_s_own_clients_work(world: World, tmp_path):
    environ = {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "HOME": str(tmp_path),
        "RUNPOD_ENDPOINT_BASE_URL": world.base_url,
        "RUNPOD_API_KEY": world.api_key,
    }
    command = [world.python, str(CLIENT), world.actions, world.parts]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environ, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "run": [1, "é"],
        "status": "COMPLETED",
        "run_sync": {"a": 1},
        "cancel": "CANCELLED",
        "after_cancel": "CANCELLED",
        "stream": [{"number": number} for number in range(3)],
        "health": ["jobs", "workers"],
        "purge": "completed",
        "failed": None,
        "async_run": "async",
        "async_status": "COMPLETED",
        "async_stream": [{"number": number} for number in range(2)],
    }


# ---------------------------------------------------------------------- what the local platform adds or chooses


@pytest.fixture
def local(world: World) -> World:
    """The local platform: for what Runpod does not document, and what would take too long or cost too much there."""
    if world.emulator is None:
        pytest.skip("asks the local platform only")
    return world


async def test_a_job_whose_worker_dies_each_time_fails_after_the_last_attempt(local: World):
    state = await local.finish({"do": "die"})
    assert state["status"] == "FAILED"
    report = ErrorReport.from_job_error(state["error"])
    assert (report.code, report.details["attempts"]) == ("worker_died", 3)


async def test_a_result_that_is_never_posted_is_noticed(local: World):
    state = await local.finish({"do": "set"})
    assert state["status"] == "FAILED"
    assert ErrorReport.from_job_error(state["error"]).code == "job_dropped"


async def test_a_result_over_the_limit_fails_the_job(local: World):
    state = await local.finish({"do": "large", "bytes": 11_000_000})
    assert state["status"] == "FAILED"
    assert ErrorReport.from_job_error(state["error"]).code == "output_too_large"


async def test_a_job_over_its_execution_timeout_times_out(local: World):
    assert local.emulator is not None
    job_id = await local.run({"do": "sleep", "seconds": 120}, policy={"executionTimeout": 60_000})
    await local.wait_for(job_id, "IN_PROGRESS")
    await local.emulator.clock.advance(61)
    assert (await local.state(job_id))["status"] == "TIMED_OUT"


async def test_a_job_past_its_time_to_live_is_gone(local: World):
    assert local.emulator is not None
    job_id = await local.run({"do": "sleep", "seconds": 120}, policy={"ttl": 10_000})
    await local.emulator.clock.advance(11)
    status, _ = await local.ask("GET", f"{local.actions}/status/{job_id}")
    assert status == 404
