"""Traces of what runs here: spans that workers send, and what only the platform knows of their jobs.

Spans come in at `/v1/traces`, where any OTLP exporter sends them. The platform looks only at jobs of which a span has
come, and at those that it ended itself: of these it tells how long they waited, for which worker, and what ended them.
Nothing is written in the event loop: a thread of its own has the store.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import io
import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import error_response, json_response
from flashkit.emulator.bodies import read_body
from flashkit.emulator.events import Event, JobEvent
from flashkit.emulator.recorder import JobStory, Recorder
from flashkit.errors import InputError, StoreUnavailable
from flashkit.protocol import JobStatus
from flashkit.telemetry.otlp import SpanRecord, decode
from flashkit.telemetry.propagation import platform_span_id, trace_id_of_job
from flashkit.telemetry.spans import Op
from flashkit.telemetry.store import TraceStore
from flashkit.telemetry.tree import build_trace

T = TypeVar("T")

log = logging.getLogger(__name__)

TRACES_PATH: Final = "/v1/traces"
BODY_LIMIT_BYTES: Final = 8 * 1024 * 1024
_WATCHED_LIMIT: Final = 10_000
_PENDING_LIMIT: Final = 64
"""Requests that wait to be written; a sender over it is told to come later."""
_TELL_SECONDS: Final = 1.0
_LATEST: Final = 50
_KILLED: Final = frozenset({"worker_died", "job_dropped", "worker_start_failed"})
_PROTOBUF: Final = "application/x-protobuf"


@dataclass(slots=True)
class _Watched:
    """A job whose trace is kept."""

    trace_id: str
    parent_id: str | None
    told: int = 0
    """Moments of its story that were told."""


class Traces:
    """Keeps the traces of one platform.

    Args:
        store: Where they are kept; it is closed with this.
        recorder: Knows what happened to each job.
        input_of: Gives a job's input, None when it is not kept any more.
    """

    def __init__(self, store: TraceStore, recorder: Recorder, *, input_of: Callable[[str, str], Any]) -> None:
        self._store = store
        self._recorder = recorder
        self._input_of = input_of
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._pending = 0
        self._watched: OrderedDict[str, _Watched] = OrderedDict()
        self._telling: asyncio.Task[None] | None = None
        self._has_complained = False

    def open(self) -> None:
        """Begin to tell of jobs."""
        self._telling = asyncio.create_task(self._tell_for_ever())

    async def close(self) -> None:
        """Tell what is left, and close the store."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        await self._tell()
        await self._in_thread(self._store.close)
        self._writer.shutdown()

    def notice(self, event: Event) -> None:
        """Look at a job that the platform has ended, or that it took from a dead worker."""
        if type(event) is not JobEvent or event.job_id in self._watched:
            return
        is_killed = event.error is not None and event.error.code in _KILLED
        if event.status is JobStatus.TIMED_OUT or is_killed:
            self._watch(event.endpoint, event.job_id, None)

    # ------------------------------------------------------------------ what comes in

    async def take(self, read: Callable[[], Sequence[SpanRecord]]) -> None:
        """Keep the spans that `read` gives, which is called in the thread that writes them.

        Raises:
            StoreUnavailable: They cannot be kept now.
            ValueError: They cannot be read.
        """
        if self._pending >= _PENDING_LIMIT:
            raise StoreUnavailable("too many spans wait to be written", hint="send them again")
        self._pending += 1
        try:
            records = await self._in_thread(self._read_and_write, read)
        finally:
            self._pending -= 1
        for record in records:
            if record.op == Op.JOB and record.job_id:
                self._watch(str(record.attributes.get("flashkit.endpoint.name", "")), record.job_id, record)

    def _read_and_write(self, read: Callable[[], Sequence[SpanRecord]]) -> Sequence[SpanRecord]:
        records = read()
        self._store.write(records)
        return records

    def _watch(self, endpoint: str, job_id: str, record: SpanRecord | None) -> None:
        if job_id in self._watched or job_id not in self._recorder.jobs:
            return
        if record is not None:
            watched = _Watched(record.trace_id, record.parent_id)
        else:
            watched = _Watched(*_context_of(self._input_of(endpoint, job_id), job_id))
        self._watched[job_id] = watched
        if len(self._watched) > _WATCHED_LIMIT:
            self._watched.popitem(last=False)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *args)

    # ------------------------------------------------------------------ what the platform tells

    async def _tell_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            await self._tell()

    async def _tell(self) -> None:
        records: list[SpanRecord] = []
        over: list[str] = []
        for job_id, watched in self._watched.items():
            story = self._recorder.jobs.get(job_id)
            if story is None or (story.latest.status.is_final and watched.told == len(story.timeline)):
                over.append(job_id)
            elif watched.told != len(story.timeline):
                watched.told = len(story.timeline)
                records += records_of(story, watched.trace_id, watched.parent_id)
        for job_id in over:
            del self._watched[job_id]
        if not records:
            return
        try:
            await self._in_thread(self._store.write, records)
        except StoreUnavailable as exc:
            if not self._has_complained:
                self._has_complained = True
                log.warning("%s", exc)

    # ------------------------------------------------------------------ what people ask

    async def latest(self, limit: int) -> list[dict[str, Any]]:
        """Return the traces that began last."""
        found = await self._in_thread(self._store.latest, limit)
        return [{name: getattr(each, name) for name in each.__slots__} for each in found]

    async def find(self, text: str) -> dict[str, Any] | None:
        """Return the newest trace that this names: a job, a trace or a session."""
        ids = await self._in_thread(self._store.find, text)
        records = await self._in_thread(self._store.spans, ids[0]) if ids else []
        if not records:
            return None
        return await asyncio.to_thread(lambda: build_trace(records, now_ns=time.time_ns()).to_json())


