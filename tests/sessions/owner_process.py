"""One worker in a process of its own, which tests stop, continue and kill: prints how its job ended.

Usage: owner_process.py STORE_URL NAMESPACE WORKER_ID EFFECT_LOG LEASE_SECONDS stall|go
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from flashkit import orchestrator_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime


def make_agent(name: str, log: Path, *, stall: bool) -> Callable[..., Any]:
    """Return a handler of three steps that write down who ran them."""

    def note(step: str) -> str:
        with log.open("a") as file:
            file.write(f"{step} {name}\n")
        return step

    async def slow() -> str:
        note("slow")
        await asyncio.sleep(60 if stall else 0)
        return "slow"

    async def agent(session: Any, q: str) -> list[str]:
        await session.step("first", note, "first")
        return [await session.step("slow", slow), await session.step("last", note, "last")]

    return agent


async def run_job(agent: Callable[..., Any], settings: Settings, data: dict[str, Any]) -> None:
    """Run one job and print its output or the code of its error."""
    runtime = Runtime(orchestrator_endpoint()(agent).definition, settings)
    await runtime.start()

    async def drop(chunk: bytes) -> None: ...

    outcome = await asyncio.create_task(runtime.run({"id": "j1", "input": data}, emit=drop))
    error = outcome.error.code if outcome.error else None
    print(orjson.dumps({"output": orjson.loads(outcome.output or b"null"), "error": error}).decode(), flush=True)
    await runtime.stop()


def main() -> None:
    """Run the job of the command line."""
    url, namespace, worker_id, log, lease, behaviour = sys.argv[1:7]
    settings = Settings(
        state_url=url,
        state_namespace=namespace,
        worker_id=worker_id,
        lease_seconds=float(lease),
        base_url="http://127.0.0.1:1/v2",
    )
    agent = make_agent(worker_id, Path(log), stall=behaviour == "stall")
    asyncio.run(run_job(agent, settings, {"session_id": "s", "q": "a"}))


if __name__ == "__main__":
    main()
