"""What the platform wants done: plain values that whoever drives the state machine carries out."""

from __future__ import annotations

from dataclasses import dataclass

from flashkit.emulator.jobs import Job


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a process for this worker; its end is reported by `worker_exited`, also if it never began."""

    endpoint: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class EnterPhase:
    """A worker that has no process yet spends some time on what comes before: nothing to do but tell of it."""

    endpoint: str
    worker_id: str
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUpWorker:
    """A worker that has no process yet is not wanted any more."""

    endpoint: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class FreezeWorker:
    """Stop the worker's process group where it stands (SIGSTOP), then break its connections."""

    endpoint: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class ThawWorker:
    """Let the worker's process group go on (SIGCONT)."""

    endpoint: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Send SIGTERM, then answer the worker's held polls with 204, so that it finishes and exits."""

    endpoint: str
    worker_id: str
    is_reclaimed: bool = False
    """Its machine is wanted back; the worker itself sees no difference."""


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Kill the worker's process group now; the reason is for people."""

    endpoint: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WakeWorker:
    """The worker's held polls should look again: a job waits, or a stop signal."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class JobChanged:
    """A job has a new status, progress, or partial output; after its end it may be forgotten already."""

    job: Job


@dataclass(frozen=True, slots=True)
class ChunksDropped:
    """A job has more partial outputs than are kept for nobody: from now on the oldest are dropped."""

    job: Job


@dataclass(frozen=True, slots=True)
class SendWebhook:
    """A job with a webhook came to its end."""

    job: Job


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The number of workers that are wanted and have no machine is another one."""

    endpoint: str
    throttled: int
    capacity: int | None


Effect = (
    StartWorker
    | EnterPhase
    | GiveUpWorker
    | FreezeWorker
    | ThawWorker
    | DrainWorker
    | KillWorker
    | WakeWorker
    | JobChanged
    | ChunksDropped
    | SendWebhook
    | CapacityChanged
)
