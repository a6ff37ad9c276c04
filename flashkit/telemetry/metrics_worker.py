"""A worker's metrics: counted from its spans, and read when they are sent.

Where a span ends it is only put aside. Many are counted one after the other, which takes a sixth of the time that it
takes in between jobs. There is no instrumentation of its own: whatever is worth a span is worth a figure, also of
traces that are not sampled. Figures are kept as totals since the start; who sends them takes the totals, or what has
come since it last sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.telemetry.metrics import BY_NAME, Histogram, LabelGuard, Metric
from flashkit.telemetry.spans import Op, Span

Key = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""

_STEP_KINDS: Final = {Op.STEP: "step", Op.EFFECT: "effect", Op.CALL: "call", Op.TOOL: "call"}
_CALLS: Final = BY_NAME["gen_ai.client.operation.duration"]
_TOKENS: Final = BY_NAME["gen_ai.client.token.usage"]
_FIRST_TOKEN: Final = BY_NAME["gen_ai.server.time_to_first_token"]
_STEPS: Final = BY_NAME["flashkit.session.step.duration"]
_TOOLS: Final = BY_NAME["flashkit.tool.calls"]
_TURNS: Final = BY_NAME["flashkit.session.turns"]
_TURN_TOKENS: Final = BY_NAME["flashkit.session.turn.tokens"]
_COST: Final = BY_NAME["flashkit.session.cost.usd"]
_JOBS: Final = BY_NAME["flashkit.worker.job.duration"]
_STARTS: Final = BY_NAME["flashkit.worker.start.duration"]
_LOST_SPANS: Final = ("flashkit.telemetry.dropped", ("spans",))
_FIRST_FAILURE: Final = 500
_COUNTED_AT_ONCE: Final = 256


@dataclass(slots=True)
class Totals:
    """All figures at one time."""

    began_ns: int
    """Since when they count."""
    at_ns: int
    counters: dict[Key, float] = field(default_factory=dict)
    histograms: dict[Key, Histogram] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def since(self, earlier: Totals) -> Totals:
        """Return what has come since then; gauges are as they are now."""
        counters = {key: number - earlier.counters.get(key, 0.0) for key, number in self.counters.items()}
        histograms = {
            key: histogram.since(earlier.histograms.get(key))
            for key, histogram in self.histograms.items()
        }  # fmt: skip
        return Totals(
            earlier.at_ns,
            self.at_ns,
            {key: number for key, number in counters.items() if number},
            {key: histogram for key, histogram in histograms.items() if histogram.count},
            self.gauges,
        )

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to tell."""
        return not (self.counters or self.histograms or self.gauges)


