"""vLLM's routes without FastAPI around them: an application built as vLLM builds its own, and vLLM's own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json

import anyio
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, model_validator
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware

from flashkit.errors import EngineError
from flashkit.worker.engines.asgi import open_app
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


def validate_json_request():
    raise AssertionError("the header is ours")


FAILURES = {"value": ValueError("too hot"), "key": KeyError("lost"), "bug": RuntimeError("no idea")}


class World:
    """An application with two routes, and what was seen in it."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.add_middleware(CORSMiddleware)
        self.app.post(COMPLETIONS, dependencies=[Depends(validate_json_request)])(listening(self.complete))
        self.app.post(CHAT)(self.chat)
        self.app.state.name = "vllm"
        self.calls = self.sent = 0
        self.is_closed = False

    async def complete(self, request: Ask, raw_request: Request):
        self.calls += 1
        if request.prompt in FAILURES:
            raise FAILURES[request.prompt]
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
                await asyncio.sleep(60 if prompt == "hold" else 0)
                if prompt == "break":
                    raise RuntimeError("lost the thread")
        finally:
            self.is_closed = True


@pytest.fixture
def world() -> World:
    return World()


async def ask(world: World, body, path: str = COMPLETIONS, **options):
    routes = DirectRoutes(world.app, home=__name__)
    return await routes.open(EngineRequest(path, body, **options), {"x-request-id": "job-1"})


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


@pytest.mark.parametrize("scope", [anyio.fail_after, anyio.move_on_after])
async def test_a_deadline_of_anyios_is_its_own(world: World, scope):
    response = None
    with contextlib.suppress(TimeoutError), scope(0.01):
        response = await ask(world, {"prompt": "wait"})
    assert response is None


async def test_a_stream_that_is_being_read_can_be_closed(world: World):
    response = await ask(world, {"prompt": "hold", "stream": True})
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0.01)

    await response.close()
    reading.cancel()
    await asyncio.wait([reading])

    assert world.is_closed


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
        pytest.param({"prompt": "hello"}, COMPLETIONS + "?a=1", "POST", id="a query"),
        pytest.param({"prompt": "hello"}, COMPLETIONS, "GET", id="another method"),
        pytest.param({"prompt": "hello"}, "/v1/embeddings", "POST", id="another route"),
        pytest.param({"messages": []}, CHAT, "POST", id="a function that takes something else"),
    ],
)
async def test_the_rest_is_left_to_the_application(world: World, body, path, method):
    assert await ask(world, body, path, method=method) is None
    assert world.calls == 0


@pytest.mark.parametrize(
    ("prompt", "catches", "logged"), [("value", ValueError, 0), ("key", LookupError, 0), ("bug", Exception, 1)]
)
async def test_a_failure_is_answered_by_the_applications_own_handler(world: World, prompt, catches, logged, caplog):
    async def handle(request: Request, exc: Exception):
        return JSONResponse({"error": repr(exc), "path": request.url.path}, status_code=418)

    world.app.add_exception_handler(catches, handle)

    response = await ask(world, {"prompt": prompt})

    assert response.status == 418
    assert json.loads(await response.read()) == {"error": repr(FAILURES[prompt]), "path": COMPLETIONS}
    assert world.calls == 1, "the work was done twice"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == logged


async def test_a_failure_without_a_handler_is_the_engines(world: World):
    with pytest.raises(EngineError, match="before it answered to /v1/completions: RuntimeError: no idea"):
        await ask(world, {"prompt": "bug"})


@pytest.mark.parametrize("how", ["a decorator", "a dependency", "a function", "an option", "no name"])
async def test_what_somebody_put_in_between_is_not_left_out(world: World, how, caplog):
    app = world.app
    match how:
        case "a decorator":  # of another package: they may ask for a key, or count
            app.routes[-2].endpoint = contextlib.contextmanager(world.complete)
        case "a dependency":
            app.routes[-2].dependencies.append(Depends(world.chat))
        case "a function":
            app.routes[-2].endpoint = asyncio.sleep
        case "an option":
            app.state.args = argparse.Namespace(enable_server_load_tracking=True)
        case "no name":
            app.user_middleware.append(argparse.Namespace(cls=functools.partial(CORSMiddleware)))

    assert await ask(world, {"prompt": "hello"}) is None
    assert world.calls == 0
    assert ("cannot be told apart" in caplog.text) == (how == "no name")


async def test_a_middleware_that_may_matter_sees_every_request(world: World):
    world.app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))

    assert await ask(world, {"prompt": "hello"}) is None


HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
GO_ON = {"prompt": "Hello", "max_tokens": 4, "temperature": 0}
CHANGING = ("id", "created", "system_fingerprint")


@pytest.fixture(scope="module")
async def engine(load_tiny) -> VllmEngine:
    return await load_tiny()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's own
@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, HELLO, id="a chat"),
        pytest.param(COMPLETIONS, GO_ON, id="a completion"),
        pytest.param(CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}}, id="a stream"),
        pytest.param(COMPLETIONS, {**GO_ON, "n": 2, "stream": True}, id="a stream of two"),
        pytest.param(COMPLETIONS, {**GO_ON, "echo": True, "logprobs": 1}, id="an echo"),
        pytest.param(CHAT, {**HELLO, "model": "gpt-9"}, id="another model"),
        pytest.param(CHAT, {**HELLO, "max_tokens": 5000}, id="too long"),
        pytest.param(COMPLETIONS, {**GO_ON, "temperature": -1}, id="a bad value"),
        pytest.param(COMPLETIONS, {**GO_ON, "prompt": []}, id="no prompt"),
        pytest.param(CHAT, {**HELLO, "structured_outputs": {"regex": "("}}, id="a bad pattern"),
    ],
)
async def test_it_is_what_vllms_application_answers(engine: VllmEngine, path, body):
    request = EngineRequest(path, body)
    direct = await DirectRoutes(engine.app).open(request, {})
    assert direct is not None
    application = await open_app(engine.app, request)

    assert (direct.status, direct.is_stream) == (application.status, application.is_stream)
    assert direct.headers["content-type"] == application.headers["content-type"]
    assert _steady(await direct.read()) == _steady(await application.read())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's own
async def test_jobs_take_this_way(engine: VllmEngine, monkeypatch):
    monkeypatch.setattr(engine, "app", None)

    response = await engine.open(EngineRequest(CHAT, HELLO))

    assert response.status == 200
    assert json.loads(await response.read())["usage"]["completion_tokens"] == 4
    await response.close()


def _steady(body: bytes) -> list:
    """Return an answer's values without those that are others each time."""
    texts = [line.removeprefix("data: ") for line in body.decode().split("\n") if line]
    values = [text if text == "[DONE]" else json.loads(text) for text in texts]
    return [
        {name: part for name, part in value.items() if name not in CHANGING} if isinstance(value, dict) else value
        for value in values
    ]
