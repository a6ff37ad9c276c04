"""A handler of which one worker runs four at a time."""

import asyncio

import runpod

running = set()


async def handler(job):
    running.add(job["id"])
    await asyncio.sleep(job["input"]["seconds"])
    seen = len(running)
    running.remove(job["id"])
    return {"running": seen}


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 4})
