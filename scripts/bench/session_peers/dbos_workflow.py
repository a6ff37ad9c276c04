"""DBOS: one async workflow a session, one step a tenth of the state. It keeps no session's state, only step results.

On SQLite with WAL and synchronous=NORMAL, which its own settings do not ask for, so that it is not held back
by waiting for the disk when the others do not.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, SetWorkflowID
from sqlalchemy import event
from sqlalchemy.engine import Engine
from workload import STEPS, Cell, Clock, Texts, main


class Workflow:
    def __init__(self, texts: Texts) -> None:
        self._clock = Clock()
        self._initial = texts.initial()

        @DBOS.step()
        async def revise(section: int) -> str:
            return texts.another()

        @DBOS.workflow()
        async def agent(session: str) -> int:
            state = list(self._initial)
            for section in range(STEPS):
                started = time.perf_counter()
                state[section] = await revise(section)
                self._clock.steps.append(time.perf_counter() - started)
            return len(state)

        self._agent = agent

    async def create(self, session: str) -> None:
        """There is nothing to store."""

    async def turn(self, session: str, clock: Clock) -> None:
        self._clock = clock
        with SetWorkflowID(session):
            await self._agent(session)


@asynccontextmanager
async def connect(store: str, texts: Texts, cell: Cell) -> AsyncIterator[Workflow]:
    if store.startswith("sqlite"):
        event.listen(Engine, "connect", _relax)
    url = store.replace("postgresql://", "postgresql+psycopg://")
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    workflow = Workflow(texts)
    DBOS.launch()
    try:
        yield workflow
    finally:
        DBOS.destroy()


def _relax(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


if __name__ == "__main__":
    main(connect)
