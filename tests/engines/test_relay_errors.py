"""Language models on the local platform: real workers, the unmodified openai and runpod clients, and their errors."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import openai
import pytest

from flashkit import Client, JobFailed
from flashkit.emulator.server import LocalEndpoint
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.testing import LocalPlatform

APP = Path(__file__).with_name("scripted_app.py")
HI = [{"role": "user", "content": "hi"}]
pytestmark = pytest.mark.timeout(120)


def asking(text: str):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def platform():
    with LocalPlatform(APP) as platform:
        yield platform


@pytest.fixture
async def clients(platform):
    """Make openai clients for endpoints."""
    made = []

    def make(endpoint: str, **options):
        options = {"max_retries": 0, "timeout": 60, **options}
        url = f"{platform.url}/v2/{endpoint}/openai/v1"
        made.append(openai.AsyncOpenAI(base_url=url, api_key="local", **options))
        return made[-1]

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def flash(platform):
    async with Client(Settings(base_url=f"{platform.url}/v2")) as client:
        yield client


async def stats(flash, endpoint):
    return await flash.endpoint(endpoint).call({"route": "/stats"}, timeout=30)


async def until(check):
    for _ in range(500):
        if await check():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it did not come to that")


async def test_models_chat_stream_tools_and_usage_as_openai_has_them(clients):
    client = clients("llm")
    assert [model.id for model in (await client.models.list()).data] == ["tiny"]
    answer = await client.chat.completions.create(model="tiny", messages=HI)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Grüße, 世界! 🎌", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 5)
    stream = await client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Grüße, 世界! 🎌"
    assert chunks[-1].usage.completion_tokens == 5
    called = await client.chat.completions.create(model="tiny", messages=asking("weather?"))
    assert called.choices[0].message.tool_calls[0].function.name == "forecast"
    assert called.choices[0].finish_reason == "tool_calls"
    completion = await client.completions.create(model="tiny", prompt="hi", max_tokens=2)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("Grüße,", "length")


async def test_a_streamed_tool_call_and_structured_output(clients):
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str
        people: int

    client = clients("llm")
    parsed = await client.chat.completions.parse(model="tiny", messages=asking("where?"), response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Oslo", people=709)
    stream = await client.chat.completions.create(model="tiny", messages=asking("weather?"), stream=True)
    calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        (0, "forecast", {"city": "Oslo"})
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "expected", "part"),
    [
        ({"model": "huge"}, (openai.NotFoundError, 404), "The model `huge` does not exist."),
        ({"temperature": -1}, (openai.BadRequestError, 400), "temperature must be non-negative"),
        ({"messages": asking("word " * 500)}, (openai.BadRequestError, 400), "maximum context length is 400 tokens"),
        ({"messages": asking("teapot")}, (openai.APIStatusError, 418), "'teapot' is found"),
        ({"messages": asking("overload")}, (openai.InternalServerError, 503), "'overload' is found"),
    ],
)
async def test_refusals_arrive_with_the_engines_status_and_body(clients, body, expected, part, stream):
    error, status = expected
    with pytest.raises(error) as caught:
        await clients("llm").chat.completions.create(**{"model": "tiny", "messages": HI, "stream": stream, **body})
    assert caught.value.status_code == status
    assert part in caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.body["code"] == status


async def test_one_bad_request_among_good_ones_fails_alone(clients):
    client = clients("llm")
    good = [client.chat.completions.create(model="tiny", messages=HI) for _ in range(8)]
    bad = client.chat.completions.create(model="tiny", messages=HI, top_p=7)
    *answers, refusal = await asyncio.gather(*good, bad, return_exceptions=True)
    assert {answer.choices[0].message.content for answer in answers} == {"Grüße, 世界! 🎌"}
    assert isinstance(refusal, openai.BadRequestError)


async def test_an_unknown_route_and_a_wrong_input_are_the_callers_mistakes(platform, flash):
    url = f"{platform.url}/v2/llm/openai/v1/nothing"
    async with aiohttp.ClientSession() as session, session.post(url, json={}) as response:
        assert (response.status, await response.json()) == (404, {"detail": "Not Found"})
    with pytest.raises(JobFailed) as caught:
        await flash.endpoint("llm").call({"question": "hi"}, timeout=30)
    assert caught.value.report.code == "input_invalid"
    with pytest.raises(JobFailed) as caught:
        await flash.endpoint("llm").call({"messages": HI, "model": "huge"}, timeout=30)
    assert caught.value.report.code == "engine_refusal"
    assert caught.value.report.details["status"] == 404
    assert caught.value.report.details["body"]["error"]["param"] == "model"


async def test_a_streamed_answer_of_256_tokens_is_at_most_24_partial_outputs(flash):
    data = {"messages": asking("story"), "stream": True}
    job = await flash.endpoint("llm").run(data)
    output = await job.output(timeout=60)
    events = "".join(output).split("\n\n")
    assert len(events) > 256
    assert events[-2] == "data: [DONE]"
    assert all(piece.endswith("\n\n") for piece in output)
    assert len(output) <= 24


async def test_a_slow_reader_gets_everything(platform):
    url = f"{platform.url}/v2/llm/openai/v1/chat/completions"
    body = {"model": "tiny", "messages": asking("story"), "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        data = b""
        while part := await response.content.read(700):
            data += part
            await asyncio.sleep(0.005)
    assert data.count(b"data: {") == 1 + 256 + 1
    assert data.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_hangs_up_in_the_middle_aborts_the_request(clients, flash):
    before = await stats(flash, "slow")
    stream = await clients("slow").chat.completions.create(model="scripted", messages=HI, stream=True)
    assert await anext(stream)

    async def runs():
        return (await stats(flash, "slow"))["running"] == 1

    async def is_aborted():
        now = await stats(flash, "slow")
        return (now["running"], now["aborted"]) == (0, before["aborted"] + 1)

    await until(runs)
    await stream.close()
    await until(is_aborted)


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_the_job_aborts_the_request(flash, stream):
    before = await stats(flash, "slow")
    job = await flash.endpoint("slow").run({"messages": HI, "stream": stream})

    async def runs():
        return (await stats(flash, "slow"))["running"] == 1

    async def is_aborted():
        now = await stats(flash, "slow")
        return (now["running"], now["aborted"]) == (0, before["aborted"] + 1)

    await until(runs)
    await job.cancel()
    await until(is_aborted)


async def test_at_the_deadline_callers_get_what_there_is(clients):
    client = clients("slow")

    async def read():
        stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
        return [chunk async for chunk in stream]

    whole, chunks = await asyncio.gather(client.chat.completions.create(model="scripted", messages=HI), read())
    assert whole.choices[0].finish_reason == "length"
    assert len(whole.choices[0].message.content.split()) > 20
    assert whole.flashkit == {"ended_by": "deadline"}
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].flashkit == {"ended_by": "deadline"}
    assert len(chunks) > 20


async def test_the_death_of_an_engine_is_a_503_that_the_client_sends_again(clients, flash):
    with pytest.raises(openai.InternalServerError) as caught:
        await clients("mortal").chat.completions.create(model="scripted", messages=asking("poison"))
    assert caught.value.status_code == 503
    assert caught.value.body == {
        "message": "the scripted engine died, as its script says", "type": "EngineDied", "param": None, "code": 503,
    }  # fmt: skip
    answer = await clients("mortal", max_retries=5).chat.completions.create(model="scripted", messages=HI, max_tokens=3)
    assert answer.choices[0].message.content == "word word word"


async def test_a_stream_whose_engine_dies_ends_with_the_error(clients):
    client = clients("mortal")
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
    await anext(stream)
    with pytest.raises(openai.APIStatusError):
        await client.chat.completions.create(model="scripted", messages=asking("poison"))
    with pytest.raises(openai.APIError, match="died") as caught:
        async for _ in stream:
            pass
    assert caught.value.body["code"] == 503


async def test_handlers_use_the_engine_and_agents_call_it(flash):
    assert await flash.endpoint("teller").call({"topic": "it"}, timeout=60) == "TELL ME OF IT!"
    assert await flash.endpoint("finder").call({"city": "Oslo"}, timeout=60) == {"city": "Oslo", "people": 709}
    assert await flash.endpoint("agent").call({"question": "hi"}, timeout=60) == "Grüße, 世界! 🎌 TELL ME OF IT!"


async def test_a_handler_streams_tokens_and_may_leave_early(flash):
    assert "".join([part async for part in flash.endpoint("speller").stream({})]) == "a b c d e f"
    assert "".join([part async for part in flash.endpoint("speller").stream({"tokens": 2})]) == "a b"


def test_the_runpod_client_asks_with_worker_vllms_input(platform):
    code = (
        "import runpod\nrunpod.api_key = 'local'\n"
        "endpoint = runpod.Endpoint('llm')\n"
        "job = endpoint.run({'input': {'prompt': 'hi', 'sampling_params': {'max_tokens': 2}}})\n"
        "print(job.output(timeout=30)['choices'][0]['text'])\n"
        "job = endpoint.run({'input': {'prompt': 'hi', 'apply_chat_template': True, 'stream': True}})\n"
        "print(''.join(part for part in job.stream()).count('data: '))\n"
    )
    environment = {**platform.environment, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split("\n")[:2], done.stderr[-500:]) == (["Grüße,", "8"], "")


async def test_in_the_sdks_own_loop_answers_are_the_same_for_openais_client(start_emulator):
    apps = APP.parent.parent / "apps"
    spec = EndpointSpec(name="llm", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(0, 1), idle_timeout=600)
    command = (sys.executable, str(apps / "unverified_sdk.py"), "scripted_app.py:llm")
    emulator = await start_emulator(LocalEndpoint(spec=spec, command=command, cwd=APP.parent))
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v2/llm/openai/v1", api_key="x", timeout=60) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HI)
        assert answer.choices[0].message.content == "Grüße, 世界! 🎌"
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Grüße, 世界! 🎌"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="huge", messages=HI)
