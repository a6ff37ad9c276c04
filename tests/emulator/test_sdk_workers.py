"""Workers of the plain, unmodified runpod SDK, and every way in which they end a job or lose it.

A plain worker takes two seconds to start and does one job a second, so all tests share a few of them.
"""

from __future__ import annotations

import asyncio
import json
import time

import psutil
import pytest
import runpod

from flashkit.emulator.server import Emulator
from flashkit.errors import ErrorReport
from flashkit.protocol import PlatformDefaults


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ, events):
    endpoints = [
        make_endpoint("actions", "actions"),
        make_endpoint("crashing", "actions"),
        make_endpoint("blocking", "blocking"),
        make_endpoint("streaming", "streaming"),
        make_endpoint("aggregating", "streaming", "aggregate"),
        make_endpoint("counting", "counting"),
        make_endpoint("wrapped", "wrapped"),
        make_endpoint("four-at-once", "four_at_once"),
        make_endpoint("refreshing", "refreshing"),
        make_endpoint("unfit", "unfit"),
    ]
    async with Emulator(
        endpoints,
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        shutdown_grace=3.0,
        defaults=PlatformDefaults(max_attempts=2, failed_starts=1, stop_grace=2.5),
    ) as emulator:
        yield emulator


@pytest.fixture
def runsync(emulator, http):
    async def send(endpoint, job_input=None, **fields):
        url = f"{emulator.url}/v2/{endpoint}/runsync?wait=60000"
        answer = await http("POST", url, json={"input": job_input or {}, **fields})
        assert answer.status == 200
        return answer.body

    return send


@pytest.fixture
def run(emulator, http):
    async def send(endpoint, job_input=None, **fields):
        answer = await http("POST", f"{emulator.url}/v2/{endpoint}/run", json={"input": job_input or {}, **fields})
        return answer.body["id"]

    return send


def report_of(job):
    return ErrorReport.from_job_error(job["error"])


async def test_an_async_handler_returns_its_value(runsync):
    job = await runsync("actions", {"do": "echo", "value": {"text": "é", "n": [1, 2.5, None]}})
    assert job["status"] == "COMPLETED"
    assert job["output"] == {"text": "é", "n": [1, 2.5, None]}


async def test_a_handler_that_returns_an_empty_object_completes_without_output(runsync):
    job = await runsync("actions", {"do": "empty"})
    assert job["status"] == "COMPLETED"
    assert "output" not in job


async def test_a_handler_sees_the_job_with_its_other_fields(runsync):
    job = await runsync("actions", {"do": "show_job"}, s3Config={"bucketName": "b"})
    assert job["output"]["job"]["id"] == job["id"]
    assert job["output"]["job"]["s3Config"] == {"bucketName": "b"}


async def test_an_error_in_the_returned_object_fails_the_job_and_keeps_the_rest(runsync):
    job = await runsync("actions", {"do": "error_dict"})
    assert (job["status"], job["error"], job["output"]) == ("FAILED", "no such model", {"tried": ["a", "b"]})


async def test_an_exception_fails_the_job_with_its_type_and_message(runsync):
    job = await runsync("actions", {"do": "fail"})
    assert job["status"] == "FAILED"
    report = report_of(job)
    assert (report.type, report.message) == ("ValueError", "the input made no sense")
    assert "Traceback" in report.details["traceback"]


async def test_an_output_that_json_cannot_encode_fails_the_job(runsync):
    """The SDK posts nothing: without the platform noticing, the job would hang until its timeout."""
    job = await runsync("actions", {"do": "unserialisable"})
    assert job["status"] == "FAILED"
    assert report_of(job).code == "job_dropped"
    assert job["executionTime"] < 5000


async def test_an_output_of_nan_fails_the_job(runsync):
    job = await runsync("actions", {"do": "not_a_number"})
    assert job["status"] == "FAILED"
    assert report_of(job).code == "output_invalid"


async def test_an_output_of_25_mb_fails_the_job_with_the_limit(runsync):
    job = await runsync("actions", {"do": "large", "bytes": 25_000_000})
    assert job["status"] == "FAILED"
    report = report_of(job)
    assert report.code == "output_too_large"
    assert report.details["size_bytes"] > 25_000_000


async def test_progress_shows_while_the_job_runs(emulator, http, run, finished):
    job_id = await run("actions", {"do": "progress", "seconds": 1.0})
    seen = []
    while "done" not in seen:
        body = (await http("GET", f"{emulator.url}/v2/actions/status/{job_id}")).body
        if body.get("output") is not None and body["output"] not in seen:
            seen.append(body["output"])
        await asyncio.sleep(0.05)
    assert seen == [{"percent": 50}, "done"]


async def test_cancelling_an_async_job_stops_it_and_the_worker_goes_on(emulator, http, run, runsync, wait_until):
    job_id = await run("actions", {"do": "sleep", "seconds": 600})
    job = emulator.platform.job(0.0, "actions", job_id)
    await wait_until(lambda: job.status == "IN_PROGRESS")
    await asyncio.sleep(0.5)
    worker_id = job.worker_id
    await http("POST", f"{emulator.url}/v2/actions/cancel/{job_id}")
    after = await runsync("actions", {"do": "echo", "value": "still here"})
    assert (after["output"], after["workerId"]) == ("still here", worker_id)
    assert job.status == "CANCELLED"


async def test_a_process_left_behind_by_a_handler_dies_with_its_worker(emulator, runsync, wait_until):
    job = await runsync("crashing", {"do": "leave_child"})
    child = psutil.Process(job["output"]["child"])
    assert child.is_running()
    await runsync("crashing", {"do": "recycle"})
    await wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=10)


