"""Jobs as the local platform keeps them, and the queue in which they wait.

A `Job` is one mutable record, written by the platform alone; everybody else reads it and notices changes
by `generation`. Times are seconds of the clock that the platform is driven with.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from flashkit.protocol import JobStatus

_CHUNK_BYTES: Final = 200
"""About what a partial output takes besides its text."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a client asks for; limits of body and policy are checked before this is built."""

    input: Any
    webhook: str | None = None
    execution_timeout_ms: int | None = None
    """None: the endpoint's own."""
    ttl_ms: int | None = None
    """None: the platform's default."""
    low_priority: bool = False
    """Waits for a worker that runs anyway: never starts one, not even the first."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other fields (`s3Config`, …), handed to the worker as they came."""


class UnreadChunks:
    """Partial outputs of a job that nobody has read yet: the latest ones, as far as the limit allows."""

    def __init__(self) -> None:
        self.has_dropped = False
        """True when some were never read and are no more."""
        self._chunks: deque[_Chunk] = deque()
        self._size_bytes = 0

    def add(self, value: Any, *, size_bytes: int, limit_bytes: int) -> None:
        """Keep one; the oldest make room for it, and the latest stays however large it is."""
        self._chunks.append(_Chunk(value, size_bytes + _CHUNK_BYTES))
        self._size_bytes += size_bytes + _CHUNK_BYTES
        while self._size_bytes > limit_bytes and len(self._chunks) > 1:
            self._size_bytes -= self._chunks.popleft().size_bytes
            self.has_dropped = True

    @property
    def values(self) -> list[Any]:
        """The partial outputs, oldest first."""
        return [chunk.value for chunk in self._chunks]

    def take(self) -> list[Any]:
        """Return them, and keep none."""
        values = self.values
        self._chunks.clear()
        self._size_bytes = 0
        return values


class _Chunk(NamedTuple):
    value: Any
    size_bytes: int


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One job, from submission until it is forgotten."""

    id: str
    endpoint: str
    input: Any
    sync: bool
    submitted_at: float
    queued_at: float
    """When it entered the queue: at submission or `retry`; a crashed attempt does not change it."""
    execution_timeout_ms: int
    ttl_ms: int
    low_priority: bool
    webhook: str | None
    extra: Mapping[str, Any]
    retention: float
    """Seconds for which it is kept after its end."""
    attempt_limit: int
    """The attempt after which a worker's death is final."""

    status: JobStatus = JobStatus.IN_QUEUE
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    """Hand-outs so far; never goes back, not even by `retry`."""
    worker_id: str | None = None
    dropped_at: float | None = None
    """When it counts as dropped: its worker said that it has no job, and sent no result so far."""
    output: Any = None
    has_output: bool = False
    error: str | None = None
    progress: Any = None
    unread: UnreadChunks = field(default_factory=UnreadChunks)
    usage: Any = None
    """The latest partial output that counts tokens."""
    all_chunks_count: int = 0
    """Partial outputs of the current attempt, read ones included."""
    generation: int = 0
    """Grows with every change."""

    @property
    def delay_ms(self) -> int | None:
        """Milliseconds from entering the queue to the latest hand-out; None before it."""
        return None if self.started_at is None else _milliseconds(self.started_at - self.queued_at)

    @property
    def execution_ms(self) -> int | None:
        """Milliseconds from the latest hand-out to the end; None before it, or if it never ran."""
        if self.started_at is None or self.finished_at is None:
            return None
        return _milliseconds(self.finished_at - self.started_at)

    @property
    def expires_at(self) -> float:
        """When its time to live runs out, in whatever state it is."""
        return self.submitted_at + self.ttl_ms / 1000

    @property
    def times_out_at(self) -> float:
        """When the running attempt is over its execution timeout; never unless it runs."""
        if self.status is not JobStatus.IN_PROGRESS or self.started_at is None:
            return math.inf
        return self.started_at + self.execution_timeout_ms / 1000

    @property
    def forgotten_at(self) -> float:
        """When its result is dropped; never before its end."""
        return math.inf if self.finished_at is None else self.finished_at + self.retention

    @property
    def due_at(self) -> float:
        """When time alone does something to it next."""
        dropped_at = math.inf if self.dropped_at is None else self.dropped_at
        return min(self.expires_at, self.times_out_at, self.forgotten_at, dropped_at)

    def clear_attempt(self) -> None:
        """Make it wait as if it had never run, but for the number of attempts."""
        self.status = JobStatus.IN_QUEUE
        self.started_at = self.finished_at = self.dropped_at = None
        self.worker_id = self.error = self.output = self.progress = None
        self.has_output = False
        self.unread = UnreadChunks()
        self.usage = None
        self.all_chunks_count = 0


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


class JobQueue:
    """Jobs in the order in which workers get them; every operation takes constant time for each job it moves.

    An ordered mapping instead of a deque: a cancelled job leaves at once, wherever it stands.
    """

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._urgent: OrderedDict[str, Job] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    @property
    def urgent_count(self) -> int:
        """Jobs that are not of low priority: those for which workers are started."""
        return len(self._urgent)

    @property
    def first_urgent(self) -> Job | None:
        """The job at the front, leaving out those of low priority."""
        return next(iter(self._urgent.values()), None)

    def push(self, job: Job) -> None:
        """Add a job at the end."""
        self._jobs[job.id] = job
        if not job.low_priority:
            self._urgent[job.id] = job

    def push_front(self, job: Job) -> None:
        """Add a job before all others."""
        self.push(job)
        self._jobs.move_to_end(job.id, last=False)
        if not job.low_priority:
            self._urgent.move_to_end(job.id, last=False)

    def remove(self, job: Job) -> None:
        """Take out this job."""
        del self._jobs[job.id]
        self._urgent.pop(job.id, None)

    def pop(self, limit: int, *, unless: Container[str] = ()) -> list[Job]:
        """Take out up to `limit` jobs from the front, passing over those whose ids are in `unless`."""
        chosen: list[Job] = []
        for job in self._jobs.values():
            if len(chosen) >= limit:
                break
            if job.id not in unless:
                chosen.append(job)
        for job in chosen:
            self.remove(job)
        return chosen
