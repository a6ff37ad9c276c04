"""vLLM in this process with a small model: its routes, its errors, its memory, and what a request leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re

import pytest

from flashkit import Weights
from flashkit.errors import EngineError, EngineRefusal
from flashkit.worker.engines.engine import EngineRequest
from flashkit.worker.engines.llm import LLM
from flashkit.worker.engines.vllm import VllmEngine
from flashkit.worker.engines.warming import warm_up
from flashkit.worker.phases import Phases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's own

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
ENDLESS = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def phases() -> Phases:
    return Phases()


@pytest.fixture(scope="module")
async def engine(load_tiny, phases) -> VllmEngine:
    return await load_tiny(
        phases=phases,
        warm=True,
        tool_call_parser="hermes",
        served_model_name=["tests/tiny-llama", "tiny"],
        lora_modules={"adapted": Weights("tests/tiny-lora")},
    )


async def ask(engine: VllmEngine, path: str, body: dict | None = None):
    """Return the status and the JSON body of an answer."""
    response = await engine.open(EngineRequest(path, body, "GET" if body is None else "POST", "job"))
    text = await response.read()
    await response.close()
    return response.status, json.loads(text) if text else None


async def read_gauge(engine: VllmEngine, name: str) -> float:
    """Return a number of vLLM's own metrics."""
    response = await engine.open(EngineRequest("/metrics", method="GET"))
    text = (await response.read()).decode()
    await response.close()
    return float(re.search(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE).group(1))


