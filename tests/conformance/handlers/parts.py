"""The generator of the conformance suite; with AGGREGATE set, its parts are the result as well."""

import asyncio
import os

import runpod


async def handler(job):
    for number in range(job["input"]["count"]):
        if number == job["input"].get("fail_at"):
            raise RuntimeError("broke in the middle")
        yield {"number": number}
        await asyncio.sleep(job["input"].get("pause", 0))


runpod.serverless.start({"handler": handler, "return_aggregate_stream": bool(os.environ.get("AGGREGATE"))})
