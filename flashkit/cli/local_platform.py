"""What commands ask of a running `flashkit dev` beside Runpod's own API: its routes below `/_/`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from flashkit.catalog import nearest_names
from flashkit.emulator.events import (
    CapacityEvent,
    ClockEvent,
    Event,
    FaultEvent,
    JobEvent,
    LogLine,
    ReloadEvent,
    RequestEvent,
    WorkerEvent,
)
from flashkit.errors import ConfigurationError, ErrorReport, InputError
from flashkit.protocol import JobStatus
from flashkit.settings import RUNPOD_API_URL, Settings
from flashkit.transport import (
    FOREIGN_ERRORS,
    Request,
    RetryPolicy,
    Transport,
    describe_foreign_error,
    expect_object,
)

_TIMEOUT_SECONDS = 30.0
_LINE_LIMIT_BYTES = 4 * 1024 * 1024
"""Longest event in a stream: an error report may have a traceback and many lines."""
_EVENT_TYPES: Mapping[str, type[Any]] = {
    "job": JobEvent,
    "request": RequestEvent,
    "worker": WorkerEvent,
    "log": LogLine,
    "fault": FaultEvent,
    "capacity": CapacityEvent,
    "clock": ClockEvent,
    "reload": ReloadEvent,
}


def local_settings(url: str | None) -> Settings:
    """Return the settings with the address of a local platform: the one given, configured or found.

    Raises:
        ConfigurationError: There is none, or the one configured is Runpod.
    """
    from flashkit.cli.run import normalise_url

    settings = Settings.from_environment()
    base_url = normalise_url(url) if url else settings.base_url
    if base_url is None or base_url == RUNPOD_API_URL:
        raise ConfigurationError(
            "no flashkit dev runs in this folder or one above it",
            hint="start `flashkit dev app.py` here, or name its address with --url",
        )
    return Settings(base_url=base_url.rstrip("/"), api_key=settings.api_key)


class DevClient:
    """A platform that `flashkit dev` runs, until the end of the block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._root = settings.require_base_url().removesuffix("/v2")
        self._transport = Transport(settings.api_key, _TIMEOUT_SECONDS, RetryPolicy())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    async def get(self, path: str, **query: str | int | None) -> Mapping[str, Any]:
        """Return the JSON object of a route.

        Raises:
            FlashkitError: The platform cannot be reached, or refuses.
        """
        return expect_object(await self._transport.send(Request("GET", self._url(path, query), is_repeatable=True)))

    async def check_endpoint(self, name: str) -> None:
        """Refuse a name that no endpoint has, unless something happened to one that had it.

        Raises:
            InputError: It is unknown.
        """
        known = list(await self.get("/_/state"))
        if name in known or (await self.get("/_/events", endpoint=name, last=1))["events"]:
            return
        near = nearest_names(name, known, limit=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"there is no endpoint {name!r} on this platform",
            hint=f"{meant}known endpoints: {', '.join(sorted(known)) or 'none'}",
        )

    async def find_job(self, prefix: str | None, *, endpoint: str | None = None) -> Mapping[str, Any]:
        """Return the job whose id begins so, or the newest one.

        Raises:
            InputError: There is none, or several.
        """
        answer = await self.get("/_/jobs", endpoint=endpoint, search=prefix, limit=1000)
        jobs = [job for job in answer["jobs"] if _has_prefix(str(job["id"]), prefix or "")]
        if not jobs:
            wanted = f"job {prefix!r}" if prefix else "job"
            raise InputError(f"there is no {wanted} on this platform", hint="flashkit logs shows the jobs there were")
        if prefix and len(jobs) > 1:
            ids = ", ".join(str(job["id"]) for job in jobs[:5])
            raise InputError(f"{len(jobs)} jobs begin with {prefix!r}: {ids}", hint="give more of the id")
        found = jobs[0]
        return await self.get(f"/_/jobs/{quote(str(found['endpoint']))}/{quote(str(found['id']))}")

    async def follow(self, **query: str | int | None) -> AsyncGenerator[dict[str, Any], None]:
        """Yield events as they happen, until the platform stops.

        Raises:
            FlashkitError: The platform cannot be reached, or refuses.
        """
        url = self._url("/_/events", query)
        headers = {"Accept": "text/event-stream"}
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, read_bufsize=_LINE_LIMIT_BYTES) as session,
                session.get(url, headers=headers) as response,
            ):
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data: "):
                        yield orjson.loads(line.removeprefix(b"data: "))
        except (*FOREIGN_ERRORS, ValueError) as exc:  # an event over the limit is a ValueError
            raise describe_foreign_error(exc, url, _TIMEOUT_SECONDS) from exc

    def _url(self, path: str, query: Mapping[str, str | int | None]) -> str:
        given = {name: value for name, value in query.items() if value is not None}
        return f"{self._root}{path}{'?' if given else ''}{urlencode(given)}"


def _has_prefix(job_id: str, prefix: str) -> bool:
    """True when the id begins so, with or without the mark of `/runsync`."""
    return job_id.startswith(prefix) or job_id.removeprefix("sync-").startswith(prefix)


def read_event(data: Mapping[str, Any]) -> Event | None:
    """Return the event that the JSON describes, None for a type that a newer platform has."""
    kind = _EVENT_TYPES.get(str(data.get("type")))
    if kind is None:
        return None
    values: dict[str, Any] = {field.name: data.get(field.name) for field in fields(kind)}
    if kind is JobEvent:
        values["status"] = JobStatus(values["status"])
    if isinstance(values.get("error"), Mapping):
        values["error"] = ErrorReport.from_dict(values["error"])
    event: Event = kind(**values)
    return event
