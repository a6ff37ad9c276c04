"""Events that come twice, early, late, out of order, or to a worker that dies over them (row 16)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from flashkit.worker.sessions.records import Kind
from tests.sessions.session_lab import until

ORDERS = [("first", "second"), ("second", "first")]


async def both(session, q: str) -> list[str]:
    """Wait for two events in a fixed order."""
    return [await session.wait_for("first"), await session.wait_for("second")]


def event(name: str, **more: str) -> dict[str, object]:
    return {"session_id": "s", "event": {"name": name, "value": name.upper(), **more}}


@pytest.mark.parametrize("order", ORDERS)
async def test_events_may_come_in_another_order_than_they_are_waited_for(lab, order):
    worker = await lab.worker(both)
    await worker.answer("j1", session_id="s", q="a")
    outputs = [await worker.answer(f"e{number}", **event(name)) for number, name in enumerate(order)]
    assert outputs[0]["status"] == "waiting"
    assert outputs[1] == ["FIRST", "SECOND"]


async def test_an_event_sent_twice_under_one_id_is_taken_once(lab):
    async def twice(session, q: str) -> list[str]:
        return [await session.wait_for("go"), await session.wait_for("go")]

    worker = await lab.worker(twice)
    await worker.answer("j1", session_id="s", q="a")
    for job in ("e1", "e2"):
        assert (await worker.answer(job, **event("go", id="same")))["status"] == "waiting"
    assert await worker.answer("e3", **event("go", id="other")) == ["GO", "GO"]


async def test_two_posters_at_once_are_both_heard_once(lab):
    async def agent(session, q: str) -> list[str]:
        return sorted([await session.wait_for("vote") for _ in range(6)])

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    async with lab.store() as one, lab.store() as other:
        bodies = [orjson.dumps({"name": "vote", "value": f"v{number}"}) for number in range(6)]
        await asyncio.gather(
            *(store.post("s", f"m{number}", body) for store in (one, other) for number, body in enumerate(bodies))
        )
    assert await worker.answer("j2", session_id="s", event=None) == [f"v{number}" for number in range(6)]


async def test_an_event_that_comes_after_its_turn_was_cancelled_is_kept_for_the_next_one(lab):
    started = asyncio.Event()

    async def slow() -> None:
        started.set()
        await asyncio.sleep(60)

    async def agent(session, q: str) -> str:
        if q == "a":
            await session.step("slow", slow)
        return await session.wait_for("go")

    worker = await lab.worker(agent)
    running = worker.start("j1", session_id="s", q="a")
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with lab.store() as store:
        await store.post("s", "m1", orjson.dumps({"name": "go", "value": "late"}))
    assert await worker.answer("j2", session_id="s", q="b") == "late"


DYING = """
import asyncio, os, signal, sys
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime
from flashkit import orchestrator_endpoint
from tests.sessions.test_inbox_faults import both
from tests.sessions.crash_server import DyingStore, Log

async def main(url, namespace, dies_at):
    settings = Settings(state_url=url, state_namespace=namespace, worker_id="dying", base_url="http://127.0.0.1:1/v2",
                        lease_seconds=0.5)
    runtime = Runtime(orchestrator_endpoint()(both).definition, settings)
    await runtime.start()
    runtime._sessions._store = DyingStore(runtime._sessions._store, int(dies_at), Log(os.devnull))
    async def drop(chunk): pass
    job = {"id": "j2", "input": {"session_id": "s", "event": None}}
    await asyncio.create_task(runtime.run(job, emit=drop))
    await runtime.stop()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_worker_that_dies_over_its_messages_takes_none_with_it_and_leaves_none_twice(lab):
    """Killed before and after it has taken them from the inbox, and again before and after its first step."""
    worker = await lab.worker(both, lease_seconds=0.5)
    await worker.answer("j1", session_id="s", q="a")
    async with lab.store() as store:
        for name in ("first", "second"):
            await store.post("s", name, orjson.dumps({"name": name, "value": name.upper()}))
    deaths = 0
    for dies_at in (-1, 1, -1, 1):
        command = [sys.executable, "-c", DYING, lab.url, lab.namespace, str(dies_at)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={})
        await until(lambda process=process: process.poll() is not None, seconds=60)
        deaths += process.returncode < 0
    assert deaths >= 3
    assert await worker.answer("j3", session_id="s", event=None) == ["FIRST", "SECOND"]
    async with lab.store() as store:
        assert await store.inbox("s") == []
        answers = [record for record in (await store.load("s")).records if record.kind is Kind.ANSWER]
    assert len(answers) in (0, 2)  # with the turn's other records, or gone with them
