"""Recorded traffic: what was submitted and when, as a file of JSON lines that can be played again.

A line is `{"at": 1.25, "endpoint": "embed", "input": …, "policy": …}`: the seconds since the recording began, and
what a client sent. Webhooks and other fields are left out, as they name places and credentials of that day. A
body over the limit is kept as its size and digest, with a note; such a job is not played again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TextIO

import aiohttp
import orjson

from flashkit.emulator.bodies import encode_json
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.submissions import read_submission
from flashkit.errors import ConfigurationError, FlashkitError, InputError, PlatformError

BODY_LIMIT_BYTES: Final = 256 * 1024
"""Larger inputs are recorded by their digest."""

_log = logging.getLogger(__name__)

_LEFT_OUT: Final = "the input is larger than the limit of the recording and was left out"
_ANSWER_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Submission:
    """One submitted job."""

    at: float
    """Seconds since the recording began."""
    endpoint: str
    sync: bool
    request: JobRequest | None
    """None when its input was too large to be kept."""


class TrafficRecorder:
    """Writes a line for each job that is submitted.

    Args:
        path: A file that does not exist yet; only its owner may read it, as inputs may be private.
        now: The clock of the platform.
        body_limit_bytes: Larger inputs are recorded by their digest.
    """

    def __init__(self, path: Path, *, now: Callable[[], float], body_limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._path = path
        self._now = now
        self._body_limit_bytes = body_limit_bytes
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        """Begin the recording.

        Raises:
            ConfigurationError: The file exists or cannot be written.
        """
        try:
            self._path.touch(mode=0o600, exist_ok=False)
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        except FileExistsError as exc:
            raise ConfigurationError(
                f"traffic cannot be recorded to {self._path}: the file exists", hint="name another file, or remove it"
            ) from exc
        except OSError as exc:
            raise ConfigurationError(f"traffic cannot be recorded to {self._path}: {exc.strerror}") from exc
        self._begun_at = self._now()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the recording."""
        self._close()

    def note(self, endpoint: str, request: JobRequest, *, sync: bool) -> None:
        """Record a job; a file that cannot be written any more ends the recording, not the job."""
        if self._file is None:
            return
        line = {"at": round(self._now() - self._begun_at, 4), "endpoint": endpoint, "sync": sync}
        try:
            self._file.write(encode_json({**line, **self._describe(request)}).decode() + "\n")
        except OSError as exc:
            _log.warning("the recording in %s ends here: %s", self._path, exc)
            self._close()

    def _describe(self, request: JobRequest) -> dict[str, Any]:
        policy = describe_policy(request)
        described: dict[str, Any] = {"policy": policy} if policy else {}
        body = encode_json(request.input)
        if len(body) <= self._body_limit_bytes:
            return {"input": request.input, **described}
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        return {"bytes": len(body), "blake2b": digest, "note": _LEFT_OUT, **described}

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as exc:  # what was still buffered does not fit on the disk
                _log.warning("the recording in %s is not complete: %s", self._path, exc)


def describe_policy(request: JobRequest) -> dict[str, Any]:
    """Return the policy as a client sends it; what the request leaves to the endpoint is left out."""
    policy = {
        "executionTimeout": request.execution_timeout_ms,
        "ttl": request.ttl_ms,
        "lowPriority": request.low_priority or None,
    }
    return {key: value for key, value in policy.items() if value is not None}


def read_traffic(path: Path) -> Iterator[Submission]:
    """Yield what a recording has, in its order.

    Raises:
        InputError: The file cannot be read, or a line is something else; the message has its number.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_line(line, f"{path}:{number}")
    except OSError as exc:
        raise InputError(f"the recording {path} cannot be read: {exc.strerror}") from exc


def _read_line(line: bytes, where: str) -> Submission:
    try:
        data = orjson.loads(line)
        at, endpoint = float(data["at"]), data["endpoint"]
        if not isinstance(endpoint, str):
            raise TypeError("endpoint is no string")  # noqa: TRY301 - one answer to all that can be wrong
        request = None
        if "blake2b" not in data:
            body = encode_json({key: data[key] for key in ("input", "policy") if key in data})
            request = read_submission(body, allow_remote_webhooks=False)
        return Submission(at, endpoint, bool(data.get("sync")), request)
    except (ValueError, TypeError, KeyError, InputError) as exc:
        raise InputError(
            f"{where} is no line of a recording: {exc}", hint='lines look like {"at": 0.5, "endpoint": "…", "input": …}'
        ) from exc


@dataclass(slots=True)
class Replay:
    """What became of a replay."""

    submitted: int = 0
    left_out: int = 0
    """Jobs whose inputs the recording does not have."""
    refused: list[str] = field(default_factory=list)
    """Why the platform did not take a job."""


Submit = Callable[[Submission, JobRequest], Awaitable[None]]


async def replay(
    submissions: Iterable[Submission],
    submit: Submit,
    *,
    speed: float = 1.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Replay:
    """Submit the jobs again, with the same times between them.

    Args:
        submissions: What `read_traffic` yields.
        submit: Submits one job; see `HttpSubmitter`, or use `Emulator.submit`.
        speed: How many times as fast as it was recorded; `math.inf` waits for nothing.
        sleep: Of the clock that the times belong to: real time, or `emulator.clock.sleep`.

    Raises:
        InputError: The speed is not a positive number.
    """
    if not speed > 0:
        raise InputError(
            f"traffic cannot be replayed at speed={speed!r}", hint="1 is as recorded, 10 ten times as fast"
        )
    outcome = Replay()
    elapsed = 0.0
    async with asyncio.TaskGroup() as tasks:
        for submission in submissions:
            wait = (submission.at - elapsed) / speed
            if wait > 0:
                await sleep(wait)
                elapsed = submission.at
            if submission.request is None:
                outcome.left_out += 1
            else:
                tasks.create_task(_submit_one(submit, submission, submission.request, outcome))
    return outcome


async def _submit_one(submit: Submit, submission: Submission, request: JobRequest, outcome: Replay) -> None:
    try:
        await submit(submission, request)
        outcome.submitted += 1
    except FlashkitError as exc:
        outcome.refused.append(f"{submission.endpoint} at {submission.at:g} s: {exc}")


class HttpSubmitter:
    """Submits jobs over HTTP, through `/run` or `/runsync` as they were recorded.

    Args:
        url: Of the platform, without a path.
        api_key: Its key, if it wants one.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def __aenter__(self) -> Self:
        """Open its connections."""
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close them."""
        await self._session.close()

    async def __call__(self, submission: Submission, request: JobRequest) -> None:
        """Submit one job; the answer to `/runsync` is waited for.

        Raises:
            PlatformError: It was refused, or nothing answers.
        """
        action = "runsync" if submission.sync else "run"
        body = {"input": request.input, "policy": describe_policy(request)}
        url = f"{self._url}/v2/{submission.endpoint}/{action}"
        try:
            async with self._session.post(url, data=encode_json(body)) as answer:
                if answer.status != 200:  # noqa: PLR2004
                    text = (await answer.text())[:_ANSWER_SHOWN]
                    raise PlatformError(f"{url} answered {answer.status}: {text}")
                await answer.read()
        except aiohttp.ClientError as exc:
            raise PlatformError(f"{url} does not answer: {exc}") from exc
