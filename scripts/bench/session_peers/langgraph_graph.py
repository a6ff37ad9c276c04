"""LangGraph: ten nodes in a row, `durability="sync"`. A step's time is from one node's call to the next one's.

Two forms. `one`: the state is one list, in which a reducer puts the new tenth: an agent's messages or notes.
`split`: each tenth is a channel of its own, the best case for savers that store each channel by itself.
SQLite runs in WAL mode with synchronous=NORMAL, and Postgres with synchronous_commit=off, which is about what
an append-only file synced every second is worth.
"""

from __future__ import annotations

import operator
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from workload import STEPS, Cell, Clock, Texts, main

SECTIONS = [f"section_{number}" for number in range(STEPS)]


def put(sections: list[str], new: dict[int, str] | list[str]) -> list[str]:
    """Return the sections with the new ones in their places."""
    if isinstance(new, list):
        return new
    return [new.get(number, section) for number, section in enumerate(sections)]


class Notes(TypedDict):
    turn: Annotated[int, operator.add]
    sections: Annotated[list[str], put]


SplitNotes = TypedDict("SplitNotes", {"turn": Annotated[int, operator.add], **dict.fromkeys(SECTIONS, str)})


class Graph:
    def __init__(self, saver: Any, texts: Texts, *, is_split: bool) -> None:
        self._texts = texts
        self._is_split = is_split
        self._marks: dict[str, list[float]] = defaultdict(list)
        builder = StateGraph(SplitNotes if is_split else Notes)
        nodes = [f"revise_{section}" for section in SECTIONS]
        for number, node in enumerate(nodes):
            builder.add_node(node, self._node(number))
        for before, after in pairwise([START, *nodes, END]):
            builder.add_edge(before, after)
        self._last_node = nodes[-1]
        self._graph = builder.compile(checkpointer=saver)

    def _node(self, number: int):
        async def revise(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
            self._marks[config["configurable"]["thread_id"]].append(time.perf_counter())
            text = self._texts.another()
            return {SECTIONS[number]: text} if self._is_split else {"sections": {number: text}}

        return revise

    async def create(self, session: str) -> None:
        texts = self._texts.initial()
        state = dict(zip(SECTIONS, texts, strict=True)) if self._is_split else {"sections": texts}
        config = {"configurable": {"thread_id": session}}
        await self._graph.aupdate_state(config, {"turn": 1, **state}, as_node=self._last_node)

    async def turn(self, session: str, clock: Clock) -> None:
        await self._graph.ainvoke({"turn": 1}, {"configurable": {"thread_id": session}}, durability="sync")
        marks = [*self._marks.pop(session), time.perf_counter()]
        clock.steps.extend(after - before for before, after in pairwise(marks))


@asynccontextmanager
async def connect(store: str, texts: Texts, cell: Cell) -> AsyncIterator[Graph]:
    async with open_saver(store, cell) as saver:
        yield Graph(saver, texts, is_split=cell.form == "split")


@asynccontextmanager
async def open_saver(store: str, cell: Cell) -> AsyncIterator[Any]:
    match store.partition("://")[0]:
        case "sqlite":
            from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

            async with AsyncSqliteSaver.from_conn_string(store.removeprefix("sqlite:///")) as saver:
                await saver.setup()
                await saver.conn.execute("PRAGMA synchronous=NORMAL")
                yield saver
        case "redis":
            import redis.asyncio
            from langgraph_checkpoint_plainredis import AsyncRedisSaver

            async with redis.asyncio.Redis.from_url(store) as client:
                yield AsyncRedisSaver(client)
        case "postgresql":
            from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
            from psycopg.rows import dict_row
            from psycopg_pool import AsyncConnectionPool

            options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
            async with AsyncConnectionPool(store, min_size=1, max_size=cell.at_once, kwargs=options) as pool:
                saver = AsyncPostgresSaver(pool)
                await saver.setup()
                yield saver


if __name__ == "__main__":
    main(connect)
