"""Requests to load-balanced endpoints, from asyncio code: any path, any method, answers as they are.

`Settings` decides where the endpoint is: on `flashkit dev`, or on Runpod at an address of its own. Nothing is
repeated: there is no queue that would know a request again. aiohttp's exceptions end here, as `PlatformError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from flashkit.errors import ErrorReport, FlashkitError, HandlerError, InputError, PlatformError, RateLimited
from flashkit.settings import Settings
from flashkit.telemetry.propagation import TRACEPARENT
from flashkit.telemetry.spans import outgoing
from flashkit.transport import FOREIGN_ERRORS, describe_foreign_error, encode_body

EVENT_STREAM: Final = "text/event-stream"
JSON_LINES: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One whole answer of a load-balanced endpoint."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    @property
    def worker_id(self) -> str | None:
        """The worker that answered; send it back as `worker=` to reach the same one."""
        return self.headers.get("X-Runpod-Worker-Id")

    def json(self) -> Any:
        """Return the value of a JSON body.

        Raises:
            PlatformError: It is not JSON.
        """
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as exc:
            raise PlatformError(f"the answer {self.status} is not JSON: {self.text[:200]!r}") from exc

    def raise_for_status(self) -> Self:
        """Return the answer if it is none of an error.

        Raises:
            InputError: 400 to 499: the request was wrong.
            RateLimited: 429.
            HandlerError: 500: the handler failed.
            PlatformError: Any other from 501 on: the platform, or the way to it.
        """
        if self.status < 400:  # noqa: PLR2004
            return self
        raise _family_of(self.status).from_report(self._report())

    def _report(self) -> ErrorReport:
        try:
            error = orjson.loads(self.body)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            error = None
        if isinstance(error, Mapping) and "message" in error:
            return ErrorReport.from_dict(error)
        family = _family_of(self.status)
        said = error if isinstance(error, str) else self.text[:200]
        return ErrorReport(
            code=family.code,
            type=family.__name__,
            message=f"the endpoint answered {self.status}" + (f": {said}" if said else ""),
            details={"http_status": self.status},
        )


def _family_of(status: int) -> type[FlashkitError]:
    if status == 429:  # noqa: PLR2004
        return RateLimited
    if status < 500:  # noqa: PLR2004
        return InputError
    return HandlerError if status == 500 else PlatformError  # noqa: PLR2004


class HttpClient:
    """Requests to one load-balanced endpoint. Use `async with HttpClient("api") as api:`, or call `close()`."""

    def __init__(self, name: str, settings: Settings | None = None, *, timeout_seconds: float = 330.0) -> None:
        self.name = name
        self._settings = settings or Settings.from_environment()
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        worker: str | None = None,
    ) -> HttpAnswer:
        """Send a request and return the whole answer, whatever its status.

        Args:
            method: GET, POST and so on.
            path: Path below the endpoint, with a slash in front.
            json: Body: plain values, pydantic models.
            params: Query parameters.
            headers: More headers.
            worker: Worker to prefer, by its id; `"strict ID"` to accept no other.

        Raises:
            PlatformError: The endpoint could not be reached, or the connection broke.
        """
        async with self._send(method, path, json=json, params=params, headers=headers, worker=worker) as response:
            return HttpAnswer(response.status, response.headers, await response.read())

    async def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        worker: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Send a request and yield what a streaming route yields, as it comes.

        Of server-sent events their data, of lines each line, both read as JSON; anything else as text.

        Raises:
            InputError, HandlerError: The request or the handler failed, perhaps in the middle.
            PlatformError: The endpoint could not be reached, or the connection broke.
        """
        headers = {"Accept": JSON_LINES, **(headers or {})}
        async with self._send(method, path, json=json, params=params, headers=headers, worker=worker) as response:
            if response.status >= 400:  # noqa: PLR2004
                HttpAnswer(response.status, response.headers, await response.read()).raise_for_status()
            if response.content_type == JSON_LINES:
                async for line in response.content:
                    yield _read_line(line)
            elif response.content_type == EVENT_STREAM:
                async for data in _event_data(response.content):
                    yield data
            else:
                async for chunk in response.content.iter_any():
                    yield chunk.decode(errors="replace")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        *,
        json: Any,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        worker: str | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if not path.startswith("/"):
            raise InputError(f"{path!r} is not a path", hint=f'write it with a slash in front: "/{path}"')
        url = self._settings.load_balanced_url(self.name) + path
        sent = dict(headers or {})
        if worker is not None:
            sent["X-Runpod-Worker-Id"] = worker
        if (context := outgoing()) is not None:
            sent.setdefault(TRACEPARENT, context.to_header())
        body = None
        if json is not None:
            body = encode_body(json)
            sent.setdefault("Content-Type", "application/json")
        try:
            async with self._open_session().request(
                method, url, data=body, params=params, headers=sent, allow_redirects=False
            ) as response:
                yield response
        except FOREIGN_ERRORS as exc:
            raise describe_foreign_error(exc, url, self._timeout_seconds) from exc

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = self._settings.api_key
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            timeout = aiohttp.ClientTimeout(total=self._timeout_seconds)
            self._session = aiohttp.ClientSession(headers=headers, timeout=timeout)
        return self._session


def _read_line(line: bytes) -> Any:
    value = orjson.loads(line)
    if isinstance(value, dict) and value.keys() == {"error"} and isinstance(value["error"], dict):
        raise HandlerError.from_report(ErrorReport.from_dict(value["error"]))
    return value


async def _event_data(lines: aiohttp.StreamReader) -> AsyncIterator[Any]:
    """Yield the data of server-sent events."""
    kind, data = b"", b""
    async for line in lines:
        name, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data += (b"\n" if data else b"") + value
        elif name == b"event":
            kind = value
        elif not name and data:
            yield _read_event(kind, data)
            kind, data = b"", b""


def _read_event(kind: bytes, data: bytes) -> Any:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")
    if kind == b"error" and isinstance(value, dict):
        raise HandlerError.from_report(ErrorReport.from_dict(value.get("error", value)))
    return value
