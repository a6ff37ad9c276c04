"""One endpoint, set up and ready: builds the class, warms it up, runs jobs, tears it down.

Knows nothing of the runpod SDK or HTTP: it takes a job and gives an `Outcome`, partial outputs and
progress going to callbacks on the way. Whatever user code does (raise, exit, return nonsense) becomes an
outcome; only the death of the process does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flashkit.errors import DeadlineExceeded, EngineDied, ErrorReport, OutputError
from flashkit.garbage import Collector
from flashkit.handler import Contract, Definition, encode_json
from flashkit.protocol import INPUT_ENVELOPE, RUN_BODY_LIMIT_BYTES, RUNSYNC_BODY_LIMIT_BYTES, STREAM_CHUNK_LIMIT_BYTES
from flashkit.settings import Settings
from flashkit.spec import Kind
from flashkit.telemetry import Op, recorder
from flashkit.telemetry import enter_job as enter_job_span
from flashkit.worker.calling import Caller, describe_failure, describe_setup_failure, is_cancelled_from_outside
from flashkit.worker.job import HandBack, JobContext, enter_job
from flashkit.worker.phases import Phases
from flashkit.worker.start_spans import Start, note_start, tell_start

if TYPE_CHECKING:
    from flashkit.worker.engines.engine import Engine

log = logging.getLogger(__name__)

Emit = Callable[[bytes], Awaitable[None]]
_SHARE_OF_TIME_TO_WAIT: Final = 0.5
"""How much of its execution timeout a job may wait for a session that another worker has."""
_GUARD_MARGIN_SECONDS: Final = 1.0
_GUARD_MARGIN_SHARE: Final = 0.1
"""How long before the platform's own limit a handler is ended: a second, and of short limits a tenth."""
_GUARD_LEAD_SECONDS: Final = 0.25
"""How long before that an engine is asked to end an answer, so that what there is of it can be sent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `output` as JSON text, or `error`; both when a stream broke off."""

    output: bytes | None = None
    error: ErrorReport | None = None
    restart_worker: bool = False

    def to_body(self) -> bytes:
        """Return the body that the platform expects."""
        import orjson

        body: dict[str, Any] = {}
        if self.output is not None:
            body["output"] = orjson.Fragment(self.output)
        if self.error is not None:
            body["error"] = self.error.to_json()
        if self.restart_worker:
            body["stopPod"] = True
        return orjson.dumps(body)


