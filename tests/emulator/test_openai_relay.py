"""OpenAI routes, used by the unmodified `openai` client against a plain SDK worker."""

from __future__ import annotations

import asyncio
import itertools
import time

import aiohttp
import openai
import pytest

from flashkit.emulator.server import Emulator

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ):
    async with Emulator(
        [make_endpoint("chat", "chat"), make_endpoint("quiet", "silent", workers=(1, 1))],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        shutdown_grace=1.0,
    ) as emulator:
        yield emulator


@pytest.fixture
async def client(emulator):
    url = f"{emulator.url}/v2/chat/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="dummy", max_retries=0, timeout=30) as client:
        yield client


async def test_models_are_listed(client):
    assert [model.id for model in (await client.models.list()).data] == ["tiny"]


async def test_a_chat_completion_is_the_one_object_that_the_handler_yielded(client):
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "hello world"


async def test_the_client_in_a_thread_works_as_well(emulator):
    def ask():
        with openai.OpenAI(base_url=f"{emulator.url}/v2/chat/openai/v1", api_key="dummy") as client:
            return client.chat.completions.create(**ASK).choices[0].message.content

    assert await asyncio.to_thread(ask) == "hello world"


async def test_tokens_of_a_stream_are_counted(client, emulator, wait_until):
    before = emulator.metrics.describe()["chat"]["tokens"]
    stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    assert [chunk.usage async for chunk in stream][-1].completion_tokens == 4
    counted = {"prompt": before["prompt"] + 3, "completion": before["completion"] + 4}
    await wait_until(lambda: emulator.metrics.describe()["chat"]["tokens"] == counted)


async def test_a_stream_is_relayed_piece_by_piece_as_it_comes(client):
    stream = await client.chat.completions.create(**ASK, stream=True, seed=1)
    times, text = [], ""
    async for chunk in stream:
        times.append(time.monotonic())
        text += chunk.choices[0].delta.content
    assert text == "hello world"
    assert len(times) == 4
    assert all(0.5 < later - earlier < 1.5 for earlier, later in itertools.pairwise(times))


async def test_the_stream_is_the_workers_text_byte_for_byte(emulator):
    url = f"{emulator.url}/v2/chat/openai/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json={**ASK, "stream": True}) as response:
        body = await response.text()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert body.count("data: {") == 4
    assert body.endswith("}\n\ndata: [DONE]\n\n")


async def test_an_error_that_is_the_callers_is_a_400_with_the_workers_message(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{**ASK, "model": "huge"})
    assert caught.value.body["message"] == "no model 'huge'"
    assert caught.value.body["code"] == "input_invalid"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_of_the_handler_is_a_502_with_its_message(client, stream):
    broken = {**ASK, "messages": [{"role": "user", "content": "break"}], "stream": stream}
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(**broken)
    assert caught.value.status_code == 502
    assert "the engine broke" in caught.value.body["message"]
    assert caught.value.body["request_id"].startswith("sync-")


async def test_a_stream_that_fails_in_the_middle_ends_with_the_error(client):
    broken = {**ASK, "messages": [{"role": "user", "content": "break later"}]}
    stream = await client.chat.completions.create(**broken, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "hel"
    with pytest.raises(openai.APIError, match="the engine broke"):
        await anext(stream)


@pytest.mark.parametrize(("body", "named"), [(b"{model}", "not JSON"), (b"[]", "not a JSON object")])
async def test_a_body_that_is_no_json_object_is_a_400(emulator, http, body, named):
    answer = await http("POST", f"{emulator.url}/v2/chat/openai/v1/chat/completions", data=body)
    assert answer.status == 400
    assert named in answer.error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_cancels_its_job(emulator, stream, wait_until):
    url = f"{emulator.url}/v2/quiet/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="dummy", max_retries=0, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**ASK, stream=stream)
    job = emulator.platform.jobs("quiet")[-1]
    assert job.input == {
        "openai_route": "/v1/chat/completions",
        "openai_input": {**ASK, "stream": True} if stream else {**ASK, "stream": False},
    }
    await wait_until(lambda: job.status == "CANCELLED", seconds=2)


async def test_a_cancelled_or_purged_job_ends_its_request(emulator, http):
    asking = asyncio.create_task(http("GET", f"{emulator.url}/v2/quiet/openai/v1/models"))
    await asyncio.sleep(0.2)
    await http("POST", f"{emulator.url}/v2/quiet/purge-queue")
    answer = await asyncio.wait_for(asking, 2)
    assert answer.status == 502
    assert answer.error["code"] == "job_cancelled"
