"""An async generator; with the argument `aggregate` its parts are also the result, as a list."""

import asyncio
import sys

import runpod


async def handler(job):
    for number in range(job["input"]["count"]):
        if number == job["input"].get("fail_at"):
            raise RuntimeError("broke in the middle")
        yield {"number": number}
        await asyncio.sleep(job["input"].get("pause", 0))


runpod.serverless.start({"handler": handler, "return_aggregate_stream": "aggregate" in sys.argv})
