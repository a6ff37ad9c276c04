"""What the dashboard shows, as JSON: first everything, then what has changed, never more than a page can draw.

On a busy platform thousands of things happen each second. A watcher gets the newest of them, so that watching
costs the same however much there is to see.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flashkit.emulator.adviser import Adviser
from flashkit.emulator.answers import describe_job
from flashkit.emulator.bodies import encode_json
from flashkit.emulator.clock import Clock
from flashkit.emulator.lanes import Lane
from flashkit.emulator.metrics import SERIES, Metrics
from flashkit.emulator.platform import Job, Platform
from flashkit.emulator.recorder import Filter, JobStory, Recorder, describe
from flashkit.emulator.supervisor import LocalEndpoint
from flashkit.errors import ErrorReport, FlashkitError, InputError, JobNotFound

JOBS_LIMIT: Final = 300
"""Jobs in a list and in the first message; later ones have a third of it at most."""
LINES_LIMIT: Final = 600
"""Lines in the first message; later ones have a third of it at most."""
_LINES: Final = Filter(types=("log", "request", "fault", "reload", "clock", "capacity"))
"""What the page shows line by line."""
_SEARCHED_JOB_BYTES: Final = 256 * 1024
"""Inputs and outputs of jobs that are larger are not searched."""
_SEARCHED_BYTES: Final = 8 * 1024 * 1024
"""How much of inputs and outputs, the newest first, one search looks at."""


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs a list is to have."""

    endpoint: str | None = None
    status: str | None = None
    search: str = ""
    limit: int = JOBS_LIMIT


@dataclass(frozen=True, slots=True)
class Mark:
    """How much a watcher has seen."""

    n: int = 0
    """Number of the last event."""
    sampled_at: float = 0.0
    """Time of the last sample."""

    def moved(self, message: Mapping[str, Any]) -> Mark:
        """Return the mark of a watcher who has seen this message as well."""
        sampled_at = max((samples[-1][0] for samples in message["series"].values() if samples), default=0.0)
        return Mark(message["next"], max(self.sampled_at, sampled_at))


