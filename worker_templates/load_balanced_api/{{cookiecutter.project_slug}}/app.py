"""{{ cookiecutter.project_name }}: a web API whose requests go straight to a worker, without a queue."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

from flashkit import InputError, cpu_endpoint

api = cpu_endpoint(
    name="{{ cookiecutter.project_slug.replace('_', '-') }}",
    cpu="{{ cookiecutter.cpu }}",
    workers=(2, 10),
    idle_timeout=60,
    execution_timeout_ms=30_000,
    concurrency=64,
    scaler_value=16,  # requests for each worker
)
ready = False


@dataclass
class Text:
    """What is counted."""

    text: str


@api.setup
async def load() -> None:
    """Run once in each worker, before its first request."""
    global ready
    ready = True


@api.health
def is_ready() -> bool:
    """Answer /ping: a worker that says no gets no requests."""
    return ready


@api.post("/count")
async def count(body: Text, most: int = 3) -> dict[str, int]:
    """Return the most frequent words."""
    if most < 1:
        raise InputError(f"most={most} counts nothing", hint="ask for 1 or more")
    return dict(Counter(body.text.lower().split()).most_common(most))


@api.get("/spell/{word}")
async def spell(word: str) -> AsyncIterator[str]:
    """Stream a word, letter by letter."""
    for letter in word:
        yield letter
        await asyncio.sleep(0.01)
