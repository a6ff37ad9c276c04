"""Uses the runpod package's own clients, sync and async, and prints what they gave; runs under each SDK release."""

import asyncio
import json
import os
import sys

import aiohttp
import runpod

ACTIONS, PARTS = sys.argv[1:3]
runpod.endpoint_url_base = os.environ["RUNPOD_ENDPOINT_BASE_URL"]
runpod.api_key = os.environ["RUNPOD_API_KEY"]


def use_sync_client():
    endpoint = runpod.Endpoint(ACTIONS)
    job = endpoint.run({"input": {"do": "echo", "value": [1, "é"]}})
    output = job.output(timeout=60)
    waiting = endpoint.run({"input": {"do": "sleep", "seconds": 30}})
    cancelled = waiting.cancel()
    parts = list(runpod.Endpoint(PARTS).run({"input": {"count": 3}}).stream())
    return {
        "run": output,
        "status": job.status(),
        "run_sync": endpoint.run_sync({"input": {"do": "echo", "value": {"a": 1}}}, timeout=60),
        "cancel": cancelled["status"],
        "after_cancel": waiting.status(),
        "stream": parts,
        "health": sorted(endpoint.health()),
        "purge": endpoint.purge_queue()["status"],
        "failed": endpoint.run_sync({"input": {"do": "raise"}}, timeout=60),
    }


async def use_async_client():
    from runpod import AsyncioEndpoint

    async with aiohttp.ClientSession() as session:
        job = await AsyncioEndpoint(ACTIONS, session).run({"do": "echo", "value": "async"})
        output = await job.output(timeout=60)
        parts = [part async for part in (await AsyncioEndpoint(PARTS, session).run({"count": 2})).stream()]
        return {"async_run": output, "async_status": await job.status(), "async_stream": parts}


print(json.dumps({**use_sync_client(), **asyncio.run(use_async_client())}))
