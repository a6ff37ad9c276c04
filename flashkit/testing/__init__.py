"""Tests of what is built with flashkit: single jobs without a platform, and a whole platform with pytest fixtures.

Names are resolved on first use: an app file for tests, which workers import, needs no platform.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashkit.testing.engines import with_engine
    from flashkit.testing.jobs import JobResult, LocalWorker, run_job, run_job_async
    from flashkit.testing.platform import FakeClock, Faults, LocalPlatform, PlatformEndpoint

_HOMES = {
    "engines": ("with_engine",),
    "jobs": ("JobResult", "LocalWorker", "run_job", "run_job_async"),
    "platform": ("FakeClock", "Faults", "LocalPlatform", "PlatformEndpoint"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FakeClock",
    "Faults",
    "JobResult",
    "LocalPlatform",
    "LocalWorker",
    "PlatformEndpoint",
    "run_job",
    "run_job_async",
    "with_engine",
]


if not TYPE_CHECKING:  # type checkers would believe that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'flashkit.testing' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"flashkit.testing.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
