"""A handler of which one worker runs four at a time."""

import asyncio

import runpod

running = 0


async def handler(job):
    global running
    running += 1
    await asyncio.sleep(job["input"]["seconds"])
    seen, running = running, running - 1
    return {"running": seen}


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 4})
