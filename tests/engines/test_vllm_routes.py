"""vLLM's routes without FastAPI around them: an application built as vLLM builds its own, and vLLM's own."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, model_validator
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware

from flashkit.errors import EngineError
from flashkit.worker.engines.engine import EngineRequest
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS
from flashkit.worker.engines.vllm import VllmEngine
from flashkit.worker.engines.vllm_routes import DirectRoutes


class Ask(BaseModel):
    prompt: str
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _take_apart(cls, data):
        data.pop("extra", None)
        return data


def listening(function):
    """Wrap a route as vLLM does: it would wait for a client that hangs up."""

    @functools.wraps(function)
    async def listen(*args, **kwargs):
        raise AssertionError("the decorator was not taken off")

    return listen


class World:
    """An application with two routes, and what was seen in it."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.add_middleware(CORSMiddleware)
        self.app.post(COMPLETIONS)(listening(self.complete))
        self.app.post(CHAT)(self.chat)
        self.sent = 0
        self.is_closed = False

    async def complete(self, request: Ask, raw_request: Request):
        if request.prompt == "fail":
            raise RuntimeError("no idea")
        if request.prompt == "wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return JSONResponse({"error": "client disconnected"}, status_code=400)
        if request.stream:
            return StreamingResponse(self.pieces(request.prompt), media_type="text/event-stream")
        gone = await raw_request.is_disconnected()
        said = {"said": request.prompt, "id": raw_request.headers["x-request-id"], "gone": gone}
        return JSONResponse({**said, "state": raw_request.app.state.name}, status_code=201)

    async def chat(self, raw_request: Request):
        """Take no model of a request, unlike vLLM's."""

    async def pieces(self, prompt: str):
        try:
            while True:
                self.sent += 1
                yield f"data: {self.sent} grüß\n\n"
                await asyncio.sleep(0)
                if prompt == "break":
                    raise RuntimeError("lost the thread")
        finally:
            self.is_closed = True


@pytest.fixture
def world() -> World:
    world = World()
    world.app.state.name = "vllm"
    return world


async def ask(world: World, body, path: str = COMPLETIONS, **options):
    return await DirectRoutes(world.app).open(EngineRequest(path, body, **options), {"x-request-id": "job-1"})


async def test_a_request_is_answered_by_the_function_itself(world: World):
    body = {"prompt": "hello", "extra": [1]}

    response = await ask(world, body)

    assert response.status == 201
    assert not response.is_stream
    assert json.loads(await response.read()) == {"said": "hello", "id": "job-1", "gone": False, "state": "vllm"}
    assert body == {"prompt": "hello", "extra": [1]}, "the job's input was changed"


async def test_closing_a_stream_ends_it(world: World):
    response = await ask(world, {"prompt": "hello", "stream": True})

    assert response.is_stream
    assert [await anext(response.body) for _ in range(2)] == ["data: 1 grüß\n\n".encode(), "data: 2 grüß\n\n".encode()]
    await response.close()

    assert world.is_closed
    assert world.sent == 2


async def test_a_reader_that_is_cancelled_ends_the_stream(world: World):
    response = await ask(world, {"prompt": "hello", "stream": True})
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0.01)

    reading.cancel()
    await asyncio.wait([reading])
    await response.close()

    assert reading.cancelled()
    assert world.is_closed


async def test_a_cancellation_is_heard_although_the_function_answers_it(world: World):
    asking = asyncio.create_task(ask(world, {"prompt": "wait"}))
    await asyncio.sleep(0.01)

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_deadline_is_heard_although_the_function_answers_it(world: World):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ask(world, {"prompt": "wait"})


async def test_a_stream_that_breaks_says_where(world: World):
    response = await ask(world, {"prompt": "break", "stream": True})

    with pytest.raises(EngineError, match="in the middle of its answer to /v1/completions: RuntimeError: lost"):
        await response.read()
    assert world.is_closed


@pytest.mark.parametrize(
    ("body", "path", "method"),
    [
        pytest.param({"prompt": 7}, COMPLETIONS, "POST", id="a request of another shape"),
        pytest.param(["no", "object"], COMPLETIONS, "POST", id="no object"),
        pytest.param(None, COMPLETIONS, "POST", id="no body"),
        pytest.param({"prompt": "fail"}, COMPLETIONS, "POST", id="a function that fails"),
        pytest.param({"prompt": "hello"}, COMPLETIONS + "?a=1", "POST", id="a query"),
        pytest.param({"prompt": "hello"}, COMPLETIONS, "GET", id="another method"),
        pytest.param({"prompt": "hello"}, "/v1/embeddings", "POST", id="another route"),
        pytest.param({"messages": []}, CHAT, "POST", id="a function that takes something else"),
    ],
)
async def test_the_rest_is_left_to_the_application(world: World, body, path, method):
    assert await ask(world, body, path, method=method) is None


async def test_a_middleware_that_may_matter_sees_every_request(world: World):
    world.app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))

    assert await ask(world, {"prompt": "hello"}) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's own
async def test_vllms_application_has_both_routes_unless_it_asks_for_a_key(load_tiny, tiny_llama):
    engine: VllmEngine = await load_tiny()
    requests = [
        EngineRequest(COMPLETIONS, {"prompt": "Hello", "max_tokens": 2}),
        EngineRequest(CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}),
    ]

    answers = [await DirectRoutes(engine.app).open(request, {}) for request in requests]

    assert [answer.status for answer in answers] == [200, 200]
    assert [json.loads(await answer.read())["usage"]["completion_tokens"] for answer in answers] == [2, 2]
    engine.app.middleware_stack = None
    engine.app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    assert await DirectRoutes(engine.app).open(requests[0], {}) is None
