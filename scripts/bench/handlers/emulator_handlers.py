"""Endpoints for scripts/bench/emulator.py."""

import json
import time
from collections.abc import AsyncIterator

from flashkit import cpu_endpoint


@cpu_endpoint(cpu="cpu3c-2-4", concurrency=50)
async def noop(n: int) -> int:
    return n


@cpu_endpoint(cpu="cpu3c-2-4", concurrency=50)
async def tokens(openai_route: str, openai_input: dict) -> AsyncIterator[str]:
    """Yield one event with the time at which it was made, and a last one."""
    yield f"data: {json.dumps({'made_at': time.time()})}\n\n"
    yield "data: [DONE]\n\n"
