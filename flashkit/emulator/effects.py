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
class DrainWorker:
    """Send SIGTERM, then answer the worker's held polls with 204, so that it finishes and exits."""

    endpoint: str
    worker_id: str


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
class SendWebhook:
    """A job with a webhook came to its end."""

    job: Job


Effect = StartWorker | DrainWorker | KillWorker | WakeWorker | JobChanged | SendWebhook