class Runtime:
    """Runs the jobs of one endpoint in this process."""

    def __init__(self, definition: Definition, settings: Settings) -> None:
        self.definition = definition
        self.settings = settings
        self.contract = Contract(definition)
        # These look at the handler's signature and code: once, not for every job.
        self._injected = definition.injected
        self._streams = definition.streams
        self._attributes = {
            "flashkit.endpoint.name": definition.spec.name,
            "flashkit.endpoint.kind": definition.spec.kind.value,
            "flashkit.worker.id": settings.worker_id,
        }
        """Of every job's span."""
        self.phases = Phases()
        self.engine: Engine | None = None
        self.engine_death: EngineDied | None = None
        self._start_told: Start | None = None
        """This worker's start, until a job's trace tells of it."""
        self.engine_died = asyncio.Event()
        """Set when the engine cannot go on: no jobs any more, this worker must go."""
        self._watchdog: asyncio.Task[None] | None = None
        self._guards: set[asyncio.Timeout] = set()
        """One for each running job."""
        self._instance: Any = None
        self._sessions: Any = None
        self._deduplicator: Any = None
        self._caller = Caller(definition.spec.concurrency)
        self._collector = Collector()

    @property
    def concurrency(self) -> int:
        """Jobs that may run at the same time, now: an engine takes as many as it has memory for."""
        limit = self.definition.spec.concurrency
        return limit if self.engine is None else min(limit, len(self._guards) + self.engine.room)

    @property
    def has_stuck_threads(self) -> bool:
        """True while a sync handler is still running, so that the process cannot end by itself."""
        return self._caller.has_stuck_threads

    async def start(self) -> None:
        """Build what the handler needs and warm it up, on the loop that will serve the jobs.

        Raises:
            SetupError: User code or a model failed to start; the cause is chained.
        """
        try:
            await self._build()
            self._tell_phases()
            self._start_told = note_start(self.definition.spec.name, self.phases, self._attributes)
            self._collector.relax(is_rare=not self.definition.spec.gpu)
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and is_cancelled_from_outside():
                raise
            name = self.definition.spec.name
            raise describe_setup_failure(exc, endpoint=name, settings=self.settings) from exc

    def _tell_phases(self) -> None:
        if self.engine is not None or self.definition.is_class:
            log.info("started in %s", self.phases.render())

    async def _watch(self, engine: Engine) -> None:
        from flashkit.worker.watchdog import watch_engine

        self.give_up(await watch_engine(engine))

    def give_up(self, death: EngineDied) -> None:
        """Fail the running jobs and take no more, because the engine cannot go on."""
        if self.engine_death is None:
            log.error("%s: this worker takes no more jobs", death.report.message)
            self.engine_death = death
            self.engine_died.set()
            for guard in self._guards:
                guard.reschedule(asyncio.get_running_loop().time())

    def hand_back(self) -> None:
        """Let sessions end at their next step, without a result, because this worker must go."""
        if self._sessions is not None:
            self._sessions.hand_back()

    async def stop(self) -> None:
        """Run `teardown()` and release what `start` built; failures are logged."""
        self._collector.restore()
        if self._watchdog is not None:
            self._watchdog.cancel()
        teardown = getattr(self._instance, "teardown", None)
        if teardown is not None:
            try:
                await self._caller.call(teardown)
            except (Exception, SystemExit):
                log.exception("teardown of %s failed", self.definition.spec.name)
        if self.engine is not None:
            await self.engine.close()
        if self._sessions is not None:
            await self._sessions.close()
        if self._deduplicator is not None:
            await self._deduplicator.close()
        self._caller.close()
        if (spans := recorder()) is not None:
            await asyncio.to_thread(spans.flush)

    async def run(
        self,
        job: Mapping[str, Any],
        *,
        emit: Emit,
        report_progress: Callable[[Any], None] = lambda value: None,
    ) -> Outcome:
        """Run one job to its end; never raises for what user code does.

        Args:
            job: The platform's job: `id`, `input` and whatever else it sent.
            emit: Awaited with each yielded value as JSON text, in order.
            report_progress: Called on the loop with each `current_job().progress(value)`.

        Raises:
            asyncio.CancelledError: The platform stopped the job; nothing is left running.
            HandBack: The worker must go, and the job or its session goes on elsewhere; there is no result.
        """
        if self.engine_death is not None:
            raise HandBack
        context = JobContext(str(job["id"]), self.definition.spec.name, report_progress=report_progress)
        enter_job(context)
        data, envelope = split_envelope(job.get("input"))
        with enter_job_span(
            Op.JOB, context.endpoint, self._attributes, job_id=context.id, traceparent=envelope.traceparent
        ) as span:
            if self._start_told is not None:
                self._start_told = tell_start(span, self._start_told)
            try:
                outcome = await self._run_to_outcome(data, envelope, context, emit)
            except HandBack:
                span.set("flashkit.handed_back", True)  # noqa: FBT003 - a value
                span.end()  # not an error: the job goes on elsewhere
                raise
            if outcome.error is not None:
                span.fail(f"{outcome.error.type}: {outcome.error.message}")
                span.set("error.type", outcome.error.code)
            return outcome

    async def _run_to_outcome(self, data: Any, envelope: Envelope, context: JobContext, emit: Emit) -> Outcome:
        collected = _Collected(context.id)
        try:
            output = await self._run_handler(data, envelope, context, emit, collected)
            return Outcome(output, restart_worker=context.worker_restart_requested)
        except BaseException as exc:  # KeyboardInterrupt and its like end this job only
            if isinstance(exc, HandBack) or (isinstance(exc, asyncio.CancelledError) and is_cancelled_from_outside()):
                raise
            return Outcome(
                collected.to_json() if collected else None,
                describe_failure(exc, context, self.settings),
                restart_worker=context.worker_restart_requested or self.engine_death is not None,
            )

    async def _build(self) -> None:
        self.contract.prepare()
        spec = self.definition.spec
        if spec.engine is not None:
            from flashkit.worker.engines.engine import load_engine

            self.engine = await load_engine(spec.engine, self.settings, self.phases)
            if self.settings.has_metrics:
                from flashkit.worker.engines.gauges import watch_engine

                watch_engine(self.engine)
        if spec.kind is Kind.ORCHESTRATOR:
            from flashkit.worker.sessions import SessionRunner

            self._sessions = SessionRunner(self.settings, self.definition, self.contract)
            await self._sessions.start()
        if self.definition.is_class:
            with self.phases.measure("setup"):
                self._instance = await self._caller.in_thread(self.definition.target)
                await self._call_method("setup")
        with self.phases.measure("warm-up"):
            if self.engine is not None:
                await self.engine.warm_up()
            await self._call_method("warmup")
        if self.engine is not None:
            self._watchdog = asyncio.create_task(self._watch(self.engine))

    async def _call_method(self, name: str) -> None:
        method = getattr(self._instance, name, None)
        if method is not None:
            await self._caller.call(method)

    async def _run_handler(
        self, data: Any, envelope: Envelope, context: JobContext, emit: Emit, collected: _Collected
    ) -> bytes:
        output: bytes
        limit_s = self.definition.spec.execution_timeout_ms / 1000
        if self._sessions is not None:  # they keep to the time themselves, and write down where they are
            output = await self._sessions.run(
                context.id,
                data,
                partial(self._invoke, context=context, emit=emit, collected=collected),
                emit=emit,
                budget_s=limit_s * _SHARE_OF_TIME_TO_WAIT,
                limit_s=limit_s,
                deadline_ms=envelope.deadline_ms,
                retries=envelope.retries,
            )
            return output
        async with self._guarded(limit_s) as deadline:
            work = partial(self._answer, data, context=context, emit=emit, collected=collected, deadline=deadline)
            if envelope.key is None or not self.settings.is_state_shared:
                return await work()
            output = await self._open_deduplicator().run(envelope.key, context.id, work, instead_of=envelope.instead_of)
            return output

    @asynccontextmanager
    async def _guarded(self, limit_s: float) -> AsyncIterator[float]:
        """End what runs inside a little before the platform does, or when the engine cannot go on; gives the deadline.

        What runs in a thread cannot be ended: it sees `current_job().cancelled`, and the platform ends the worker.
        """
        margin = min(_GUARD_MARGIN_SECONDS, limit_s * _GUARD_MARGIN_SHARE)
        deadline = asyncio.get_running_loop().time() + limit_s - margin
        guard = asyncio.timeout_at(deadline)
        try:
            async with guard:
                self._guards.add(guard)
                try:
                    yield deadline
                finally:
                    self._guards.discard(guard)
        except TimeoutError as exc:
            if not guard.expired():
                raise  # the handler's own
            if self.engine_death is not None:
                raise EngineDied.from_report(self.engine_death.report) from exc
            raise DeadlineExceeded(
                f"the handler was stopped after {limit_s - margin:g} s, just before the platform would end it",
                hint="raise execution_timeout_ms, or do less in one job",
                details={"execution_timeout_ms": self.definition.spec.execution_timeout_ms},
            ) from exc

    async def _answer(
        self, data: Any, *, context: JobContext, emit: Emit, collected: _Collected, deadline: float
    ) -> bytes:
        if self.engine is None:
            return await self._invoke(None, data, context=context, emit=emit, collected=collected)
        if not self.definition.is_engine and not _is_relayed(data):
            return await self._invoke(self.engine.handle(), data, context=context, emit=emit, collected=collected)
        from flashkit.worker.engines.answering import answer_job

        answer = await answer_job(self.engine, data, job_id=context.id, deadline=deadline - _GUARD_LEAD_SECONDS)
        if answer.pieces is not None:
            return await _emit_all(answer.pieces, emit, collected)
        whole = answer.whole or b"null"
        _check_size(whole, context.id)
        return whole

    def _open_deduplicator(self) -> Any:
        """Return what keeps one idempotency key from running twice; connected when the first key comes."""
        from flashkit.worker.dedupe import Deduplicator

        if self._deduplicator is None:
            self._deduplicator = Deduplicator(self.settings, self.definition.spec.name)
        return self._deduplicator

    async def _invoke(
        self, injected: Any, data: Any, *, context: JobContext, emit: Emit, collected: _Collected
    ) -> bytes:
        arguments = self.contract.parse_input(data)
        if self._injected:
            arguments[self._injected] = injected
        if not self._streams:
            result = await self._caller.call(partial(self._bound_handler, **arguments), context)
            output = self.contract.encode_output(result)
            _check_size(output, context.id)
            return output
        handler = partial(self._bound_handler, **arguments)
        return await _emit_all(self._encoded(self._caller.iterate(handler, context)), emit, collected)

    async def _encoded(self, chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield self.contract.encode_output(chunk)

    @property
    def _bound_handler(self) -> Callable[..., Any]:
        if self.definition.method is None:
            return self.definition.function
        return getattr(self._instance, self.definition.method)  # type: ignore[no-any-return]  # user code


async def _emit_all(chunks: AsyncGenerator[bytes, None], emit: Emit, collected: _Collected) -> bytes:
    """Pass partial outputs on as they come, and return them all."""
    async with aclosing(chunks):
        async for chunk in chunks:
            collected.add(chunk)
            await emit(chunk)
    return collected.to_json()


class _Collected:
    """The chunks of a stream, kept for the job's final output as far as the platform would take it."""

    def __init__(self, job_id: str) -> None:
        self._chunks: list[bytes] = []
        self._job_id = job_id
        self._size = 2

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, chunk: bytes) -> None:
        if len(chunk) > STREAM_CHUNK_LIMIT_BYTES:
            raise OutputError(
                f"a yielded value of {_megabytes(len(chunk))} is larger than the platform's limit of "
                f"{_megabytes(STREAM_CHUNK_LIMIT_BYTES)} for one partial output",
                hint="yield smaller pieces",
            )
        self._size += len(chunk) + 1
        _check_size_bytes(self._size, self._job_id)
        self._chunks.append(chunk)

    def to_json(self) -> bytes:
        return b"[" + b",".join(self._chunks) + b"]"


