"""What the emulator tells whoever watches it: jobs, workers, and lines that workers print.

Events are plain frozen values. The terminal, tests and later the dashboard read the same stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus

WorkerMoment = Literal["starting", "ready", "draining", "exited", "killed", "unhealthy"]


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


Event = JobEvent | WorkerEvent | LogLine


def ignore(event: Event) -> None:
    """Drop the event: what an emulator does with events that nobody asked for."""
