"""Everything that a network and a server do wrong, mixed, under a worker that writes on (rows 8 and 9)."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from flashkit.worker.sessions.records import Kind, Record
from tests.sessions.servers import Proxy
from tests.sessions.session_lab import Lab, Steps, until


async def misbehave(proxy: Proxy, rng: random.Random) -> None:
    """Do something to the network for a moment, again and again."""
    while True:
        mode = rng.choice(["pass", "lose replies", "hold replies", "swallow", "one byte at a time", "delay", "refuse"])
        proxy.mode = mode
        if mode in ("pass", "refuse") or rng.random() < 0.3:
            proxy.reset()
        await asyncio.sleep(rng.uniform(0, 0.15))
        proxy.mode = "pass"
        if mode in ("hold replies", "swallow"):
            proxy.reset()  # what was lost on this connection would be waited for
        await asyncio.sleep(rng.uniform(0, 0.03))


@pytest.mark.parametrize("seed", range(3))
async def test_a_network_that_does_everything_wrong_loses_and_doubles_nothing(redis_server, make_store, seed):
    async with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url, budget_s=60)
        lease = await store.acquire("s", "w", ttl_s=600)
        trouble = asyncio.create_task(misbehave(proxy, random.Random(seed)))
        try:
            for number in range(25):
                lease = await store.commit(lease, [Record(Kind.RESULT, f"k{number}")])
        finally:
            trouble.cancel()
            proxy.mode = "pass"
        records = (await make_store(redis_server.url).load("s")).records
    assert [record.key for record in records] == [f"k{number}" for number in range(25)]
    assert lease.seq == 25


async def test_a_slow_network_is_no_reason_to_ask_twice(redis_server, make_store):
    async with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url, budget_s=20)
        lease = await store.acquire("s", "w")
        before = (await store.head("s")).heartbeat
        proxy.mode = "delay"
        await store.commit(lease, [Record(Kind.RESULT, "a")])
        head = await store.head("s")
        assert (head.seq, head.heartbeat) == (1, before + 1)  # it counts the calls that reached the server


async def test_a_turn_goes_on_over_a_restart_of_the_server(own_redis, namespace):
    server = own_redis(appendfsync="always")
    steps = Steps()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    async def agent(session, q: str) -> list[str]:
        said = [await session.step("before", steps.upper, q)]
        await session.step("wait", wait)
        return [*said, *await session.gather(*(session.step("after", steps.lower, f"{q}{n}") for n in range(3)))]

    async with AsyncExitStack() as stack:
        lab = Lab(server.url, namespace, stack)
        worker = await lab.worker(agent)
        running = worker.start("j1", session_id="s", q="A")
        await until(lambda: steps.seen, seconds=30)
        server.kill()
        gate.set()
        await asyncio.sleep(0.2)
        assert not running.done()
        await asyncio.to_thread(server.start)
        assert (await running).error is None
        assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s", q="A") == ["A", "a0", "a1", "a2"]
    assert sorted(steps.seen) == ["A", "A0", "A1", "A2"]
