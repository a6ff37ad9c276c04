"""The job API: send jobs, wait for them, stream them, from asyncio code.

`Settings` decides whether the platform is `flashkit dev` or Runpod; nothing here knows the difference.
HTTP itself, its retries and its errors are in `transport`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from flashkit.errors import (
    ErrorReport,
    FlashkitError,
    InputError,
    JobCancelled,
    JobError,
    JobFailed,
    JobTimedOut,
    PlatformError,
)
from flashkit.protocol import (
    INPUT_ENVELOPE,
    RUN_BODY_LIMIT_BYTES,
    RUNSYNC_BODY_LIMIT_BYTES,
    RUNSYNC_DEFAULT_WAIT_MS,
    RUNSYNC_WAIT_MS,
    JobStatus,
)
from flashkit.settings import Settings
from flashkit.telemetry.propagation import TRACEPARENT
from flashkit.telemetry.spans import outgoing
from flashkit.transport import Request, RetryPolicy, Transport, encode_body, expect_object, jitter

_log = logging.getLogger(__name__)

CALL_HOLD_SECONDS = 5.0
"""How long `call` lets `/runsync` wait before it polls: the job's id, without which nothing can be
cancelled, comes only with the answer, so this bounds how late an abandoned job is stopped."""
STATUS_POLL_SECONDS = (0.1, 2.0)
STREAM_POLL_SECONDS = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class JobState:
    """One answer of the platform about a job."""

    id: str
    status: JobStatus
    output: Any = None
    """The result; while the job runs, its last progress update."""
    error: ErrorReport | None = None
    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None

    @classmethod
    def from_answer(cls, data: object, *, job_id: str | None = None) -> Self:
        """Read a `/status`, `/run`, `/runsync`, `/cancel` or `/retry` answer.

        Raises:
            PlatformError: It is not one.
        """
        if not isinstance(data, Mapping) or "status" not in data or not (job_id or "id" in data):
            raise PlatformError(f"the platform's answer describes no job: {data!r:.200}")
        found_id = str(data.get("id", job_id))
        error = data.get("error")
        return cls(
            id=found_id,
            status=_read_status(data["status"]),
            output=data.get("output"),
            error=ErrorReport.from_job_error(error, request_id=found_id) if error else None,
            delay_ms=data.get("delayTime"),
            execution_ms=data.get("executionTime"),
            worker_id=data.get("workerId"),
        )

    def result(self) -> Any:
        """Return the output of a completed job.

        Raises:
            JobFailed: The worker reported an error.
            JobCancelled: Somebody cancelled the job.
            JobTimedOut: The platform ended it, or it has not finished yet.
        """
        match self.status:
            case JobStatus.COMPLETED:
                return self.output
            case JobStatus.FAILED:
                raise JobFailed.from_report(self.error or _silent_failure(self.id))
            case JobStatus.CANCELLED:
                raise JobCancelled(f"job {self.id} was cancelled", request_id=self.id)
            case JobStatus.TIMED_OUT:
                raise _timed_out(self)
            case _:
                raise _unfinished(self)


class Client:
    """The platform's job API. One per event loop: it keeps a pool of connections.

    Use `async with Client() as client:`, or call `close()`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self._transport = Transport(self.settings.api_key, timeout_seconds, retry)

    def endpoint(self, name: str) -> EndpointClient:
        """Return the client for one endpoint, by its flashkit name or its platform id."""
        return EndpointClient(name, self.settings.endpoint_url(quote(name, safe="")), self._transport)

    async def close(self) -> None:
        """Finish cancelling abandoned jobs, then close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class EndpointClient:
    """Jobs of one endpoint. Build it with `Client.endpoint`."""

    def __init__(self, name: str, url: str, transport: Transport) -> None:
        self.name = name
        self.url = url
        self._transport = transport

    def job(self, job_id: str) -> JobHandle:
        """Return the handle of a job that was submitted earlier, perhaps by another process."""
        return JobHandle(job_id, self, self._transport)

    async def run(
        self,
        input: Any,  # noqa: A002 - the platform's word
        *,
        webhook: str | None = None,
        execution_timeout_ms: int | None = None,
        ttl_ms: int | None = None,
    ) -> JobHandle:
        """Submit a job and return its handle at once; one whose submission is cut off half-way is cancelled."""
        body = _encode_job(input, webhook, execution_timeout_ms, ttl_ms, limit_bytes=RUN_BODY_LIMIT_BYTES)
        submission = asyncio.ensure_future(self._submit(body))
        try:
            return self.job((await asyncio.shield(submission)).id)
        except asyncio.CancelledError:
            self._transport.start(self._cancel_abandoned(submission))
            raise

    async def runsync(
        self,
        input: Any,  # noqa: A002
        *,
        wait: float | None = None,
        webhook: str | None = None,
        execution_timeout_ms: int | None = None,
        ttl_ms: int | None = None,
    ) -> Any:
        """Submit a job and return its output; the job goes on if the waiting ends first.

        Args:
            input: What the handler gets, as JSON values.
            wait: Seconds to wait; None waits until the job has finished.
            webhook: URL that gets the result by POST.
            execution_timeout_ms: Limit for this job instead of the endpoint's.
            ttl_ms: Milliseconds after which the platform deletes the job, in any state.
        """
        body = _encode_job(input, webhook, execution_timeout_ms, ttl_ms, limit_bytes=RUNSYNC_BODY_LIMIT_BYTES)
        started = asyncio.get_running_loop().time()
        state = await self._submit_and_hold(body, RUNSYNC_DEFAULT_WAIT_MS / 1000 if wait is None else wait)
        if not state.status.is_final:
            waited = asyncio.get_running_loop().time() - started
            state = await self.job(state.id).wait(None if wait is None else max(0.0, wait - waited))
        return state.result()

    async def call(self, input: Any, *, timeout: float | None = None) -> Any:  # noqa: A002
        """Submit a job and return its output; cancel the job when the caller does not want it any more.

        Raises:
            JobTimedOut: `timeout` seconds passed; the job is being cancelled.
            JobFailed, JobCancelled: The job ended without an output.
        """
        body = _encode_job(input, limit_bytes=RUNSYNC_BODY_LIMIT_BYTES)
        hold = CALL_HOLD_SECONDS if timeout is None else min(timeout, CALL_HOLD_SECONDS)
        submission = asyncio.ensure_future(self._submit_and_hold(body, hold))
        state = None
        try:
            async with asyncio.timeout(timeout):
                state = await asyncio.shield(submission)
                if not state.status.is_final:
                    state = await self.job(state.id).wait()
        except TimeoutError as exc:
            job_id = state.id if state else None
            raise JobTimedOut(
                f"endpoint {self.name!r} gave no result within {timeout:g} s; the job is being cancelled",
                request_id=job_id,
            ) from exc
        finally:
            if state is None or not state.status.is_final:
                self._transport.start(self._cancel_abandoned(submission))
        return state.result()

    async def stream(
        self,
        input: Any,  # noqa: A002
        *,
        webhook: str | None = None,
        execution_timeout_ms: int | None = None,
        ttl_ms: int | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Submit a job and yield its partial outputs; leaving the loop early cancels the job.

        The output of a handler that does not stream comes as the only item.
        """
        job = await self.run(input, webhook=webhook, execution_timeout_ms=execution_timeout_ms, ttl_ms=ttl_ms)
        clean_up = functools.partial(_cancel_quietly, job)
        self._transport.register(clean_up)
        try:
            async for item in job.stream():
                yield item
        except JobError:
            self._transport.forget(clean_up)
            raise
        else:
            self._transport.forget(clean_up)
        finally:
            self._transport.run_registered(clean_up)

    async def health(self) -> dict[str, Any]:
        """Return the platform's counts of jobs and workers."""
        answer = await self._transport.send(Request("GET", f"{self.url}/health", is_repeatable=True))
        return dict(expect_object(answer))

    async def purge_queue(self) -> int:
        """Remove all queued jobs and return how many there were."""
        answer = await self._transport.send(Request("POST", f"{self.url}/purge-queue"))
        return int(expect_object(answer).get("removed", 0))

    async def _submit(self, body: bytes) -> JobState:
        return JobState.from_answer(await self._transport.send(Request("POST", f"{self.url}/run", body=body)))

    async def _submit_and_hold(self, body: bytes, wait: float) -> JobState:
        low, high = RUNSYNC_WAIT_MS
        wait_ms = max(low, min(high, round(wait * 1000)))
        request = Request("POST", f"{self.url}/runsync?wait={wait_ms}", body=body, hold_seconds=wait_ms / 1000)
        return JobState.from_answer(await self._transport.send(request))

    async def _cancel_abandoned(self, submission: asyncio.Future[JobState]) -> None:
        try:
            state = await submission
        except FlashkitError:
            return  # never submitted, so there is nothing to cancel
        if not state.status.is_final:
            await _cancel_quietly(self.job(state.id))


