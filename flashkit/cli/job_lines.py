"""One line for each job, when it has ended, with its failed attempts below.

What happened to a job before its end is kept until the line is written, so that the lines of jobs that run at the
same time do not mix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from flashkit.cli.quantities import estimate_usd, format_bytes, format_ms, format_usd
from flashkit.emulator.events import FaultEvent, JobEvent, WorkerEvent
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, Kind

_JOBS_REMEMBERED = 10_000
_WORKERS_REMEMBERED = 1_000
_NOTES_LIMIT = 20
"""Lines below a job."""


@dataclass(slots=True)
class _Story:
    """What is known of a job that has not ended."""

    worker_id: str | None = None
    is_again: bool = False
    notes: list[str] = field(default_factory=list)

    def add(self, note: str) -> None:
        if len(self.notes) < _NOTES_LIMIT:
            self.notes.append(note)


class JobStories:
    """Gathers what happens to jobs until their lines are written."""

    def __init__(self, specs: Mapping[str, EndpointSpec]) -> None:
        self._specs = specs
        self._stories: OrderedDict[str, _Story] = OrderedDict()
        self._ends: OrderedDict[str, str] = OrderedDict()
        """How workers ended, by their ids."""

    def note_worker(self, event: WorkerEvent) -> None:
        """Remember how a worker ended, for the jobs that it had."""
        if event.what in ("exited", "killed", "unhealthy"):
            self._ends.setdefault(event.worker_id, event.detail or event.what)
            if len(self._ends) > _WORKERS_REMEMBERED:
                self._ends.popitem(last=False)

    def note_fault(self, event: FaultEvent) -> None:
        """Remember a fault that struck a job."""
        if event.job_id is not None:
            self._story(event.job_id).add(f"⚡ fault {event.detail}")

    def note_job(self, event: JobEvent) -> None:
        """Remember a step of a job before its end."""
        story = self._story(event.job_id)
        if event.status is JobStatus.IN_QUEUE and event.attempt:
            lost_by = event.worker_id or story.worker_id
            reason = self._ends.get(lost_by or "", "")
            story.add(f"↻ attempt {event.attempt} lost on {lost_by}{f': {reason}' if reason else ''}")
            story.is_again = True
        elif event.status is JobStatus.IN_PROGRESS:
            story.worker_id = event.worker_id
            spec = self._specs.get(event.endpoint)
            if story.is_again and spec is not None and spec.kind is Kind.ORCHESTRATOR:
                story.add(f"↺ attempt {event.attempt} resumed its session on {event.worker_id}")

    def end(self, event: JobEvent) -> list[str]:
        """Forget the job and return what stands below its line."""
        story = self._stories.pop(event.job_id, None)
        return [] if story is None else story.notes

    def facts(self, event: JobEvent) -> list[str]:
        """Return where the job's time went, how big it was and what it would cost."""
        facts = _timings(event)
        if event.status.is_final:
            facts.append(f"{format_bytes(event.input_bytes)} → {format_bytes(event.output_bytes)}")
            spec = self._specs.get(event.endpoint)
            worked_ms = (event.cold_start_ms or 0) + (event.execution_ms or 0)
            cost = estimate_usd(spec, milliseconds=worked_ms) if spec and worked_ms else None
            facts += [] if cost is None else [f"~{format_usd(cost)}"]
        elif event.worker_id:
            facts.append(f"on {event.worker_id}")
        return facts

    def _story(self, job_id: str) -> _Story:
        story = self._stories.setdefault(job_id, _Story())
        if len(self._stories) > _JOBS_REMEMBERED:
            self._stories.popitem(last=False)
        return story


def _timings(event: JobEvent) -> list[str]:
    if event.status is JobStatus.IN_QUEUE:
        return [f"again, after attempt {event.attempt}"] if event.attempt else [format_bytes(event.input_bytes)]
    facts = [f"attempt {event.attempt}"] if event.attempt > 1 else []
    spans = (("queue", event.delay_ms), ("cold start", event.cold_start_ms), ("run", event.execution_ms))
    return facts + [f"{name} {format_ms(value)}" for name, value in spans if value is not None]


def route_of(job_id: str) -> str:
    """Return the route by which the job came, as its id tells it."""
    return "runsync" if job_id.startswith("sync-") else "run"


def short_id(job_id: str) -> str:
    """Return enough of a job's id to tell it from the others on the screen; errors show all of it."""
    return job_id.removeprefix("sync-")[:8]
