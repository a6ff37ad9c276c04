"""Endpoints for scripts/bench/simulate.py: jobs that take as long as they are told, and no CPU."""

import asyncio

from flashkit import cpu_endpoint


@cpu_endpoint(name="one-job", cpu="cpu3c-2-4")
async def one(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@cpu_endpoint(name="three-jobs", cpu="cpu3c-2-4", concurrency=3)
async def three(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
