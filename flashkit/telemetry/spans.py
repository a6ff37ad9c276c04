"""The seam: what is worth a span says so here, and whoever wants spans gets them.

A span is a small record: ids, two times, a dict. Nothing is formatted, sent or locked where it is made. One `Recorder`
a process hands ended spans to observers (metrics, at once) and, of sampled traces, to an exporter (a queue that never
waits). Without a recorder `span` and `begin` give `NO_SPAN`, which does nothing.

New traces are sampled at their head, so many a second; one that comes with a `traceparent` is sampled as its caller
decided. A span of a trace that is not sampled is made for observers only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from enum import StrEnum
from random import getrandbits
from time import time_ns
from types import TracebackType
from typing import Any, Final, Protocol, Self

from flashkit.telemetry.propagation import TraceContext, read_traceparent, trace_id_of_job

CONTENT_LIMIT_BYTES: Final = 64 * 1024
"""What is kept of a captured text until it is sent."""


class Op(StrEnum):
    """What a span is of."""

    JOB = "job"
    """One attempt at a job, in a worker."""
    REQUEST = "request"
    """One request to a load-balanced endpoint, in a worker."""
    PLATFORM = "platform"
    """A job as the platform saw it, from submission to its end."""
    QUEUE = "queue"
    """The wait for a worker."""
    COLD_START = "cold_start"
    """A worker's start, as far as its first job waited for it."""
    PHASE = "phase"
    """A part of it: imports, weights, engine, setup, warm-up."""
    STEP = "step"
    """A step of a session."""
    EFFECT = "effect"
    """A step that changes something outside."""
    CALL = "call"
    """A job of another endpoint, from submission to its result."""
    TOOL = "tool"
    """The same of a CPU endpoint, which is what an agent calls a tool."""
    LLM = "llm"
    """A request to a language model."""
    EMBEDDING = "embedding"
    """A request to an embedding model."""
    COMMIT = "commit"
    """A write to a session's journal."""


class Sink(Protocol):
    """Takes the spans of sampled traces."""

    def opened(self, span: Span) -> None:
        """Take note of a span that begins; must not wait."""

    def ended(self, span: Span) -> None:
        """Take a span that has ended; must not wait."""

    def close(self) -> None:
        """Send what there is, and let no thread run on; the next span makes it go on."""


class Span:
    """One thing that took time, and what came of it. As a context manager it is the parent of what begins inside."""

    # What most spans never get stands here, once for all of them: a worker may begin thousands a second.
    _token: Token[AnySpan] | None = None
    _trace_id = ""
    _span_id = ""
    parent_id: str | None = None
    is_sampled = False
    end_ns = 0
    """0 while it is open."""
    error = ""
    """What went wrong; empty when nothing did."""

    def __init__(
        self,
        recorder: Recorder | None,
        op: Op,
        name: str,
        attributes: dict[str, Any],
        *,
        trace_id: str = "",
        parent_id: str | None = None,
        is_sampled: bool = False,
    ) -> None:
        self._recorder = recorder
        self.op = op
        self.name = name
        self.attributes = attributes
        if trace_id:
            self._trace_id = trace_id
            self.parent_id = parent_id
        if is_sampled:
            self.is_sampled = True
            self._span_id = f"{getrandbits(64):016x}"
        self.start_ns = time_ns()

    @property
    def trace_id(self) -> str:
        """Which trace it is in. Where nobody has said, it is made when it is asked for: mostly nobody ever does."""
        if not self._trace_id:
            self._trace_id = f"{getrandbits(128):032x}"
        return self._trace_id

    @property
    def span_id(self) -> str:
        """Its own id, made like `trace_id` unless it is sampled."""
        if not self._span_id:
            self._span_id = f"{getrandbits(64):016x}"
        return self._span_id

    @property
    def duration_s(self) -> float:
        """Seconds from its begin to its end; 0 while it is open."""
        return (self.end_ns - self.start_ns) / 1e9 if self.end_ns else 0.0

    @property
    def context(self) -> TraceContext:
        """What a request that is made in it carries."""
        return TraceContext(self.trace_id, self.span_id, self.is_sampled)

    def set(self, name: str, value: Any) -> None:
        """Add an attribute."""
        self.attributes[name] = value

    def fail(self, exc: BaseException | str) -> None:
        """Say what went wrong in it."""
        self.error = exc if isinstance(exc, str) else describe(exc)
        if not isinstance(exc, str):
            self.attributes["error.type"] = getattr(exc, "code", None) or type(exc).__name__

    def end(self, exc: BaseException | None = None) -> None:
        """End it, by an exception or well; the first time counts."""
        if self.end_ns:
            return
        if exc is not None:
            self.fail(exc)
        self.end_ns = time_ns()
        if self._recorder is not None:
            self._recorder.finish(self)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        if exc is not None or self.end_ns or self._recorder is None:
            self.end(exc)
        else:  # as `end` does, which one more call would make dearer
            self.end_ns = time_ns()
            self._recorder.finish(self)


