"""Keys are exchanged while sessions live: FLASHKIT_STATE_KEYS names the new one first, later the old one goes."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from pydantic import BaseModel

from flashkit import Session, orchestrator_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime
from flashkit.worker.sessions.records import HEADER_BYTES, Kind
from flashkit.worker.sessions.store import Store, open_settings_store
from tests.sessions.session_lab import Lab, Steps, Worker

FIRST, SECOND = (f"{number}:{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2))
BOTH = f"{SECOND},{FIRST}"
KEY_AT, FLAGS_AT, ENCRYPTED = HEADER_BYTES, 5, 4


class Notes(BaseModel):
    """What the agent keeps."""

    seen: list[str] = []


class Fleet:
    """Workers of one app that are deployed with other keys from time to time."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self._names = (f"w{number}" for number in range(100))
        self.steps = Steps()

    def settings(self, keys: str) -> Settings:
        """Read the settings of a worker from its environment."""
        environ = {
            "FLASHKIT_STATE": self._lab.url,
            "FLASHKIT_NAMESPACE": self._lab.namespace,
            "FLASHKIT_STATE_KEYS": keys,
            "RUNPOD_ENDPOINT_BASE_URL": "http://127.0.0.1:1/v2",
            "RUNPOD_POD_ID": next(self._names),
        }
        return Settings.from_environment(environ, folder=self._folder)

    @asynccontextmanager
    async def worker(self, keys: str) -> AsyncIterator[Worker]:
        """Run a worker with these keys."""
        runtime = Runtime(orchestrator_endpoint()(self._agent()).definition, self.settings(keys))
        await runtime.start()
        try:
            yield Worker(runtime)
        finally:
            await runtime.stop()

    async def answer(self, keys: str, job_id: str, **data: Any) -> Any:
        async with self.worker(keys) as worker:
            return await worker.answer(job_id, session_id="s", **data)

    async def refusal(self, keys: str, job_id: str, **data: Any) -> tuple[str, str]:
        async with self.worker(keys) as worker:
            report = await worker.error(job_id, session_id="s", **data)
        return report.code, report.message

    @asynccontextmanager
    async def store(self, keys: str) -> AsyncIterator[Store]:
        """Look into the store with these keys."""
        store = open_settings_store(self.settings(keys))
        try:
            yield store
        finally:
            await store.close()

    async def keys_in_use(self) -> set[int]:
        """Return the numbers of the keys with which anything in the store is encrypted, 0 for none."""
        stored = await (self._stored_in_sqlite() if self._lab.url.startswith("sqlite") else self._stored_in_redis())
        sealed = [data for data in stored if data.startswith(b"FK")]
        return {data[KEY_AT] if data[FLAGS_AT] & ENCRYPTED else 0 for data in sealed}

    async def _stored_in_sqlite(self) -> list[bytes]:
        with sqlite3.connect(self._lab.url.removeprefix("sqlite:///")) as db:
            tables = {"journal": "data", "snapshot": "data", "history": "data", "blob": "data", "inbox": "body"}
            return [row[0] for table, column in tables.items() for row in db.execute(f"SELECT {column} FROM {table}")]

    async def _stored_in_redis(self) -> list[bytes]:
        stored: list[bytes] = []
        async with aioredis.from_url(self._lab.url) as client:
            async for key in client.scan_iter(f"fk1:{{{self._lab.namespace}:s}}:*"):
                match await client.type(key):
                    case b"string":
                        stored.append(await client.get(key))
                    case b"hash":
                        stored += (await client.hgetall(key)).values()
                    case b"stream":
                        stored += [value for _, fields in await client.xrange(key) for value in fields.values()]
        return stored

    def _agent(self) -> Any:
        steps = self.steps

        async def agent(session: Session[Notes], q: str) -> list[str]:
            session.state.seen.append(q)
            first = await session.step("first", steps.upper, q)
            large = await session.step("large", lambda: q * 600_000)
            if q == "b":
                await session.wait_for("go")
            return [first, str(len(large)), await session.step("last", steps.lower, q), *session.state.seen]

        return agent


@pytest.fixture
async def fleet(lab: Lab, tmp_path: Path) -> Fleet:
    return Fleet(lab, tmp_path)


async def test_a_session_moves_to_a_new_key_turn_by_turn_until_the_old_one_can_go(fleet):
    assert await fleet.answer(FIRST, "j1", q="aa") == ["AA", "1200000", "aa", "aa"]
    assert (await fleet.answer(FIRST, "j2", q="b"))["status"] == "waiting"
    assert await fleet.keys_in_use() == {1}

    # The worker with the new key reads what the old one wrote, and writes on with its own: the turn has both.
    async with fleet.store(BOTH) as store:
        assert [record.kind for record in (await store.load("s")).tail][-1] is Kind.INTENT
    assert await fleet.answer(BOTH, "j3", event={"name": "go"}) == ["B", "600000", "b", "aa", "b"]
    assert fleet.steps.seen == ["aa", "aa", "b", "b"]

    # The turn is over: its snapshot is the new key's, and with it goes the session, though not every blob of old.
    async with fleet.store(SECOND) as store:
        image = await store.load("s")
        assert (image.snapshot.turn, image.tail) == (2, ())
    assert await fleet.answer(SECOND, "j4", q="c") == ["C", "600000", "c", "aa", "b", "c"]
    assert await fleet.answer(SECOND, "j3") == ["B", "600000", "b", "aa", "b"]


async def test_what_the_old_key_still_holds_is_refused_by_its_number_and_left_alone(fleet):
    await fleet.answer(FIRST, "j1", q="a")
    await fleet.answer(FIRST, "j2", q="b")
    for _ in range(7):  # more often than a session may fail
        code, message = await fleet.refusal(SECOND, "j3", event={"name": "go", "id": "m"})
        assert (code, "encrypted with key 1" in message) == ("record_key_missing", True)
    async with fleet.store(FIRST) as store:
        head = await store.head("s")
        assert (head.is_held, head.status in ("waiting", "running")) == (False, True)
    assert fleet.steps.seen == ["a", "a", "b"]
    # The event was posted with key 2 and the turn written with key 1: whoever has both goes on.
    assert await fleet.answer(BOTH, "j3", event={"name": "go", "id": "m"}) == ["B", "600000", "b", "a", "b"]
    assert fleet.steps.seen == ["a", "a", "b", "b"]


async def test_a_worker_that_was_not_given_the_new_key_yet_refuses_the_session_and_keeps_it_whole(fleet):
    await fleet.answer(FIRST, "j1", q="a")
    await fleet.answer(BOTH, "j2", q="b")
    assert await fleet.keys_in_use() == {1, 2}
    code, message = await fleet.refusal(FIRST, "j3", event={"name": "go"})
    assert (code, "encrypted with key 2" in message) == ("record_key_missing", True)
    assert await fleet.answer(BOTH, "j3", event={"name": "go"}) == ["B", "600000", "b", "a", "b"]
