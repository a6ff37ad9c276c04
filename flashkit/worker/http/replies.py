"""What a route sends back: JSON, a stream of it, an error in the envelope, or a response of the user's own making.

A streaming route's values go out as server-sent events (`data: <JSON>`), or as lines of JSON to a client whose
`Accept` names `application/x-ndjson`. An error in the middle is the last event, named `error`, or the last line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.types import Message, Send

from flashkit.errors import ErrorReport, InputError

JSON: Final = b"application/json"
EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"
JSON_LINES: Final = b"application/x-ndjson"
REQUEST_ID: Final = "x-request-id"


class Reply:
    """One response; once it is closed, what a handler still sends goes nowhere."""

    def __init__(self, send: Send, *, request_id: str, is_lines: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._is_lines = is_lines
        self.has_begun = False
        self._is_stream = False
        self._is_closed = False

    def close(self) -> None:
        """Let nothing through any more."""
        self._is_closed = True

    async def send(self, message: Message) -> None:
        """Send a message of a response of the user's own making."""
        if self._is_closed:
            return
        self.has_begun = True
        await self._send(message)

    async def send_json(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response."""
        more = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        length = b"%d" % len(body)
        await self._begin(status, [(b"content-type", JSON), (b"content-length", length), *more])
        await self.send({"type": "http.response.body", "body": body})

    async def send_chunk(self, text: bytes, *, event: bytes = b"") -> None:
        """Send one value of a stream, as JSON text."""
        if not self.has_begun:
            kind = JSON_LINES if self._is_lines else EVENT_STREAM
            await self._begin(200, [(b"content-type", kind), (b"cache-control", b"no-cache")])
            self._is_stream = True
        name = b"event: " + event + b"\n" if event else b""
        body = text + b"\n" if self._is_lines else name + b"data: " + text + b"\n\n"
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self) -> None:
        """Send the end of a stream, and its head when nothing was yielded."""
        if not self.has_begun:
            kind = JSON_LINES if self._is_lines else EVENT_STREAM
            await self._begin(200, [(b"content-type", kind)])
        await self.send({"type": "http.response.body", "body": b""})

    async def send_error(self, report: ErrorReport, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send the envelope as the response, or as a stream's last value; a half-sent response is left so."""
        body = json.dumps({"error": report.to_dict()}, ensure_ascii=False, default=str).encode(errors="replace")
        if not self.has_begun:
            await self.send_json(status, body, headers)
        elif self._is_stream:
            await self.send_chunk(body, event=b"error")
            await self.end_stream()

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        named = [*headers, (REQUEST_ID.encode(), self._request_id.encode("latin-1", errors="replace"))]
        await self.send({"type": "http.response.start", "status": status, "headers": named})


def status_of(exc: BaseException) -> int:
    """Return the HTTP status for what a handler raised."""
    if isinstance(exc, HTTPException):
        return exc.status_code
    return 400 if isinstance(exc, InputError) else 500


def describe_http_exception(exc: HTTPException, request_id: str) -> ErrorReport:
    """Return the report for a status that user code, or the router, asked for."""
    detail: Any = exc.detail
    message = detail if isinstance(detail, str) else json.dumps(detail, default=str)
    return ErrorReport(code="http_error", message=message, type="HTTPException", request_id=request_id)