class _NoSpan:
    """Stands for a span that nobody wants."""

    __slots__ = ()
    context: Final = None
    is_sampled: Final = False

    def set(self, name: str, value: Any) -> None:
        """Do nothing."""

    def fail(self, exc: BaseException | str) -> None:
        """Do nothing."""

    def end(self, exc: BaseException | None = None) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


AnySpan = Span | _NoSpan
NO_SPAN: Final = _NoSpan()
Observer = Callable[[Span], None]

_current: ContextVar[AnySpan] = ContextVar("flashkit_span", default=NO_SPAN)


class HeadSampler:
    """Lets so many new traces begin in a second; time saved up is worth one second of them."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._clock = clock
        self._left = self._most
        self._at = clock()
        self._next_at = self._at
        """Before this there is none: a worker may ask thousands of times a second."""
        self.dropped = 0
        """Traces that were not sampled."""

    def takes_one(self) -> bool:
        """True when one more trace may begin now."""
        if self._left < 1.0:
            now = self._clock()
            if now < self._next_at or not self._per_second:
                self.dropped += 1
                return False
            self._left = min(self._most, self._left + (now - self._at) * self._per_second)
            self._at = now
        self._left -= 1.0
        if self._left < 1.0 and self._per_second:
            self._next_at = self._at + (1.0 - self._left) / self._per_second
        return True


class Recorder:
    """Makes the spans of this process.

    Args:
        sink: Takes those of sampled traces; None when traces are off, and only observers get spans.
        sampler: Decides about traces that begin here.
        captures_content: Put prompts and answers into spans.
    """

    def __init__(
        self, sink: Sink | None = None, *, sampler: HeadSampler | None = None, captures_content: bool = False
    ) -> None:
        self._sink = sink
        self.sampler = sampler or HeadSampler(0.0)
        self.captures_content = captures_content and sink is not None
        self.observers: list[Observer] = []
        """Called with each span that has ended, whether its trace is sampled or not: quick, and raising nothing."""
        self.flushers: list[Callable[[], None]] = []
        """Called when what observers know should be sent now."""

    def begin(
        self, op: Op, name: str, attributes: Mapping[str, Any] | None = None, *, parent: AnySpan | None = None
    ) -> AnySpan:
        """Return a span below `parent`, the current one unless said; it is not the current one itself."""
        above = _current.get() if parent is None else parent
        if isinstance(above, Span):
            if not above.is_sampled and not self.observers:
                return NO_SPAN
            return self._make(op, name, attributes, above.trace_id, above.span_id, is_sampled=above.is_sampled)
        return NO_SPAN  # a trace begins with a job or a request: nobody waits for a warm-up's requests

    def samples(self, caller: TraceContext | None) -> bool:
        """Decide about a job or a request: as its caller did, or by the sampler where nobody has."""
        return self._sink is not None and (self.sampler.takes_one() if caller is None else caller.is_sampled)

    def begin_trace(
        self, op: Op, name: str, attributes: Mapping[str, Any], *, job_id: str | None, caller: TraceContext | None
    ) -> Span:
        """Return the span of a sampled job or request: the caller's trace goes on in it, or one begins."""
        given = {**attributes, "flashkit.job.id": job_id} if job_id else attributes
        if caller is not None:
            return self._make(op, name, given, caller.trace_id, caller.span_id, is_sampled=True)
        return self._make(op, name, given, trace_id_of_job(job_id) if job_id else "", None, is_sampled=True)

    def add(
        self,
        op: Op,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        start_ns: int,
        end_ns: int,
        parent: AnySpan | None = None,
    ) -> AnySpan:
        """Return a span that has ended already, for traces only."""
        made = self.begin(op, name, attributes, parent=parent)
        if isinstance(made, Span):
            made.start_ns = start_ns
            made.end_ns = max(end_ns, start_ns + 1)
            if made.is_sampled and self._sink is not None:
                self._sink.ended(made)
        return made

    def note(self, op: Op, name: str, attributes: Mapping[str, Any], *, start_ns: int, end_ns: int) -> None:
        """Tell observers of something that is no part of a task."""
        noted = Span(None, op, name, dict(attributes))
        noted.start_ns, noted.end_ns = start_ns, end_ns
        for observer in self.observers:
            observer(noted)

    def flush(self) -> None:
        """Send what there is, waiting for a moment at most."""
        if self._sink is not None:
            self._sink.close()
        for flush in self.flushers:
            flush()

    def finish(self, span: Span) -> None:
        """Hand out a span that has ended."""
        for observer in self.observers:
            observer(span)
        if span.is_sampled and self._sink is not None:
            self._sink.ended(span)

    def _make(
        self,
        op: Op,
        name: str,
        attributes: Mapping[str, Any] | None,
        trace_id: str,
        parent_id: str | None,
        *,
        is_sampled: bool,
    ) -> Span:
        made = Span(
            self, op, name, dict(attributes) if attributes else {},
            trace_id=trace_id, parent_id=parent_id, is_sampled=is_sampled,
        )  # fmt: skip
        if is_sampled and self._sink is not None:
            self._sink.opened(made)
        return made