class JobHandle:
    """One job: ask about it, wait for it, read its stream, cancel it."""

    def __init__(self, job_id: str, endpoint: EndpointClient, transport: Transport) -> None:
        self.id = job_id
        self.endpoint = endpoint
        self._transport = transport

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, endpoint={self.endpoint.name!r})"

    async def status(self) -> JobState:
        """Return what the platform knows about the job now."""
        return await self._ask("GET", "status", is_repeatable=True)

    async def wait(self, timeout: float | None = None) -> JobState:
        """Return the job's state once it is final.

        Raises:
            JobTimedOut: It was not within `timeout` seconds. The job goes on.
        """
        state: JobState | None = None
        try:
            async with asyncio.timeout(timeout):
                for pause in _pauses(*STATUS_POLL_SECONDS):
                    state = await self.status()
                    if state.status.is_final:
                        return state
                    await asyncio.sleep(pause)
        except TimeoutError as exc:
            raise _unfinished(state or JobState(self.id, JobStatus.IN_QUEUE), timeout) from exc
        raise AssertionError("the pauses never end")

    async def output(self, timeout: float | None = None) -> Any:
        """Return the job's output once it has completed, or raise why there is none."""
        return (await self.wait(timeout)).result()

    async def cancel(self) -> JobState:
        """Cancel the job; one that has finished stays as it is."""
        return await self._ask("POST", "cancel", is_repeatable=True)

    async def retry(self) -> JobState:
        """Queue a failed or timed-out job again, under the same id and with the same input."""
        return await self._ask("POST", "retry", is_repeatable=False)

    async def stream(self) -> AsyncGenerator[Any, None]:
        """Yield the partial outputs that nobody has read yet, until the job has ended.

        Raises:
            JobFailed, JobCancelled, JobTimedOut: It ended without completing.
        """
        has_yielded = False
        pauses = _pauses(*STREAM_POLL_SECONDS)
        while True:
            data = expect_object(await self._send("GET", "stream", is_repeatable=True))
            items = [_unwrap_chunk(chunk) for chunk in data.get("stream") or ()]
            for item in items:
                has_yielded = True
                yield item
            if items:
                pauses = _pauses(*STREAM_POLL_SECONDS)  # more may follow soon; a final job is asked once more
            elif _read_status(data.get("status")).is_final:
                break
            await asyncio.sleep(next(pauses))
        output = (await self.status()).result()
        if not has_yielded and output not in (None, []):
            yield output

    async def _ask(self, method: str, route: str, *, is_repeatable: bool) -> JobState:
        answer = await self._send(method, route, is_repeatable=is_repeatable)
        return JobState.from_answer(answer, job_id=self.id)

    async def _send(self, method: str, route: str, *, is_repeatable: bool) -> Any:
        url = f"{self.endpoint.url}/{route}/{quote(self.id, safe='')}"
        return await self._transport.send(Request(method, url, is_repeatable=is_repeatable, job_id=self.id))


