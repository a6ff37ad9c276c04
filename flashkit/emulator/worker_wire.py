"""The worker's side of the wire: take, take-batch, stop, done, stream, ping.

A quick worker calls these routes thousands of times a second, so they are bare ASGI: the path is split, the
action looked up, and no middleware, router or response object stands between. A worker that got an error
or an empty answer would ask again at once and for ever; polls are therefore really held, whoever asks,
and everything about jobs that are not (or no longer) the worker's is accepted and ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from flashkit.emulator.answers import Unauthorized, error_body, send_body
from flashkit.emulator.bodies import BodyTooLarge, ClientGone, decode_json, encode_json, read_body
from flashkit.emulator.connections import break_connection, if_unread, is_broken
from flashkit.emulator.dispatch import Dispatcher, HandOut
from flashkit.emulator.platform import Job
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import (
    RUN_BODY_LIMIT_BYTES,
    RUNSYNC_BODY_LIMIT_BYTES,
    STREAM_CHUNK_LIMIT_BYTES,
    PlatformDefaults,
)

T = TypeVar("T")

_LEAVING_HOLD_SECONDS: Final = 1.0
"""A worker that still polls after SIGTERM is held this long only, so that it can leave but does not spin."""
_NOTHING: Final = b""
_STRANGER: Final = Unauthorized("this request is not from a worker of this platform")
_OK: Final = b"{}"


@dataclass(frozen=True, slots=True)
class _Call:
    """One request of a worker."""

    endpoint: str
    worker_id: str
    job_id: str
    scope: Scope
    receive: Receive
    send: Send

    @property
    def query(self) -> bytes:
        """The query string."""
        query: bytes = self.scope["query_string"]
        return query

    async def answer(self, status: int, body: bytes) -> None:
        """Send the response."""
        await send_body(self.send, status, body)


class WorkerWire:
    """Serves the worker routes of every endpoint."""

    def __init__(self, dispatcher: Dispatcher, defaults: PlatformDefaults, *, token: str | None = None) -> None:
        """Serve workers, those that send the token where there is one."""
        self._dispatcher = dispatcher
        self._token = None if token is None else token.encode()
        self._platform = dispatcher.platform
        self._defaults = defaults
        self._delivering: Counter[str] = Counter()
        self._actions: dict[str, Callable[[_Call], Awaitable[None]]] = {
            "job-take": self._take,
            "job-take-batch": self._take_batch,
            "job-stop": self._stop,
            "job-done": self._done,
            "job-stream": self._partial,
            "ping": self._ping,
        }

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve the request and return True, or return False when the path is not a worker's."""
        parts = scope["path"].split("/")
        if len(parts) < 5 or (action := self._actions.get(parts[3])) is None:  # noqa: PLR2004
            return False
        job_id = parts[5] if len(parts) > 5 else ""  # noqa: PLR2004
        call = _Call(parts[2], parts[4], job_id, scope, receive, send)
        if self._token is not None and not _carries(call.query, self._token):
            await call.answer(401, error_body(_STRANGER.report))
            return True
        if self._dispatcher.is_frozen(call.worker_id):  # sent just before it was stopped, and read just after
            await break_connection(scope)
            return True
        self._dispatcher.connections.note(call.worker_id, scope)
        with contextlib.suppress(ClientGone):
            await action(call)
        return True

    async def _take(self, call: _Call) -> None:
        jobs = await self._take_jobs(call, limit=1)
        if jobs:
            await call.answer(200, encode_json(describe_for_worker(jobs[0])))
        else:
            await call.answer(204, _NOTHING)

    async def _take_batch(self, call: _Call) -> None:
        jobs = await self._take_jobs(call, limit=_batch_size(call.query))
        if jobs:
            await call.answer(200, encode_json([describe_for_worker(job) for job in jobs]))
        else:
            await call.answer(204, _NOTHING)

    async def _take_jobs(self, call: _Call, *, limit: int) -> Sequence[Job]:
        has_jobs = b"job_in_progress=1" in call.query

        def look() -> Sequence[Job]:
            # A result that is still being read was not forgotten by its worker.
            is_busy = has_jobs or call.worker_id in self._delivering
            return self._dispatcher.take(call.endpoint, call.worker_id, limit=limit, job_in_progress=is_busy)

        jobs = await self._hold(call, look)
        if jobs:
            hand_outs = [HandOut(job.id, job.attempt) for job in jobs]
            if_unread(call.scope, lambda: self._dispatcher.put_back(call.endpoint, call.worker_id, hand_outs))
        return jobs

    async def _stop(self, call: _Call) -> None:
        def look() -> Sequence[str]:
            return self._dispatcher.apply(self._platform.stop_signals, call.endpoint, call.worker_id)

        job_ids = await self._hold(call, look)
        if job_ids:
            await call.answer(200, encode_json({"jobsToStop": job_ids}))
        else:
            await call.answer(204, _NOTHING)

    async def _hold(self, call: _Call, look: Callable[[], Sequence[T]]) -> Sequence[T]:
        """Return what `look` finds, as soon as it finds something while the worker still listens.

        Raises:
            ClientGone: The worker hung up; nothing was taken for it.
        """
        if (await call.receive())["type"] == "http.disconnect" or is_broken(call.scope):
            raise ClientGone
        found = look()
        if found:
            return found
        worker_id = call.worker_id
        loop = asyncio.get_running_loop()
        is_leaving = self._dispatcher.is_leaving(worker_id)
        end = loop.time() + (_LEAVING_HOLD_SECONDS if is_leaving else self._defaults.poll_hold)
        gone = asyncio.ensure_future(call.receive())
        gone.add_done_callback(lambda _: self._dispatcher.wake_worker(worker_id))
        try:
            while not found and loop.time() < end:
                await self._dispatcher.wait_for_worker(worker_id, seconds=end - loop.time())
                await asyncio.sleep(0)  # lets a hang-up of the same moment come first
                if gone.done() or is_broken(call.scope):
                    raise ClientGone
                found = look()
                if self._dispatcher.is_leaving(worker_id) and not is_leaving:
                    break
        finally:
            gone.cancel()
        return found

    async def _done(self, call: _Call) -> None:
        try:
            with self._delivery(call.worker_id):
                body = await read_body(call.receive, limit_bytes=RUNSYNC_BODY_LIMIT_BYTES)
            self._check_result_size(call, len(body))
            result = _decode_object(body)
        except InputError as exc:
            await self._refuse_result(call, exc)
            return
        self._take_result(call, result, len(body))
        await call.answer(200, _OK)

    def _take_result(self, call: _Call, result: Mapping[str, Any], size_bytes: int) -> None:
        if result.get("status") == "IN_PROGRESS":
            value = result.get("output")
            self._dispatcher.apply(self._platform.progress, call.endpoint, call.worker_id, call.job_id, value)
        else:
            self._dispatcher.finish(call.endpoint, call.worker_id, call.job_id, result, size_bytes=size_bytes)

    async def _partial(self, call: _Call) -> None:
        try:
            with self._delivery(call.worker_id):
                body = await read_body(call.receive, limit_bytes=STREAM_CHUNK_LIMIT_BYTES)
            chunk = _decode_object(body).get("output")
        except InputError as exc:
            await self._refuse_result(call, exc)
            return
        whose = call.endpoint, call.worker_id, call.job_id
        self._dispatcher.apply(self._platform.partial, *whose, chunk, size_bytes=len(body))
        await call.answer(200, _OK)

    async def _ping(self, call: _Call) -> None:
        await read_body(call.receive, limit_bytes=RUN_BODY_LIMIT_BYTES)
        if b"status=unhealthy" in call.query:
            facts = {name: values[0] for name, values in parse_qs(call.query.decode(errors="replace")).items()}
            self._dispatcher.worker_unhealthy(
                call.endpoint, call.worker_id, check=facts.get("check", ""), reason=facts.get("reason", "")
            )
        await call.answer(200, _OK)

    @contextlib.contextmanager
    def _delivery(self, worker_id: str) -> Iterator[None]:
        self._delivering[worker_id] += 1
        try:
            yield
        finally:
            self._delivering[worker_id] -= 1
            if not self._delivering[worker_id]:
                del self._delivering[worker_id]

    def _check_result_size(self, call: _Call, size_bytes: int) -> None:
        if size_bytes <= RUN_BODY_LIMIT_BYTES:
            return
        try:
            job = self._dispatcher.apply(self._platform.job, call.endpoint, call.job_id)
        except (JobNotFound, InputError):
            return  # of a job that is gone, so it is ignored whatever its size
        if not job.sync:
            raise BodyTooLarge.of_size(size_bytes, RUN_BODY_LIMIT_BYTES)

    async def _refuse_result(self, call: _Call, exc: InputError) -> None:
        """Fail the job in the worker's name: the SDK sends a refused result neither again nor differently."""
        result = {"error": _result_refused(exc).to_json()}
        self._dispatcher.finish(call.endpoint, call.worker_id, call.job_id, result, size_bytes=0)
        status = self._defaults.oversize_status if isinstance(exc, BodyTooLarge) else 400
        await call.answer(status, error_body(exc.report, call.job_id))


