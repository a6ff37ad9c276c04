"""The work that every contender does: sessions of ten steps, each step replacing a tenth of the state.

A session has its whole state stored before the clock starts. Then comes one request: ten steps whose bodies
do nothing but hand over prepared text, each step durable before the next one begins.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

STEPS = 10
_WORDS = ["the", "agent", "found", "a", "source:", "revenue", "rose", "by", "12", "%", "in", "2025,", "see",
          "https://example.org/report", "{json}", "naïve", "[1]", '"quoted"', "observation", "and", "plan"]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One column of the table."""

    state_bytes: int
    at_once: int
    sessions: int
    form: str = ""
    """How a contender lays out the state, where it has several ways."""


@dataclass
class Clock:
    """Seconds that steps took."""

    steps: list[float] = field(default_factory=list)


class Contender(Protocol):
    async def create(self, session: str) -> None:
        """Store a session with its whole state, as far as the contender keeps one; not timed."""

    async def turn(self, session: str, clock: Clock) -> None:
        """Run one request of ten steps."""


class Texts:
    """Tenths of a state, prepared so that making them costs no step anything."""

    def __init__(self, state_bytes: int) -> None:
        chance = random.Random(state_bytes)
        self._texts = [_text(chance, state_bytes // STEPS) for _ in range(4 * STEPS)]
        self._next = 0

    def initial(self) -> list[str]:
        return self._texts[:STEPS]

    def another(self) -> str:
        self._next = (self._next + 1) % len(self._texts)
        return self._texts[self._next]


def _text(chance: random.Random, size: int) -> str:
    words: list[str] = []
    while sum(map(len, words)) + len(words) < size:
        words.extend(chance.choices(_WORDS, k=max(1, size // 20)))
    return " ".join(words).encode()[:size].decode(errors="ignore")


def main(connect: Callable[[str, Texts, Cell], AbstractAsyncContextManager[Contender]]) -> None:
    """Run one cell for one contender and print what came out as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--state-bytes", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--form", default="")
    options = parser.parse_args()
    cell = Cell(options.state_bytes, options.at_once, options.sessions, options.form)

    async def run() -> dict[str, float]:
        async with connect(options.store, Texts(cell.state_bytes), cell) as contender:
            return await measure(contender, cell)

    print(json.dumps(asyncio.run(run())))


async def measure(contender: Contender, cell: Cell) -> dict[str, float]:
    names = [f"session-{number}" for number in range(cell.sessions)]
    await _in_lanes(cell, names, contender.create)
    clock = Clock()
    started, cpu_started = time.perf_counter(), time.process_time()
    await _in_lanes(cell, names, lambda name: contender.turn(name, clock))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    assert len(clock.steps) == STEPS * cell.sessions, (len(clock.steps), cell)
    return {
        "steps_per_s": len(clock.steps) / seconds,
        "p50_ms": statistics.median(clock.steps) * 1000,
        "p99_ms": sorted(clock.steps)[int(len(clock.steps) * 0.99)] * 1000,
        "cpu_ms": cpu_seconds / len(clock.steps) * 1000,
    }


async def _in_lanes(cell: Cell, names: list[str], work: Callable[[str], Awaitable[None]]) -> None:
    async def lane(number: int) -> None:
        for name in names[number :: cell.at_once]:
            await work(name)

    await asyncio.gather(*(lane(number) for number in range(cell.at_once)))