def _encode_job(
    job_input: Any,
    webhook: str | None = None,
    execution_timeout_ms: int | None = None,
    ttl_ms: int | None = None,
    *,
    limit_bytes: int,
) -> bytes:
    policy = {"executionTimeout": execution_timeout_ms, "ttl": ttl_ms}
    optional = {
        "webhook": webhook,
        "policy": {key: value for key, value in policy.items() if value is not None},
    }
    job = {"input": _with_trace(job_input), **{key: value for key, value in optional.items() if value}}
    body = encode_body(job)
    if len(body) > limit_bytes:
        raise InputError(
            f"the input has {len(body):,} bytes of JSON, the platform takes {limit_bytes:,}",
            hint="put large data into object storage and send its URL",
            details={"limit_bytes": limit_bytes, "size_bytes": len(body)},
        )
    return body


def _with_trace(job_input: Any) -> Any:
    """Return the input with the span that it is sent from, which the worker takes out again."""
    context = outgoing()
    if context is None or not isinstance(job_input, dict):
        return job_input
    envelope = job_input.get(INPUT_ENVELOPE)
    return {**job_input, INPUT_ENVELOPE: {**(envelope or {}), TRACEPARENT: context.to_header()}}


def _unwrap_chunk(chunk: object) -> Any:
    return chunk["output"] if isinstance(chunk, Mapping) and "output" in chunk else chunk


def _read_status(value: object) -> JobStatus:
    if value == "RUNNING":  # the documentation's page of states calls IN_PROGRESS so
        return JobStatus.IN_PROGRESS
    try:
        return JobStatus(str(value))
    except ValueError as exc:
        raise PlatformError(f"the platform reports an unknown job status {value!r}") from exc


def _pauses(first: float, last: float) -> Iterator[float]:
    """Yield growing pauses for ever."""
    pause = first
    while True:
        yield jitter(pause)
        pause = min(pause * 1.5, last)


async def _cancel_quietly(job: JobHandle) -> None:
    try:
        await job.cancel()
    except FlashkitError as exc:
        _log.warning("could not cancel job %s: %s", job.id, exc.report.message)


def _silent_failure(job_id: str) -> ErrorReport:
    return ErrorReport(code="handler_error", message="the job failed and the worker did not say why", request_id=job_id)


def _timed_out(state: JobState) -> JobTimedOut:
    if state.error is not None:
        return JobTimedOut.from_report(state.error)
    return JobTimedOut(
        f"job {state.id} ran past its execution timeout or waited too long for a worker",
        hint="raise execution_timeout_ms or the endpoint's maximum of workers",
        request_id=state.id,
    )


def _unfinished(state: JobState, timeout: float | None = None) -> JobTimedOut:
    waited = "" if timeout is None else f" after {timeout:g} s"
    return JobTimedOut(
        f"job {state.id} is still {state.status}{waited}",
        hint="it goes on; ask for it again by its id",
        request_id=state.id,
    )