def describe_for_worker(job: Job) -> dict[str, Any]:
    """Return the job as a worker gets it."""
    described = {**job.extra, "id": job.id, "input": job.input}
    if job.webhook:
        described["webhook"] = job.webhook
    return described


def _carries(query: bytes, token: bytes) -> bool:
    given = query.rpartition(b"token=")[2].partition(b"&")[0]
    return hmac.compare_digest(given, token)


def _batch_size(query: bytes) -> int:
    digits = query.partition(b"batch_size=")[2].partition(b"&")[0]
    return max(1, int(digits[:6])) if digits.isdigit() else 1


def _decode_object(body: bytes) -> dict[str, Any]:
    result = decode_json(body)
    if not isinstance(result, dict):
        raise InputError("the body is not a JSON object", hint='send {"output": …} or {"error": …}')
    return result


def _result_refused(exc: InputError) -> ErrorReport:
    """Say to the job's owner what was wrong with the result that the worker sent."""
    too_large = isinstance(exc, BodyTooLarge)
    return ErrorReport(
        code="output_too_large" if too_large else "output_invalid",
        type="OutputError",
        message=f"the worker's result was refused: {exc.report.message}",
        hint="return a URL to the data, or yield it in parts" if too_large else "return plain JSON values",
        details=exc.report.details,
    )
