"""What is measured with traces and metrics, and without: a job that does nothing, and a session of many small steps."""

import time

from flashkit import Session, cpu_endpoint, orchestrator_endpoint


@cpu_endpoint(concurrency=50)
async def noop(n: int) -> dict[str, int]:
    return {"n": n}


@orchestrator_endpoint(concurrency=1)
async def steps(session: Session, count: int) -> float:
    """Return the milliseconds that a step takes."""
    session.budget(steps=None, repeats=None)
    began = time.perf_counter()
    for number in range(count):
        await session.step("one", one, number)
    return (time.perf_counter() - began) / count * 1000


async def one(number: int) -> int:
    return number
