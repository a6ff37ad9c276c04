"""The routes under `/_/`: what happens on the platform, for the command line, the dashboard and tests.

They are no part of Runpod's API. Reading follows the recorder; a reader that comes back with the number it
was given gets what happened since, and one that asks for an event stream gets it as it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import json_response
from flashkit.emulator.bodies import encode_json
from flashkit.emulator.recorder import Filter, Recorder, describe
from flashkit.errors import InputError

EVENTS_LIMIT: Final = 1_000
"""Events in one answer."""
_HEARTBEAT_SECONDS: Final = 15.0
_GATHERING_SECONDS: Final = 0.1
"""A stream sends what has come together in this time at once."""
_STREAM_HEADERS: Final = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_NUMBER_DIGITS: Final = 15

Answer = Callable[[Request], Awaitable[ASGIApp]]


class ControlRoutes:
    """Serves what is under `/_/`."""

    def __init__(self, recorder: Recorder, *, admission: Admission) -> None:
        self._recorder = recorder
        self._admission = admission

    def routes(self) -> list[Route]:
        """Return the routes for an ASGI application."""
        return [Route("/_/events", self._guard(self._events), methods=["GET"])]

    def _guard(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> ASGIApp:
            self._admission.check(request)
            return await answer(request)

        return guarded

    async def _events(self, request: Request) -> ASGIApp:
        wanted = _read_filter(request)
        newest = _read_number(request, "last")
        if not _wants_stream(request):
            batch = (
                self._recorder.after(_read_number(request, "after") or 0, limit=EVENTS_LIMIT, wanted=wanted)
                if newest is None
                else self._recorder.latest(min(newest, EVENTS_LIMIT), wanted=wanted)
            )
            events = [describe(entry) for entry in batch.entries]
            return json_response({"events": events, "next": batch.next, "complete": batch.is_complete})
        after = _read_number(request, "last-event-id", text=request.headers.get("last-event-id"))
        if after is None:
            after = _read_number(request, "after")
        return EventStream(self._follow(after, newest, wanted))

    async def _follow(self, after: int | None, newest: int | None, wanted: Filter) -> AsyncGenerator[bytes]:
        """Yield events as they come: from `after` on, or the newest ones and those to come."""
        recorder = self._recorder
        if after is None and newest is not None:
            batch = recorder.latest(min(newest, EVENTS_LIMIT), wanted=wanted)
        else:
            batch = recorder.after(after or 0, limit=EVENTS_LIMIT, wanted=wanted)
        while True:
            if not batch.is_complete:
                yield server_sent_event("dropped", {"next": batch.entries[0].n if batch.entries else batch.next})
            yield b"".join(server_sent_event(None, describe(entry), number=entry.n) for entry in batch.entries)
            if recorder.is_closed and recorder.count == batch.next:
                return
            if recorder.count == batch.next:
                async for heartbeat in self._wait(batch.next):
                    yield heartbeat
            batch = recorder.after(batch.next, limit=EVENTS_LIMIT, wanted=wanted)

    async def _wait(self, after: int) -> AsyncGenerator[bytes]:
        """Wait for events, yielding signs of life meanwhile, which also find out that nobody reads any more."""
        while not await self._recorder.wait(after, seconds=_HEARTBEAT_SECONDS):
            yield b": still there\n\n"
        await asyncio.sleep(_GATHERING_SECONDS)


class EventStream:
    """A response that sends server-sent events until there are no more, or nobody listens."""

    def __init__(self, parts: AsyncGenerator[bytes]) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        tasks = [asyncio.ensure_future(self._send_parts(send)), asyncio.ensure_future(_hang_up(receive))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()

    async def _send_parts(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        async with contextlib.aclosing(self._parts) as parts:
            async for part in parts:
                if part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _hang_up(receive: Receive) -> None:
    """Return when the reader is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def server_sent_event(name: str | None, value: Any, *, number: int | None = None) -> bytes:
    """Return one event of a stream; its JSON has no line ends, so one `data` line holds it."""
    named = b"" if name is None else f"event: {name}\n".encode()
    numbered = b"" if number is None else b"id: %d\n" % number
    return b"%b%bdata: %b\n\n" % (numbered, named, encode_json(value))


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _read_filter(request: Request) -> Filter:
    query = request.query_params
    return Filter(
        types=frozenset(filter(None, query.get("type", "").split(","))),
        endpoint=query.get("endpoint"),
        job_id=query.get("job"),
        worker_id=query.get("worker"),
    )


def _read_number(request: Request, name: str, *, text: str | None = None) -> int | None:
    text = request.query_params.get(name) if text is None else text
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > _NUMBER_DIGITS:
        raise InputError(f"`{name}` is {text!r}, not the number of an event", details={"field": name})
    return int(text)
