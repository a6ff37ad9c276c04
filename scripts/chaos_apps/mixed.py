"""Endpoints of every kind of behaviour, for scripts/chaos_platform.py."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

from flashkit import cpu_endpoint

CPU = "cpu3c-2-4"

routes = cpu_endpoint(name="routes", cpu=CPU, workers=(0, 2), idle_timeout=2, execution_timeout_ms=5_000, concurrency=8)


@routes.get("/add")
async def add(a: int, b: int) -> int:
    """Answer a request."""
    return a + b


@cpu_endpoint(cpu=CPU, workers=(0, 2), concurrency=8, idle_timeout=2, execution_timeout_ms=5_000)
async def quick(n: int) -> int:
    """Return at once."""
    return n


@cpu_endpoint(cpu=CPU, workers=(0, 3), concurrency=4, idle_timeout=3, execution_timeout_ms=5_000, scaler_value=1)
async def slow(seconds: float) -> float:
    """Take some time; a few take longer than they may."""
    await asyncio.sleep(seconds)
    return seconds


@cpu_endpoint(cpu=CPU, workers=(0, 2), concurrency=2, idle_timeout=2, execution_timeout_ms=5_000)
async def stream(parts: int) -> AsyncIterator[str]:
    """Yield parts, with pauses."""
    for part in range(parts):
        await asyncio.sleep(0.02)
        yield f"part {part} " + "x" * 200


@cpu_endpoint(cpu=CPU, workers=(0, 2), idle_timeout=2, execution_timeout_ms=5_000)
def moody(n: int) -> int:
    """Fail in several ways, blocking and printing."""
    mood = random.random()
    if mood < 0.2:
        raise ValueError(f"{n} is not to my taste")
    if mood < 0.25:
        raise SystemExit(3)
    if mood < 0.3:
        print("y" * 1_000_000)
    time.sleep(mood / 10)
    return n
