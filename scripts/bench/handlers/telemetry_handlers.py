"""What is measured with traces and metrics, and without: jobs that do nothing, and a session of many small steps.

The same process is measured with both: its recorder is taken away and given back.
"""

import asyncio
import time

from flashkit import Session, cpu_endpoint, orchestrator_endpoint
from flashkit.telemetry.spans import Recorder, recorder, use_recorder

SWITCH_ON, SWITCH_OFF, FLUSH, TELL = -1, -2, -3, -4
BLOCK = 250
"""Jobs in a row with the recorder, or without it."""
kept: list[Recorder] = []


async def switch(what: int) -> None:
    if not kept:
        found = recorder()
        assert found is not None, "traces and metrics are off in this worker"
        kept.append(found)
    if what == FLUSH and recorder() is not None:
        await asyncio.to_thread(kept[0].flush)
    elif what != FLUSH:
        use_recorder(kept[0] if what == SWITCH_ON else None)


@cpu_endpoint(concurrency=50)
async def noop(n: int) -> dict[str, int]:
    if n < 0:
        await switch(n)
    return {"n": n}


@cpu_endpoint(concurrency=50)
class Turns:
    """Does nothing, with the recorder in blocks 0, 3, 4, 7 and so on, without it in the others; tells their times."""

    def setup(self) -> None:
        self.seen = 0
        self.began = 0.0
        self.took: list[tuple[bool, float]] = []
        """Of each block: was the recorder there, and its seconds."""

    async def run(self, n: int) -> dict[str, list[tuple[bool, float]]]:
        if n == TELL:
            return {"took": self.took}
        if self.seen % BLOCK == 0:
            now, number = time.perf_counter(), self.seen // BLOCK
            if number:
                self.took.append((is_on(number - 1), now - self.began))
            await switch(SWITCH_ON if is_on(number) else SWITCH_OFF)
            self.began = now
        self.seen += 1
        return {}


def is_on(block: int) -> bool:
    return block % 4 in (0, 3)


@orchestrator_endpoint(concurrency=1)
async def steps(session: Session, count: int, blocks: int) -> list[float]:
    """Return the milliseconds that a step takes in each block: on, off, off, on, and so on."""
    session.budget(steps=None, repeats=None)
    found = []
    for block in range(blocks):
        is_on = block % 4 in (0, 3)
        await switch(SWITCH_ON if is_on else SWITCH_OFF)
        began = time.perf_counter()
        for number in range(count):
            await session.step("one", one, number)
        if is_on:
            await switch(FLUSH)
        found.append((time.perf_counter() - began) / count * 1000)
    await switch(SWITCH_ON)
    return found


async def one(number: int) -> int:
    return number
