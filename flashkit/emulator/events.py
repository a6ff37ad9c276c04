"""What the emulator tells whoever watches it: jobs, workers, and lines that workers print.

Events are plain frozen values. The terminal, tests and later the dashboard read the same stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus

WorkerMoment = Literal[
    "initializing",
    "starting",
    "ready",
    "frozen",
    "thawing",
    "draining",
    "reclaimed",
    "exited",
    "killed",
    "unhealthy",
]
"""`initializing` comes before `starting` where a cold start has phases, and says which one in its detail;
`starting` is the start of the process; `reclaimed` is a spot machine's notice."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job came to a new status, or was handed out once more."""

    endpoint: str
    job_id: str
    status: JobStatus
    attempt: int
    worker_id: str | None
    delay_ms: int | None
    """Time in queue, until the job was handed out."""
    execution_ms: int | None
    cold_start_ms: int | None
    """Start-up time of the worker, on the first job it took."""
    error: ErrorReport | None
    input_bytes: int
    """Size of the request that brought the job."""
    output_bytes: int
    """Size of the result that the worker sent."""


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """A request to a load-balanced endpoint has ended, or a WebSocket was closed."""

    endpoint: str
    request_id: str
    method: str
    """`WEBSOCKET` for one of those."""
    path: str
    """Without the query, which may hold secrets."""
    status: int | None
    """None when the client hung up before there was an answer; 101 for a WebSocket that was opened."""
    worker_id: str | None
    wait_ms: int
    """Time until a worker had it."""
    run_ms: int | None
    """Time that it took there."""
    first_byte_ms: int | None
    """Time from its arrival to the begin of the answer."""
    request_bytes: int
    response_bytes: int
    problem: str | None
    """What the platform, not the worker, has to say of its end."""


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """A worker came to a new point of its life."""

    endpoint: str
    worker_id: str
    what: WorkerMoment
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a worker printed."""

    endpoint: str
    worker_id: str
    job_id: str | None
    """Known for lines of the runpod SDK's own logger only."""
    level: str | None
    text: str


@dataclass(frozen=True, slots=True)
class FaultEvent:
    """A fault struck that somebody had asked for."""

    endpoint: str
    """Empty for the store of sessions."""
    job_id: str | None
    worker_id: str | None
    kind: str
    detail: str
    """The rule."""


@dataclass(frozen=True, slots=True)
class CapacityEvent:
    """The number of workers that an endpoint wants and there are no machines for has changed."""

    endpoint: str
    throttled: int
    capacity: int | None
    """Workers that there are machines for; None for any number."""


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """The platform's clock was moved on, or goes at another speed."""

    now: float
    advanced_s: float
    """0 when only the speed has changed."""
    speed: float


@dataclass(frozen=True, slots=True)
class ReloadEvent:
    """Files were saved, and the endpoints that depend on them run other code from now on."""

    files: tuple[str, ...]
    """Relative to the project's folder."""
    restarted: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Endpoints of the same apps whose workers go on."""
    seconds: float = 0.0
    """From the notice of the save until new workers take over."""
    error: ErrorReport | None = None
    """Why the app cannot be imported; its endpoints go on with the last good code."""


Event = JobEvent | RequestEvent | WorkerEvent | LogLine | CapacityEvent | ClockEvent | FaultEvent | ReloadEvent


def ignore(event: Event) -> None:
    """Drop the event: what an emulator does with events that nobody asked for."""
