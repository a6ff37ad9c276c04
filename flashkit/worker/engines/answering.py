"""From jobs to an engine's requests and back: input shapes, streams and deadlines.

Accepted inputs of an endpoint that is its engine:

- `{"openai_route": "/v1/…", "openai_input": {…}}`, what the platform makes of a request below `/openai/v1`;
- `{"route": "/v1/…", "method": "POST", "body": {…}}`, any route of the engine;
- `{"messages": [...], ...}` or `{"prompt": "...", ...}`: a chat or a completion, the rest as OpenAI's parameters, or
  as worker-vllm's `sampling_params`.

Everything is asked through `Engine.open`. Where an engine can also `finish(request_id)` a request early, an answer that
is not streamed is given as far as it got when the job's time is up.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from flashkit.worker.engines.coalescing import coalesce, cut_events
from flashkit.worker.engines.deadlines import StreamEnding, TimeUp, mark_whole
from flashkit.worker.engines.engine import Engine, EngineRequest, EngineResponse, read_refusal
from flashkit.worker.engines.inputs import LANGUAGE_SHORTHANDS, read_request
from flashkit.worker.engines.model_spans import open_seen

FINISH_SECONDS: Final = 2.0
"""How long an engine may take to give what it has of an answer."""
_FIRST_REFUSAL: Final = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job's answer is: one JSON text, or pieces of JSON text as they come."""

    whole: bytes | None = None
    pieces: AsyncGenerator[bytes, None] | None = None
    """Closing it aborts the request."""


async def answer_job(engine: Engine, data: Any, *, job_id: str, deadline: float | None = None) -> Answer:
    """Return an engine's answer to a job's input.

    Args:
        engine: The loaded engine.
        data: The job's input.
        job_id: For logs.
        deadline: Time of the loop at which the request is aborted and what there is of an answer returned.

    Raises:
        InputError: The input has none of the accepted shapes.
        EngineRefusal: The engine refused it, or had not made an answer by the deadline.
        EngineDied: The engine died meanwhile.
    """
    shorthands = getattr(engine, "shorthands", LANGUAGE_SHORTHANDS)
    request = read_request(data, job_id=job_id, shorthands=shorthands)
    try:
        fetched = await _fetch_until(engine, request, deadline)
    except TimeUp:
        if not _wants_stream(request):
            raise
        return Answer(pieces=_encoded(_end_at_once(request)))
    if fetched.body is None:
        return Answer(pieces=_encoded(_events_until(fetched.response, request, deadline), fetched.response))
    if fetched.response.status >= _FIRST_REFUSAL:
        raise read_refusal(fetched.response.status, read_body(fetched.body))
    return Answer(whole=_encode_whole(fetched.body, is_late=fetched.is_late))


async def fetch(engine: Engine, request: EngineRequest) -> Fetched:
    """Return an engine's answer, read and closed, or a stream that the caller must close."""
    response = await open_seen(engine, request)
    if response.is_stream and response.status < _FIRST_REFUSAL:
        return Fetched(response, None)
    try:
        return Fetched(response, await response.read())
    finally:
        await response.close()


class Fetched(NamedTuple):
    """An engine's answer."""

    response: EngineResponse
    body: bytes | None
    """The whole body; None for a stream."""
    is_late: bool = False
    """The engine was asked to come to an end."""


def read_body(body: bytes) -> Any:
    """Return the JSON value of a body; what is none as text, and what is no text as base64."""
    import orjson

    if not body:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _as_text(body)


def _as_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


def _encode_whole(body: bytes, *, is_late: bool) -> bytes:
    import orjson

    value = read_body(body)
    if is_late:
        return orjson.dumps(mark_whole(value))
    return body if isinstance(value, dict | list) else orjson.dumps(value)


async def _fetch_until(engine: Engine, request: EngineRequest, deadline: float | None) -> Fetched:
    """Return the answer; at the deadline what the engine has of it.

    Raises:
        TimeUp: It has nothing, or cannot tell.
    """
    if deadline is None:
        return await fetch(engine, request)
    loop = asyncio.get_running_loop()
    fetching = asyncio.create_task(fetch(engine, request))
    try:
        if await _is_done(fetching, deadline - loop.time()):
            return fetching.result()
        finish = getattr(engine, "finish", None)
        if finish is not None and not _wants_stream(request):
            await finish(request.id)
            if await _is_done(fetching, FINISH_SECONDS):
                return fetching.result()._replace(is_late=True)
        raise TimeUp(request.path)
    finally:
        await _abandon(fetching)


async def _is_done(task: asyncio.Task[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=max(0.0, seconds))
    return bool(done)


async def _abandon(fetching: asyncio.Task[Fetched]) -> None:
    """Abort a request whose answer nobody waits for any more."""
    if fetching.done():
        return
    fetching.cancel()
    await asyncio.wait([fetching])
    if not fetching.cancelled() and fetching.exception() is None:
        await fetching.result().response.close()


def _wants_stream(request: EngineRequest) -> bool:
    return isinstance(request.body, dict) and request.body.get("stream") is True


async def _encoded(
    events: AsyncGenerator[bytes, None], response: EngineResponse | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield a stream's pieces as JSON text."""
    import orjson

    try:
        async with aclosing(coalesce(events)) as pieces:
            async for piece in pieces:
                yield orjson.dumps(piece)
    finally:
        if response is not None:
            await response.close()


async def _events_until(
    response: EngineResponse, request: EngineRequest, deadline: float | None
) -> AsyncGenerator[bytes, None]:
    """Yield a stream's events; at the deadline abort the request, and end the stream in its place."""
    ending = StreamEnding(request)
    async with aclosing(cut_events(response.body)) as events:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                break
            ending.note(event)
            yield event
    await response.close()
    for event in ending.last_events():
        yield event


async def _end_at_once(request: EngineRequest) -> AsyncGenerator[bytes, None]:
    for event in StreamEnding(request).last_events():
        yield event
