"""Tests of what is built with flashkit: single jobs without a platform, and a whole platform with pytest fixtures."""

from flashkit.testing.jobs import JobResult, LocalWorker, run_job, run_job_async
from flashkit.testing.platform import FakeClock, Faults, LocalPlatform, PlatformEndpoint

__all__ = [
    "FakeClock",
    "Faults",
    "JobResult",
    "LocalPlatform",
    "LocalWorker",
    "PlatformEndpoint",
    "run_job",
    "run_job_async",
]
