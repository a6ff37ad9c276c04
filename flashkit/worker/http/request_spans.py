"""Spans of requests to a load-balanced worker."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashkit.telemetry import Op, enter_job, recorder
from flashkit.telemetry.propagation import TRACEPARENT

_FIRST_FAILURE = 500


async def answer_seen(app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, endpoint: str) -> None:
    """Answer a request, with a span around it where somebody wants spans."""
    if recorder() is None:
        await app(scope, receive, send)
        return
    headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _LOOKED_AT}
    method, path = scope["method"], scope["path"]
    attributes = {
        "flashkit.endpoint.name": endpoint,
        "flashkit.job.id": headers.get(b"x-request-id", ""),
        "http.request.method": method,
        "url.path": path,
    }
    traceparent = headers.get(TRACEPARENT.encode())
    with enter_job(Op.REQUEST, f"{method} {path}", attributes, job_id=None, traceparent=traceparent) as span:

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set("http.response.status_code", message["status"])
                if message["status"] >= _FIRST_FAILURE:
                    span.fail(f"HTTP {message['status']}")
                    span.set("error.type", str(message["status"]))
            await send(message)

        await app(scope, receive, send_seen)


_LOOKED_AT = (TRACEPARENT.encode(), b"x-request-id")
