"""The worker's side of the wire: take, take-batch, stop, done, stream, ping.

A quick worker calls these routes thousands of times a second, so they are bare ASGI: the path is split, the
action looked up, and no middleware, router or response object stands between. What a worker posts is answered at once
where it came whole, and so is a poll for which there are jobs. A worker that got an error or an empty answer would ask
again at once and for ever; polls are therefore really held, whoever asks, and everything about jobs that are not (or no
longer) the worker's is accepted and ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from flashkit.emulator.answers import Unauthorized, error_body, send_body
from flashkit.emulator.bodies import BodyTooLarge, ClientGone, decode_json, encode_json, read_body
from flashkit.emulator.connections import Reply, break_connection, if_unread, is_broken
from flashkit.emulator.dispatch import Dispatcher, HandOut
from flashkit.emulator.platform import Job
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import (
    RUN_BODY_LIMIT_BYTES,
    RUNSYNC_BODY_LIMIT_BYTES,
    STREAM_CHUNK_LIMIT_BYTES,
    PlatformDefaults,
)

_LEAVING_HOLD_SECONDS: Final = 1.0
"""A worker that still polls after SIGTERM is held this long only, so that it can leave but does not spin."""
_STRANGER: Final = Unauthorized("this request is not from a worker of this platform")
_OK: Final = Reply(200, b"{}")
_NOTHING: Final = Reply(204, b"")
_TAKES: Final = ("job-take", "job-take-batch")
_BODY_LIMITS: Final = {
    "job-done": RUNSYNC_BODY_LIMIT_BYTES,
    "job-stream": STREAM_CHUNK_LIMIT_BYTES,
    "ping": RUN_BODY_LIMIT_BYTES,
}


class _Call(NamedTuple):
    """One request of a worker."""

    endpoint: str
    action: str
    worker_id: str
    job_id: str
    scope: Scope

    @property
    def query(self) -> bytes:
        """The query string."""
        query: bytes = self.scope["query_string"]
        return query


class WorkerWire:
    """Serves the worker routes of every endpoint."""

    def __init__(self, dispatcher: Dispatcher, defaults: PlatformDefaults, *, token: str | None = None) -> None:
        """Serve workers, those that send the token where there is one."""
        self._dispatcher = dispatcher
        self._token = None if token is None else token.encode()
        self._platform = dispatcher.platform
        self._defaults = defaults
        self._delivering: Counter[str] = Counter()
        self._polls: dict[str, Callable[[_Call], Reply | None]] = {
            "job-take": self._take,
            "job-take-batch": self._take_batch,
            "job-stop": self._stop,
        }
        """Each says what there is for the worker; None when it has to wait."""
        self._posts: dict[str, Callable[[_Call, bytes], Reply]] = {
            "job-done": self._done,
            "job-stream": self._partial,
            "ping": self._ping,
        }

    def at_once(self, scope: Scope, body: bytes) -> Reply | None:
        """Return the answer to a request that came in one read; None when it takes `serve`, and nothing was done."""
        call = self._read_call(scope)
        if call is None or not self._is_admitted(call) or self._dispatcher.is_frozen(call.worker_id):
            return None
        self._dispatcher.connections.note(call.worker_id, scope)
        post = self._posts.get(call.action)
        if post is not None:
            return post(call, body)
        return self._polls[call.action](call) if self._can_take_at_once(call) else None

    def _can_take_at_once(self, call: _Call) -> bool:
        """Return True for a poll that there are jobs for, of a worker that is there.

        One that says that it has no job, and has one, may be sending its result meanwhile: that is for `serve` to see.
        """
        return (
            call.scope["method"] == "GET"
            and call.action in _TAKES
            and self._platform.has_waiting_jobs_for(call.endpoint, call.worker_id)
            and (_says_busy(call) or not self._platform.has_jobs(call.endpoint, call.worker_id))
            and not is_broken(call.scope)
        )

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve the request and return True, or return False when the path is not a worker's."""
        call = self._read_call(scope)
        if call is None:
            return False
        if not self._is_admitted(call):
            await send_body(send, 401, error_body(_STRANGER.report))
            return True
        if self._dispatcher.is_frozen(call.worker_id):  # sent just before it was stopped, and read just after
            await break_connection(scope)
            return True
        self._dispatcher.connections.note(call.worker_id, scope)
        post = self._posts.get(call.action)
        try:
            reply = await (self._hold(call, receive) if post is None else self._read_post(post, call, receive))
        except ClientGone:
            await break_connection(scope)  # whose end the server may not have seen yet: it would miss an answer
            return True
        await send_body(send, *reply)
        return True

    def _read_call(self, scope: Scope) -> _Call | None:
        parts = scope["path"].split("/")
        if len(parts) < 5 or (parts[3] not in self._posts and parts[3] not in self._polls):  # noqa: PLR2004
            return None
        return _Call(parts[2], parts[3], parts[4], parts[5] if len(parts) > 5 else "", scope)  # noqa: PLR2004

    def _is_admitted(self, call: _Call) -> bool:
        return self._token is None or _carries(call.query, self._token)

    def _take(self, call: _Call) -> Reply | None:
        jobs = self._take_jobs(call, limit=1)
        return Reply(200, encode_json(describe_for_worker(jobs[0]))) if jobs else None

    def _take_batch(self, call: _Call) -> Reply | None:
        jobs = self._take_jobs(call, limit=_batch_size(call.query))
        return Reply(200, encode_json([describe_for_worker(job) for job in jobs])) if jobs else None

    def _take_jobs(self, call: _Call, *, limit: int) -> Sequence[Job]:
        # A result that is still being read was not forgotten by its worker.
        is_busy = _says_busy(call) or call.worker_id in self._delivering
        jobs = self._dispatcher.take(call.endpoint, call.worker_id, limit=limit, job_in_progress=is_busy)
        if jobs:
            hand_outs = [HandOut(job.id, job.attempt) for job in jobs]
            if_unread(call.scope, lambda: self._dispatcher.put_back(call.endpoint, call.worker_id, hand_outs))
        return jobs

    def _stop(self, call: _Call) -> Reply | None:
        job_ids = self._dispatcher.apply(self._platform.stop_signals, call.endpoint, call.worker_id)
        return Reply(200, encode_json({"jobsToStop": job_ids})) if job_ids else None

    async def _hold(self, call: _Call, receive: Receive) -> Reply:
        """Return what there is for the worker, as soon as there is something while it still listens.

        Raises:
            ClientGone: The worker hung up; nothing was taken for it.
        """
        look = self._polls[call.action]
        if (await receive())["type"] == "http.disconnect" or is_broken(call.scope):
            raise ClientGone
        found = look(call)
        if found is not None:
            return found
        worker_id = call.worker_id
        loop = asyncio.get_running_loop()
        is_leaving = self._dispatcher.is_leaving(worker_id)
        end = loop.time() + (_LEAVING_HOLD_SECONDS if is_leaving else self._defaults.poll_hold)
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda _: self._dispatcher.wake_worker(worker_id))
        try:
            while found is None and loop.time() < end:
                await self._dispatcher.wait_for_worker(worker_id, seconds=end - loop.time())
                await asyncio.sleep(0)  # lets a hang-up of the same moment come first
                if gone.done() or is_broken(call.scope):
                    raise ClientGone
                found = look(call)
                if self._dispatcher.is_leaving(worker_id) and not is_leaving:
                    break
        finally:
            gone.cancel()
        return found or _NOTHING

    async def _read_post(self, post: Callable[[_Call, bytes], Reply], call: _Call, receive: Receive) -> Reply:
        try:
            with self._delivery(call.worker_id):
                body = await read_body(receive, limit_bytes=_BODY_LIMITS[call.action])
        except BodyTooLarge as exc:
            return self._refuse_result(call, exc)
        return post(call, body)

    def _done(self, call: _Call, body: bytes) -> Reply:
        try:
            self._check_result_size(call, len(body))
            result = _decode_object(body)
        except InputError as exc:
            return self._refuse_result(call, exc)
        if result.get("status") == "IN_PROGRESS":
            value = result.get("output")
            self._dispatcher.apply(self._platform.progress, call.endpoint, call.worker_id, call.job_id, value)
        else:
            self._dispatcher.finish(call.endpoint, call.worker_id, call.job_id, result, size_bytes=len(body))
        return _OK

    def _partial(self, call: _Call, body: bytes) -> Reply:
        try:
            chunk = _decode_object(body).get("output")
        except InputError as exc:
            return self._refuse_result(call, exc)
        whose = call.endpoint, call.worker_id, call.job_id
        self._dispatcher.apply(self._platform.partial, *whose, chunk, size_bytes=len(body))
        return _OK

    def _ping(self, call: _Call, body: bytes) -> Reply:
        if b"status=unhealthy" in call.query:
            facts = {name: values[0] for name, values in parse_qs(call.query.decode(errors="replace")).items()}
            self._dispatcher.worker_unhealthy(
                call.endpoint, call.worker_id, check=facts.get("check", ""), reason=facts.get("reason", "")
            )
        return _OK

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

    def _refuse_result(self, call: _Call, exc: InputError) -> Reply:
        """Fail the job in the worker's name: the SDK sends a refused result neither again nor differently."""
        result = {"error": _result_refused(exc).to_json()}
        if call.action != "ping":
            self._dispatcher.finish(call.endpoint, call.worker_id, call.job_id, result, size_bytes=0)
        status = self._defaults.oversize_status if isinstance(exc, BodyTooLarge) else 400
        return Reply(status, error_body(exc.report, call.job_id))


def describe_for_worker(job: Job) -> dict[str, Any]:
    """Return the job as a worker gets it."""
    described = {**job.extra, "id": job.id, "input": job.input}
    if job.webhook:
        described["webhook"] = job.webhook
    return described


def _carries(query: bytes, token: bytes) -> bool:
    given = query.rpartition(b"token=")[2].partition(b"&")[0]
    return hmac.compare_digest(given, token)


def _says_busy(call: _Call) -> bool:
    return b"job_in_progress=1" in call.query


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
