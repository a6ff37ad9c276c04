"""A no-op worker as the SDK's documentation shows it."""

import sys

import runpod

CONCURRENCY = int(sys.argv[1])


async def handler(job):
    return job["input"]


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: CONCURRENCY})