class Envelope(NamedTuple):
    """What a session's call tells the worker besides the handler's input."""

    key: str | None = None
    """Idempotency key of the work."""
    instead_of: str | None = None
    """Job that the platform lost, which may still hold the key."""
    deadline_ms: int | None = None
    """Time of day until which the caller waits."""
    retries: int | None = None
    """How often the calls of a called session may be made again, all together."""
    traceparent: str | None = None
    """The span that the job was made in, as W3C writes it."""


def split_envelope(data: Any) -> tuple[Any, Envelope]:
    """Return a job's input as the handler gets it, and what came with it."""
    if not isinstance(data, dict) or INPUT_ENVELOPE not in data:
        return data, Envelope()
    rest = dict(data)
    content = rest.pop(INPUT_ENVELOPE)
    given = content if isinstance(content, dict) else {}
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    numbers = {name: value for name, value in given.items() if isinstance(value, int) and not isinstance(value, bool)}
    return rest, Envelope(
        key=texts.get("key"),
        instead_of=texts.get("instead_of"),
        deadline_ms=numbers.get("deadline_ms"),
        retries=numbers.get("retries"),
        traceparent=texts.get("traceparent"),
    )


def _is_relayed(data: Any) -> bool:
    """True for a request below /openai/v1, which the engine answers beside a handler that uses it."""
    return isinstance(data, dict) and "openai_route" in data


def _check_size(output: bytes, job_id: str) -> None:
    _check_size_bytes(len(output), job_id)


def _check_size_bytes(size: int, job_id: str) -> None:
    route, limit = (
        ("/runsync", RUNSYNC_BODY_LIMIT_BYTES) if job_id.startswith("sync-") else ("/run", RUN_BODY_LIMIT_BYTES)
    )
    if size > limit:
        raise OutputError(
            f"the result of {_megabytes(size)} is larger than the platform's limit of {_megabytes(limit)} for {route}",
            hint="store large results (object storage, network volume) and return their address",
            details={"size_bytes": size, "limit_bytes": limit},
        )


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MB"


def encode_progress(value: Any) -> bytes:
    """Return the body of a progress update."""
    import orjson

    return orjson.dumps({"status": "IN_PROGRESS", "output": orjson.Fragment(encode_json(value))})
