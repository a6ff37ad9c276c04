"""The handler of the conformance suite: does what the input says. Deployed as it is to try the real platform."""

import asyncio
import os
import signal

import runpod


async def handler(job):  # noqa: C901 - a menu, not logic
    job_input = job["input"]
    match job_input.get("do"):
        case "echo":
            return job_input["value"]
        case "job":
            return {"job": job}
        case "empty":
            return {}
        case "error":
            return {"error": "no such model", "tried": ["a"]}
        case "raise":
            raise ValueError("the input made no sense")
        case "sleep":
            await asyncio.sleep(job_input["seconds"])
            return "slept"
        case "progress":
            runpod.serverless.progress_update(job, {"percent": 50})
            await asyncio.sleep(job_input["seconds"])
            return "done"
        case "refresh":
            return {"pid": os.getpid(), "refresh_worker": True}
        case "large":
            return "x" * job_input["bytes"]
        case "set":
            return {1, 2, 3}
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return job_input


runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: 4})
