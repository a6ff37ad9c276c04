"""An agent, the tool that it calls, and a file in which both write down what they do."""

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flashkit import Session, cpu_endpoint, current_job, orchestrator_endpoint

SHORT_MS = 6_000
"""Execution timeout of `patient`."""
LOG = Path(os.environ.get("SESSION_APP_LOG", os.devnull))


def note(*words: object) -> str:
    """Write a line and return its last word."""
    with LOG.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")
    return str(words[-1])


@cpu_endpoint(name="tool", concurrency=8)
async def tool(key: str, seconds: float = 0.0, fails: str = "") -> dict[str, Any]:
    """Work for some time, or fail as it is told."""
    note("tool", key)
    is_first = LOG.read_text().count(f"tool {key}\n") == 1 if fails else False
    if fails == "raise" or (fails == "raise-once" and is_first):
        raise LookupError(f"nothing about {key}")
    if fails == "die" or (fails == "die-once" and is_first):
        os._exit(9)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cancelled", key)
        raise
    if fails == "die-late":
        os._exit(9)
    note("done", key)
    return {"key": key, "job": current_job().id}


@orchestrator_endpoint(name="agent")
async def agent(session: Session[None], q: str, seconds: float = 0.0, fails: str = "") -> list[str]:
    """Call the tool between two steps."""
    first = await session.step("first", note, "first", os.getpid(), q)
    answer = await session.call(tool, q, seconds=seconds, fails=fails)
    return [first, answer["key"], await session.step("last", note, "last", os.getpid(), q)]


@orchestrator_endpoint(name="stepper")
async def stepper(session: Session[None], q: str, steps: int = 8, seconds: float = 0.2) -> int:
    """Take many steps."""

    async def work(number: int) -> int:
        note("step", os.getpid(), q, number)
        await asyncio.sleep(seconds)
        return number

    return sum([await session.step("work", work, number) for number in range(steps)])


class Seen(BaseModel):
    """What `patient` keeps."""

    numbers: list[int] = []


@orchestrator_endpoint(name="patient", execution_timeout_ms=SHORT_MS)
async def patient(session: Session[Seen], q: str, stubborn: bool = False, seconds: float = 2.0) -> list[int]:
    """Take longer than its execution timeout."""

    async def work(number: int) -> int:
        note("step", os.getpid(), q, number)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if not stubborn:
                raise
        return number

    for number in range(4):
        session.state.numbers.append(await session.step("work", work, number))
    return session.state.numbers


@orchestrator_endpoint(name="patient-caller", execution_timeout_ms=SHORT_MS)
async def patient_caller(session: Session[None], q: str) -> str:
    """Call a tool that takes longer than this endpoint's execution timeout."""
    answer = await session.call(tool, q, seconds=SHORT_MS / 1000 + 0.5)
    return answer["key"]
