"""Webhooks, received by a real server on loopback."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from flashkit.protocol import PlatformDefaults

DEFAULTS = PlatformDefaults(webhook_delay=0.1, poll_hold=1.0)


class Receiver:
    """A server that keeps what was posted and answers with the statuses it is given, then 200."""

    def __init__(self):
        self.bodies = []
        self.statuses = []
        self.url = ""

    async def receive(self, request):
        self.bodies.append(await request.json())
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": f"{self.url}?redirected"})


@pytest.fixture
async def receiver():
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hook", receiver.receive)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def emulator(start_emulator, make_endpoint):
    return await start_emulator(make_endpoint("quiet", "silent", workers=(1, 1)), defaults=DEFAULTS, shutdown_grace=0.5)


@pytest.fixture
def finish_job(emulator, http):
    """Submit a job with a webhook and play the worker that answers it."""

    async def finish(webhook, result):
        root = f"{emulator.url}/v2/quiet"
        job_id = (await http("POST", f"{root}/run", json={"input": 1, "webhook": webhook})).body["id"]
        worker_id = emulator.platform.workers("quiet")[0].id
        await http("GET", f"{root}/job-take/{worker_id}?gpu=x&job_in_progress=0")
        await http("POST", f"{root}/job-done/{worker_id}/{job_id}?gpu=x", json=result)
        return (await http("GET", f"{root}/status/{job_id}")).body

    return finish


async def test_the_final_state_is_posted_as_status_shows_it(receiver, finish_job, wait_until):
    completed = await finish_job(receiver.url, {"output": {"n": 1}})
    failed = await finish_job(receiver.url, {"error": "no"})
    await wait_until(lambda: len(receiver.bodies) == 2)
    assert receiver.bodies == [completed, failed]
    assert [body["status"] for body in receiver.bodies] == ["COMPLETED", "FAILED"]


async def test_cancelled_jobs_are_posted_too(receiver, emulator, http, wait_until):
    root = f"{emulator.url}/v2/quiet"
    job_id = (await http("POST", f"{root}/run", json={"input": 1, "webhook": receiver.url})).body["id"]
    await http("POST", f"{root}/cancel/{job_id}")
    await wait_until(lambda: receiver.bodies)
    assert receiver.bodies == [{"id": job_id, "status": "CANCELLED"}]


async def test_it_is_posted_again_until_it_is_answered_with_200(receiver, finish_job, wait_until):
    receiver.statuses = [500, 201]
    await finish_job(receiver.url, {"output": 1})
    await wait_until(lambda: len(receiver.bodies) == 3)
    await asyncio.sleep(0.3)
    assert len(receiver.bodies) == 3


async def test_it_is_given_up_after_the_last_try_and_redirects_are_not_followed(
    receiver, finish_job, caplog, wait_until
):
    receiver.statuses = [500, 302, 307, 500, 500]
    await finish_job(receiver.url, {"output": 1})
    await wait_until(lambda: len(receiver.bodies) == 3)
    await asyncio.sleep(0.3)
    assert len(receiver.bodies) == 3
    assert "try 3" in caplog.text


async def test_a_receiver_that_is_not_there_does_no_harm(finish_job, caplog, wait_until):
    assert (await finish_job("http://127.0.0.1:9/hook", {"output": 1}))["status"] == "COMPLETED"
    await wait_until(lambda: "try 3" in caplog.text, seconds=5)


async def test_webhooks_leave_this_machine_only_when_that_is_allowed(start_emulator, make_endpoint, http, emulator):
    body = {"input": 1, "webhook": "https://example.com/hook"}
    refused = await http("POST", f"{emulator.url}/v2/quiet/run", json=body)
    assert refused.status == 400
    assert refused.error["details"] == {"field": "webhook"}
    open_one = await start_emulator(make_endpoint("quiet", "silent"), allow_remote_webhooks=True, shutdown_grace=0.5)
    assert (await http("POST", f"{open_one.url}/v2/quiet/run", json=body)).status == 200