class Overview:
    """Describes one platform to whoever watches it."""

    def __init__(
        self,
        platform: Platform,
        recorder: Recorder,
        metrics: Metrics,
        *,
        adviser: Adviser,
        endpoints: Mapping[str, LocalEndpoint],
        problems: Mapping[str, ErrorReport],
        clock: Clock,
    ) -> None:
        self._platform = platform
        self._recorder = recorder
        self._metrics = metrics
        self._adviser = adviser
        self._endpoints = endpoints
        self._problems = problems
        self._clock = clock

    @property
    def endpoints(self) -> dict[str, LocalEndpoint]:
        """The endpoints as they are now."""
        return dict(self._endpoints)

    def has_endpoint(self, name: str) -> bool:
        """True when there is an endpoint of this name."""
        return name in self._platform.specs

    def has_worker(self, worker_id: str) -> bool:
        """True when there is a worker of this id."""
        try:
            self._platform.find_worker(worker_id)
        except InputError:
            return False
        return True

    def everything(self) -> dict[str, Any]:
        """Return all there is, as the first message to a watcher."""
        return {
            "columns": ("at", *SERIES),
            "endpoints": {name: _describe_endpoint(local) for name, local in self._endpoints.items()},
            **self._since(Mark(), jobs_limit=JOBS_LIMIT, lines_limit=LINES_LIMIT),
        }

    def advice(self) -> list[dict[str, Any]]:
        """Return what the figures of the last minutes advise."""
        return [advice.to_dict() for advice in self._adviser.current()]

    def changes(self, *, since: Mark) -> dict[str, Any]:
        """Return the figures of now, and what has happened since."""
        return self._since(since, jobs_limit=JOBS_LIMIT // 3, lines_limit=LINES_LIMIT // 3)

    def _since(self, since: Mark, *, jobs_limit: int, lines_limit: int) -> dict[str, Any]:
        recorder, after = self._recorder, since.n
        lines = recorder.latest(lines_limit, after=after, wanted=_LINES)
        return {
            "next": recorder.count,
            "now": time.time(),
            "clock": {"now": self._clock.now(), "speed": self._clock.speed},
            "problems": {name: report.to_dict() for name, report in self._problems.items()},
            "advice": self.advice(),
            "figures": self._metrics.describe(),
            "series": self._metrics.series(after=since.sampled_at),
            "lanes": [describe_lane(lane) for lane in recorder.lanes.by_worker.values() if lane.changed > after],
            "jobs": [describe_story(story) for story in recorder.changed_jobs(after=after, limit=jobs_limit)],
            "lines": [describe(entry) for entry in lines.entries],
        }

    # ------------------------------------------------------------------ jobs

    def find_jobs(self, query: JobQuery) -> list[dict[str, Any]]:
        """Return the newest jobs that fit, without what went in and came out."""
        found = []
        for story in self._matching(query):
            found.append(describe_story(story))
            if len(found) == query.limit:
                break
        return found

    def _matching(self, query: JobQuery) -> Iterator[JobStory]:
        needle, looked_at = query.search.strip().casefold(), 0
        for story in reversed(self._recorder.jobs.values()):
            latest = story.latest
            if query.endpoint not in (None, story.endpoint) or query.status not in (None, latest.status):
                continue
            if not needle or _mentions(story, needle):
                yield story
                continue
            size_bytes = latest.input_bytes + latest.output_bytes
            if size_bytes <= _SEARCHED_JOB_BYTES and looked_at + size_bytes <= _SEARCHED_BYTES:
                looked_at += size_bytes
                if self._data_mentions(story, needle):
                    yield story

    def _data_mentions(self, story: JobStory, needle: str) -> bool:
        job = self._job(story)
        return job is not None and needle in encode_json([job.input, job.output]).decode().casefold()

    def _job(self, story: JobStory) -> Job | None:
        try:
            return self._platform.job(0.0, story.endpoint, story.job_id)
        except FlashkitError:  # its retention is over, or its endpoint is no more
            return None

    def describe_job(self, endpoint: str, job_id: str, *, preview_characters: int | None = None) -> dict[str, Any]:
        """Return all that is known of a job: what went in and came out, its story, its lines.

        Args:
            endpoint: Where it was sent.
            job_id: Which one.
            preview_characters: Give input and output as text, and no more of it than this.

        Raises:
            JobNotFound: Neither the platform nor the recorder knows it.
        """
        story = self._recorder.jobs.get(job_id)
        if story is None or story.endpoint != endpoint:
            raise JobNotFound(
                f"endpoint {endpoint!r} has no job {job_id!r}",
                hint="it never had it, or so much has happened since that it is not remembered",
                request_id=job_id,
            )
        job = self._job(story)
        return {
            **describe_story(story),
            "error": _report(story.latest.error),
            "is_kept": job is not None,
            **({} if job is None else _describe_data(job, preview_characters)),
            "timeline": [_describe_moment(entry.at, entry.event) for entry in story.timeline],
            "lines": [describe(entry) for entry in self._recorder.lines_of_job(job_id)],
        }


def _report(error: ErrorReport | None) -> dict[str, Any] | None:
    return None if error is None else error.to_dict()


def _mentions(story: JobStory, needle: str) -> bool:
    latest = story.latest
    error = "" if latest.error is None else f"{latest.error.code} {latest.error.message}"
    return needle in f"{story.job_id} {story.endpoint} {latest.worker_id} {latest.status} {error}".casefold()


def describe_story(story: JobStory) -> dict[str, Any]:
    """Return a job as a list shows it."""
    latest = story.latest
    error = latest.error
    return {
        "id": story.job_id,
        "endpoint": story.endpoint,
        "status": latest.status,
        "attempt": latest.attempt,
        "worker_id": latest.worker_id,
        "submitted_at": story.submitted_at,
        "delay_ms": latest.delay_ms,
        "execution_ms": latest.execution_ms,
        "cold_start_ms": latest.cold_start_ms,
        "input_bytes": latest.input_bytes,
        "output_bytes": latest.output_bytes,
        "error": None if error is None else {"code": error.code, "message": error.message[:300]},
    }


def _describe_moment(at: float, event: Any) -> dict[str, Any]:
    return {
        "at": at,
        "status": event.status,
        "attempt": event.attempt,
        "worker_id": event.worker_id,
        "cold_start_ms": event.cold_start_ms,
        "error": None if event.error is None else event.error.message,
    }


def _describe_data(job: Job, preview_characters: int | None) -> dict[str, Any]:
    described = describe_job(job)
    data = {"input": job.input, **({"output": described["output"]} if "output" in described else {})}
    if preview_characters is None:
        return data
    texts = {name: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() for name, value in data.items()}
    return {
        **{f"{name}_text": text[:preview_characters] for name, text in texts.items()},
        **{f"{name}_characters": len(text) for name, text in texts.items()},
    }


def describe_lane(lane: Lane) -> dict[str, Any]:
    """Return a worker's lane."""
    return {
        "worker_id": lane.worker_id,
        "endpoint": lane.endpoint,
        "state": lane.state,
        "detail": lane.detail,
        "jobs": list(lane.jobs),
        "changes": [(change.at, change.state) for change in lane.changes],
    }


def _describe_endpoint(local: LocalEndpoint) -> dict[str, Any]:
    spec = local.spec
    gpu = ", ".join(spec.gpu)
    return {
        "kind": spec.kind,
        "is_load_balanced": spec.load_balanced,
        "compute": f"{spec.gpu_count} x {gpu}" if gpu and spec.gpu_count > 1 else gpu or spec.cpu,
        "concurrency": spec.concurrency,
        "idle_timeout": spec.idle_timeout,
        "weights": None if spec.weights is None else spec.weights.name,
        "description": local.description,
        "example": local.example,
        "schema": local.schema,
    }
