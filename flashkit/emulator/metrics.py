"""Figures of each endpoint: queue, workers, latencies, cold starts, tokens, and what it would cost.

Once a second a sample is taken; a quarter of an hour of samples is kept. Latencies are those of the jobs that
ended in the last five minutes. Costs are those of the same workers on Runpod, at the catalogue's prices, from
the start of a worker to its end; time that was skipped by advancing the clock is not counted.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from flashkit.catalog import usd_per_second
from flashkit.emulator.events import Event, JobEvent, RequestEvent, WorkerEvent
from flashkit.emulator.lanes import Lane
from flashkit.emulator.platform import Platform
from flashkit.emulator.recorder import Recorder
from flashkit.errors import FlashkitError
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec
from flashkit.telemetry.metrics import SECONDS_OF_CALLS, SECONDS_OF_STARTS, Histogram
from flashkit.telemetry.tokens import read_tokens

SAMPLE_LIMIT: Final = 900
"""Samples that are kept, one a second."""
WINDOW_SECONDS: Final = 300.0
WINDOW_JOBS: Final = 2_000
"""Latencies are those of the jobs that ended in this time, the latest so many of them."""
SERIES: Final = (
    "queued",
    "running",
    "idle",
    "busy",
    "starting",
    "leaving",
    "finished",
    "failed",
    "tokens",
    "p50_ms",
    "p95_ms",
)
"""What a sample has, after its time: jobs in the queue and at work; workers by what they do; jobs that ended, and
tokens, since the sample before; and the latencies of the last seconds, None where no job ended."""

_RECENT_SECONDS: Final = 10.0
_FIRST_FAILURE_STATUS: Final = 500
_SECONDS_PER_HOUR: Final = 3600
_WORKER_COLUMNS: Final = {
    "idle": "idle",
    "running": "busy",
    "initializing": "starting",
    "starting": "starting",
    "draining": "leaving",
    "unhealthy": "leaving",
}
_BEGINS: Final = ("initializing", "starting", "thawing")
_FREE_STATES: Final = ("frozen", "exited")
"""Nothing is paid for these."""


class Ended(NamedTuple):
    """A job that came to its end."""

    at: float
    delay_ms: int
    execution_ms: int


Sample = tuple[float | None, ...]


@dataclass(slots=True)
class EndpointFigures:
    """What is counted for one endpoint."""

    statuses: Counter[JobStatus] = field(default_factory=Counter)
    """Jobs that ended so far."""
    delays: Histogram = field(default_factory=lambda: Histogram(SECONDS_OF_CALLS))
    executions: Histogram = field(default_factory=lambda: Histogram(SECONDS_OF_CALLS))
    starts: Histogram = field(default_factory=lambda: Histogram(SECONDS_OF_STARTS))
    started: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_JOBS))
    """When the latest cold starts ended."""
    ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=WINDOW_JOBS))
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLE_LIMIT))
    since_sample: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    """Requests of a load-balanced endpoint so far, by how they ended."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    """Spent so far."""

    def recent_latencies(self, now: float) -> Iterator[int]:
        """Yield how long the jobs of the last seconds took, from queue to end."""
        for job in reversed(self.ended):
            if job.at < now - _RECENT_SECONDS:
                return
            yield job.delay_ms + job.execution_ms


class Metrics:
    """Counts what happens, and samples what there is.

    Args:
        platform: Whose figures these are.
        recorder: What happened; its clock gives the time.
    """

    def __init__(self, platform: Platform, recorder: Recorder, *, clock: Callable[[], float]) -> None:
        self._platform = platform
        self._recorder = recorder
        self._clock = clock
        self._figures: dict[str, EndpointFigures] = {}
        self._sampled_at = clock()
        self._starting: dict[str, float] = {}
        """Workers that are not ready yet, with the time of the wish for them."""

    def observe(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, RequestEvent):
            self._count_request(event)
        elif isinstance(event, WorkerEvent):
            self._count_start(event)
        elif isinstance(event, JobEvent):
            self._count_job(event)

    def _count_start(self, event: WorkerEvent) -> None:
        if event.what in _BEGINS:
            self._starting.setdefault(event.worker_id, self._clock())
        elif (began := self._starting.pop(event.worker_id, None)) is not None and event.what == "ready":
            self._end_start(event.endpoint, began)

    def _end_start(self, endpoint: str, began: float) -> None:
        figures, now = self._of(endpoint), self._clock()
        figures.starts.observe(now - began)
        figures.started.append(now)

    def _count_job(self, event: JobEvent) -> None:
        if event.worker_id in self._starting and not event.status.is_final:  # it was thawed for this job
            self._end_start(event.endpoint, self._starting.pop(event.worker_id))
        if not event.status.is_final:
            return
        figures = self._of(event.endpoint)
        figures.statuses[event.status] += 1
        is_failure = event.status in (JobStatus.FAILED, JobStatus.TIMED_OUT)
        figures.since_sample["failed" if is_failure else "finished"] += 1
        if event.delay_ms is not None and event.execution_ms is not None:
            figures.ended.append(Ended(self._clock(), event.delay_ms, event.execution_ms))
            figures.delays.observe(event.delay_ms / 1000)
            figures.executions.observe(event.execution_ms / 1000)
        if event.status is JobStatus.COMPLETED:
            self._count_tokens(figures, event)

    def _count_request(self, event: RequestEvent) -> None:
        """Count a request to a load-balanced endpoint as if it were a job."""
        figures = self._of(event.endpoint)
        is_failure = event.status is not None and event.status >= _FIRST_FAILURE_STATUS
        figures.since_sample["failed" if is_failure else "finished"] += 1
        figures.requests["failed" if is_failure else "done"] += 1
        if event.run_ms is not None:
            figures.ended.append(Ended(self._clock(), event.wait_ms, event.run_ms))

    def _of(self, endpoint: str) -> EndpointFigures:
        figures = self._figures.get(endpoint)
        if figures is None:
            figures = self._figures[endpoint] = EndpointFigures()
        return figures

    def _count_tokens(self, figures: EndpointFigures, event: JobEvent) -> None:
        try:
            job = self._platform.job(0.0, event.endpoint, event.job_id)
        except FlashkitError:  # forgotten already
            return
        tokens = read_tokens(job.output)
        if not any(tokens):
            tokens = read_tokens(job.usage)
        figures.prompt_tokens += tokens.prompt
        figures.completion_tokens += tokens.completion
        figures.since_sample["tokens"] += tokens.prompt + tokens.completion

    async def sample_for_ever(self) -> None:
        """Take a sample each second."""
        while True:
            self.sample()
            await asyncio.sleep(1 - self._clock() % 1)

    def sample(self) -> None:
        """Take a sample of every endpoint."""
        now = self._clock()
        seconds, self._sampled_at = max(0.0, now - self._sampled_at), now
        lanes = self._lanes_by_endpoint()
        specs = self._platform.specs
        for name in self._figures.keys() - specs.keys():
            del self._figures[name]
        for name, spec in specs.items():
            figures, alive = self._of(name), lanes.get(name, ())
            workers = Counter(_WORKER_COLUMNS.get(lane.state, "") for lane in alive)
            jobs = self._platform.health(name)["jobs"]
            counted, figures.since_sample = figures.since_sample, Counter()
            latencies = percentiles(figures.recent_latencies(now)) or {"p50": None, "p95": None}
            values: dict[str, float | None] = {
                **workers,
                **counted,
                "queued": jobs["inQueue"],
                "running": jobs["inProgress"],
                "p50_ms": latencies["p50"],
                "p95_ms": latencies["p95"],
            }
            figures.samples.append((now, *(values.get(column, 0) for column in SERIES)))
            figures.usd += (cost_per_second(spec, alive) or 0.0) * seconds

    def _lanes_by_endpoint(self) -> dict[str, list[Lane]]:
        lanes: dict[str, list[Lane]] = {}
        for lane in self._recorder.lanes.by_worker.values():
            if not lane.is_over:
                lanes.setdefault(lane.endpoint, []).append(lane)
        return lanes

    def figures(self, endpoint: str) -> EndpointFigures:
        """Return what was counted for an endpoint so far."""
        return self._of(endpoint)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the figures of every endpoint as they are now."""
        lanes = self._lanes_by_endpoint()
        return {
            name: self._describe_endpoint(name, spec, lanes.get(name, ()))
            for name, spec in self._platform.specs.items()
        }

    def _describe_endpoint(self, name: str, spec: EndpointSpec, alive: Sequence[Lane]) -> dict[str, Any]:
        figures, health, now = self._of(name), self._platform.health(name), self._clock()
        ended = [job for job in figures.ended if job.at >= now - WINDOW_SECONDS]
        cost = cost_per_second(spec, alive)
        return {
            "jobs": health["jobs"],
            "requests": {"done": figures.requests["done"], "failed": figures.requests["failed"]},
            "workers": {**Counter(lane.state for lane in alive), "throttled": health["workers"]["throttled"]},
            "bounds": {"min": spec.workers.min, "max": spec.workers.max},
            "latency": {
                "window_seconds": WINDOW_SECONDS,
                "jobs": len(ended),
                "delay_ms": percentiles(job.delay_ms for job in ended),
                "execution_ms": percentiles(job.execution_ms for job in ended),
                "total_ms": percentiles(job.delay_ms + job.execution_ms for job in ended),
            },
            "cold_starts": self._describe_cold_starts(name),
            "tokens": {"prompt": figures.prompt_tokens, "completion": figures.completion_tokens},
            "cost": {
                "usd_per_hour": None if cost is None else cost * _SECONDS_PER_HOUR,
                "usd": None if cost is None else figures.usd,
            },
        }

    def _describe_cold_starts(self, name: str) -> dict[str, Any]:
        seconds = [
            start
            for lane in self._recorder.lanes.by_worker.values()
            if lane.endpoint == name
            for start in cold_starts(lane)
        ]
        return {"count": len(seconds), "ms": percentiles(round(value * 1000) for value in seconds)}

    def series(self, *, after: float = 0.0) -> dict[str, list[Sample]]:
        """Return the samples of every endpoint that were taken after this time; `SERIES` names the columns."""
        return {
            name: [sample for sample in figures.samples if (sample[0] or 0.0) > after]
            for name, figures in self._figures.items()
        }


def percentiles(values: Iterable[float]) -> Mapping[str, float | None] | None:
    """Return the 50th, 95th and 99th percentile (nearest rank) of the values; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 95, 99)}


def cold_starts(lane: Lane) -> list[float]:
    """Return how long each start of this worker took, in seconds: from the wish for it until it was ready."""
    found, began = [], None
    for change in lane.changes:
        if change.state in ("initializing", "starting"):
            began = change.at if began is None else began
        elif began is not None:
            if change.state in ("idle", "running"):
                found.append(change.at - began)
            began = None
    return found


def cost_per_second(spec: EndpointSpec, alive: Sequence[Lane]) -> float | None:
    """Return what these workers cost on Runpod, the always-there ones at their own price; None without a price."""
    if not spec.gpu:
        return None
    flex = usd_per_second(spec.gpu[0])
    active = usd_per_second(spec.gpu[0], is_active=True)
    if flex is None or active is None:
        return None
    paid = sum(lane.state not in _FREE_STATES for lane in alive)
    always = min(paid, spec.workers.min)
    return (always * active + (paid - always) * flex) * spec.gpu_count
