"""An unmodified worker of the runpod SDK, for scripts/chaos_platform.py."""

import asyncio

import runpod


async def handler(job):
    await asyncio.sleep(job["input"].get("seconds", 0))
    return job["input"]


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 2})
