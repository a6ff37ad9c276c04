"""HTTP underneath the client: connections, retries, and what an answer or a broken connection means.

This is the seam to aiohttp: none of its exceptions leaves this module, a test proves it. A request is
repeated only where that cannot run a job twice: reads and cancellations after any broken connection,
submissions only when the platform refused them or was never reached.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from flashkit.errors import (
    ConfigurationError,
    ErrorReport,
    FlashkitError,
    InputError,
    JobNotFound,
    PlatformError,
    RateLimited,
)

_log = logging.getLogger(__name__)

CleanUp = Callable[[], Coroutine[Any, Any, None]]
"""Something to do when a caller is gone, such as cancelling its job."""

_KEEPALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn closes idle connections: a POST into a closing one would be lost."""
FOREIGN_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""What aiohttp and the operating system raise when a request fails."""
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_BAD_URL = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)
_GATEWAY_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a request is repeated; times in seconds."""

    tries: int = 5
    first_delay: float = 0.2
    longest_delay: float = 5.0
    longest_retry_after: float = 30.0
    """A platform that asks for more patience than this gets none: the error is raised at once."""

    def delay(self, tries_made: int, retry_after: float | None) -> float | None:
        """Return the seconds to wait before the next try, or None to give up."""
        if tries_made >= self.tries or (retry_after or 0.0) > self.longest_retry_after:
            return None
        delay = min(self.first_delay * 2 ** (tries_made - 1), self.longest_delay)
        return max(jitter(delay), retry_after or 0.0)


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the platform, as it may be repeated."""

    method: str
    url: str
    body: bytes | None = None
    hold_seconds: float = 0.0
    """How long the platform may take on purpose, on top of the client's timeout."""
    is_repeatable: bool = False
    """Sending it twice does no harm."""
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """An attempt that brought no answer to use, and whether the next one could."""

    error: FlashkitError
    is_worth_repeating: bool
    retry_after: float | None = None
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Success:
    data: Any


class Transport:
    """The connections, the retries, and the clean-up that outlives a cancelled call."""

    def __init__(self, api_key: str | None, timeout_seconds: float, retry: RetryPolicy) -> None:
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._registered: set[CleanUp] = set()

    async def send(self, request: Request) -> Any:
        """Return the JSON of the platform's answer, or raise the exception that says what to do."""
        tries = 0
        while True:
            tries += 1
            outcome = await self._attempt(request)
            if isinstance(outcome, _Success):
                return outcome.data
            delay = self._retry.delay(tries, outcome.retry_after) if outcome.is_worth_repeating else None
            if delay is None:
                raise outcome.error from outcome.cause
            _log.debug("try %d of %s %s failed, next in %.2f s", tries, request.method, request.url, delay)
            await asyncio.sleep(delay)

    def start(self, clean_up: Coroutine[Any, Any, None]) -> None:
        """Run a clean-up that the caller does not wait for; `close` does."""
        task = asyncio.ensure_future(clean_up)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def register(self, clean_up: CleanUp) -> None:
        """Have `close` run the clean-up, unless it is forgotten or run before.

        An async generator that its reader drops is finalized whenever the event loop gets to it, which
        may be after the client was closed: the jobs of such streams are known here.
        """
        self._registered.add(clean_up)

    def forget(self, clean_up: CleanUp) -> None:
        """Drop a clean-up that is not needed."""
        self._registered.discard(clean_up)

    def run_registered(self, clean_up: CleanUp) -> None:
        """Start the clean-up now, if it is still to be done."""
        if clean_up in self._registered:
            self._registered.remove(clean_up)
            self.start(clean_up())

    async def close(self) -> None:
        """Wait for the clean-ups, then close the connections."""
        for clean_up in tuple(self._registered):
            self.run_registered(clean_up)
        if self._background:
            await asyncio.wait(self._background)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _attempt(self, request: Request) -> _Success | _Failure:
        timeout = self._timeout_seconds + request.hold_seconds
        try:
            async with self._open_session().request(
                request.method,
                request.url,
                data=request.body,
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,
            ) as response:
                return _read_response(request, response.status, response.headers, await response.read())
        except FOREIGN_ERRORS as exc:
            is_safe = request.is_repeatable or isinstance(exc, _NEVER_SENT)
            return _Failure(
                describe_foreign_error(exc, request.url, timeout),
                is_worth_repeating=is_safe and not isinstance(exc, _BAD_URL),
                cause=exc,
            )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session


