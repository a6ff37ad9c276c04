"""A plain handler that remembers: a worker that was frozen and thawed goes on counting, a new one begins anew."""

import os
import time

import runpod

seen = []


async def handler(job):
    seen.append(time.monotonic())
    return {"pid": os.getpid(), "jobs": len(seen), "pause": seen[-1] - seen[0]}


runpod.serverless.start({"handler": handler})
