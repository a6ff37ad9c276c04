"""A platform with one endpoint in a world of its own, for tests: time is a number, effects are a list."""

from __future__ import annotations

import json
from typing import Any

from flashkit.emulator.platform import (
    Job,
    JobChanged,
    JobRequest,
    Platform,
    Worker,
    WorkerState,
)
from flashkit.errors import ErrorReport
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

DEFAULTS = PlatformDefaults()


def make_spec(name: str = "tool", **changes: Any) -> EndpointSpec:
    options = {"kind": Kind.CPU, "cpu": "cpu5c-2-4", "workers": WorkerBounds(0, 3)} | changes
    return EndpointSpec(name=name, **options)


class World:
    """A platform with one endpoint, a clock, and the effects sorted by kind."""

    def __init__(self, *, defaults: PlatformDefaults = DEFAULTS, **changes: Any) -> None:
        self.now = 100.0
        self.spec = make_spec(**changes)
        self.platform = Platform(defaults)
        self.seen: list[Any] = []
        self.platform.add_endpoint(self.now, self.spec)

    def effects(self, kind: type | tuple[type, ...] | None = None) -> list[Any]:
        """All effects since the last call of this method, of one kind or of any but JobChanged."""
        found = self.platform.effects()
        return [e for e in found if isinstance(e, kind or object) and (kind or not isinstance(e, JobChanged))]

    def submit(self, value: Any = None, *, sync: bool = False, **options: Any) -> Job:
        return self.platform.submit(self.now, "tool", JobRequest(value, **options), sync=sync)

    def take(self, worker: Worker, *, limit: int = 1, busy: bool | None = None) -> list[Job]:
        busy = bool(worker.jobs) if busy is None else busy
        return self.platform.take(self.now, "tool", worker.id, limit=limit, job_in_progress=busy)

    def finish(self, worker: Worker, job: Job, **result: Any) -> bool:
        return self.platform.finish(self.now, "tool", worker.id, job.id, result)

    def exit(self, worker: Worker, code: int = 1, *lines: str) -> None:
        self.platform.worker_exited(self.now, "tool", worker.id, exit_code=code, log_tail=lines)

    def stop_signals(self, worker: Worker) -> list[str]:
        return self.platform.stop_signals(self.now, "tool", worker.id)

    def pass_time(self, seconds: float) -> None:
        """Let time pass as a driver does: from deadline to deadline."""
        end = self.now + seconds
        while (due := self.platform.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.platform.tick(self.now)
        self.now = end

    @property
    def workers(self) -> tuple[Worker, ...]:
        return self.platform.workers("tool")

    def ready_worker(self) -> Worker:
        """Let one more worker come up; the queue is empty then."""
        while not (new := [worker for worker in self.workers if worker.state is WorkerState.INITIALIZING]):
            self.submit("starts a worker")
            self.pass_time(self.spec.scaler_value)
        self.platform.purge(self.now, "tool")
        assert self.take(new[0]) == []
        self.platform.effects()
        return new[0]

    def running_job(self, **options: Any) -> tuple[Worker, Job]:
        worker = self.ready_worker()
        job = self.submit(**options)
        assert self.take(worker) == [job]
        self.platform.effects()
        return worker, job

    def health(self, part: str) -> dict[str, int]:
        return {name: count for name, count in self.platform.health("tool")[part].items() if count}


def report_of(job: Job) -> ErrorReport:
    assert job.error is not None
    return ErrorReport.from_dict(json.loads(job.error))
