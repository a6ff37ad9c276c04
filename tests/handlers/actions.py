"""An async handler that does what the input's `do` says: one worker shows many ways to behave."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import runpod


async def handler(job):
    job_input = job["input"]
    return await ACTIONS[job_input.get("do", "echo")](job, job_input)


async def echo(job, job_input):
    return job_input.get("value")


async def show_job(job, job_input):
    return {"job": job}


async def empty(job, job_input):
    return {}


async def error_dict(job, job_input):
    return {"error": "no such model", "tried": ["a", "b"]}


async def fail(job, job_input):
    raise ValueError("the input made no sense")


async def unserialisable(job, job_input):
    return {"answer": {1, 2, 3}}


async def not_a_number(job, job_input):
    return float("nan")


async def large(job, job_input):
    return "x" * job_input["bytes"]


async def sleep(job, job_input):
    await asyncio.sleep(job_input["seconds"])
    return "slept"


async def progress(job, job_input):
    runpod.serverless.progress_update(job, {"percent": 50})
    await asyncio.sleep(job_input["seconds"])
    return "done"


async def flood(job, job_input):
    line = "x" * 100
    for _ in range(job_input["bytes"] // 100_000):
        print("\n".join([line] * 1000))
        await asyncio.sleep(0)
    return "flooded"


async def say(job, job_input):
    print(job_input["text"])
    return {"said": job_input["text"]}


async def exit_process(job, job_input):
    sys.exit(3)


async def exit_hard(job, job_input):
    print("last words", flush=True)
    os._exit(4)


async def die_once(job, job_input):
    """Kill the worker on the first attempt, and say on the second that there was one."""
    try:
        Path(job_input["marker"]).touch(exist_ok=False)
    except FileExistsError:
        return "second attempt"
    os.kill(os.getpid(), signal.SIGKILL)
    return None


async def leave_child(job, job_input):
    pid = os.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "600"])
    return {"child": pid}


async def recycle(job, job_input):
    return {"pid": os.getpid(), "refresh_worker": True}


ACTIONS = {
    action.__name__: action
    for action in (
        echo, show_job, empty, error_dict, fail, unserialisable, not_a_number, large, sleep, progress, flood, say,
        exit_process, exit_hard, die_once, leave_child, recycle,
    )
}  # fmt: skip

runpod.serverless.start({"handler": handler})
