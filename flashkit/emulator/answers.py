"""What the platform answers over HTTP: a job as clients see it, and the one error envelope.

Every error is `{"error": {...}}` with the report's fields inside, which OpenAI's clients read as well as
ours. Which HTTP status goes with which error is decided here and nowhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from flashkit.emulator.bodies import BodyTooLarge, encode_json
from flashkit.emulator.platform import Job, Worker
from flashkit.emulator.rate_limits import RateLimited
from flashkit.errors import ErrorReport, FlashkitError, InputError, JobNotFound, PlatformError
from flashkit.protocol import PlatformDefaults


class Unauthorized(PlatformError):
    """The request carries no key, or a wrong one."""

    code = "unauthorized"


class ForeignOrigin(PlatformError):
    """A browser sends the request for a page that is not of this machine."""

    code = "origin_refused"


class ForeignHost(PlatformError):
    """The request was sent to a name that is not this machine's."""

    code = "host_refused"


class RouteUnknown(InputError):
    """There is nothing under this path, or not for this method."""

    code = "route_unknown"


def describe_job(job: Job) -> dict[str, Any]:
    """Return the job as `/status`, `/runsync` and webhooks show it; unknown parts are left out."""
    described: dict[str, Any] = {"id": job.id, "status": job.status.value}
    optional = {
        "delayTime": job.delay_ms,
        "executionTime": job.execution_ms,
        "workerId": job.worker_id,
        "error": job.error,
    }
    described.update((key, value) for key, value in optional.items() if value is not None)
    if job.has_output:
        described["output"] = job.output
    elif job.progress is not None and not job.status.is_final:
        described["output"] = job.progress
    return described


def summarise_job(job: Job) -> dict[str, Any]:
    """Return the job as lists show it: without its output, which may be large."""
    return {key: value for key, value in describe_job(job).items() if key != "output"}


def describe_worker(worker: Worker) -> dict[str, Any]:
    """Return a worker as `/_/state` shows it."""
    described = {
        "id": worker.id,
        "state": worker.state.value,
        "jobs": list(worker.jobs),
        "jobsDone": worker.jobs_done,
        "requests": len(worker.requests),
    }
    return {**described, "phase": worker.phase} if worker.phase else described


def http_status(error: FlashkitError, defaults: PlatformDefaults) -> int:
    """Return the HTTP status for an error that a request caused."""
    if isinstance(error, BodyTooLarge):
        return defaults.oversize_status
    if isinstance(error, (JobNotFound, RouteUnknown)):
        return 404
    if isinstance(error, Unauthorized):
        return 401
    if isinstance(error, ForeignOrigin | ForeignHost):
        return 403
    if isinstance(error, RateLimited):
        return 429
    return 400 if isinstance(error, InputError) else 500


def error_body(report: ErrorReport, request_id: str | None = None) -> bytes:
    """Return the envelope; a report without an id gets this one, or a new one."""
    request_id = report.request_id or request_id or f"req-{uuid.uuid4().hex[:16]}"
    return encode_json({"error": replace(report, request_id=request_id).to_dict()})


def json_response(value: Any, *, status: int = 200) -> Response:
    """Return a response with this JSON."""
    return Response(encode_json(value), status_code=status, media_type="application/json")


def error_response(
    report: ErrorReport,
    *,
    status: int,
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a response with the error envelope."""
    body = error_body(report, request_id)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def internal_error() -> ErrorReport:
    """Return the report for a fault of the emulator itself: the details are in its log only."""
    return ErrorReport(
        code="internal_error",
        type="PlatformError",
        message="the local platform failed while it handled this request",
        hint="its log has the traceback; please report it",
    )


async def send_body(send: Send, status: int, body: bytes) -> None:
    """Send JSON, or nothing at all, as a whole response without building a response object."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))] if body else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def deny(scope: Scope, receive: Receive, send: Send, status: int, body: bytes) -> None:
    """Answer a request with this JSON and nothing done for it; a WebSocket before it is open."""
    if scope["type"] != "websocket":
        await send_body(send, status, body)
        return
    socket = WebSocket(scope, receive, send)
    await socket.receive()
    await socket.send_denial_response(Response(body, status, media_type="application/json"))
