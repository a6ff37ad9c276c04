"""An endpoint that remembers: a worker that was frozen and thawed goes on counting, a new one begins anew."""

import os

from flashkit import cpu_endpoint

seen = []


@cpu_endpoint()
async def remember() -> dict[str, int]:
    seen.append(1)
    return {"pid": os.getpid(), "jobs": len(seen)}
