"""The OpenAI relay: a request to `/v2/{endpoint}/openai/v1/…` becomes a job, its output the response.

The job's input is `{"openai_route": "/v1/…", "openai_input": <body>}`, as workers built for Runpod expect
it. A streaming handler yields ready-made SSE text, which goes to the client as it comes, byte for byte;
otherwise it yields or returns one object, which is the response. A client that hangs up cancels its job. A job that
failed because its engine refused the request is answered with the engine's own status and body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from flashkit.emulator.answers import error_body, send_body
from flashkit.emulator.bodies import ClientGone, decode_json, encode_json, read_body
from flashkit.emulator.dispatch import Dispatcher
from flashkit.emulator.platform import Job, JobRequest
from flashkit.errors import EngineDied, EngineRefusal, ErrorReport, InputError, JobNotFound
from flashkit.protocol import INPUT_ENVELOPE, RUNSYNC_BODY_LIMIT_BYTES, JobStatus
from flashkit.telemetry.propagation import TRACEPARENT, read_traceparent

FAILED_STATUS: Final = 502
"""Undocumented: the HTTP status for a job that failed or was cancelled."""
TIMED_OUT_STATUS: Final = 504
"""Undocumented: the HTTP status for a job that ran out of time."""
STOPPING_STATUS: Final = 503
ENGINE_DIED_STATUS: Final = 503
"""Undocumented: the HTTP status for a job whose engine died; OpenAI's clients send such a request again."""
_CALLERS_MISTAKES: Final = frozenset({InputError.code})
"""Codes of job errors that are the caller's to fix: HTTP 400."""
_REFUSALS: Final = range(400, 600)


async def submit_relayed(dispatcher: Dispatcher, request: Request, endpoint: str, path: str) -> RelayedJob:
    """Queue the job for one request to `/openai/{path}`, and return what answers the request.

    Raises:
        InputError: The body is not a JSON object.
    """
    body = await read_body(request.receive, limit_bytes=RUNSYNC_BODY_LIMIT_BYTES)
    job_input: dict[str, Any] = {"openai_route": f"/{path}"}
    if body:
        job_input["openai_input"] = _decode_object(body)
    if context := read_traceparent(request.headers.get(TRACEPARENT)):
        job_input[INPUT_ENVELOPE] = {TRACEPARENT: context.to_header()}
    job = dispatcher.submit(endpoint, JobRequest(input=job_input), sync=True, size_bytes=len(body))
    return RelayedJob(dispatcher, job, is_stream=job_input.get("openai_input", {}).get("stream") is True)


def _decode_object(body: bytes) -> dict[str, Any]:
    value = decode_json(body)
    if not isinstance(value, dict):
        raise InputError("the body is not a JSON object", hint="send what OpenAI's API documents for this route")
    return value


class RelayedJob:
    """The response to an OpenAI request, written while its job runs."""

    def __init__(self, dispatcher: Dispatcher, job: Job, *, is_stream: bool) -> None:
        self._dispatcher = dispatcher
        self._job = job
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, or cancel the job when the client hangs up before it has ended."""
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda _: self._dispatcher.wake_job(self._job.id))
        try:
            await (self._send_stream(gone, send) if self._is_stream else self._send_whole(gone, send))
        except ClientGone:
            self._cancel_job()
        finally:
            gone.cancel()

    async def _send_whole(self, gone: asyncio.Future[Any], send: Send) -> None:
        chunks: list[Any] = []
        while more := await self._next_chunks(gone):
            chunks += more
        if self._has_completed():
            await send_body(send, 200, encode_json(_single_output(self._job, chunks)))
        else:
            await self._send_failure(send)

    async def _send_stream(self, gone: asyncio.Future[Any], send: Send) -> None:
        # The first piece is waited for before anything is sent: an early failure gets its own HTTP status.
        chunks = await self._next_chunks(gone)
        if not chunks and not self._has_completed():
            await self._send_failure(send)
            return
        if not chunks:
            chunks = [_single_output(self._job, ())]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while chunks:
            body = b"".join(_event(chunk) for chunk in chunks)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            chunks = await self._next_chunks(gone)
        last = b"" if self._has_completed() else b"data: " + self._failure_body(self._failure()) + b"\n\n"
        await send({"type": "http.response.body", "body": last})

    async def _next_chunks(self, gone: asyncio.Future[Any]) -> Sequence[Any]:
        """Return the next partial outputs, or none when the job has ended.

        Raises:
            ClientGone: The client hung up.
        """
        while not gone.done():
            try:
                chunks = self._dispatcher.apply(self._dispatcher.platform.read_stream, self._job.endpoint, self._job.id)
            except JobNotFound:  # its time to live ran out: it has ended, and says so itself
                return ()
            if chunks or self._job.status.is_final or self._dispatcher.is_closing:
                return chunks
            await self._dispatcher.wait_for_job(self._job)
        raise ClientGone

    def _has_completed(self) -> bool:
        return self._job.status is JobStatus.COMPLETED

    async def _send_failure(self, send: Send) -> None:
        report = self._failure()
        await send_body(send, self._failure_status(report), self._failure_body(report))

    def _failure_status(self, report: ErrorReport) -> int:
        if self._job.status is JobStatus.TIMED_OUT:
            return TIMED_OUT_STATUS
        if not self._job.status.is_final:
            return STOPPING_STATUS
        if report.code == EngineDied.code:
            return ENGINE_DIED_STATUS
        status = report.details.get("status")
        if report.code == EngineRefusal.code and isinstance(status, int) and status in _REFUSALS:
            return status
        return 400 if report.code in _CALLERS_MISTAKES else FAILED_STATUS

    def _failure_body(self, report: ErrorReport) -> bytes:
        if report.code == EngineRefusal.code and isinstance(body := report.details.get("body"), Mapping):
            return encode_json(body)
        if report.code in (EngineRefusal.code, EngineDied.code):
            return encode_json(_openai_error(report, self._failure_status(report)))
        return error_body(report, self._job.id)

    def _failure(self) -> ErrorReport:
        job = self._job
        if job.error is not None:
            return ErrorReport.from_job_error(job.error, request_id=job.id)
        if job.status is JobStatus.CANCELLED:
            return ErrorReport("job_cancelled", "the job was cancelled", type="JobCancelled")
        return ErrorReport("platform_stopping", "the local platform is shutting down", type="PlatformError")

    def _cancel_job(self) -> None:
        with contextlib.suppress(JobNotFound):
            self._dispatcher.apply(self._dispatcher.platform.cancel, self._job.endpoint, self._job.id)


def _openai_error(report: ErrorReport, status: int) -> dict[str, Any]:
    """Return an engine's failure as OpenAI's errors look."""
    return {"error": {"message": report.message, "type": report.type, "param": None, "code": status}}


def _single_output(job: Job, chunks: Sequence[Any]) -> Any:
    """Return the one object of a response: the result, or what was yielded where that is all there is."""
    output = chunks if chunks and job.output in (None, []) else job.output
    return output[0] if isinstance(output, list) and len(output) == 1 else output


def _event(chunk: Any) -> bytes:
    """Return a piece of the event stream: text is sent as it came, anything else as one event."""
    return chunk.encode() if isinstance(chunk, str) else b"data: " + encode_json(chunk) + b"\n\n"