def _read_response(request: Request, status: int, headers: Mapping[str, str], body: bytes) -> _Success | _Failure:
    try:
        data = orjson.loads(body)
        is_json = True
    except orjson.JSONDecodeError:
        data, is_json = None, False
    if 200 <= status < 300 and is_json:  # noqa: PLR2004
        return _Success(data)
    text = body.decode(errors="replace").strip()
    retry_after = _read_retry_after(headers.get("Retry-After"))
    return _Failure(
        _error_for_response(request, status, data, text),
        is_worth_repeating=status == 429 or (request.is_repeatable and status in _GATEWAY_STATUSES),  # noqa: PLR2004
        retry_after=retry_after,
    )


def _error_for_response(request: Request, status: int, data: object, text: str) -> FlashkitError:
    family = _family_for_status(status, data, request.job_id)
    report = _read_envelope(data)
    if report is None:
        report = _describe_bare_status(family, request, status, text)
    return family.from_report(replace(report, request_id=report.request_id or request.job_id))


def _family_for_status(status: int, data: object, job_id: str | None) -> type[FlashkitError]:
    match status:
        case 400 | 409 | 413 | 422:
            return InputError
        case 401 | 403:
            return ConfigurationError
        case 404 if job_id and _envelope_code(data) in (None, JobNotFound.code):
            return JobNotFound
        case 404:
            return ConfigurationError
        case 429:
            return RateLimited
        case _:
            return PlatformError


def _envelope_code(data: object) -> str | None:
    error = data.get("error") if isinstance(data, Mapping) else None
    return str(error["code"]) if isinstance(error, Mapping) and "code" in error else None


def _read_envelope(data: object) -> ErrorReport | None:
    error = data.get("error") if isinstance(data, Mapping) else None
    return ErrorReport.from_dict(error) if isinstance(error, Mapping) and "message" in error else None


def _describe_bare_status(family: type[FlashkitError], request: Request, status: int, text: str) -> ErrorReport:
    """Say what an answer without our envelope means; Runpod and proxies send all kinds of bodies."""
    path = request.url.partition("?")[0]
    said = f": {text[:200]}" if text else ""
    message = f"{request.method} {path} answered {status}{said}"
    hint = None
    if family is JobNotFound:
        message = f"the platform does not know job {request.job_id}"
        hint = "it may have expired: results of /run are kept 30 minutes, of /runsync 1 minute"
    elif status in (401, 403):
        hint = "set RUNPOD_API_KEY to a key of this account that may use the endpoint"
    elif family is ConfigurationError:
        hint = "check the endpoint's name; FLASHKIT_ENDPOINTS maps names to platform ids"
    return ErrorReport(
        code=family.code, message=message, type=family.__name__, hint=hint, details={"http_status": status}
    )


def describe_foreign_error(exc: BaseException, url: str, timeout: float) -> FlashkitError:
    """Return our exception for one of aiohttp or of the operating system."""
    origin = "/".join(url.split("/")[:3])
    if isinstance(exc, _BAD_URL):
        return ConfigurationError(
            f"{url!r} is not a URL", hint="set RUNPOD_ENDPOINT_BASE_URL to http(s)://host[:port]/v2"
        )
    if isinstance(exc, _NEVER_SENT):
        return PlatformError(
            f"cannot connect to {origin}: {exc}", hint="is `flashkit dev` still running, or the network down?"
        )
    if isinstance(exc, TimeoutError):
        return PlatformError(f"{origin} did not answer within {timeout:g} s")
    return PlatformError(f"the connection to {origin} broke: {str(exc) or type(exc).__name__}")


def encode_body(value: Any) -> bytes:
    """Return a value as JSON; pydantic models are dumped without importing pydantic.

    Raises:
        InputError: It has no JSON form.
    """
    try:
        return orjson.dumps(value, default=_dump_model)
    except TypeError as exc:
        raise InputError(f"the input cannot be sent as JSON: {exc}", hint="send plain values") from exc


def _dump_model(value: object) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"a {type(value).__name__} is not a JSON value")
    return dump(mode="json")


def expect_object(answer: object) -> Mapping[str, Any]:
    """Return the answer if it is a JSON object, else raise `PlatformError`."""
    if not isinstance(answer, Mapping):
        raise PlatformError(f"the platform's answer is not a JSON object: {answer!r:.200}")
    return answer


def _read_retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def jitter(seconds: float) -> float:
    """Return about that many seconds, so that many clients do not ask in step."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, protects nothing
