"""flashkit: a job per request through the worker's runtime; acquire, journal, snapshot and release included."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel
from workload import STEPS, Cell, Clock, Texts, main

from flashkit import Session, orchestrator_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime


class Notes(BaseModel):
    sections: list[str] = []


class Flashkit:
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._clock = Clock()
        self.runtime: Runtime
        self._jobs = 0

    def definition(self):
        texts = self._texts

        async def revise(section: int) -> str:
            return texts.another()

        @orchestrator_endpoint(concurrency=64)
        async def agent(session: Session[Notes], begin: int = 0) -> int:
            if begin:
                session.state.sections = texts.initial()
                return 0
            clock = self._clock
            for section in range(STEPS):
                started = time.perf_counter()
                session.state.sections[section] = await session.step("revise", revise, section)
                clock.steps.append(time.perf_counter() - started)
            return session.turn

        return agent.definition

    async def create(self, session: str) -> None:
        await self._run({"session_id": session, "begin": 1})

    async def turn(self, session: str, clock: Clock) -> None:
        self._clock = clock
        await self._run({"session_id": session})

    async def _run(self, data: dict[str, object]) -> None:
        self._jobs += 1
        outcome = await self.runtime.run({"id": f"job-{self._jobs}", "input": data}, emit=_ignore)
        assert outcome.error is None, outcome.error


async def _ignore(chunk: bytes) -> None:
    pass


@asynccontextmanager
async def connect(store: str, texts: Texts, cell: Cell) -> AsyncIterator[Flashkit]:
    contender = Flashkit(texts)
    contender.runtime = Runtime(contender.definition(), Settings(state_url=store, worker_id="worker-1"))
    await contender.runtime.start()
    try:
        yield contender
    finally:
        await contender.runtime.stop()


if __name__ == "__main__":
    main(connect)
