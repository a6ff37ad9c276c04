"""What happened lately: events, the lines that workers printed, and the story of each job, in bounded memory.

The emulator records everything that it tells. Readers come with the number of the last event they saw and
get what came after; whoever follows is woken once for many events, so that nobody slows a job down by
watching. A worker that prints without end pushes out its own lines only: each worker and each job has a
budget of its own.

A line that a handler prints carries no job id. It is counted as the job's that its worker runs, when that is
one alone, or has just run: a line may come in a moment after the result.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple, get_args

from flashkit.emulator.events import Event, JobEvent, LogLine, RequestEvent, WorkerEvent
from flashkit.emulator.lanes import Lanes
from flashkit.errors import ErrorReport

EVENT_LIMIT: Final = 10_000
"""Events of each type that are kept."""
JOB_LIMIT: Final = 10_000
"""Jobs whose story is kept."""
JOB_EVENT_LIMIT: Final = 60
"""Events in the story of one job: the first ones and the last ones of a job that is retried for ever."""
LINE_LIMIT_CHARACTERS: Final = 16_000
"""Longer lines are cut."""
WORKER_LINES_BYTES: Final = 512 * 1024
"""Lines that are kept of one worker."""
JOB_LINES_BYTES: Final = 64 * 1024
"""Lines that are kept of one job."""
ALL_LINES_BYTES: Final = 16 * 1024 * 1024
"""Lines that are kept of all workers together, and once more of all jobs."""

_TYPE_NAMES: Final[dict[type, str]] = {
    event_type: "log" if event_type is LogLine else event_type.__name__.removesuffix("Event").lower()
    for event_type in get_args(Event)
}
_ENTRY_BYTES: Final = 250
"""About what an entry takes besides its text."""


class Recorded(NamedTuple):
    """An event with its number and its time."""

    n: int
    """Counts all events from 1."""
    at: float
    """Seconds since 1970."""
    event: Event


class Batch(NamedTuple):
    """Some of the events that followed a number."""

    entries: list[Recorded]
    next: int
    """Ask for what follows this number to go on."""
    is_complete: bool
    """False when older ones that followed as well are not kept any more."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events somebody wants; everything that is not named is wanted."""

    types: Collection[str] = ()
    endpoint: str | None = None
    job_id: str | None = None
    worker_id: str | None = None

    def wants(self, type_name: str) -> bool:
        """True when events of this type are wanted."""
        return not self.types or type_name in self.types

    def choose(self, entries: Iterable[Recorded]) -> Iterable[Recorded]:
        """Return those entries that are wanted, whatever their type."""
        if self.endpoint is None and self.job_id is None and self.worker_id is None:
            return entries
        return (entry for entry in entries if self.accepts(entry.event))

    def accepts(self, event: Event) -> bool:
        """True for an event that is wanted, whatever its type."""
        wanted = (("endpoint", self.endpoint), ("job_id", self.job_id), ("worker_id", self.worker_id))
        return all(value is None or getattr(event, name, None) == value for name, value in wanted)


EVERYTHING: Final = Filter()


@dataclass(slots=True, eq=False)
class Lines:
    """The latest lines of one source."""

    entries: deque[Recorded] = field(default_factory=deque)
    size_bytes: int = 0
    dropped_to: int = 0
    """Number of the latest line that is not kept any more."""