class WorkerMetrics:
    """Counts what this process does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # spans end on the loop and in threads, and another thread reads
        self._guard = LabelGuard()
        self._began_ns = time.time_ns()
        self._ended: deque[Span] = deque()
        """Spans that are not counted yet."""
        self._counters: dict[Key, float] = {}
        self._histograms: dict[Key, Histogram] = {}
        self._jobs: dict[str, Histogram] = {}
        """By outcome: a worker may end thousands a second, so these are not looked up by all their labels."""
        self._counts: Final[Mapping[Op, Callable[[Span], None]]] = {
            Op.JOB: self._count_job,
            Op.REQUEST: self._count_job,
            **dict.fromkeys(_STEP_KINDS, self._count_step),
            Op.LLM: self._count_model,
            Op.EMBEDDING: self._count_model,
            Op.COLD_START: self._count_start,
        }

    def observe(self, span: Span) -> None:
        """Count a span that has ended, now or together with later ones."""
        self._ended.append(span)
        if len(self._ended) >= _COUNTED_AT_ONCE:
            with self._lock:
                self._count_ended()

    def add(self, name: str, number: float, labels: Mapping[str, object] | None = None) -> None:
        """Count so many more of something."""
        with self._lock:
            self._add(BY_NAME[name], number, labels)

    def totals(self) -> Totals:
        """Return the figures as they are now."""
        with self._lock:
            self._count_ended()
            counters = dict(self._counters)
            if lost := sum(read() for read in _losses):
                counters[_LOST_SPANS] = lost
            histograms = {key: histogram.copy() for key, histogram in self._histograms.items()}
        return Totals(self._began_ns, time.time_ns(), counters, histograms, read_gauges())

    def _count_ended(self) -> None:
        while self._ended:
            span = self._ended.popleft()
            count = self._counts.get(span.op)
            if count is None:
                continue
            count(span)
            if spent := span.attributes.get("flashkit.spent.cost_usd"):
                self._add(_COST, float(spent))

    def _add(self, metric: Metric, number: float, labels: Mapping[str, object] | None = None) -> None:
        key = (metric.name, self._guard.values(metric, labels or {}))
        self._counters[key] = self._counters.get(key, 0.0) + number

    def _time(self, metric: Metric, value: float, labels: Mapping[str, object] | None = None) -> None:
        self._histogram(metric, labels or {}).observe(value)

    def _histogram(self, metric: Metric, labels: Mapping[str, object]) -> Histogram:
        key = (metric.name, self._guard.values(metric, labels))
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = Histogram(metric.buckets)
        return histogram

    def _count_job(self, span: Span) -> None:
        given = span.attributes
        if not given.get("flashkit.handed_back"):  # it goes on elsewhere
            is_failure = bool(span.error) or (given.get("http.response.status_code") or 0) >= _FIRST_FAILURE
            result = "error" if is_failure else "ok"
            jobs = self._jobs.get(result)
            if jobs is None:
                jobs = self._jobs[result] = self._histogram(_JOBS, {"outcome": result})
            jobs.observe(span.duration_s)
        outcome = given.get("flashkit.turn.outcome")
        if outcome is not None:
            self._add(_TURNS, 1, {"outcome": outcome})
        if outcome == "completed" and (tokens := given.get("flashkit.turn.tokens")):
            self._time(_TURN_TOKENS, tokens)

    def _count_step(self, span: Span) -> None:
        outcome = "error" if span.error else "ok"
        self._time(_STEPS, span.duration_s, {"kind": _STEP_KINDS[span.op], "outcome": outcome})
        if span.op is not Op.CALL:
            name = span.attributes.get("gen_ai.tool.name") or span.attributes.get("flashkit.step.name") or span.name
            self._add(_TOOLS, 1, {"tool": name, "outcome": outcome})

    def _count_model(self, span: Span) -> None:
        given = span.attributes
        # A refused request names whatever model its sender likes.
        model = "" if span.error else given.get("gen_ai.request.model") or given.get("gen_ai.response.model") or ""
        labels: dict[str, Any] = {
            "gen_ai.request.model": model,
            "gen_ai.operation.name": given.get("gen_ai.operation.name", ""),
            "error.type": given.get("error.type", ""),
        }
        self._time(_CALLS, span.duration_s, labels)
        for kind in ("input", "output"):
            tokens = given.get(f"gen_ai.usage.{kind}_tokens")
            if tokens is not None:
                self._time(_TOKENS, tokens, {**labels, "gen_ai.token.type": kind})
        first = given.get("gen_ai.response.time_to_first_chunk")
        if first is not None:
            self._time(_FIRST_TOKEN, first, labels)

    def _count_start(self, span: Span) -> None:
        self._time(_STARTS, span.duration_s)


_gauges: dict[str, Callable[[], float | None]] = {}
_losses: list[Callable[[], int]] = []


def watch_lost_spans(read: Callable[[], int]) -> None:
    """Have the number of spans that were dropped read whenever figures are sent."""
    _losses[:] = [read]


def watch_gauge(name: str, read: Callable[[], float | None]) -> None:
    """Have a gauge read whenever figures are sent, by a thread of its own; the last one of a name counts."""
    assert name in BY_NAME  # noqa: S101 - one of ours
    _gauges[name] = read


def read_gauges() -> dict[str, float]:
    """Return the gauges that have a value now."""
    found = {}
    for name, read in list(_gauges.items()):
        try:
            value = read()
        except RuntimeError:  # what it reads changed meanwhile, on the loop
            continue
        if value is not None:
            found[name] = float(value)
    return found
