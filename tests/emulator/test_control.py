"""The routes under `/_/`, over real connections to an emulator with real worker processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ, events):
    async with Emulator(
        [make_endpoint("quiet", "silent")],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        shutdown_grace=1.0,
        defaults=PlatformDefaults(poll_hold=1.0),
    ) as emulator:
        yield emulator


async def submit(http, emulator, job_input=1):
    return (await http("POST", f"{emulator.url}/v2/quiet/run", json={"input": job_input})).body["id"]


@contextlib.asynccontextmanager
async def open_stream(url: str, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Give the events of a stream as they come, each with its `id` and `event` lines."""

    async def read(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        fields: dict[str, Any] = {}
        async for raw in response.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields:
                yield {**fields, "data": orjson.loads(fields["data"])}
                fields = {}

    headers = {"accept": "text/event-stream", **headers}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response)


async def test_events_are_read_piece_by_piece(http, emulator):
    job_id = await submit(http, emulator)
    answer = await http("GET", f"{emulator.url}/_/events?job={job_id}")
    (event,) = answer.body["events"]
    assert (event["type"], event["job_id"], event["status"]) == ("job", job_id, "IN_QUEUE")
    await http("POST", f"{emulator.url}/v2/quiet/cancel/{job_id}")
    answer = await http("GET", f"{emulator.url}/_/events?job={job_id}&after={answer.body['next']}")
    assert [event["status"] for event in answer.body["events"]] == ["CANCELLED"]
    assert answer.body["complete"] is True
    answer = await http("GET", f"{emulator.url}/_/events?type=job,log&last=1")
    assert [event["status"] for event in answer.body["events"]] == ["CANCELLED"]


async def test_events_stream_live_and_go_on_where_a_reader_left(http, emulator):
    async with open_stream(f"{emulator.url}/_/events?type=job&last=0") as stream:
        job_id = await submit(http, emulator)
        first = await asyncio.wait_for(anext(stream), 20)
        assert first["data"]["job_id"] == job_id
        await http("POST", f"{emulator.url}/v2/quiet/cancel/{job_id}")
        second = await asyncio.wait_for(anext(stream), 20)
        assert second["data"]["status"] == "CANCELLED"
    async with open_stream(f"{emulator.url}/_/events?type=job", **{"Last-Event-ID": first["id"]}) as stream:
        assert await asyncio.wait_for(anext(stream), 20) == second


async def test_a_reader_that_leaves_is_forgotten_at_once(emulator, wait_until):
    async with open_stream(f"{emulator.url}/_/events?type=job&last=0"):
        await wait_until(lambda: emulator.recorder._waiting)
    await wait_until(lambda: not emulator.recorder._waiting)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "last=9999999999999999"])
async def test_a_number_that_is_none_is_refused(http, emulator, query):
    answer = await http("GET", f"{emulator.url}/_/events?{query}")
    assert answer.status == 400
    assert "not the number of an event" in answer.error["message"]


async def test_a_page_of_another_machine_reads_nothing(http, emulator):
    answer = await http("GET", f"{emulator.url}/_/events", headers={"origin": "https://evil.example"})
    assert answer.status == 403
    assert answer.error["code"] == "origin_refused"


async def test_streams_end_with_the_emulator(tmp_path, make_endpoint, worker_environ):
    endpoint = make_endpoint("quiet", "silent", workers=(1, 1))
    async with Emulator([endpoint], state_dir=tmp_path, environ=worker_environ, shutdown_grace=1.0) as emulator:
        reading = asyncio.ensure_future(read_to_the_end(f"{emulator.url}/_/events?type=worker"))
        while not emulator.recorder._waiting:
            await asyncio.sleep(0.01)
    moments = [event["data"]["what"] for event in await asyncio.wait_for(reading, 20)]
    assert moments[0] == "starting"
    assert moments[-1] == "exited"


async def read_to_the_end(url):
    async with open_stream(url) as stream:
        return [event async for event in stream]