def _context_of(job_input: Any, job_id: str) -> tuple[str, str | None]:
    """Return the trace that a job belongs to, and the span that it was made in."""
    from flashkit.protocol import INPUT_ENVELOPE
    from flashkit.telemetry.propagation import TRACEPARENT, read_traceparent

    envelope = job_input.get(INPUT_ENVELOPE) if isinstance(job_input, dict) else None
    caller = read_traceparent(envelope.get(TRACEPARENT)) if isinstance(envelope, dict) else None
    return (trace_id_of_job(job_id), None) if caller is None else (caller.trace_id, caller.span_id)


def records_of(story: JobStory, trace_id: str, parent_id: str | None) -> list[SpanRecord]:
    """Return what the platform tells of a job: its whole life, and each wait for a worker."""
    latest = story.latest
    span_id = platform_span_id(story.endpoint, story.job_id)
    began_ns = round(story.submitted_at * 1e9)
    ended_ns = round(story.timeline[-1].at * 1e9) if latest.status.is_final else 0
    error = ""
    if latest.status.is_final and latest.status is not JobStatus.COMPLETED:
        error = _HOW_IT_ENDED.get(latest.status, latest.status.value)
        if latest.error is not None:
            error = f"{error.partition(',')[0]}: {latest.error.message}"
    attributes: dict[str, Any] = {
        "flashkit.job.id": story.job_id,
        "flashkit.endpoint.name": story.endpoint,
        "flashkit.job.status": latest.status.value,
        "flashkit.job.attempts": latest.attempt,
    }
    if latest.worker_id:
        attributes["flashkit.worker.id"] = latest.worker_id
    if latest.cold_start_ms is not None:
        attributes["flashkit.cold_start_ms"] = latest.cold_start_ms
    whole = SpanRecord(
        trace_id, span_id, parent_id, story.endpoint, Op.PLATFORM.value, began_ns, ended_ns, error, "platform", "",
        attributes,
    )  # fmt: skip
    return [whole, *_waits_of(story, trace_id, span_id)]