_recorder: Recorder | None = None


def recorder() -> Recorder | None:
    """Return this process's recorder, None while nobody wants spans."""
    return _recorder


def use_recorder(new: Recorder | None) -> Recorder | None:
    """Have spans made from now on, or none any more; return the recorder there was."""
    global _recorder
    before, _recorder = _recorder, new
    return before


def observe(observer: Observer, *, flush: Callable[[], None] | None = None) -> Callable[[], None]:
    """Call `observer` with each span that ends in this process; return what takes it away again.

    It is called where the span ends, on the loop or in a thread: it must be quick, and raise nothing. `flush` is called
    at the end of the process's work, and may wait for a moment.
    """
    used = _recorder or Recorder()
    if _recorder is None:
        use_recorder(used)
    used.observers.append(observer)
    if flush is not None:
        used.flushers.append(flush)

    def stop() -> None:
        if observer in used.observers:
            used.observers.remove(observer)
        if flush in used.flushers:
            used.flushers.remove(flush)

    return stop


def span(op: Op, name: str, attributes: Mapping[str, Any] | None = None) -> AnySpan:
    """Return a span for a `with` block: what begins inside belongs below it."""
    return NO_SPAN if _recorder is None else _recorder.begin(op, name, attributes)


def begin(op: Op, name: str, attributes: Mapping[str, Any] | None = None) -> AnySpan:
    """Return a span that is ended with `end()`, for code that is no block: it is nothing's parent."""
    return NO_SPAN if _recorder is None else _recorder.begin(op, name, attributes)


def enter_job(op: Op, name: str, attributes: Mapping[str, Any], *, job_id: str | None, traceparent: object) -> AnySpan:
    """Return the span of a job or a request for a `with` block, in its caller's trace if it has one.

    Args:
        op: Which of the two.
        name: Its name.
        attributes: What is known of it before, which only the span of a sampled trace gets.
        job_id: The job's id, which a trace that begins here takes its own from.
        traceparent: What the caller sent, which may be anything.
    """
    if _recorder is None:
        return NO_SPAN
    caller = read_traceparent(traceparent) if traceparent else None
    if _recorder.samples(caller):
        return _recorder.begin_trace(op, name, attributes, job_id=job_id, caller=caller)
    if caller is None:
        return Span(_recorder, op, name, {})
    return Span(_recorder, op, name, {}, trace_id=caller.trace_id, parent_id=caller.span_id)


def capture(span: AnySpan, name: str, content: bytes) -> None:
    """Add what people or models wrote, where the settings want it in spans."""
    if _recorder is not None and _recorder.captures_content and span.is_sampled:
        span.set(name, content[:CONTENT_LIMIT_BYTES].decode(errors="replace"))


def current() -> AnySpan:
    """Return the span that the calling code runs in."""
    return _current.get()


def outgoing() -> TraceContext | None:
    """Return what a request that is sent now is to carry: the current span, or that of OpenTelemetry in the app."""
    here = _current.get().context
    if here is not None or (api := sys.modules.get("opentelemetry.trace")) is None:
        return here
    theirs = api.get_current_span().get_span_context()
    if not theirs.is_valid:
        return None
    return TraceContext(f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}", bool(theirs.trace_flags & 1))


def describe(exc: BaseException) -> str:
    """Return what an exception says, in a line."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
