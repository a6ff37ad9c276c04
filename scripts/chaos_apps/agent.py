"""An agent that is killed, and the endpoint that it calls, which is killed too. Both write down every move at once.

Lines go to files that are only ever appended to, with one system call each: they outlive the process. A job's
input may name points at which a worker kills itself, each of them once: `before:3`, `inside:3`, `after:3` in the
agent's step 3; for a step that calls the other endpoint also `tool-before:4`, before its effect, and
`tool-after:4`, between its effect and its result.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from flashkit import Session, cpu_endpoint, orchestrator_endpoint
from flashkit.worker.sessions.session import effect_key

STEPS = 12
STEP_SECONDS = 0.01
FOLDER = Path(os.environ["CHAOS_FOLDER"])
ENV = {"CHAOS_FOLDER": str(FOLDER)}


def write_line(file: str, **facts: Any) -> None:
    line = json.dumps({"t": time.time(), "pid": os.getpid(), **facts}) + "\n"
    handle = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def lines(file: str) -> list[dict[str, Any]]:
    path = FOLDER / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@cpu_endpoint(workers=(2, 2), idle_timeout=3600, concurrency=8, env=ENV)
async def ledger(session: str, number: int, crashes: list[str]) -> str:
    """The side effect: a line that says it happened."""
    key, victim = f"call {session} {number}", Victim(session, crashes)
    victim.pass_by(f"tool-before:{number}")
    write_line("effects", key=key, session=session, step=number)
    await asyncio.sleep(STEP_SECONDS)
    victim.pass_by(f"tool-after:{number}")
    write_line("returns", key=key)
    return f"booked {key}"


@orchestrator_endpoint(workers=(2, 2), idle_timeout=3600, env=ENV)
async def agent(session: Session, crashes: list[str]) -> list[str]:
    """Walk through steps of three kinds: pure, a call of another endpoint, an effect with a probe."""
    victim = Victim(session.id, crashes)
    write_line("moves", session=session.id, what="begin")
    results = []
    for number in range(STEPS):
        victim.pass_by(f"before:{number}")
        results.append(await KINDS[number % len(KINDS)](session, number, victim))
        write_line("moves", session=session.id, what="done", step=number)
        victim.pass_by(f"after:{number}")
    write_line("moves", session=session.id, what="end")
    return results


class Victim:
    """The worker that one session's plan kills."""

    def __init__(self, session: str, crashes: list[str]) -> None:
        self._session = session
        self.crashes = crashes

    def pass_by(self, point: str) -> None:
        """Die here if the plan says so and it is the first time."""
        if point not in self.crashes:
            return
        try:
            (FOLDER / f"{self._session}-{point}".replace(":", "-")).touch(exist_ok=False)
        except FileExistsError:
            return
        write_line("moves", session=self._session, what="killed", point=point)
        os.kill(os.getpid(), signal.SIGKILL)


async def think(session: Session, number: int, victim: Victim) -> str:
    async def body() -> str:
        write_line("moves", session=session.id, what="run", step=number)
        await asyncio.sleep(STEP_SECONDS)
        victim.pass_by(f"inside:{number}")
        return f"thought {number}"

    return await session.step("think", body)


async def book(session: Session, number: int, victim: Victim) -> str:
    # Inside a call, death comes at any moment around the job's submission.
    asyncio.get_running_loop().call_later(number * 0.001, victim.pass_by, f"inside:{number}")
    return await session.call(ledger, session=session.id, number=number, crashes=victim.crashes)


async def pay(session: Session, number: int, victim: Victim) -> str:
    async def body() -> str:
        write_line("moves", session=session.id, what="run", step=number)
        write_line("effects", key=f"effect {effect_key()}")
        await asyncio.sleep(STEP_SECONDS)
        victim.pass_by(f"inside:{number}")
        return f"paid {number}"

    def probe(key: str) -> str | None:
        happened = any(line["key"] == f"effect {key}" for line in lines("effects"))
        return f"paid {number}" if happened else None

    return await session.effect("pay", body, probe=probe)


KINDS = (think, book, pay)
