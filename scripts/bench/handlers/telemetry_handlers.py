"""What is measured with traces and metrics, and without: jobs that do nothing, and a session of many small steps.

The same process is measured with both: its recorder is taken away and given back.
"""

import asyncio
import time

from flashkit import Session, cpu_endpoint, orchestrator_endpoint
from flashkit.telemetry.spans import Recorder, recorder, use_recorder

SWITCH_ON, SWITCH_OFF, FLUSH = -1, -2, -3
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
