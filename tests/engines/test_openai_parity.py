"""The openai client gets from a worker on the local platform what it gets from `vllm serve`: one body for both.

Where answers are the same every time (temperature 0), those of the two are compared with each other as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import openai
import pytest

from flashkit.engines.vllm import VllmOptions
from flashkit.testing import LocalPlatform
from flashkit.worker.engines.server_process import ServerProcess
from flashkit.worker.engines.vllm_arguments import serve_arguments
from flashkit.worker.engines.vllm_releases import is_cpu_build
from tests.engines import vllm_app
from tests.ports import free_port

APP = Path(vllm_app.__file__)
HELLO = [{"role": "user", "content": "Hello"}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY = {"temperature": 0, "seed": 1}
TO_THE_END = {**GREEDY, "extra_body": {"ignore_eos": True}}
MODEL = "tests/tiny-llama"
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
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]},
    },
}
pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]


class Clients(NamedTuple):
    """Clients of the language model and of the embedding model."""

    llm: openai.AsyncOpenAI
    vectors: openai.AsyncOpenAI


class Answers:
    """What one side answered, for the other one."""

    def __init__(self) -> None:
        self._first: dict[str, object] = {}

    def compare(self, name: str, answer: object) -> None:
        """Remember an answer, or compare it with the other side's."""
        assert self._first.setdefault(name, answer) == answer


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module", params=["vllm serve", "worker"])
async def clients(request, tiny_llama: Path):
    async with AsyncExitStack() as stack:
        if request.param == "worker":
            environ = {**os.environ, "FLASHKIT_WEIGHTS_DIR": str(tiny_llama.parents[1])}
            platform = stack.enter_context(LocalPlatform(APP, environ=environ))
            urls = [f"{platform.url}/v2/{name}/openai/v1" for name in Clients._fields]
        else:
            servers = (start_server(stack, endpoint, tiny_llama) for endpoint in (vllm_app.llm, vllm_app.vectors))
            urls = await asyncio.gather(*servers)
        made = [openai.AsyncOpenAI(base_url=url, api_key="local", max_retries=0, timeout=300) for url in urls]
        for client in made:
            stack.push_async_callback(client.close)
        yield Clients(*made)


async def start_server(stack: AsyncExitStack, endpoint, model: Path) -> str:
    """Start vLLM's own server with an endpoint's options, and return its URL."""
    options = VllmOptions.from_json(endpoint.spec.engine.options)
    port = free_port()
    line = [
        each for each in serve_arguments(options, model, {}, is_cpu=is_cpu_build()) if not each.startswith("--model=")
    ]
    command = [sys.executable, "-m", "flashkit.worker.engines.vllm_command", "serve", str(model), *line]
    environ = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    process = await ServerProcess.start("vllm serve", [*command, *listen], environ)
    stack.push_async_callback(process.close)
    http = await stack.enter_async_context(aiohttp.ClientSession())

    async def is_ready() -> bool:
        try:
            async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await process.wait_until(is_ready)
    return f"http://127.0.0.1:{port}/v1"


async def test_models_are_listed(clients: Clients):
    models = await clients.llm.models.list()
    assert [model.id for model in models.data] == [MODEL]


async def test_a_chat_is_answered(clients: Clients, answers: Answers):
    answer = await clients.llm.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=24, **TO_THE_END)
    [choice] = answer.choices
    assert (answer.usage.completion_tokens, choice.finish_reason, choice.message.role) == (24, "length", "assistant")
    answers.compare("chat", choice.message.content)


async def test_a_completion_with_log_probabilities(clients: Clients, answers: Answers):
    answer = await clients.llm.completions.create(model=MODEL, prompt="The sky", max_tokens=8, logprobs=2, **TO_THE_END)
    [choice] = answer.choices
    assert len(choice.logprobs.token_logprobs) == 8
    answers.compare("completion", (choice.text, choice.logprobs.tokens))


async def test_a_chat_is_streamed(clients: Clients, answers: Answers):
    stream = await clients.llm.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        **TO_THE_END,
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}
    assert chunks[-1].usage.completion_tokens == 40
    assert len(chunks) > 3
    answers.compare("stream", (text, chunks[0].choices[0].delta.role))


async def test_a_stream_says_the_same_as_a_whole_answer(clients: Clients):
    asked = {"model": MODEL, "prompt": "größer 東京", "max_tokens": 30, **TO_THE_END}
    whole = await clients.llm.completions.create(**asked)
    stream = await clients.llm.completions.create(**asked, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_is_called(clients: Clients, answers: Answers, is_stream):
    answer = await clients.llm.chat.completions.create(
        model=MODEL,
        messages=ASK_WEATHER,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=100,
        stream=is_stream,
        **GREEDY,
    )
    if is_stream:
        deltas = [chunk.choices[0].delta async for chunk in answer if chunk.choices]
        calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
        names = [call.name for call in calls if call.name]
        arguments = "".join(call.arguments or "" for call in calls)
    else:
        [call] = answer.choices[0].message.tool_calls
        names, arguments = [call.function.name], call.function.arguments
    assert names == ["get_weather"]
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    answers.compare("tool", json.loads(arguments))


async def test_an_answer_keeps_to_a_schema(clients: Clients, answers: Answers):
    answer = await clients.llm.chat.completions.create(
        model=MODEL, messages=HELLO, response_format=FORM, max_tokens=60, **GREEDY
    )
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"yes"}
    answers.compare("schema", value)


async def test_a_response_is_made(clients: Clients):
    answer = await clients.llm.responses.create(model=MODEL, input="Hello", max_output_tokens=8, temperature=0)
    assert (answer.status, answer.usage.output_tokens) == ("incomplete", 8)


async def test_texts_become_vectors(clients: Clients, answers: Answers):
    answer = await clients.vectors.embeddings.create(model=MODEL, input=["Hello", "Good bye"], encoding_format="float")
    assert [len(item.embedding) for item in answer.data] == [64, 64]
    assert answer.usage.prompt_tokens > 0
    answers.compare("vectors", [[round(number, 3) for number in item.embedding] for item in answer.data])


def refused() -> Iterator[tuple]:
    chat = {"model": MODEL, "messages": HELLO}
    yield openai.NotFoundError, {**chat, "model": "gpt-9"}, "The model `gpt-9` does not exist"
    yield openai.NotFoundError, {**chat, "model": "gpt-9", "stream": True}, "The model `gpt-9` does not exist"
    yield openai.BadRequestError, {**chat, "messages": [{"role": "user", "content": "word " * 700}]}, "512 tokens"
    yield openai.BadRequestError, {**chat, "max_tokens": 5000}, "max_tokens=5000"
    yield openai.BadRequestError, {**chat, "temperature": -1}, "temperature must be non-negative"
    yield openai.BadRequestError, {**chat, "top_p": 7, "stream": True}, "top_p must be in (0, 1]"
    odd = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}
    yield openai.BadRequestError, {**chat, "response_format": odd}, "Invalid type: odd"
    yield openai.BadRequestError, {**chat, "messages": "Hello"}, "messages"


@pytest.mark.parametrize(("error", "body", "said"), list(refused()))
async def test_a_mistake_is_refused_with_openais_error(clients: Clients, answers: Answers, error, body, said):
    with pytest.raises(error) as caught:
        await clients.llm.chat.completions.create(**body)
    assert said in caught.value.message
    answers.compare(f"refusal {body}", (caught.value.status_code, caught.value.body))


async def test_a_route_that_the_model_has_not_is_not_found(clients: Clients):
    with pytest.raises(openai.NotFoundError):
        await clients.llm.embeddings.create(model=MODEL, input="Hello")
