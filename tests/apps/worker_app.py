"""Endpoints whose handlers do what handlers do in real life, good and bad."""

import asyncio
import atexit
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator

from flashkit import cpu_endpoint, current_job, gpu_endpoint


@cpu_endpoint(concurrency=4)
async def behave(what: str, n: int = 0) -> object:  # noqa: C901, PLR0912 - a menu, not logic
    match what:
        case "echo":
            return {"n": n, "job": current_job().id}
        case "raise":
            raise LookupError(f"no entry {n}")
        case "exit":
            sys.exit(n)
        case "os-exit":
            os._exit(n)
        case "lambda":
            return lambda: None
        case "wrapped-generator":
            return (index for index in range(n))
        case "big":
            return "x" * n
        case "none":
            return None
        case "error-dict":
            return {"error": "only data", "n": n}
        case "progress":
            for index in range(n):
                current_job().progress({"step": index})
                await asyncio.sleep(0.2)
            return "done"
        case "sleep":
            await asyncio.sleep(n)
            return "slept"
        case "cancel-self":
            raise asyncio.CancelledError
        case "restart":
            current_job().restart_worker()
            return os.getpid()
        case "print":
            print(f"line {n} of {current_job().id}")
            return None
        case "slow-exit":
            atexit.register(time.sleep, n)
            atexit.register(print, "leaving", flush=True)
            return None
        case "fork":
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            return pid
    raise AssertionError(what)


@cpu_endpoint()
def sync(seconds: float) -> dict[str, bool]:
    """Blocks its thread, looking up from time to time."""
    for _ in range(int(seconds * 20)):
        if current_job().cancelled:
            break
        time.sleep(0.05)
    return {"cancelled": current_job().cancelled}


@cpu_endpoint()
async def count(n: int, fail_at: int = -1) -> AsyncIterator[int]:
    for index in range(n):
        if index == fail_at:
            raise ValueError(f"failed at {index}")
        yield index
        await asyncio.sleep(0.05)


@cpu_endpoint()
def letters(text: str) -> Iterator[str]:
    yield from text


@gpu_endpoint(gpu="A100")
class Model:
    """Records in which order it was called."""

    def __init__(self) -> None:
        self.calls = ["init"]

    def setup(self) -> None:
        self.calls.append("setup")

    async def warmup(self) -> None:
        self.calls.append("warmup")

    def run(self) -> list[str]:
        self.calls.append("run")
        return self.calls

    def teardown(self) -> None:
        print("teardown was called", flush=True)


@gpu_endpoint(gpu="A100")
class Broken:
    def setup(self) -> None:
        raise OSError("the GPU has fallen off the bus")

    def run(self) -> None:
        raise AssertionError


@cpu_endpoint()
async def blocks() -> None:
    time.sleep(600)
