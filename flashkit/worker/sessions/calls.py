"""Calls of a session to other endpoints: submitted once, waited for by whichever worker has the session.

The job's id goes into the journal as soon as the platform gave it. A worker that resumes the session finds
it there and waits for that job. A job that the platform lost (its worker died, its result expired) is
submitted again under the same idempotency key, within the retries and the time of the call.

Time and retries are passed down: the platform gets what is left of the call's time as the job's limits, and the
called endpoint gets the deadline and the retries that are left. A session that was called so gives its own calls no
more than that. Deadlines are times of day, as they pass from one machine to the next.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from flashkit.client import Client, EndpointClient, JobHandle, JobState
from flashkit.errors import FlashkitError, JobCancelled, JobFailed, JobNotFound, JobTimedOut, PlatformError
from flashkit.handler import encode_json
from flashkit.protocol import INPUT_ENVELOPE, TTL_MS, JobStatus
from flashkit.telemetry import NO_SPAN, AnySpan, Op, recorder, span
from flashkit.telemetry.spans import capture
from flashkit.worker.sessions.accounts import Tariff
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.turn import Ask, Progress, Turn

LOST_JOB_CODES: Final = frozenset({"worker_died", "job_dropped", "worker_start_failed", "setup_failed", "engine_died"})
"""Errors of the platform or of a model's engine, not of the handler: the job may be submitted again."""
_POLL_S: Final = (0.01, 1.0)
_BACKOFF_S: Final = (0.2, 5.0)
_LEAST_EXECUTION_TIMEOUT_MS: Final = 5_000
_KEPT_AFTER_DEADLINE_MS: Final = 60_000
"""A result that came in time is there this much longer, for a session that is resumed late."""


@dataclass(slots=True)
class Allowance:
    """What is left to a turn whose job was itself called: until when, and how often its calls may be made again."""

    deadline_ms: int | None = None
    retries: int | None = None

    def take_retry(self) -> bool:
        """Use one retry up; False when there is none."""
        if self.retries is None:
            return True
        is_left = self.retries > 0
        self.retries -= is_left
        return is_left


class Caller:
    """Submits a session's jobs and waits for them."""

    def __init__(
        self, client: Client, *, namespace: str, emit: Callable[[bytes], Awaitable[None]], allowance: Allowance
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._allowance = allowance
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
        tariff: Tariff,
        data: Any,
        timeout: float | None,
        *,
        retries: int,
        key: str | None,
        op: Op = Op.CALL,
    ) -> bytes:
        """Return the output of one job as JSON text, from the journal if it is there."""
        record = turn.done(ask)
        if record is None:
            turn.check_may_begin()
            started_ms, started = round(time.time() * 1000), time.monotonic()
            deadline_ms = self._deadline_of(turn, ask, None if timeout is None else started_ms + round(timeout * 1000))
            key = key or self.key_of(turn, ask)
            endpoint = tariff.endpoint
            client, allowance = self._client.endpoint(endpoint), self._allowance
            call = _Call(turn, ask, client, key, deadline_ms=deadline_ms, retries=retries, allowance=allowance)
            with span(op, endpoint, _span_attributes(turn, ask, endpoint, op)) as call.span:
                if (spans := recorder()) is not None and spans.captures_content:
                    capture(call.span, "gen_ai.tool.call.arguments", encode_json(data))
                try:
                    result = await call.run(data)
                    output, seconds = encode_json(result), time.monotonic() - started
                    capture(call.span, "gen_ai.tool.call.result", output)
                    used = tariff.describe(result, call.run_ms)
                    record = await turn.write_result(
                        ask, output, started_ms=started_ms, seconds=seconds, attempt=call.attempts, extra={"used": used}
                    )
                    turn.account.add_call(used)
                except Exception as exc:
                    seconds, used = time.monotonic() - started, tariff.describe(None, call.run_ms)
                    turn.note_error(
                        ask, exc, started_ms=started_ms, seconds=seconds, attempt=call.attempts, extra={"used": used}
                    )
                    raise
                finally:
                    call.span.set("flashkit.attempts", call.attempts)
        return await turn.output_of(record)

    def _deadline_of(self, turn: Turn, ask: Ask, deadline_ms: int | None) -> int | None:
        """Return until when a call may take: what it had when it was begun, and no more than its turn has."""
        progress = turn.memo.steps.get(ask.key)
        begun = progress.attach.extra.get("deadline_ms") if progress and progress.attach else None
        known = [each for each in (deadline_ms if begun is None else begun, self._allowance.deadline_ms) if each]
        return min(known, default=None)


