"""The driver of ASGI applications: real Starlette and FastAPI applications, no server."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flashkit.errors import EngineError
from flashkit.worker.engines import asgi
from flashkit.worker.engines.asgi import open_app
from flashkit.worker.engines.engine import EngineRequest


class World:
    """An application and what was seen in it."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/echo", self.echo, methods=["GET", "POST"]),
                Route("/endless", self.endless),
                Route("/broken", self.broken),
                Route("/fails", self.fails),
                Route("/slow", self.slow),
                Route("/large", self.large),
            ]
        )

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        return JSONResponse(
            {
                "method": request.method,
                "query": dict(request.query_params),
                "body": json.loads(body) if body else None,
                "length": request.headers.get("content-length"),
                "extra": request.headers.get("x-extra"),
            },
            status_code=201,
            headers={"X-Note": "here"},
        )

    async def endless(self, request: Request) -> Response:
        async def pieces():
            try:
                while True:
                    self.sent += 1
                    yield f"data: {self.sent}\n\n"
                    await asyncio.sleep(0.01)
            finally:
                self.ended.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def broken(self, request: Request) -> Response:
        async def pieces():
            yield "one"
            raise RuntimeError("lost the thread")

        return StreamingResponse(pieces())

    async def fails(self, request: Request) -> Response:
        raise RuntimeError("no idea")

    async def slow(self, request: Request) -> Response:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        return PlainTextResponse("late")

    async def large(self, request: Request) -> Response:
        async def pieces():
            for _ in range(100):
                self.sent += 1
                yield b"x" * 100_000

        return StreamingResponse(pieces())


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_request_arrives_whole_and_its_response_comes_back(world: World):
    response = await open_app(world.app, EngineRequest("/echo?a=1&b=%20", {"text": "grüß"}), headers={"X-Extra": "yes"})
    answer = json.loads(await response.read())
    assert (response.status, response.headers["x-note"], response.is_stream) == (201, "here", False)
    assert answer["query"] == {"a": "1", "b": " "}
    assert (answer["method"], answer["body"], answer["extra"]) == ("POST", {"text": "grüß"}, "yes")
    await response.close()


async def test_a_request_without_a_body_has_none(world: World):
    response = await open_app(world.app, EngineRequest("/echo", method="get"))
    answer = json.loads(await response.read())
    assert (answer["method"], answer["body"], answer["length"]) == ("GET", None, "0")


async def test_an_unknown_path_is_the_applications_own_404(world: World):
    response = await open_app(world.app, EngineRequest("/nowhere"))
    assert (response.status, await response.read()) == (404, b"Not Found")


async def test_a_stream_comes_piece_by_piece_and_ends_when_it_is_closed(world: World):
    response = await open_app(world.app, EngineRequest("/endless", method="GET"))
    assert response.is_stream
    assert await anext(response.body) == b"data: 1\n\n"
    assert b"data: 2" in await anext(response.body)
    await response.close()
    assert world.ended.is_set()
    assert [piece async for piece in response.body if b"data" not in piece] == []


async def test_a_reader_that_was_away_gets_everything_at_once(world: World):
    response = await open_app(world.app, EngineRequest("/endless", method="GET"))
    while world.sent < 5:
        await asyncio.sleep(0.01)
    assert (await anext(response.body)).count(b"data: ") >= 4
    await response.close()


async def test_a_response_that_nobody_has_read_from_ends_when_it_is_closed(world: World):
    response = await open_app(world.app, EngineRequest("/endless", method="GET"))
    await response.close()
    assert world.ended.is_set()


async def test_cancelling_the_wait_for_a_response_ends_the_application(world: World, monkeypatch):
    monkeypatch.setattr(asgi, "GOODBYE_SECONDS", 0.05)  # this route listens to nothing: it is cancelled
    opening = asyncio.create_task(open_app(world.app, EngineRequest("/slow", method="GET")))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert world.ended.is_set()


async def test_an_application_that_ignores_everything_is_left_alone_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(asgi, "GOODBYE_SECONDS", 0.05)
    released = asyncio.Event()

    async def stubborn(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    response = await open_app(stubborn, EngineRequest("/stubborn"))
    await response.close()
    assert "/stubborn does not end although its client has gone" in caplog.text
    released.set()
    await asyncio.sleep(0)


async def test_a_failure_before_the_answer_is_raised_with_its_cause():
    async def fails(scope, receive, send):
        raise RuntimeError("no idea")

    with pytest.raises(EngineError, match="stopped before it answered to /x: RuntimeError: no idea") as caught:
        await open_app(fails, EngineRequest("/x"))
    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_failure_that_became_a_response_is_that_response_and_logged(world: World, caplog):
    response = await open_app(world.app, EngineRequest("/fails", method="GET"))
    assert response.status == 500
    await response.read()
    await response.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "no idea" in caplog.text


async def test_an_application_that_just_returns_has_not_answered():
    async def returns(scope, receive, send):
        await receive()

    with pytest.raises(EngineError, match="stopped before it answered"):
        await open_app(returns, EngineRequest("/x"))


async def test_a_failure_in_the_middle_comes_after_what_was_sent(world: World):
    response = await open_app(world.app, EngineRequest("/broken", method="GET"))
    assert await anext(response.body) == b"one"
    with pytest.raises(EngineError, match="in the middle of its answer to /broken"):
        await anext(response.body)
    await response.close()


async def test_an_application_waits_for_a_slow_reader(world: World, monkeypatch):
    monkeypatch.setattr(asgi, "BUFFER_BYTES", 250_000)
    response = await open_app(world.app, EngineRequest("/large", method="GET"))
    await asyncio.sleep(0.05)
    assert world.sent < 10
    assert len(await response.read()) == 10_000_000
    await response.close()


async def test_fastapi_answers_with_its_validation_errors():
    app = FastAPI()

    @app.post("/add")
    async def add(value: dict[str, int]) -> int:
        return sum(value.values())

    response = await open_app(app, EngineRequest("/add", {"a": 1, "b": 2}))
    assert await response.read() == b"3"
    response = await open_app(app, EngineRequest("/add", {"a": "x"}))
    assert response.status == 422
