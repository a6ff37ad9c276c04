"""How long each part of a worker's start took: imports, weights, engine, set-up, warm-up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

MARK: Final = "flashkit.start "
"""Begins the log line from which the local platform reads the phases."""


class Phases:
    """The phases of one start, in the order in which they ended; seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count what runs inside as (part of) this phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds as (part of) this phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def render(self) -> str:
        """Return `imports 0.4 s, weights 0.1 s, engine 9.8 s`."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())

    def to_line(self) -> str:
        """Return the log line that tells the local platform."""
        return MARK + json.dumps({name: round(seconds, 3) for name, seconds in self.seconds.items()})


def read_phases(line: str) -> Mapping[str, float] | None:
    """Return the phases that a log line tells of, None for any other line."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        phases = json.loads(text)
        return {str(name): float(seconds) for name, seconds in phases.items()}
    except (ValueError, AttributeError, TypeError):
        return None
