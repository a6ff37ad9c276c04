"""Calls of a session to other endpoints: submitted once, waited for by whichever worker has the session.

The job's id goes into the journal as soon as the platform gave it. A worker that resumes the session finds
it there and waits for that job. A job that the platform lost (its worker died, its result expired) is
submitted again under the same idempotency key, within the retries and the time of the call.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson

from flashkit.client import Client, EndpointClient, JobHandle, JobState
from flashkit.errors import FlashkitError, JobCancelled, JobFailed, JobNotFound, JobTimedOut, PlatformError
from flashkit.handler import encode_json
from flashkit.protocol import INPUT_ENVELOPE, JobStatus
from flashkit.worker.sessions.records import Kind
from flashkit.worker.sessions.turn import Ask, Turn

LOST_JOB_CODES: Final = frozenset({"worker_died", "job_dropped", "worker_start_failed", "setup_failed"})
"""Errors of the platform, not of the handler: the job may be submitted again."""
_POLL_S: Final = (0.01, 1.0)
_BACKOFF_S: Final = (0.2, 5.0)
_LEAST_EXECUTION_TIMEOUT_MS: Final = 5_000


class Caller:
    """Submits a session's jobs and waits for them."""

    def __init__(self, client: Client, *, namespace: str, emit: Callable[[bytes], Awaitable[None]]) -> None:
        self._client = client
        self._namespace = namespace
        self.emit = emit

    def key_of(self, turn: Turn, ask: Ask) -> str:
        """Return the idempotency key of a step: its place in the session and its input, not who runs it."""
        lease = turn.writer.lease
        place = [self._namespace, lease.session, lease.incarnation, turn.number, ask.key, ask.digest]
        return base64.b32encode(hashlib.sha256(orjson.dumps(place)).digest()).decode()[:32]

    async def call(
        self,
        turn: Turn,
        ask: Ask,
        endpoint: str,
        data: Any,
        timeout: float | None,
        *,
        retries: int,
        key: str | None,
    ) -> bytes:
        """Return the output of one job as JSON text, from the journal if it is there."""
        record = turn.done(ask)
        if record is None:
            turn.check_leaving()
            deadline = None if timeout is None else time.monotonic() + timeout
            call = _Call(turn, ask, self._client.endpoint(endpoint), key or self.key_of(turn, ask), deadline)
            started_ms, started = round(time.time() * 1000), time.monotonic()
            output = encode_json(await call.run(data, retries=retries))
            record = await turn.write_result(
                ask, output, started_ms=started_ms, seconds=time.monotonic() - started, attempt=call.attempts
            )
        return await turn.output_of(record)


class _Call:
    """One call on its way: which job it is waiting for, and how much time is left."""

    def __init__(self, turn: Turn, ask: Ask, endpoint: EndpointClient, key: str, deadline: float | None) -> None:
        self._turn = turn
        self._ask = ask
        self._endpoint = endpoint
        self._key = key
        self._deadline = deadline
        self._lost_job: str | None = None
        self.attempts = 0

    async def run(self, data: Any, *, retries: int) -> Any:
        """Return the job's output, submitting it again while that may help and there is time."""
        progress = self._turn.memo.steps.get(self._ask.key)
        job = self._endpoint.job(orjson.loads(progress.attach.output)["job"]) if progress and progress.attach else None
        was_attached = job is not None
        while True:
            self.attempts += 1
            try:
                job = job or await self._submit(data)
                return (await self._wait(job)).result()
            except PlatformError as exc:  # a job that was submitted runs on: it is asked for again
                if self.attempts > retries:
                    raise
                await self._pause(exc)
            except (JobNotFound, JobFailed, JobCancelled) as exc:
                is_old = was_attached and not isinstance(exc, JobNotFound)  # how an earlier attempt ended
                if self.attempts > retries or not (is_old or _may_help(exc)):
                    raise
                self._lost_job = job.id if job else None
                job, was_attached = None, False
                await self._pause(exc)

    async def _submit(self, data: Any) -> JobHandle:
        envelope = {"key": self._key, "instead_of": self._lost_job}
        body = {**data, INPUT_ENVELOPE: envelope} if isinstance(data, dict) else data
        left = None if self._deadline is None else self._deadline - time.monotonic()
        limit_ms = None if left is None else max(_LEAST_EXECUTION_TIMEOUT_MS, round(left * 1000))
        job = await self._endpoint.run(body, execution_timeout_ms=limit_ms)
        await self._turn.write(Kind.ATTACH, self._ask, orjson.dumps({"job": job.id, "endpoint": self._endpoint.name}))
        return job

    async def _wait(self, job: JobHandle) -> JobState:
        """Return the job's final state; give it up when its time is over, leave it when the worker leaves."""
        pause = _POLL_S[0]
        try:
            while not (state := await job.status()).status.is_final:
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise self._timed_out(job)
                self._turn.check_leaving()
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _POLL_S[1])
        except (asyncio.CancelledError, JobTimedOut):
            if not self._turn.goes_on_elsewhere:
                await _give_up(job)
            raise
        if state.status is JobStatus.TIMED_OUT and self._deadline is not None:
            raise self._timed_out(job)
        return state

    async def _pause(self, exc: FlashkitError) -> None:
        seconds = min(_BACKOFF_S[0] * 2 ** (self.attempts - 1), _BACKOFF_S[1]) * random.uniform(0.5, 1.5)  # noqa: S311
        if self._deadline is not None and time.monotonic() + seconds > self._deadline:
            raise exc
        await asyncio.sleep(seconds)
        self._turn.check_leaving()

    def _timed_out(self, job: JobHandle) -> JobTimedOut:
        return JobTimedOut(
            f"endpoint {self._endpoint.name!r} gave session {self._turn.session!r} no result in time; "
            "the job is being cancelled",
            request_id=job.id,
        )


async def _give_up(job: JobHandle) -> None:
    """Cancel a job that nobody waits for any more."""
    try:
        await asyncio.shield(job.cancel())
    except FlashkitError:
        return  # it ends by its own timeout


def _may_help(exc: FlashkitError) -> bool:
    """True when the job was lost on the way, not refused or failed by its handler."""
    return isinstance(exc, JobNotFound) or exc.report.code in LOST_JOB_CODES