class _Call:
    """One call on its way: which job it is waiting for, and how much time and how many retries are left."""

    def __init__(
        self,
        turn: Turn,
        ask: Ask,
        endpoint: EndpointClient,
        key: str,
        *,
        deadline_ms: int | None,
        retries: int,
        allowance: Allowance,
    ) -> None:
        self._turn = turn
        self._ask = ask
        self._endpoint = endpoint
        self._key = key
        self._deadline_ms = deadline_ms
        self._deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000 - time.time()
        self._retries = retries
        self._allowance = allowance
        progress = turn.memo.steps.get(ask.key) or Progress()
        self._job = self._job_of(progress.attach)
        self._lost_job = self._job_of(progress.failed_attach)
        self.attempts = progress.attach.attempt if progress.attach else 1
        self.run_ms = 0
        """How long its jobs ran."""
        self.span: AnySpan = NO_SPAN

    async def run(self, data: Any) -> Any:
        """Return the job's output, submitting it again while that may help and there is time."""
        was_attached = self._job is not None
        while True:
            job = self._job
            try:
                self._job = job = job or await self._submit(data)
                return (await self._wait(job)).result()
            except PlatformError as exc:  # a job that was submitted runs on: it is asked for again
                await self._retry_after(exc)
            except JobCancelled as exc:
                if not was_attached:
                    raise
                await self._pause(exc)  # an earlier attempt gave it up
                self._job, self._lost_job, was_attached = None, job, False
            except (JobNotFound, JobFailed) as exc:
                if job is None or not _is_lost(exc, job):
                    raise
                await self._retry_after(exc)
                self._job, self._lost_job, was_attached = None, job, False

    def _job_of(self, attach: Record | None) -> JobHandle | None:
        return None if attach is None else self._endpoint.job(orjson.loads(attach.output)["job"])

    async def _submit(self, data: Any) -> JobHandle:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise self._timed_out(None)
        retries = self._retries - self.attempts + 1
        envelope = {
            "key": self._key,
            "instead_of": self._lost_job.id if self._lost_job else None,
            "deadline_ms": self._deadline_ms,
            "retries": retries if self._allowance.retries is None else min(retries, self._allowance.retries),
        }
        body = {**data, INPUT_ENVELOPE: envelope} if isinstance(data, dict) else data
        try:
            async with asyncio.timeout(left):
                limits = _limits_of(left)
                job = await self._endpoint.run(body, execution_timeout_ms=limits.execution_ms, ttl_ms=limits.ttl_ms)
        except TimeoutError as exc:
            raise self._timed_out(None) from exc
        self.span.set("flashkit.called_job.id", job.id)
        output = orjson.dumps({"job": job.id, "endpoint": self._endpoint.name})
        extra = {} if self._deadline_ms is None else {"deadline_ms": self._deadline_ms}
        try:
            await self._turn.write(Kind.ATTACH, self._ask, output, attempt=self.attempts, extra=extra)
        except BaseException:
            await _give_up(job)  # nobody would find it again
            raise
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
                self._turn.given_up_calls.add(self._ask.key)
                await _give_up(job)
            raise
        self.run_ms += state.execution_ms or 0
        if state.status is JobStatus.TIMED_OUT and self._deadline is not None:
            raise self._timed_out(job)
        return state

    async def _retry_after(self, exc: FlashkitError) -> None:
        """Return once the call may be tried again; raise why it failed if it may not."""
        if self.attempts > self._retries or not self._allowance.take_retry():
            raise exc
        await self._pause(exc)
        self.attempts += 1

    async def _pause(self, exc: FlashkitError) -> None:
        seconds = min(_BACKOFF_S[0] * 2 ** (self.attempts - 1), _BACKOFF_S[1]) * random.uniform(0.5, 1.5)  # noqa: S311
        if self._deadline is not None and time.monotonic() + seconds > self._deadline:
            raise self._timed_out(self._job) from exc
        await asyncio.sleep(seconds)
        self._turn.check_leaving()

    def _timed_out(self, job: JobHandle | None) -> JobTimedOut:
        name, session = self._endpoint.name, self._turn.session
        what_becomes = "there was no time to submit its job" if job is None else "the job is being cancelled"
        return JobTimedOut(
            f"endpoint {name!r} gave session {session!r} no result in time; {what_becomes}",
            request_id=job.id if job else None,
        )


def _span_attributes(turn: Turn, ask: Ask, endpoint: str, op: Op) -> dict[str, Any]:
    known = {**turn.span_attributes(ask), "flashkit.endpoint.name": endpoint}
    return {**known, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": endpoint} if op is Op.TOOL else known


class _JobLimits(NamedTuple):
    """How the platform ends a job that nobody waits for any more."""

    execution_ms: int | None = None
    ttl_ms: int | None = None


def _limits_of(left_s: float | None) -> _JobLimits:
    if left_s is None:
        return _JobLimits()
    left_ms = round(left_s * 1000)
    low, high = TTL_MS
    return _JobLimits(
        execution_ms=max(_LEAST_EXECUTION_TIMEOUT_MS, left_ms),
        ttl_ms=max(low, min(high, left_ms + _KEPT_AFTER_DEADLINE_MS)),
    )


async def _give_up(job: JobHandle) -> None:
    """Cancel a job that nobody waits for any more."""
    try:
        await asyncio.shield(job.cancel())
    except FlashkitError:
        return  # it ends by its own timeout


def _is_lost(exc: FlashkitError, job: JobHandle) -> bool:
    """True when the platform lost this job, which its handler neither refused nor failed.

    A called session fails with the report of a job that it called, of which it has made all that it may.
    """
    is_its_own = exc.report.request_id in (None, job.id)
    return isinstance(exc, JobNotFound) or (exc.report.code in LOST_JOB_CODES and is_its_own)
