"""The routes under `/_/`: what happens on the platform, for the command line, the dashboard and tests.

They are no part of Runpod's API. Reading follows the recorder; a reader that comes back with the number it
was given gets what happened since, and one that asks for an event stream gets it as it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import reprlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import error_response, json_response
from flashkit.emulator.bodies import decode_json, encode_json, read_body
from flashkit.emulator.clock import Clock
from flashkit.emulator.overview import JOBS_LIMIT, JobQuery, Mark, Overview
from flashkit.emulator.recorder import Filter, Recorder, describe
from flashkit.errors import InputError

EVENTS_LIMIT: Final = 1_000
"""Events in one answer."""
_HEARTBEAT_SECONDS: Final = 15.0
_GATHERING_SECONDS: Final = 0.1
"""A stream sends what has come together in this time at once."""
_STREAM_HEADERS: Final = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_NUMBER_DIGITS: Final = 15
_WATCH_SECONDS: Final = 0.5
"""A watcher gets one or two messages a second."""
_MOST_JOBS: Final = 1_000
_BODY_LIMIT_BYTES: Final = 64 * 1024
_MOST_SECONDS: Final = 366 * 86_400

Answer = Callable[[Request], Awaitable[ASGIApp]]
Control = Callable[[str], object]


class Controls(Protocol):
    """What can be done to a platform that is no part of Runpod's API."""

    clock: Clock

    def restart(self, name: str, /) -> object:
        """Let new workers of an endpoint take over from those that run."""

    def cool(self, name: str, /) -> object:
        """Kill every worker of an endpoint, so that the next job starts one."""

    def kill_worker(self, worker_id: str, /) -> object:
        """Kill a worker, as a crash of its machine would."""

    def reclaim_worker(self, worker_id: str, /) -> object:
        """Take away a worker's machine, as happens to spot machines."""

    def freeze_worker(self, worker_id: str, /) -> object:
        """Stop an idle worker's processes."""

    def thaw_worker(self, worker_id: str, /) -> object:
        """Let a frozen worker's processes go on."""


class ControlRoutes:
    """Serves what is under `/_/`.

    Args:
        recorder: What happened.
        overview: What there is.
        admission: Who may ask.
        controls: What can be done to endpoints and workers.
    """

    def __init__(self, recorder: Recorder, overview: Overview, *, admission: Admission, controls: Controls) -> None:
        self._recorder = recorder
        self._overview = overview
        self._admission = admission
        self._controls = controls

    def routes(self) -> list[Route]:
        """Return the routes for an ASGI application."""
        controls, overview = self._controls, self._overview
        for_endpoints: dict[str, Control] = {"restart": controls.restart, "cold": controls.cool}
        for_workers: dict[str, Control] = {
            "kill": controls.kill_worker,
            "reclaim": controls.reclaim_worker,
            "freeze": controls.freeze_worker,
            "thaw": controls.thaw_worker,
        }
        return [
            Route("/_/events", self._reading(self._events), methods=["GET"]),
            Route("/_/metrics", self._reading(self._metrics), methods=["GET"]),
            Route("/_/advice", self._reading(self._advice), methods=["GET"]),
            Route("/_/jobs", self._reading(self._jobs), methods=["GET"]),
            Route("/_/jobs/{endpoint}/{job_id}", self._reading(self._job), methods=["GET"]),
            Route("/_/clock", self._reading(self._clock), methods=["GET"]),
            Route("/_/clock", self._changing(self._move_clock), methods=["POST"]),
            *(
                Route(f"/_/endpoints/{{name}}/{action}", self._doing(control, overview.has_endpoint), methods=["POST"])
                for action, control in for_endpoints.items()
            ),
            *(
                Route(f"/_/workers/{{name}}/{action}", self._doing(control, overview.has_worker), methods=["POST"])
                for action, control in for_workers.items()
            ),
        ]

    def _reading(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> ASGIApp:
            self._admission.check(request)
            return await answer(request)

        return guarded

    def _changing(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> ASGIApp:
            self._admission.check(request)
            self._admission.check_same_origin(request)
            return await answer(request)

        return guarded

    def _doing(self, control: Control, is_there: Callable[[str], bool]) -> Answer:
        async def answer(request: Request) -> ASGIApp:
            name = request.path_params["name"]
            try:
                control(name)
            except InputError as exc:
                if is_there(name):
                    raise
                return error_response(exc.report, status=404)
            return json_response({"done": True})

        return self._changing(answer)

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

    async def _metrics(self, request: Request) -> ASGIApp:
        if _wants_stream(request):
            return EventStream(self._watch())
        return json_response(self._overview.everything())

    async def _watch(self) -> AsyncGenerator[bytes]:
        """Yield everything, then changes, as long as the emulator runs."""
        recorder, overview = self._recorder, self._overview
        endpoints, mark = overview.endpoints, Mark()
        message = overview.everything()
        yield server_sent_event("all", message)
        while not recorder.is_closed:
            mark = mark.moved(message)
            await asyncio.sleep(_WATCH_SECONDS)
            await recorder.wait(mark.n, seconds=_WATCH_SECONDS)
            if overview.endpoints == endpoints:
                message = overview.changes(since=mark)
                yield server_sent_event("changes", message)
            else:
                endpoints, message = overview.endpoints, overview.everything()
                yield server_sent_event("all", message)

    async def _advice(self, request: Request) -> ASGIApp:
        return json_response({"advice": self._overview.advice()})

    async def _jobs(self, request: Request) -> ASGIApp:
        given = request.query_params
        query = JobQuery(
            endpoint=given.get("endpoint") or None,
            status=given.get("status") or None,
            search=given.get("search", ""),
            limit=min(_read_number(request, "limit") or JOBS_LIMIT, _MOST_JOBS),
        )
        return json_response({"jobs": self._overview.find_jobs(query)})

    async def _job(self, request: Request) -> ASGIApp:
        endpoint, job_id = request.path_params["endpoint"], request.path_params["job_id"]
        preview = _read_number(request, "preview")
        return json_response(self._overview.describe_job(endpoint, job_id, preview_characters=preview))

    async def _clock(self, request: Request) -> ASGIApp:
        return json_response(self._describe_clock())

    async def _move_clock(self, request: Request) -> ASGIApp:
        data = decode_json(await read_body(request.receive, limit_bytes=_BODY_LIMIT_BYTES))
        if not isinstance(data, dict) or not data.keys() & {"advance", "speed"} or data.keys() - {"advance", "speed"}:
            raise InputError("the body says nothing of the clock", hint='send {"advance": 3600} or {"speed": 60}')
        seconds = {name: _read_seconds(data, name) for name in data}
        if "speed" in seconds:
            self._controls.clock.set_speed(seconds["speed"])
        if "advance" in seconds:
            await self._controls.clock.advance(seconds["advance"])
        return json_response(self._describe_clock())

    def _describe_clock(self) -> dict[str, float]:
        clock = self._controls.clock
        return {"now": clock.now(), "speed": clock.speed}


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


def _read_seconds(data: Mapping[str, Any], name: str) -> float:
    value = data[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_SECONDS:
        raise InputError(
            f"`{name}` is {reprlib.repr(value)}, not a number from 0 to {_MOST_SECONDS:,}", details={"field": name}
        )
    return float(value)


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
