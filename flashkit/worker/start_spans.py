"""A worker's start in traces: below the first job, if that waited for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flashkit.telemetry import AnySpan, Op, Span, recorder
from flashkit.worker.phases import Part, Phases

_WAITED_NS: Final = 2_000_000_000
"""A job that comes so soon after the start has waited for it."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start, as it is told."""

    endpoint: str
    parts: tuple[Part, ...]
    attributes: Mapping[str, Any]
    ended_ns: int

    @property
    def began_ns(self) -> int:
        """When the process began, or the first phase."""
        return min((part.start_ns for part in self.parts), default=self.ended_ns)


def note_start(endpoint: str, phases: Phases, attributes: Mapping[str, Any]) -> Start | None:
    """Tell observers of a start that is over, and return it for the first job's trace; None when nobody wants spans."""
    spans = recorder()
    if spans is None:
        return None
    seconds = {f"flashkit.phase.{name}_s": round(value, 6) for name, value in phases.seconds.items()}
    start = Start(endpoint, tuple(phases.parts), {**attributes, **seconds}, time.time_ns())
    spans.note(Op.COLD_START, endpoint, start.attributes, start_ns=start.began_ns, end_ns=start.ended_ns)
    return start


def tell_start(job: AnySpan, start: Start) -> Start | None:
    """Add the start to a job's trace; return it when the next job may still have waited for it."""
    spans = recorder()
    if spans is None or time.time_ns() - start.ended_ns > _WAITED_NS:
        return None
    if not (isinstance(job, Span) and job.is_sampled):
        return start
    whole = spans.add(
        Op.COLD_START, start.endpoint, start.attributes, start_ns=start.began_ns, end_ns=start.ended_ns, parent=job
    )
    for part in start.parts:
        spans.add(Op.PHASE, part.name, start_ns=part.start_ns, end_ns=part.end_ns, parent=whole)
    return None
