"""The management API over HTTP: waits out rate limits, repeats what may be repeated, and says what went wrong.

Reading, changing to given values and deleting may be repeated. Making something may not: where the connection breaks
before the answer comes, nobody knows whether it was made, and `Uncertain` leaves it to the caller to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import aiohttp
import orjson

from flashkit.deploy.confidential import scrub
from flashkit.deploy.credentials import AccountKey, check_address
from flashkit.deploy.failures import DeployRefused, DeployUnreachable, KeyRefused, NotThere
from flashkit.errors import FlashkitError, PlatformError, RateLimited
from flashkit.transport import FOREIGN_ERRORS, RetryPolicy

RUNPOD_ROOT: Final = "https://api.runpod.io"
TIMEOUT_SECONDS: Final = 30.0
DEFAULT_PATIENCE_SECONDS: Final = 120.0
"""How long rate limits are waited for, all waits of one command together."""
_MOST_PAGES: Final = 1_000
_USUAL_WAIT_SECONDS: Final = 5.0
"""For a 429 that names no time."""
_NEVER_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
_TOO_MANY: Final = 429
_NOT_FOUND: Final = 404
_SERVER_ERRORS: Final = 500
_LINE_LIMIT_BYTES: Final = 1024 * 1024


class Uncertain(Exception):
    """Something may or may not have been made; `cause` is what happened."""

    def __init__(self, cause: FlashkitError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    data: Any


@dataclass(slots=True)
class Traffic:
    """What a command asked of the platform."""

    reads: int = 0
    writes: list[str] = field(default_factory=list)
    """Method and path of each request that changes something."""
    waited_seconds: float = 0.0
    """For rate limits."""


Say = Callable[[str], None]
Sleep = Callable[[float], Awaitable[None]]


class ManagementApi:
    """One account's management API, until the end of the block.

    Args:
        root: Address above `/v2` and `/graphql`.
        key: The account key; a local platform needs none.
        patience_seconds: How long rate limits are waited for in all.
        say: Told in words of waits and repeats.
        sleep: Waits.
    """

    def __init__(
        self,
        root: str,
        key: AccountKey | None,
        *,
        patience_seconds: float = DEFAULT_PATIENCE_SECONDS,
        say: Say = lambda text: None,
        sleep: Sleep = asyncio.sleep,
        retry: RetryPolicy = RetryPolicy(first_delay=0.5),  # noqa: B008 - frozen
    ) -> None:
        check_address(root, key)
        self.root = root.rstrip("/")
        self.traffic = Traffic()
        self.confidential: set[str] = set() if key is None else {key.value}
        """What must not be in any message."""
        self._key = key
        self._patience_seconds = patience_seconds
        self._say = say
        self._sleep = sleep
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.value}"
        self._session = aiohttp.ClientSession(headers=headers, read_bufsize=_LINE_LIMIT_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def wait(self, seconds: float) -> None:
        """Wait as it was asked to when it was made."""
        await self._sleep(seconds)

    # ------------------------------------------------------------------ requests

    async def get(self, path: str, **query: str) -> Mapping[str, Any]:
        """Return the JSON object below `/v2`.

        Raises:
            NotThere: There is none.
        """
        self.traffic.reads += 1
        answer = await self._repeat("GET", f"/v2{path}", query=query)
        return _object(answer.data, path)

    async def list(self, path: str, key: str) -> list[Mapping[str, Any]]:
        """Return everything in a list, page by page where the platform has pages."""
        items: list[Mapping[str, Any]] = []
        cursor: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            data = await self.get(path, **cursor)
            page = data.get(key)
            if not isinstance(page, list):
                raise PlatformError(f"the platform's answer to GET {path} has no list of {key}")
            items += page
            pages = data.get("pagination") or {}
            if not pages.get("hasNextPage"):
                break
            cursor = {"cursor": str(pages.get("nextCursor"))}
        return items

    async def create(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make something and return it.

        Raises:
            Uncertain: The answer did not come: look before you make it again.
        """
        self.traffic.writes.append(f"POST /v2{path}")
        return _object((await self._once("POST", f"/v2{path}", body)).data, path)

    async def change(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set what the body names, and return the whole.

        Raises:
            NotThere: There is nothing to change.
        """
        self.traffic.writes.append(f"PATCH /v2{path}")
        return _object((await self._repeat("PATCH", f"/v2{path}", body)).data, path)

    async def remove(self, path: str) -> None:
        """Delete something; what is not there is deleted already."""
        self.traffic.writes.append(f"DELETE /v2{path}")
        try:
            await self._repeat("DELETE", f"/v2{path}")
        except NotThere:
            return

    async def query(self, document: str, variables: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the data of a GraphQL query."""
        self.traffic.reads += 1
        return _graphql_data(await self._repeat("POST", "/graphql", _operation(document, variables)), self.confidential)

    async def mutate(self, document: str, variables: Mapping[str, Any], *, is_repeatable: bool) -> Mapping[str, Any]:
        """Return the data of a GraphQL mutation.

        Raises:
            Uncertain: The answer did not come, and it may not be sent again.
        """
        self.traffic.writes.append("POST /graphql")
        send = self._repeat if is_repeatable else self._once
        return _graphql_data(await send("POST", "/graphql", _operation(document, variables)), self.confidential)

    async def events(self, path: str, **query: str) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield the JSON of a stream of server-sent events, until it ends."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS)
        url = f"{self.root}/v2{path}"
        try:
            async with self._open().get(
                url, params=query, timeout=timeout, headers={"Accept": "text/event-stream"}
            ) as response:
                if response.status >= 400:  # noqa: PLR2004
                    answer = Answer(response.status, response.headers, _decode(await response.read()))
                    self._refuse("GET", f"/v2{path}", answer)
                async for line in response.content:
                    if line.startswith(b"data:"):
                        yield orjson.loads(line.removeprefix(b"data:"))
        except (*FOREIGN_ERRORS, ValueError) as exc:
            raise self._unreachable(exc) from exc

    # ------------------------------------------------------------------ sending

    async def _repeat(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request that may be sent again, until an answer comes or patience ends."""
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(method, path, body, query)
            except Uncertain as exc:
                delay = self._retry.delay(tries, None)
                if delay is None:
                    raise exc.cause from exc
                self._say(f"{exc.cause.report.message}; trying again in {delay:.1f} s")
                await self._sleep(delay)

    async def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, again only where the platform did certainly not act on it."""
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._send(method, path, body, query)
            except _NEVER_SENT as exc:
                delay = None if isinstance(exc, aiohttp.InvalidURL) else self._retry.delay(tries, None)
                if delay is None:
                    raise self._unreachable(exc) from exc
                self._say(f"{self.root} cannot be reached; trying again in {delay:.1f} s")
                await self._sleep(delay)
                continue
            except FOREIGN_ERRORS as exc:
                raise Uncertain(self._unreachable(exc)) from exc
            if answer.status != _TOO_MANY:
                break
            await self._wait_for_quota(answer)
        if answer.status >= _SERVER_ERRORS:
            raise Uncertain(self._refusal(method, path, answer))
        if answer.status >= 400:  # noqa: PLR2004
            self._refuse(method, path, answer)
        return answer

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> Answer:
        data = None if body is None else orjson.dumps(body)
        async with self._open().request(
            method,
            f"{self.root}{path}",
            data=data,
            params=query,
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            allow_redirects=False,
        ) as response:
            return Answer(response.status, response.headers, _decode(await response.read()))

    async def _wait_for_quota(self, answer: Answer) -> None:
        seconds = _retry_after(answer.headers.get("Retry-After"))
        limits = answer.headers.get("RateLimit", "")
        told = f" ({limits})" if limits else ""
        left = self._patience_seconds - self.traffic.waited_seconds
        if seconds > left:
            raise RateLimited(
                f"the platform takes no more requests for {seconds:g} s{told}",
                hint=f"try again then, or allow more waiting: --patience {seconds + self.traffic.waited_seconds:.0f}",
                details={"retry_after": seconds, "waited": self.traffic.waited_seconds, "rate_limit": limits},
            )
        self._say(f"rate limit: waiting {seconds:g} s{told}")
        self.traffic.waited_seconds += seconds
        await self._sleep(seconds)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the API is used outside its block")
        return self._session

    # ------------------------------------------------------------------ what went wrong

    def _refuse(self, method: str, path: str, answer: Answer) -> NoReturn:
        if answer.status == _NOT_FOUND:
            raise NotThere(
                f"{method} {path} was answered 404: {self._words(answer)}",
                hint="somebody may have deleted it: run the command again; or the address is not that of the API",
            )
        if answer.status in (401, 403):
            raise self._key_refused(answer)
        raise self._refusal(method, path, answer)

    def _key_refused(self, answer: Answer) -> KeyRefused:
        source = "no key was sent" if self._key is None else f"the key is from {self._key.source}"
        if answer.status == 401:  # noqa: PLR2004
            return KeyRefused(
                f"{self.root} does not accept the API key (401): {source}",
                hint="set RUNPOD_API_KEY to a key of this account; it goes before ~/.runpod/config.toml",
                details={"http_status": 401},
            )
        return KeyRefused(
            f"the API key may not do this (403): {self._words(answer)}; {source}",
            hint="give the key read and write access to Serverless and network volumes in Runpod's console",
            details={"http_status": 403},
        )

    def _refusal(self, method: str, path: str, answer: Answer) -> DeployRefused:
        data = answer.data if isinstance(answer.data, Mapping) else {}
        errors = [scrub(str(item), self.confidential) for item in data.get("errors") or () if isinstance(item, str)]
        found = f": {'; '.join(errors[:5])}" if errors else ""
        return DeployRefused(
            f"{method} {path} was answered {answer.status}: {self._words(answer)}{found}",
            details={"http_status": answer.status, "detail": self._words(answer), "errors": errors},
        )

    def _words(self, answer: Answer) -> str:
        data = answer.data
        text = (data.get("detail") or data.get("title")) if isinstance(data, Mapping) else data
        return scrub(str(text or "without a word"), self.confidential)[:300]

    def _unreachable(self, exc: BaseException) -> DeployUnreachable:
        if isinstance(exc, TimeoutError):
            message = f"{self.root} did not answer within {TIMEOUT_SECONDS:g} s"
        elif isinstance(exc, _NEVER_SENT):
            message = f"{self.root} cannot be reached: {exc}"
        else:
            message = f"the connection to {self.root} broke: {str(exc) or type(exc).__name__}"
        return DeployUnreachable(
            scrub(message, self.confidential),
            hint="look at the network and run the same command again: it goes on where it stopped",
        )


def _operation(document: str, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"query": document, "variables": dict(variables or {})}


def _graphql_data(answer: Answer, confidential: set[str]) -> Mapping[str, Any]:
    data = _object(answer.data, "/graphql")
    if errors := data.get("errors"):
        words = "; ".join(str(item.get("message", item)) if isinstance(item, dict) else str(item) for item in errors)
        words = scrub(words, confidential)
        raise DeployRefused(f"GraphQL refused the request: {words[:300]}", details={"detail": words, "errors": []})
    return _object(data.get("data"), "/graphql")


def _object(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PlatformError(f"the platform's answer for {path} is not a JSON object")
    return value


def _decode(body: bytes) -> Any:
    try:
        return orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        return body.decode(errors="replace").strip()


def _retry_after(text: str | None) -> float:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return _USUAL_WAIT_SECONDS