async def until(condition, seconds: float = 20.0) -> None:
    """Return when an async condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def is_idle(engine: VllmEngine) -> bool:
    running = await read_gauge(engine, "num_requests_running")
    return running == 0 and await read_gauge(engine, "kv_cache_usage_perc") == 0


def events(text: bytes) -> list:
    lines = [line.removeprefix(b"data: ") for line in text.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_phases_of_a_start_are_measured(engine: VllmEngine, phases: Phases):
    assert {"import vllm", "weights", "engine"} <= set(phases.seconds)
    assert all(seconds > 0 for seconds in phases.seconds.values())


def test_nothing_of_the_start_is_left_in_this_process(engine: VllmEngine):
    assert not {"LD_PRELOAD", "OMP_NUM_THREADS", "PYTHONWARNINGS"} & set(os.environ)
    assert logging.getLogger().level <= logging.WARNING


async def test_the_models_are_the_names_it_is_served_by_and_its_adapters(engine: VllmEngine):
    status, body = await ask(engine, "/v1/models")
    assert (status, [model["id"] for model in body["data"]]) == (200, ["tests/tiny-llama", "tiny", "adapted"])


@pytest.mark.parametrize("model", ["tests/tiny-llama", "tiny", None])
async def test_it_chats_under_every_name_and_without_one(engine: VllmEngine, model):
    status, body = await ask(engine, CHAT, {"model": model, "messages": HELLO, "max_tokens": 5})
    assert (status, body["usage"]["completion_tokens"]) == (200, 5)
    assert body["id"].startswith("chatcmpl-job-")


async def test_other_routes_of_vllm_are_there(engine: VllmEngine):
    assert (await ask(engine, "/health"))[0] == 200
    status, body = await ask(engine, "/tokenize", {"prompt": "Hello"})
    assert status == 200
    assert (await ask(engine, "/detokenize", {"tokens": body["tokens"]}))[1] == {"prompt": "Hello"}


async def test_a_stream_is_the_same_text_in_pieces(engine: VllmEngine):
    body = {"prompt": "The quick brown", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    whole = (await ask(engine, COMPLETIONS, body))[1]["choices"][0]["text"]
    response = await engine.open(EngineRequest(COMPLETIONS, {**body, "stream": True}))
    assert response.is_stream
    pieces = events(await response.read())
    await response.close()
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


async def test_an_answer_keeps_to_a_schema(engine: VllmEngine):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    status, body = await ask(
        engine, CHAT, {"messages": HELLO, "response_format": form, "max_tokens": 60, "temperature": 0}
    )
    assert (status, body["choices"][0]["finish_reason"]) == (200, "stop")
    assert set(json.loads(body["choices"][0]["message"]["content"])) == {"yes"}


async def test_a_tool_is_called(engine: VllmEngine):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    request = {"messages": ASK_WEATHER, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 100, "temperature": 0}
    status, body = await ask(engine, CHAT, request)
    call = body["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (status, call["name"]) == (200, "get_weather")
    assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")


async def test_an_adapter_answers_otherwise_than_the_model(engine: VllmEngine):
    body = {"prompt": "Hello", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    texts = [(await ask(engine, COMPLETIONS, {**body, "model": name}))[1] for name in ("tiny", "adapted", "tiny")]
    plain, adapted, again = (text["choices"][0]["text"] for text in texts)
    assert plain == again != adapted


async def test_log_probabilities_are_given(engine: VllmEngine):
    _, body = await ask(engine, CHAT, {"messages": HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 2})
    content = body["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [2, 2, 2]


@pytest.mark.parametrize(
    ("path", "body", "refusal", "said"),
    [
        (COMPLETIONS, {"prompt": "word " * 600}, (400, "BadRequestError"), "maximum context length is 512 tokens"),
        (COMPLETIONS, {"prompt": "Hello", "max_tokens": 600}, (400, "BadRequestError"), "600"),
        (CHAT, {"messages": HELLO, "max_tokens": 600}, (400, "BadRequestError"), "600"),
        (CHAT, {"messages": HELLO, "model": "gpt-9"}, (404, "NotFoundError"), "The model `gpt-9` does not exist"),
        (CHAT, {"messages": HELLO, "model": "adapted-2"}, (404, "NotFoundError"), "`adapted-2` does not exist"),
        (CHAT, {"messages": HELLO, "temperature": -1}, (400, "BadRequestError"), "temperature must be non-negative"),
        (CHAT, {"messages": HELLO, "top_p": 3}, (400, "BadRequestError"), "top_p must be in (0, 1]"),
        (CHAT, {"messages": HELLO, "n": 0}, (400, "BadRequestError"), "n must be at least 1"),
        (CHAT, {"messages": "Hello"}, (400, "Bad Request"), "messages"),
        (CHAT, {}, (400, "Bad Request"), "messages"),
        (
            CHAT,
            {
                "messages": HELLO,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}},
            },
            (400, "BadRequestError"),
            "Invalid type: odd",
        ),
    ],
)
async def test_mistakes_are_refused_in_openais_shape(engine: VllmEngine, path, body, refusal, said):
    got, answer = await ask(engine, path, body)
    error = answer["error"]
    assert (got, error["type"]) == refusal
    assert error["code"] == got
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/nothing"])
async def test_a_route_that_the_model_has_not_is_not_found(engine: VllmEngine, path):
    assert await ask(engine, path, {"input": "Hello"}) == (404, {"detail": "Not Found"})


async def test_an_answer_that_would_not_fit_is_refused_or_ends_where_the_model_does(engine: VllmEngine):
    body = {"prompt": [5] * 300, "max_tokens": 300, "ignore_eos": True}
    status, answer = await ask(engine, COMPLETIONS, body)
    if engine.version < "0.32":
        assert (status, "512 tokens" in answer["error"]["message"]) == (400, True)
    else:
        assert (status, answer["choices"][0]["finish_reason"], answer["usage"]["total_tokens"]) == (200, "length", 512)


async def test_a_handler_gets_the_python_api(engine: VllmEngine):
    llm = engine.handle()
    assert isinstance(llm, LLM)
    answer = await llm.chat("Hello", max_tokens=4)
    assert answer.usage.completion_tokens == 4
    assert len([piece async for piece in llm.stream(prompt="Hello", max_tokens=200, ignore_eos=True)]) > 1
    with pytest.raises(EngineRefusal, match="does not exist"):
        await llm.chat("Hello", model="gpt-9")


async def test_a_closed_stream_frees_its_memory(engine: VllmEngine):
    responses = [await engine.open(EngineRequest(COMPLETIONS, {**ENDLESS, "stream": True})) for _ in range(3)]
    for response in responses:
        await anext(response.body)
    assert await read_gauge(engine, "num_requests_running") == 3
    assert await read_gauge(engine, "kv_cache_usage_perc") > 0
    assert engine.is_busy
    for response in responses:
        await response.close()
    assert not engine.is_busy
    await until(lambda: is_idle(engine))


async def test_a_cancelled_request_frees_its_memory(engine: VllmEngine):
    asking = asyncio.create_task(ask(engine, COMPLETIONS, ENDLESS))

    async def has_begun() -> bool:
        return await read_gauge(engine, "num_requests_running") == 1

    await until(has_begun)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not engine.is_busy
    await until(lambda: is_idle(engine))


async def test_a_request_that_is_asked_to_finish_answers_with_what_it_has(engine: VllmEngine):
    asking = asyncio.create_task(ask(engine, COMPLETIONS, ENDLESS))
    progress = engine.progress
    await until(lambda: asyncio.sleep(0, engine.progress > progress + 5))
    await engine.finish("another job")
    await engine.finish("job")
    status, body = await asking
    assert (status, body["choices"][0]["finish_reason"]) == (200, "abort")
    assert 0 < body["usage"]["completion_tokens"] < ENDLESS["max_tokens"]
    await until(lambda: is_idle(engine))


async def test_room_is_what_seats_and_memory_allow(engine: VllmEngine):
    await until(lambda: is_idle(engine))
    assert engine.room == 8  # seats: requests so far were short
    long = {"prompt": [7] * 380, "max_tokens": 128, "ignore_eos": True, "stream": True, "temperature": 0}
    responses = [
        await engine.open(EngineRequest(COMPLETIONS, {**long, "prompt": [8 + number] * 380})) for number in range(4)
    ]
    for response in responses:
        await anext(response.body)
    assert engine.capacity.kv_usage >= 12 / 16  # three blocks of 128 tokens each, of 16
    assert engine.room < 4  # by memory; there are four seats
    for response in responses:
        await response.close()
    await until(lambda: is_idle(engine))
    assert engine.room == 8


async def test_there_is_room_for_one_when_nothing_runs(engine: VllmEngine):
    usual = engine.capacity._usual_tokens
    engine.capacity._usual_tokens = 1e9
    assert engine.room == 1
    engine.capacity._usual_tokens = usual


async def test_what_a_warm_up_names_is_run_and_its_failure_says_which(engine: VllmEngine):
    def options(*warmup, seconds: float = 60.0):
        return type(engine._options)(warmup=warmup, warmup_seconds=seconds)

    await warm_up(engine, options("chat", {"prompt": "Hello", "max_tokens": 1}), ("generate",))
    with pytest.raises(EngineError, match=r"warm-up of warmup\[1\] failed: .*does not exist"):
        await warm_up(engine, options("chat", {"messages": HELLO, "model": "gpt-9"}), ("generate",))
    with pytest.raises(EngineError, match="warm-up of embedding failed"):
        await warm_up(engine, options("embedding"), ("generate",))


async def test_a_warm_up_ends_when_its_time_is_over(engine: VllmEngine, caplog):
    options = type(engine._options)(warmup=(ENDLESS, "chat", "logprobs"), warmup_seconds=0.05)
    await warm_up(engine, options, ("generate",))
    assert "left out: warmup[0], chat, logprobs" in caplog.text
    await until(lambda: is_idle(engine))


async def test_many_requests_run_side_by_side(engine: VllmEngine):
    answers = await asyncio.gather(*(ask(engine, COMPLETIONS, {**ENDLESS, "max_tokens": 30}) for _ in range(24)))
    assert {status for status, _ in answers} == {200}
    assert len({body["choices"][0]["text"] for _, body in answers}) == 1
    assert not engine.is_busy