_HOW_IT_ENDED: Final = {
    JobStatus.TIMED_OUT: "ended by the platform, its execution timeout was over",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.FAILED: "failed",
}


def _waits_of(story: JobStory, trace_id: str, parent_id: str) -> list[SpanRecord]:
    waits: list[SpanRecord] = []
    since: float | None = None
    for entry in story.timeline:
        event = entry.event
        if not isinstance(event, JobEvent):
            continue
        if event.status is JobStatus.IN_QUEUE:
            since = entry.at if since is None else since
            continue
        if since is not None:
            number = len(waits) + 1
            attributes = {"flashkit.attempt": event.attempt, "flashkit.worker.id": event.worker_id or ""}
            waits.append(
                SpanRecord(
                    trace_id, platform_span_id(f"{story.endpoint}#{number}", story.job_id), parent_id, "queue",
                    Op.QUEUE.value, round(since * 1e9), round(entry.at * 1e9), "", "platform", "", attributes,
                )
            )  # fmt: skip
            since = None
    return waits


def traces_routes(traces: Traces | None, admission: Admission, *, token: str | None) -> list[Route]:
    """Return the routes: spans in, traces out; without traces, that there are none."""
    if traces is None:

        async def nothing(request: Request) -> Response:
            admission.check(request)
            return json_response(_NOTHING)

        return [Route(f"/_/traces{rest}", nothing, methods=["GET"]) for rest in ("", "/{name}")]

    async def take(request: Request) -> Response:
        admission.check_same_origin(request)
        given = request.query_params.get("token", "")
        if token is None or not hmac.compare_digest(given.encode(), token.encode()):
            admission.check(request)
        body = await read_body(request.receive, limit_bytes=BODY_LIMIT_BYTES)
        is_json = request.headers.get("content-type", "").startswith("application/json")
        try:
            encoding = request.headers.get("content-encoding", "")
            await traces.take(lambda: decode(_unpack(body, encoding), is_json=is_json))
        except ValueError as exc:
            raise InputError(f"the spans cannot be read: {str(exc)[:200]}", hint="send OTLP over HTTP") from exc
        except ModuleNotFoundError as exc:
            hint = "pip install 'flashkit-serverless[dev]', or send application/json"
            raise InputError(f"the module {exc.name!r} is not installed, so only JSON can be read", hint=hint) from exc
        except StoreUnavailable as exc:
            return error_response(exc.report, status=503)
        return json_response({}) if is_json else Response(b"", media_type=_PROTOBUF)

    async def latest(request: Request) -> Response:
        admission.check(request)
        text = request.query_params.get("limit", "")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else _LATEST  # noqa: PLR2004
        return json_response({"traces": await traces.latest(max(1, limit))})

    async def show(request: Request) -> Response:
        admission.check(request)
        name = request.path_params["name"]
        return json_response(
            await traces.find(name) or {**_NOTHING, "message": f"No trace is kept of it: {_WHY_NONE}."}
        )

    return [
        Route(TRACES_PATH, take, methods=["POST"]),
        Route("/_/traces", latest, methods=["GET"]),
        Route("/_/traces/{name}", show, methods=["GET"]),
    ]


_WHY_NONE: Final = (
    "a worker records 20 new traces a second (FLASHKIT_TRACES_PER_SECOND), workers of plain runpod handlers record none"
)


_NOTHING: Final[dict[str, Any]] = {
    "trace_id": None,
    "traces": [],
    "spans": [],
    "message": "",
    "hung": None,
    "skew_ms": {},
}


def _unpack(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise ValueError(f"content-encoding {encoding!r} is not known")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            plain = file.read(BODY_LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise ValueError(f"the body is not gzip: {exc}") from exc
    if len(plain) > BODY_LIMIT_BYTES:
        raise ValueError(f"unpacked, the body has more than {BODY_LIMIT_BYTES:,} bytes")
    return plain