@dataclass(slots=True)
class JobStory:
    """What is remembered of one job."""

    endpoint: str
    job_id: str
    latest: JobEvent
    timeline: list[Recorded] = field(default_factory=list)

    @property
    def submitted_at(self) -> float:
        """When it was first seen, in seconds since 1970."""
        return self.timeline[0].at

    def add(self, entry: Recorded, event: JobEvent) -> None:
        """Take note of a new status or attempt."""
        self.latest = event
        if len(self.timeline) >= JOB_EVENT_LIMIT:
            del self.timeline[JOB_EVENT_LIMIT // 2]
        self.timeline.append(entry)


class Recorder:
    """Keeps what happened lately, for whoever asks later or follows live.

    Args:
        clock: Gives the time of day.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.jobs: OrderedDict[str, JobStory] = OrderedDict()
        """Jobs by id, in the order in which they were first seen."""
        self.lanes = Lanes()
        self.is_closed = False
        self._clock = clock
        self._count = 0
        self._events: defaultdict[str, deque[Recorded]] = defaultdict(lambda: deque(maxlen=EVENT_LIMIT))
        """All but lines, by type: many of one kind push out no others."""
        self._worker_lines = _LineBudget(WORKER_LINES_BYTES)
        self._job_lines = _LineBudget(JOB_LINES_BYTES)
        self._waiting: set[asyncio.Event] = set()

    @property
    def count(self) -> int:
        """Number of the latest event."""
        return self._count

    def record(self, event: Event) -> None:
        """Keep an event, and wake whoever waits for one."""
        self._count += 1
        at = self._clock()
        if isinstance(event, LogLine):
            self._keep_line(at, event)
        else:
            entry = Recorded(self._count, at, event)
            self._events[type_of(event)].append(entry)
            if isinstance(event, JobEvent):
                self._keep_job_event(entry, event)
            elif isinstance(event, WorkerEvent):
                self.lanes.note_worker(self._count, at, event)
            elif isinstance(event, RequestEvent):
                self.lanes.note_request(self._count, at, event)
        if self._waiting:
            self._wake()

    def close(self) -> None:
        """Let nobody wait any more."""
        self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            waiting.set()
        self._waiting.clear()

    # ------------------------------------------------------------------ jobs

    def _keep_job_event(self, entry: Recorded, event: JobEvent) -> None:
        story = self.jobs.get(event.job_id)
        if story is None:
            story = self.jobs[event.job_id] = JobStory(event.endpoint, event.job_id, event)
            if len(self.jobs) > JOB_LIMIT:
                oldest, _ = self.jobs.popitem(last=False)
                self._job_lines.forget(oldest)
        story.add(entry, event)
        self.lanes.note_job(entry.n, entry.at, event)

    # ------------------------------------------------------------------ lines

    def _keep_line(self, at: float, line: LogLine) -> None:
        text, job_id = line.text, line.job_id or self.lanes.job_of_line(at, line.worker_id)
        if len(text) > LINE_LIMIT_CHARACTERS:
            text = f"{text[:LINE_LIMIT_CHARACTERS]}… ({len(text) - LINE_LIMIT_CHARACTERS:,} more characters)"
        if text is not line.text or job_id != line.job_id:
            line = LogLine(line.endpoint, line.worker_id, job_id, line.level, text)
        entry, size_bytes = Recorded(self._count, at, line), _size_of(line)
        self._worker_lines.add(line.worker_id, entry, size_bytes)
        if job_id is not None and job_id in self.jobs:
            self._job_lines.add(job_id, entry, size_bytes)

    def lines_of_job(self, job_id: str) -> list[Recorded]:
        """Return what is kept of the lines of a job, oldest first."""
        lines = self._job_lines.sources.get(job_id)
        return [] if lines is None else list(lines.entries)

    def changed_jobs(self, *, after: int, limit: int) -> list[JobStory]:
        """Return the jobs to which something happened since event `after`, the latest first."""
        changed: dict[str, JobStory] = {}
        for entry in _newer(self._events["job"], after):
            if isinstance(entry.event, JobEvent) and (story := self.jobs.get(entry.event.job_id)):
                changed[story.job_id] = story
                if len(changed) == limit:
                    break
        return list(changed.values())

    @property
    def lines_bytes(self) -> int:
        """About the memory that all lines take."""
        return self._worker_lines.size_bytes + self._job_lines.size_bytes

    # ------------------------------------------------------------------ readers

    def after(self, n: int, *, limit: int, wanted: Filter = EVERYTHING) -> Batch:
        """Return the oldest events that followed number `n`, at most `limit`."""
        sources = self._sources(wanted)
        entries = sorted(entry for source in sources for entry in wanted.choose(_newer(source, n)))
        is_complete = n >= self._dropped_to()
        if len(entries) > limit:
            return Batch(entries[:limit], entries[limit - 1].n, is_complete)
        return Batch(entries, self._count, is_complete)

    def latest(self, limit: int, *, after: int = 0, wanted: Filter = EVERYTHING) -> Batch:
        """Return the newest of the events that followed a number, oldest of them first."""
        found: list[Recorded] = []
        for source in self._sources(wanted):
            found += islice(wanted.choose(_newer(source, after)), limit)
        return Batch(sorted(found)[-limit:], self._count, is_complete=True)

    def _sources(self, wanted: Filter) -> Iterator[deque[Recorded]]:
        yield from (events for name, events in self._events.items() if wanted.wants(name))
        if wanted.wants("log"):
            for worker_id, lines in self._worker_lines.sources.items():
                if wanted.worker_id in (None, worker_id):
                    yield lines.entries

    def _dropped_to(self) -> int:
        full = (events[0].n - 1 for events in self._events.values() if len(events) == EVENT_LIMIT)
        return max(self._worker_lines.dropped_to, *full, 0)

    async def wait(self, n: int, *, seconds: float) -> bool:
        """Wait until there is an event after number `n`, or nothing will come any more; False after this time."""
        if self.is_closed or self._count > n:
            return True
        waiting = asyncio.Event()
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiting)
        return True


class _LineBudget:
    """Lines by source, each source within its own limit, all of them within one."""

    def __init__(self, source_bytes: int, *, all_bytes: int = ALL_LINES_BYTES) -> None:
        self.sources: OrderedDict[str, Lines] = OrderedDict()
        """In the order in which they printed last."""
        self.size_bytes = 0
        self._forgotten_to = 0
        self._source_bytes = source_bytes
        self._all_bytes = all_bytes

    @property
    def dropped_to(self) -> int:
        """Number of the latest line that is not kept any more."""
        return max(self._forgotten_to, *(lines.dropped_to for lines in self.sources.values()), 0)

    def add(self, source: str, entry: Recorded, size_bytes: int) -> None:
        """Keep a line; the sources that were silent for longest make room for it."""
        lines = self.sources.get(source)
        if lines is None:
            lines = self.sources[source] = Lines()
        self.sources.move_to_end(source)
        lines.entries.append(entry)
        lines.size_bytes += size_bytes
        self.size_bytes += size_bytes
        if lines.size_bytes > self._source_bytes:
            self._trim(lines)
        while self.size_bytes > self._all_bytes:
            self.forget(next(iter(self.sources)))

    def _trim(self, lines: Lines) -> None:
        before = lines.size_bytes
        while lines.size_bytes > self._source_bytes and len(lines.entries) > 1:
            dropped = lines.entries.popleft()
            lines.size_bytes -= _size_of(dropped.event)
            lines.dropped_to = dropped.n
        self.size_bytes -= before - lines.size_bytes

    def forget(self, source: str) -> None:
        """Drop all lines of a source."""
        if lines := self.sources.pop(source, None):
            self.size_bytes -= lines.size_bytes
            self._forgotten_to = max(self._forgotten_to, lines.entries[-1].n)


def _size_of(event: Event) -> int:
    return _ENTRY_BYTES + (sys.getsizeof(event.text) if isinstance(event, LogLine) else 0)


def _newer(entries: deque[Recorded], n: int) -> Iterator[Recorded]:
    for entry in reversed(entries):
        if entry.n <= n:
            return
        yield entry


def type_of(event: Event) -> str:
    """Return the name of an event's type: `job`, `worker`, `log`, and so on."""
    return _TYPE_NAMES[type(event)]


def describe(entry: Recorded) -> dict[str, Any]:
    """Return an event as JSON shows it."""
    event = entry.event
    values = {name: getattr(event, name) for name in event.__slots__}
    fields = {name: value.to_dict() if isinstance(value, ErrorReport) else value for name, value in values.items()}
    return {"n": entry.n, "at": entry.at, "type": type_of(event), **fields}
