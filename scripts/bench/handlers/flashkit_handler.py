"""The same no-op worker with flashkit, its input checked."""

from flashkit import cpu_endpoint


@cpu_endpoint()
async def noop_1(n: int) -> dict[str, int]:
    return {"n": n}


@cpu_endpoint(concurrency=50)
async def noop_50(n: int) -> dict[str, int]:
    return {"n": n}
