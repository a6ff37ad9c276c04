"""The errors that the platform itself writes into jobs, as the JSON text of an `ErrorReport`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashkit.emulator.jobs import Job
from flashkit.errors import ErrorReport

LOG_LINES_IN_REPORTS: Final = 20


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker's process ended."""

    worker_id: str
    exit_code: int
    """Negative: the signal's number."""
    log_tail: Sequence[str]
    failed_check: str | None = None
    """What the worker had reported as unhealthy before."""

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that ended it, such as SIGKILL."""
        if self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"

    def __str__(self) -> str:
        if self.signal_name is not None:
            return f"was killed by {self.signal_name}"
        return f"exited with code {self.exit_code}"

    def to_details(self) -> dict[str, Any]:
        """Return the facts for an error report."""
        details = {
            "worker_id": self.worker_id,
            "exit_code": self.exit_code,
            "signal": self.signal_name,
            "failed_check": self.failed_check,
            "log_tail": list(self.log_tail)[-LOG_LINES_IN_REPORTS:],
        }
        return {key: value for key, value in details.items() if value is not None}


def worker_died(job: Job, ended: WorkerExit) -> str:
    """Report a job whose workers died each time that it was handed out."""
    return ErrorReport(
        code="worker_died",
        type="JobFailed",
        message=f"worker {ended.worker_id} {ended} while it had this job, which was handed out {job.attempt} times",
        hint="read the worker's last log lines in `details`; SIGKILL often means that it ran out of memory",
        details={"attempts": job.attempt, **ended.to_details()},
        request_id=job.id,
    ).to_json()


def worker_start_failed(job: Job, ended: WorkerExit, *, failed_starts: int) -> str:
    """Report a job that waited for workers of which none came up."""
    reason = f": {ended.failed_check}" if ended.failed_check else ""
    return ErrorReport(
        code="worker_start_failed",
        type="JobFailed",
        message=f"no worker of endpoint {job.endpoint!r} came up: {failed_starts} in a row ended before they had "
        f"done anything well, the last one {ended}{reason}",
        hint="read the worker's last log lines in `details`",
        details={"failed_starts": failed_starts, **ended.to_details()},
        request_id=job.id,
    ).to_json()


def app_broken(job: Job, ended: WorkerExit, problem: ErrorReport) -> str:
    """Report a job that needed a new worker while the app does not import."""
    return ErrorReport(
        code="worker_start_failed",
        type="JobFailed",
        message=f"no new worker of endpoint {job.endpoint!r} comes up, as its app does not import: "
        f"{problem.type}: {problem.message}",
        where=problem.where,
        hint=problem.hint or "repair the file, and send the job again",
        details=ended.to_details(),
        request_id=job.id,
    ).to_json()


def job_dropped(job: Job) -> str:
    """Report a job whose worker asks for work and says that it has none, but sent no result."""
    return ErrorReport(
        code="job_dropped",
        type="JobFailed",
        message=f"worker {job.worker_id} is done with this job but sent no result",
        hint="look for an error in the worker's log: most often the output cannot be encoded as JSON, is a "
        "generator returned by a plain function, or its delivery was refused",
        details={"worker_id": job.worker_id, "attempt": job.attempt},
        request_id=job.id,
    ).to_json()


def execution_timed_out(job: Job) -> str:
    """Report a job that ran past its execution timeout."""
    return ErrorReport(
        code="job_timed_out",
        type="JobTimedOut",
        message=f"the job ran longer than its execution timeout of {job.execution_timeout_ms:,} ms",
        hint="raise execution_timeout_ms of the endpoint or policy.executionTimeout of the request, or do less",
        details={
            "execution_timeout_ms": job.execution_timeout_ms,
            "worker_id": job.worker_id,
            "attempt": job.attempt,
        },
        request_id=job.id,
    ).to_json()


def job_expired(job: Job) -> str:
    """Report a job whose time to live ran out before its end."""
    return ErrorReport(
        code="job_expired",
        type="JobTimedOut",
        message=f"the job was deleted {job.ttl_ms:,} ms after its submission: its time to live ran out",
        hint="raise policy.ttl of the request, or the endpoint's number of workers",
        details={"ttl_ms": job.ttl_ms, "attempt": job.attempt},
        request_id=job.id,
    ).to_json()
