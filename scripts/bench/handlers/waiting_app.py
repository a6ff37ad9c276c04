"""An endpoint for scripts/bench/simulate.py: jobs that take as long as they are told, and no CPU."""

import asyncio

from flashkit import cpu_endpoint


@cpu_endpoint(cpu="cpu3c-2-4")
async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
