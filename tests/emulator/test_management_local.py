"""Deployed endpoints that are endpoints of the app that runs here: jobs, workers, logs and rollouts under their ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashkit.emulator.management.service import PREFIX
from flashkit.emulator.server import Emulator
from tests.conftest import MakeEndpoint

MARKER = json.dumps({"app": "shop", "environment": "production", "endpoint": "echo"})


@pytest.fixture(scope="module")
async def emulator(
    tmp_path_factory: pytest.TempPathFactory, make_endpoint: MakeEndpoint, worker_environ: dict[str, str]
) -> AsyncIterator[Emulator]:
    echo = make_endpoint("echo", "noisy", workers=(1, 2))
    async with Emulator([echo], state_dir=tmp_path_factory.mktemp("state"), environ=worker_environ) as started:
        yield started


@pytest.fixture(scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def deploy(emulator: Emulator, session: aiohttp.ClientSession, **given: Any) -> str:
    body = {
        "name": "shop-production-echo", "image": "i:1", "type": "QUEUE", "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}, "env": {"FLASHKIT_DEPLOYMENT": MARKER}, **given,
    }  # fmt: skip
    async with session.post(f"{emulator.url}{PREFIX}/v2/serverless", json=body) as answer:
        assert answer.status == 201
        return (await answer.json())["id"]


async def get(emulator: Emulator, session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(f"{emulator.url}{PREFIX}/v2{path}") as answer:
        return await answer.json()


async def test_jobs_are_answered_under_the_deployed_id(emulator: Emulator, session: aiohttp.ClientSession):
    endpoint_id = await deploy(emulator, session)
    async with session.post(f"{emulator.url}/v2/{endpoint_id}/runsync", json={"input": {"do": "echo"}}) as answer:
        job = await answer.json()
    assert (answer.status, job["status"]) == (200, "COMPLETED")
    async with session.get(f"{emulator.url}/v2/{endpoint_id}/health") as answer:
        assert (await answer.json())["jobs"]["completed"] >= 1


async def test_the_name_of_a_local_endpoint_is_enough(emulator: Emulator, session: aiohttp.ClientSession):
    endpoint_id = await deploy(emulator, session, name="echo", env={})
    async with session.get(f"{emulator.url}/v2/{endpoint_id}/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("env", [{}, {"FLASHKIT_DEPLOYMENT": "{"}, {"FLASHKIT_DEPLOYMENT": '{"endpoint": 3}'}])
async def test_an_endpoint_that_is_none_of_the_app_answers_no_jobs(
    emulator: Emulator, session: aiohttp.ClientSession, env: dict[str, str]
):
    endpoint_id = await deploy(emulator, session, name="foreign", env=env)
    async with session.get(f"{emulator.url}/v2/{endpoint_id}/health") as answer:
        assert answer.status == 404
    assert (await get(emulator, session, f"/serverless/{endpoint_id}/workers"))["workers"] == []


async def test_workers_are_those_of_the_local_endpoint(
    emulator: Emulator, session: aiohttp.ClientSession, wait_until: Callable[..., Any]
):
    endpoint_id = await deploy(emulator, session)
    await wait_until(lambda: emulator.platform.health("echo")["workers"]["idle"])
    answer = await get(emulator, session, f"/serverless/{endpoint_id}/workers")
    worker = answer["workers"][0]
    assert (worker["status"], worker["isStale"], worker["version"], worker["image"]) == ("IDLE", False, 1, "i:1")
    assert worker["uptimeSeconds"] >= 0
    assert answer["summary"]["idle"] >= 1


async def test_a_change_of_the_image_replaces_workers_one_of_the_bounds_does_not(
    emulator: Emulator, session: aiohttp.ClientSession, wait_until: Callable[..., Any]
):
    endpoint_id = await deploy(emulator, session)
    await wait_until(lambda: emulator.platform.health("echo")["workers"]["idle"])
    before = {worker.id for worker in emulator.platform.workers("echo")}
    url = f"{emulator.url}{PREFIX}/v2/serverless/{endpoint_id}"
    async with session.patch(url, json={"workers": {"max": 9}}) as answer:
        assert answer.status == 200
    assert {worker.id for worker in emulator.platform.workers("echo")} == before
    stale = (await get(emulator, session, f"/serverless/{endpoint_id}/workers"))["workers"]
    assert {worker["version"] for worker in stale} == {1}, "they were started with what was before"
    async with session.patch(url, json={"image": "i:2"}) as answer:
        assert answer.status == 200

    async def is_rolled_out() -> bool:
        found = await get(emulator, session, f"/serverless/{endpoint_id}/releases")
        return not found["rollout"]["inProgress"] and found["rollout"]["workersTotal"] > 0

    async with asyncio.timeout(30):
        while not await is_rolled_out():
            await asyncio.sleep(0.05)
    assert {worker.id for worker in emulator.platform.workers("echo") if worker.can_take_jobs}.isdisjoint(before)
    releases = (await get(emulator, session, f"/serverless/{endpoint_id}/releases"))["releases"]
    assert [(item["version"], item["workerCount"] > 0) for item in releases] == [(3, True), (2, False), (1, False)]


async def read_lines(
    emulator: Emulator, session: aiohttp.ClientSession, path: str, *, count: int, **headers: str
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    async with session.get(f"{emulator.url}{PREFIX}/v2{path}", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        async for line in answer.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name in ("id", "data"):
                event[name] = value
            elif not name and event:
                found.append(event)
                event = {}
            if len(found) == count:
                return found
    return found


async def test_lines_of_a_worker_are_streamed_and_can_be_resumed(
    emulator: Emulator, session: aiohttp.ClientSession, wait_until: Callable[..., Any]
):
    endpoint_id = await deploy(emulator, session)
    await wait_until(lambda: emulator.platform.health("echo")["workers"]["idle"])
    workers = await get(emulator, session, f"/serverless/{endpoint_id}/workers")
    path = f"/serverless/{endpoint_id}/workers/{workers['workers'][0]['id']}/logs"
    first = (await read_lines(emulator, session, path, count=1))[0]
    data = json.loads(first["data"])
    assert (data["source"], first["id"].partition("/")[0]) == ("container", data["ts"])
    assert data["line"]

    async def send_job() -> None:
        await asyncio.sleep(0.2)
        async with session.post(
            f"{emulator.url}/v2/{endpoint_id}/runsync", json={"input": {"do": "say", "text": "hello"}}
        ) as answer:
            assert answer.status == 200

    late = asyncio.create_task(send_job())
    streamed = await asyncio.wait_for(read_lines(emulator, session, path + "?tail=0", count=1), 30)
    await late
    assert json.loads(streamed[0]["data"])["ts"] > data["ts"]
    resumed = await read_lines(emulator, session, path, count=1, **{"Last-Event-ID": first["id"]})
    assert resumed[0]["id"] != first["id"]


@pytest.mark.parametrize(("query", "status"), [("?tail=x", 422), ("?tail=9999", 422), ("?source=disk", 422),
                                               ("?since=yesterday", 400)])  # fmt: skip
async def test_a_log_query_that_makes_no_sense_is_refused(
    emulator: Emulator,
    session: aiohttp.ClientSession,
    query: str,
    status: int,
    wait_until: Callable[..., Any],
):
    endpoint_id = await deploy(emulator, session)
    await wait_until(lambda: emulator.platform.health("echo")["workers"]["idle"])
    worker = (await get(emulator, session, f"/serverless/{endpoint_id}/workers"))["workers"][0]["id"]
    path = f"/serverless/{endpoint_id}/workers/{worker}/logs{query}"
    assert (await get(emulator, session, path))["status"] == status


async def test_load_balanced_endpoints_are_reached_under_their_ids(
    tmp_path: Path, session: aiohttp.ClientSession, worker_environ: dict[str, str]
):
    import sys

    from flashkit.emulator.server import LocalEndpoint
    from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

    folder = Path(__file__).parents[1] / "apps"
    spec = EndpointSpec(
        name="plain", kind=Kind.CPU, cpu="cpu3c-2-4", load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT,
        execution_timeout_ms=60_000, workers=WorkerBounds(1, 1),
    )  # fmt: skip
    program = f"exec {sys.executable} -m uvicorn plain_server:app --host 127.0.0.1 --port $PORT"
    local = LocalEndpoint(spec, ("sh", "-c", program), folder)
    async with Emulator([local], state_dir=tmp_path, environ=worker_environ) as emulator:
        endpoint_id = await deploy(
            emulator, session, name="plain", type="LOAD_BALANCER", env={},
            scaling={"type": "REQUEST_COUNT", "requestCount": 4},
        )  # fmt: skip
        described = await get(emulator, session, f"/serverless/{endpoint_id}")
        async with session.get(f"{described['requestUrls']['base']}/hello") as answer:
            assert (answer.status, await answer.json()) == (200, {"hello": "from a plain server"})
