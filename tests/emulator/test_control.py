"""The routes under `/_/`, over real connections to an emulator with real worker processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import psutil
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
    answer = await http("GET", f"{emulator.url}/_/events?type=job,clock&last=1")
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


async def test_jobs_are_listed_and_searched(http, emulator):
    first = await submit(http, emulator, {"question": "How much is the Fish?"})
    second = await submit(http, emulator, "other")
    url = f"{emulator.url}/_/jobs"
    assert [job["id"] for job in (await http("GET", f"{url}?limit=2")).body["jobs"]] == [second, first]
    for query in ("search=the+fISH", f"search={first[:13]}"):
        assert [job["id"] for job in (await http("GET", f"{url}?{query}")).body["jobs"]] == [first]
    await http("POST", f"{emulator.url}/v2/quiet/cancel/{first}")
    cancelled = (await http("GET", f"{url}?status=CANCELLED&endpoint=quiet&limit=1")).body["jobs"]
    assert [job["id"] for job in cancelled] == [first]
    assert (await http("GET", f"{url}?endpoint=no-such")).body["jobs"] == []


async def test_a_job_is_shown_with_its_story(http, emulator):
    job_id = await submit(http, emulator, {"text": "x" * 1000})
    await http("POST", f"{emulator.url}/v2/quiet/cancel/{job_id}")
    job = (await http("GET", f"{emulator.url}/_/jobs/quiet/{job_id}")).body
    assert job["input"] == {"text": "x" * 1000}
    assert [moment["status"] for moment in job["timeline"]] == ["IN_QUEUE", "CANCELLED"]
    assert job["lines"] == []
    preview = (await http("GET", f"{emulator.url}/_/jobs/quiet/{job_id}?preview=100")).body
    assert preview["input_text"] == '{\n  "text": "' + "x" * 87
    assert preview["input_characters"] == 1016
    assert "input" not in preview


async def test_a_job_whose_result_is_not_kept_still_has_a_story(http, emulator, wait_until):
    job_id = await submit(http, emulator)
    await http("POST", f"{emulator.url}/v2/quiet/cancel/{job_id}")
    await http("POST", f"{emulator.url}/_/clock", json={"advance": 3600})
    await http("GET", f"{emulator.url}/v2/quiet/health")
    job = (await http("GET", f"{emulator.url}/_/jobs/quiet/{job_id}")).body
    assert job["is_kept"] is False
    assert "input" not in job
    assert job["status"] == "CANCELLED"


@pytest.mark.parametrize("path", ["quiet/no-such-job", "no-such-endpoint/x"])
async def test_a_job_that_nobody_knows_is_not_found(http, emulator, path):
    answer = await http("GET", f"{emulator.url}/_/jobs/{path}")
    assert answer.status == 404
    assert answer.error["code"] == "job_not_found"


async def test_metrics_say_what_there_is(http, emulator):
    body = (await http("GET", f"{emulator.url}/_/metrics")).body
    assert body["endpoints"]["quiet"]["compute"] == "cpu3c-1-2"
    assert body["figures"]["quiet"]["cost"] == {"usd_per_hour": None, "usd": None}
    assert len(body["columns"]) == len(body["series"]["quiet"][0])
    assert body["clock"]["speed"] == 1


async def test_a_watcher_gets_everything_then_changes(http, emulator, make_endpoint):
    async with open_stream(f"{emulator.url}/_/metrics") as stream:
        first = await asyncio.wait_for(anext(stream), 20)
        assert first["event"] == "all"
        job_id = await submit(http, emulator)
        async with asyncio.timeout(20):
            async for message in stream:
                if job_id in [job["id"] for job in message["data"]["jobs"]]:
                    break
        assert message["event"] == "changes"
        await emulator.replace([make_endpoint("late", "silent")])
        async with asyncio.timeout(20):
            async for message in stream:
                if message["event"] == "all":
                    break
        assert "late" in message["data"]["endpoints"]
        await emulator.replace([], removed=["late"])


async def test_workers_and_endpoints_are_acted_on(http, emulator, wait_until):
    async def act(path, status=200):
        answer = await http("POST", f"{emulator.url}/_/{path}")
        assert answer.status == status, answer.body
        return answer

    async def fresh_worker(before=None):
        await submit(http, emulator)
        return await wait_until(
            lambda: next((w.id for w in emulator.platform.workers("quiet") if w.id != before and w.can_take_jobs), None)
        )

    worker = await fresh_worker()
    await act(f"workers/{worker}/kill")
    worker = await fresh_worker(worker)
    await act(f"workers/{worker}/reclaim")
    worker = await fresh_worker(worker)
    await act("endpoints/quiet/cold")
    worker = await fresh_worker(worker)
    await act("endpoints/quiet/restart")
    assert "no-such" in (await act("workers/no-such/kill", 404)).error["message"]
    assert "quiet" in (await act("endpoints/quite/cold", 404)).error["hint"]
    await act(f"workers/{worker}/explode", 404)


async def test_the_clock_is_read_and_moved(http, emulator):
    before = (await http("GET", f"{emulator.url}/_/clock")).body["now"]
    after = (await http("POST", f"{emulator.url}/_/clock", json={"advance": 30, "speed": 2})).body
    assert after["now"] >= before + 30
    assert after["speed"] == 2
    await http("POST", f"{emulator.url}/_/clock", json={"speed": 1})


@pytest.mark.parametrize(
    "body", [{}, [], {"advance": "1 h"}, {"advance": -1}, {"advance": True}, {"speed": 1e12}, {"jump": 5}]
)
async def test_a_clock_is_not_moved_by_nonsense(http, emulator, body):
    answer = await http("POST", f"{emulator.url}/_/clock", json=body)
    assert answer.status == 400


async def test_the_page_is_for_browsers_and_json_for_all_others(emulator):
    async with aiohttp.ClientSession() as session:
        async with session.get(emulator.url, headers={"accept": "text/html,*/*;q=0.8"}) as response:
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert "script-src 'self'" in response.headers["content-security-policy"]
        async with session.get(emulator.url) as response:
            assert (await response.json())["platform"] == "flashkit"


async def test_files_of_the_page_have_types_and_are_sent_once(emulator):
    types = {"main.js": "text/javascript", "dashboard.css": "text/css", "icon.svg": "image/svg+xml"}
    async with aiohttp.ClientSession() as session:
        for name, media_type in types.items():
            async with session.get(f"{emulator.url}/dashboard/{name}") as response:
                assert response.headers["content-type"].startswith(media_type)
                assert response.headers["x-content-type-options"] == "nosniff"
                tag = response.headers["etag"]
            async with session.get(f"{emulator.url}/dashboard/{name}", headers={"if-none-match": tag}) as response:
                assert response.status == 304
        for name in ("no-such.js", "..%2f__init__.py", "../__init__.py"):
            async with session.get(f"{emulator.url}/dashboard/{name}") as response:
                assert response.status == 404


async def test_a_worker_that_prints_100_mb_takes_no_memory_and_nobody_elses_lines(
    start_emulator, make_endpoint, http, finished
):
    emulator = await start_emulator(make_endpoint("noisy", "actions"), make_endpoint("calm", "actions"))

    async def run(endpoint, job_input):
        job_id = (await http("POST", f"{emulator.url}/v2/{endpoint}/run", json={"input": job_input})).body["id"]
        await finished(emulator, http, endpoint, job_id, seconds=90)
        return (await http("GET", f"{emulator.url}/_/jobs/{endpoint}/{job_id}")).body

    calm = await run("calm", {"do": "say", "text": "still here"})
    await run("noisy", {"do": "flood", "bytes": 1_000_000})
    before = psutil.Process().memory_info().rss
    noisy = await run("noisy", {"do": "flood", "bytes": 100_000_000})
    assert psutil.Process().memory_info().rss - before < 40 * 1024 * 1024
    assert noisy["output"] == "flooded"
    assert "x" * 100 in [line["text"] for line in noisy["lines"]]
    again = (await http("GET", f"{emulator.url}/_/jobs/calm/{calm['id']}")).body
    assert "still here" in [line["text"] for line in again["lines"]]
    lines = (await http("GET", f"{emulator.url}/_/events?type=log&endpoint=calm")).body["events"]
    assert "still here" in [line["text"] for line in lines]


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


@pytest.mark.parametrize("path", ["endpoints/nope/cold", "endpoints/nope/restart", "workers/nope/kill"])
async def test_what_is_not_there_cannot_be_told_to_do_anything(http, emulator, path):
    answer = await http("POST", f"{emulator.url}/_/{path}")
    assert answer.status == 404
    assert "'nope'" in answer.error["message"]


async def test_a_worker_that_is_there_may_still_refuse(http, emulator, wait_until):
    await submit(http, emulator)
    await wait_until(lambda: emulator.platform.workers("quiet"))
    worker = emulator.platform.workers("quiet")[0]
    answer = await http("POST", f"{emulator.url}/_/workers/{worker.id}/thaw")
    assert answer.status == 400
