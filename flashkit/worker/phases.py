"""How long each part of a worker's start took: imports, weights, engine, set-up, warm-up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_SHORTEST_SECONDS = 0.05
"""Shorter phases are not worth a word."""


class Part(NamedTuple):
    """A phase, or a part of one, with its times of day."""

    name: str
    start_ns: int
    end_ns: int


class Phases:
    """The phases of one start, in the order in which they ended; seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.parts: list[Part] = []
        """When each of them ran; two may run side by side."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count what runs inside as (part of) this phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds, which are over now, as (part of) this phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.parts.append(Part(name, time.time_ns() - round(seconds * 1e9), time.time_ns()))

    def render(self) -> str:
        """Return `12.3 s: imports 0.4 s, weights 0.1 s, engine 9.8 s, warm-up 2.0 s`; empty when all were short."""
        told = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items() if seconds >= _SHORTEST_SECONDS]
        return f"{sum(self.seconds.values()):.1f} s: {', '.join(told)}" if told else ""


def process_age_seconds() -> float | None:
    """Return how long this process has been there, where Linux tells; None elsewhere."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, seconds since boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError, IndexError, ValueError):
        return None
