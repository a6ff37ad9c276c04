"""An async generator with its own concurrency, in a file named as Runpod's examples name it."""

import asyncio

import runpod


async def process_request(job):
    for word in job["input"]["words"]:
        await asyncio.sleep(0)
        yield word.upper()


def adjust_concurrency(current):
    return min(current + 1, 4)


runpod.serverless.start({"handler": process_request, "concurrency_modifier": adjust_concurrency})