@pytest.mark.parametrize(("action", "code"), [("exit_process", 3), ("exit_hard", 4)])
async def test_a_handler_that_ends_its_process_fails_the_job_after_the_last_attempt(runsync, action, code):
    job = await runsync("crashing", {"do": action})
    assert job["status"] == "FAILED"
    report = report_of(job)
    assert report.code == "worker_died"
    assert report.details["exit_code"] == code
    assert report.details["attempts"] == 2
    if action == "exit_hard":
        assert "last words" in report.details["log_tail"]


async def test_a_job_whose_worker_is_killed_is_retried_at_once(emulator, runsync, tmp_path, events):
    job = await runsync("crashing", {"do": "die_once", "marker": str(tmp_path / "marker")})
    assert (job["status"], job["output"]) == ("COMPLETED", "second attempt")
    moments = [(event.status, event.attempt) for event in events.of_job(job["id"])]
    assert moments == [
        ("IN_QUEUE", 0), ("IN_PROGRESS", 1), ("IN_QUEUE", 1), ("IN_PROGRESS", 2), ("COMPLETED", 2)
    ]  # fmt: skip


async def test_a_sync_handler_returns_its_value(runsync):
    assert (await runsync("blocking", {"seconds": 0.1}))["output"] == {"slept": 0.1}


async def test_a_sync_job_that_was_cancelled_ends_late_or_its_worker_is_killed(
    emulator, http, run, runsync, wait_until
):
    """A blocking handler cannot be stopped, so after the grace its worker goes, and the queue moves on."""
    job_id = await run("blocking", {"seconds": 600})
    job = emulator.platform.job(0.0, "blocking", job_id)
    await wait_until(lambda: job.status == "IN_PROGRESS")
    await asyncio.sleep(0.3)
    await http("POST", f"{emulator.url}/v2/blocking/cancel/{job_id}")
    started = time.monotonic()
    assert (await runsync("blocking", {"seconds": 0}))["status"] == "COMPLETED"
    assert time.monotonic() - started < 15
    assert job.status == "CANCELLED"


async def test_a_job_over_its_execution_timeout_times_out_and_can_be_retried(emulator, http, run, finished):
    job_id = await run("blocking", {"seconds": 2})
    job = emulator.platform.job(0.0, "blocking", job_id)
    job.execution_timeout_ms = 500
    state = await finished(emulator, http, "blocking", job_id)
    assert state["status"] == "TIMED_OUT"
    assert report_of(state).code == "job_timed_out"
    job.execution_timeout_ms = 60_000
    await http("POST", f"{emulator.url}/v2/blocking/retry/{job_id}")
    assert (await finished(emulator, http, "blocking", job_id))["output"] == {"slept": 2}


async def test_an_async_generator_streams_its_parts_and_has_no_result(emulator, http, runsync):
    job = await runsync("streaming", {"count": 3})
    assert (job["status"], job["output"]) == ("COMPLETED", [])
    stream = (await http("GET", f"{emulator.url}/v2/streaming/stream/{job['id']}")).body
    assert stream["stream"] == [{"output": {"number": number}} for number in range(3)]


async def test_a_generator_that_fails_keeps_its_parts_and_fails_the_job(emulator, http, runsync):
    job = await runsync("streaming", {"count": 3, "fail_at": 2})
    assert job["status"] == "FAILED"
    assert "broke in the middle" in report_of(job).message
    stream = (await http("GET", f"{emulator.url}/v2/streaming/stream/{job['id']}")).body
    assert len(stream["stream"]) == 2


async def test_with_return_aggregate_stream_the_parts_are_the_result(runsync):
    job = await runsync("aggregating", {"count": 3})
    assert job["output"] == [{"number": number} for number in range(3)]


async def test_the_runpod_client_streams_a_sync_generator(emulator, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{emulator.url}/v2")
    endpoint = runpod.Endpoint("counting", api_key="dummy")

    def use_client():
        job = endpoint.run({"input": {"count": 4}})
        return list(job.stream()), job.status(), endpoint.run_sync({"input": {"count": 1}}, timeout=30)

    parts, status, output = await asyncio.to_thread(use_client)
    endpoint.rp_client.rp_session.close()
    assert (parts, status, output) == ([0, 1, 2, 3], "COMPLETED", [])


async def test_a_wrapped_generator_fails_the_job(runsync):
    job = await runsync("wrapped")
    assert job["status"] == "FAILED"
    assert report_of(job).code == "job_dropped"
    assert "generator" in report_of(job).hint


async def test_a_concurrency_modifier_lets_one_worker_run_several_jobs(runsync):
    jobs = await asyncio.gather(*(runsync("four-at-once", {"seconds": 0.6}) for _ in range(8)))
    assert len({job["workerId"] for job in jobs}) == 1
    assert max(job["output"]["running"] for job in jobs) == 4


async def test_refresh_worker_brings_a_new_process_for_each_job(runsync):
    first, second = await runsync("refreshing"), await runsync("refreshing")
    assert first["output"]["pid"] != second["output"]["pid"]
    assert first["workerId"] != second["workerId"]


async def test_a_failed_fitness_check_fails_the_waiting_job_with_the_reason(runsync):
    """The SDK reports it by a ping only with an account key, which local workers do not get: the log has it."""
    job = await runsync("unfit")
    report = report_of(job)
    assert report.code == "worker_start_failed"
    assert "no weights on the volume" in json.dumps(dict(report.details))


async def test_log_lines_of_the_sdk_are_taken_apart(events, runsync):
    job = await runsync("actions", {"do": "echo"})
    lines = [line for line in events.lines("actions") if line.job_id == job["id"]]
    assert ("INFO", "Started.") in [(line.level, line.text) for line in lines]
