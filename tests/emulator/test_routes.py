"""The client's side: every route of the job API, and what it says to mistakes."""

from __future__ import annotations

import asyncio
import logging

import pytest
import runpod

from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ, events):
    endpoints = [make_endpoint("quiet", "silent"), make_endpoint("web-retrieval", "silent")]
    async with Emulator(
        endpoints,
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        shutdown_grace=1.0,
        defaults=PlatformDefaults(poll_hold=1.0),
    ) as emulator:
        yield emulator


@pytest.fixture
def root(emulator):
    return f"{emulator.url}/v2/quiet"


async def submit(http, root, job_input=1, **fields):
    answer = await http("POST", f"{root}/run", json={"input": job_input, **fields})
    assert answer.status == 200, answer.body
    return answer.body["id"]


async def take_and_finish(http, emulator, result):
    """Play the worker for one job."""
    worker = emulator.platform.workers("quiet")[0]
    taken = await http("GET", f"{emulator.url}/v2/quiet/job-take/{worker.id}?gpu=x&job_in_progress=0")
    job_id = taken.body["id"]
    done = await http("POST", f"{emulator.url}/v2/quiet/job-done/{worker.id}/{job_id}?gpu=x", json=result)
    assert done.status == 200
    return job_id


async def test_run_answers_at_once_with_the_id(http, root):
    answer = await http("POST", f"{root}/run", json={"input": {"n": 1}})
    assert answer.status == 200
    assert set(answer.body) == {"id", "status"}
    assert answer.body["status"] == "IN_QUEUE"
    status = await http("GET", f"{root}/status/{answer.body['id']}")
    assert status.body == answer.body
    await http("POST", f"{root}/purge-queue")


async def test_runsync_that_does_not_finish_in_time_answers_with_id_and_status(http, root):
    answer = await http("POST", f"{root}/runsync?wait=1000", json={"input": 1})
    assert answer.status == 200
    assert answer.body["id"].startswith("sync-")
    assert answer.body["status"] == "IN_QUEUE"
    assert 0.9 < answer.seconds < 3.0
    await http("POST", f"{root}/purge-queue")


async def test_runsync_answers_the_moment_the_job_is_done(http, root, emulator):
    running = asyncio.create_task(http("POST", f"{root}/runsync", json={"input": {"n": 2}}))
    await asyncio.sleep(0.05)
    job_id = await take_and_finish(http, emulator, {"output": [2]})
    answer = await asyncio.wait_for(running, 2)
    worker_id = emulator.platform.workers("quiet")[0].id
    times = {key: answer.body.pop(key) for key in ("delayTime", "executionTime")}
    assert answer.body == {"id": job_id, "status": "COMPLETED", "output": [2], "workerId": worker_id}
    assert all(isinstance(value, int) for value in times.values())


async def test_output_null_is_an_output_and_no_output_is_none(http, root, emulator, finished):
    first, second = await submit(http, root), await submit(http, root)
    assert await take_and_finish(http, emulator, {"output": None}) == first
    assert await take_and_finish(http, emulator, {}) == second
    assert (await finished(emulator, http, "quiet", first))["output"] is None
    assert "output" not in await finished(emulator, http, "quiet", second)


async def test_a_failed_job_keeps_its_output_and_can_be_retried(http, root, emulator):
    job_id = await submit(http, root)
    await take_and_finish(http, emulator, {"error": "no such model", "output": {"tried": 2}})
    failed = (await http("GET", f"{root}/status/{job_id}")).body
    assert (failed["status"], failed["error"], failed["output"]) == ("FAILED", "no such model", {"tried": 2})
    retried = await http("POST", f"{root}/retry/{job_id}")
    assert retried.body == {"id": job_id, "status": "IN_QUEUE"}
    assert "output" not in (await http("GET", f"{root}/status/{job_id}")).body
    await take_and_finish(http, emulator, {"output": "better"})
    assert (await http("GET", f"{root}/status/{job_id}")).body["output"] == "better"


