"""Webhooks: the job's final state, posted to the URL that came with it.

A local platform runs jobs with made-up data, so by default it tells nobody outside this machine: a webhook
must point to a loopback address, redirects are not followed and proxies are not used. Names such as
`hooks.localhost` are looked up only when it is sent, so the address that comes out is looked at as well.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import logging
import reprlib
import socket
from collections.abc import Awaitable, Callable

import aiohttp
from yarl import URL

from flashkit.emulator.answers import describe_job
from flashkit.emulator.bodies import encode_json
from flashkit.emulator.platform import Job
from flashkit.errors import InputError
from flashkit.protocol import PlatformDefaults

_log = logging.getLogger(__name__)

_TRY_SECONDS = 10.0
_FIELD = {"field": "webhook"}


def check_webhook(url: object, *, allow_remote: bool) -> str:
    """Return the URL when a webhook may be sent there.

    Raises:
        InputError: It is no http or https URL, or points away from this machine.
    """
    if not isinstance(url, str):
        raise InputError(f"webhook={reprlib.repr(url)} is not a string", details=_FIELD)
    host = _host_of(url)
    if host is None:
        raise InputError(
            f"webhook={reprlib.repr(url)} is not an http or https URL",
            hint="write http://127.0.0.1:8000/path",
            details=_FIELD,
        )
    if not (allow_remote or is_loopback(host)):
        raise InputError(
            f"webhook={reprlib.repr(url)} points away from this machine, and a local platform sends nothing there",
            hint="use a http://127.0.0.1 URL, or start the emulator with allow_remote_webhooks=True",
            details=_FIELD,
        )
    return url


def _host_of(url: str) -> str | None:
    """Return the host as the client that will send it reads it."""
    try:
        parts = URL(url)
    except ValueError:
        return None
    return parts.host if parts.scheme in ("http", "https") else None


def without_secrets(url: str) -> str:
    """Return a webhook's URL as it may be logged: without a user, a password and a query."""
    return str(URL(url).with_user(None).with_query(None).with_fragment(None))


def is_loopback(host: str) -> bool:
    """Return whether the host is this machine by its name or number; no name is looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class WebhookSender:
    """Posts webhooks in the background, with the retries that the platform documents."""

    def __init__(
        self,
        defaults: PlatformDefaults,
        *,
        allow_remote: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._defaults = defaults
        self._allow_remote = allow_remote
        self._sleep = sleep
        self._posting = 0
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_posting(self) -> bool:
        """True while some receiver is being waited for."""
        return self._posting > 0

    def send(self, job: Job) -> None:
        """Post the job as it is now; the answer is waited for elsewhere."""
        if job.webhook is None:
            return
        deliver = self._deliver(job.webhook, encode_json(describe_job(job)), job.id)
        task = asyncio.get_running_loop().create_task(deliver, name=f"webhook of {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what has not been delivered yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _deliver(self, url: str, body: bytes, job_id: str) -> None:
        for attempt in range(1, self._defaults.webhook_attempts + 1):
            if attempt > 1:
                await self._sleep(self._defaults.webhook_delay)
            self._posting += 1
            try:
                answer = await self._post(url, body)
            finally:
                self._posting -= 1
            if answer == "200":
                return
            _log.warning("webhook of job %s, try %d: %s answered %s", job_id, attempt, without_secrets(url), answer)

    async def _post(self, url: str, body: bytes) -> str:
        """Return the status of the answer as text, or what went wrong instead of one."""
        if self._session is None:
            connector = aiohttp.TCPConnector(socket_factory=None if self._allow_remote else _loopback_socket)
            timeout = aiohttp.ClientTimeout(total=_TRY_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        headers = {"Content-Type": "application/json"}
        data = io.BytesIO(body)  # sent in pieces, while plain bytes would go in one
        try:
            async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as answer:
                return str(answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return f"nothing: {exc!r}"


def _loopback_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for an address of this machine.

    Raises:
        OSError: A name was found to lead elsewhere.
    """
    family, kind, protocol, _, target = address
    if not is_loopback(str(target[0])):
        raise OSError(f"{target[0]} is not this machine")
    return socket.socket(family, kind, protocol)