async def test_only_failed_and_timed_out_jobs_can_be_retried(http, root):
    job_id = await submit(http, root)
    answer = await http("POST", f"{root}/retry/{job_id}")
    assert answer.status == 400
    assert "IN_QUEUE" in answer.error["message"]
    assert answer.error["request_id"] == job_id
    await http("POST", f"{root}/purge-queue")


async def test_a_queued_job_is_cancelled_at_once_and_stays_cancelled(http, root):
    job_id = await submit(http, root)
    for _ in range(2):
        answer = await http("POST", f"{root}/cancel/{job_id}")
        assert answer.body == {"id": job_id, "status": "CANCELLED"}


async def test_purge_removes_what_waits(http, root):
    for _ in range(3):
        await submit(http, root)
    answer = await http("POST", f"{root}/purge-queue")
    assert answer.body == {"removed": 3, "status": "completed"}
    assert (await http("GET", f"{root}/health")).body["jobs"]["inQueue"] == 0


async def test_health_counts_jobs_and_workers(http, root):
    health = (await http("GET", f"{root}/health")).body
    assert set(health["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert {"idle", "initializing", "ready", "running", "throttled", "unhealthy"} == set(health["workers"])


async def test_requests_and_state_list_jobs_without_their_outputs(http, root, emulator):
    job_id = await submit(http, root)
    await take_and_finish(http, emulator, {"output": "x" * 1000})
    listed = (await http("GET", f"{root}/requests")).body["requests"]
    assert [job["status"] for job in listed if job["id"] == job_id] == ["COMPLETED"]
    assert all("output" not in job for job in listed)
    state = (await http("GET", f"{emulator.url}/_/state")).body
    assert job_id in {job["id"] for job in state["quiet"]["jobs"]}
    assert [worker["state"] for worker in state["quiet"]["workers"]] == ["IDLE"]


async def test_the_root_lists_endpoints_and_their_urls(http, emulator):
    answer = await http("GET", f"{emulator.url}/")
    assert answer.body["endpoints"]["quiet"] == {
        "url": f"{emulator.url}/v2/quiet",
        "openai": f"{emulator.url}/v2/quiet/openai/v1",
    }


async def test_an_unknown_endpoint_is_a_404_that_names_the_nearest(http, emulator):
    answer = await http("POST", f"{emulator.url}/v2/web-retrievel/run", json={"input": 1})
    assert answer.status == 404
    assert "web-retrievel" in answer.error["message"]
    assert "'web-retrieval'" in answer.error["hint"]
    assert answer.error["details"]["endpoints"] == ["quiet", "web-retrieval"]
    assert answer.error["request_id"].startswith("req-")


async def test_an_unknown_job_is_a_404_with_its_id(http, root):
    for method, route in (("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")):
        answer = await http(method, f"{root}/{route}/never-submitted")
        assert answer.status == 404
        assert answer.error["code"] == "job_not_found"
        assert answer.error["request_id"] == "never-submitted"


async def test_a_wrong_method_is_a_405_that_names_the_right_one(http, root):
    answer = await http("GET", f"{root}/run")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert "POST" in answer.error["hint"]


async def test_whatever_is_read_answers_to_head(http, root):
    answer = await http("HEAD", f"{root}/health")
    assert (answer.status, answer.body) == (200, None)
    assert (await http("HEAD", f"{root}/run")).status == 405
    assert (await http("PUT", f"{root}/openai/v1/models")).headers["Allow"] == "GET, HEAD, POST"


async def test_an_unknown_route_is_a_404_with_the_envelope(http, root):
    for path in ("/runs", "/status", "/run/", ""):
        answer = await http("POST", f"{root}{path}", json={"input": 1})
        assert answer.status in (404, 405)
        assert answer.error["type"] == "RouteUnknown"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{input: 1}", "not JSON"),
        (b"", "not JSON"),
        (b'{"input": NaN}', "not JSON"),
        (b'{"input": "\xff"}', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"{}", "`input`"),
        (b'{"inputs": 1}', "`input`"),
        (b'{"input": 1, "policy": "fast"}', "`policy`"),
        (b'{"input": 1, "policy": {"timeout": 1}}', "timeout"),
        (b'{"input": 1, "policy": {"executionTimeout": "5000"}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"executionTimeout": 10}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"executionTimeout": true}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"executionTimeout": 6000.5}}', "policy.executionTimeout"),
        (b'{"input": 1, "policy": {"ttl": 1}}', "policy.ttl"),
        (b'{"input": 1, "policy": {"lowPriority": "yes"}}', "policy.lowPriority"),
        (b'{"input": 1, "webhook": 7}', "webhook"),
        (b'{"input": 1, "webhook": "ftp://127.0.0.1/x"}', "webhook"),
        (b'{"input": 1, "webhook": "http://127.0.0.1:port/x"}', "webhook"),
        (b'{"input": 1, "webhook": "https://example.com/x"}', "webhook"),
        (b'{"input": ' + b"[" * 300 + b"]" * 300 + b"}", "nested"),
        (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON"),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_what_is_wrong(http, root, body, named):
    for route in ("run", "runsync"):
        answer = await http("POST", f"{root}/{route}", data=body)
        assert answer.status == 400
        assert answer.error["code"] == "input_invalid"
        assert named in answer.error["message"]


@pytest.mark.parametrize("wait", ["soon", "999", "300001", "-5", "1e4", "9" * 5000])
async def test_a_wrong_wait_is_a_400_that_names_it(http, root, wait):
    answer = await http("POST", f"{root}/runsync?wait={wait}", json={"input": 1})
    assert answer.status == 400
    assert "`wait`" in answer.error["message"]


@pytest.mark.parametrize("job_input", [None, 0, "", [], {}, "text", [1, 2], 1.5, True])
async def test_any_json_value_is_an_input(http, root, emulator, job_input):
    job_id = await submit(http, root, job_input)
    worker = emulator.platform.workers("quiet")[0]
    taken = await http("GET", f"{root}/job-take/{worker.id}?gpu=x&job_in_progress=0")
    assert taken.body == {"id": job_id, "input": job_input}
    await http("POST", f"{root}/job-done/{worker.id}/{job_id}?gpu=x", json={"output": job_input})
    assert (await http("GET", f"{root}/status/{job_id}")).body["output"] == job_input


async def test_a_body_over_the_limit_of_its_route_is_refused(http, root):
    body = b'{"input": "' + b"x" * (10 * MEGABYTE) + b'"}'
    refused = await http("POST", f"{root}/run", data=body)
    assert refused.status == 413
    assert refused.error["code"] == "body_too_large"
    assert refused.error["details"] == {"size_bytes": len(body), "limit_bytes": 10 * MEGABYTE}
    assert (await http("POST", f"{root}/runsync?wait=1000", data=body)).status == 200
    assert (await http("POST", f"{root}/runsync", data=body + b" " * (10 * MEGABYTE))).status == 413
    await http("POST", f"{root}/purge-queue")


async def test_a_fault_of_the_emulator_is_a_500_without_traceback(http, root, emulator, caplog):
    job_id = await submit(http, root)
    emulator.platform.job(0.0, "quiet", job_id).progress = object()
    emulator.platform.job(0.0, "quiet", job_id).has_output = False
    with caplog.at_level(logging.ERROR):
        answer = await http("GET", f"{root}/status/{job_id}")
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert "Traceback" not in str(answer.body)
    assert any(record.exc_info for record in caplog.records)
    await http("POST", f"{root}/purge-queue")


async def test_a_receiver_of_events_that_fails_does_not_fail_the_job(start_emulator, make_endpoint, http, caplog):
    def fail(event):
        raise RuntimeError("broken screen")

    with caplog.at_level(logging.ERROR):
        emulator = await start_emulator(make_endpoint("quiet", "silent"), on_event=fail, shutdown_grace=0.5)
        answer = await http("POST", f"{emulator.url}/v2/quiet/run", json={"input": 1})
    assert answer.status == 200
    assert "broken screen" in caplog.text


async def test_with_a_key_set_requests_without_it_are_refused(start_emulator, make_endpoint, http):
    emulator = await start_emulator(make_endpoint("quiet", "silent"), api_key="secret", shutdown_grace=0.5)
    url = f"{emulator.url}/v2/quiet/health"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "wrong"}):
        answer = await http("GET", url, headers=headers)
        assert answer.status == 401
        assert answer.error["code"] == "unauthorized"
    for headers in ({"Authorization": "Bearer secret"}, {"Authorization": "secret"}):
        assert (await http("GET", url, headers=headers)).status == 200


async def test_results_are_forgotten_after_their_retention(start_emulator, make_endpoint, http, wait_until):
    defaults = PlatformDefaults(run_retention=0.3, poll_hold=1.0)
    emulator = await start_emulator(make_endpoint("quiet", "silent"), defaults=defaults, shutdown_grace=0.5)
    root = f"{emulator.url}/v2/quiet"
    job_id = await submit(http, root)
    await take_and_finish(http, emulator, {"output": 1})
    assert (await http("GET", f"{root}/status/{job_id}")).status == 200
    await wait_until(lambda: not emulator.platform.jobs("quiet"), seconds=2)
    assert (await http("GET", f"{root}/status/{job_id}")).status == 404


async def test_a_status_request_can_shorten_the_retention(http, root, emulator, wait_until):
    job_id = await submit(http, root)
    await take_and_finish(http, emulator, {"output": 1})
    assert (await http("GET", f"{root}/status/{job_id}?ttl=200")).body["output"] == 1
    await wait_until(lambda: job_id not in {job.id for job in emulator.platform.jobs("quiet")}, seconds=2)
    assert (await http("GET", f"{root}/status/{job_id}?ttl=0")).status == 400


async def test_a_web_page_of_another_machine_cannot_run_jobs(http, root, emulator):
    """A browser would send such a request from any page that the developer opens."""
    for origin in ("https://example.com", "null"):
        answer = await http("POST", f"{root}/run", data=b'{"input": 1}', headers={"Origin": origin})
        assert answer.status == 403
        assert answer.error["code"] == "origin_refused"
    headers = {"Origin": "http://localhost:3000"}
    assert (await http("POST", f"{root}/run", json={"input": 1}, headers=headers)).status == 200
    await http("POST", f"{root}/purge-queue")


async def test_a_job_past_its_time_to_live_is_gone_and_its_waiter_is_told(start_emulator, make_endpoint, http):
    defaults = PlatformDefaults(ttl_ms=500)
    emulator = await start_emulator(make_endpoint("quiet", "silent"), defaults=defaults, shutdown_grace=0.5)
    root = f"{emulator.url}/v2/quiet"
    answer = await http("POST", f"{root}/runsync", json={"input": 1})
    assert answer.body["status"] == "TIMED_OUT"
    assert 0.4 < answer.seconds < 3
    assert (await http("GET", f"{root}/status/{answer.body['id']}")).status == 404


async def test_the_unmodified_runpod_client_runs_asks_cancels_and_purges(emulator, http, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{emulator.url}/v2")
    endpoint = runpod.Endpoint("quiet", api_key="dummy")

    def use_client():
        job = endpoint.run({"input": {"n": 1}})
        assert job.status() == "IN_QUEUE"
        assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
        endpoint.run({"input": {"n": 2}})
        assert endpoint.purge_queue()["removed"] == 1
        waiting = endpoint.run({"input": {"n": 3}})
        return waiting, endpoint.health()

    waiting, health = await asyncio.to_thread(use_client)
    assert health["jobs"]["inQueue"] == 1
    await take_and_finish(http, emulator, {"output": {"n": 3}})
    assert await asyncio.to_thread(waiting.output, timeout=5) == {"n": 3}
    endpoint.rp_client.rp_session.close()
