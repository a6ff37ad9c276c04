"""Sessions on a real Cluster of three servers: the whole contract, moving slots, and a node that dies (row 19)."""

from __future__ import annotations

import asyncio
import binascii
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import redis.asyncio as aioredis
from hypothesis import given
from hypothesis import strategies as st

from flashkit.errors import StoreMisconfigured, StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redis_client import RedisClient
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import Change, Durability
from tests.ports import free_port
from tests.sessions import test_store_contract as contract
from tests.sessions.servers import RedisServer, require_binary
from tests.sessions.session_lab import Lab, Steps

SLOTS = 16384
# The contract's tests run here again, on the Cluster that `store_url` below names.
globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


def slot_of(key: str) -> int:
    """Return the slot of a key, as the Cluster specification says it: CRC16 (XMODEM) of the part in braces."""
    start = key.find("{")
    end = key.find("}", start + 1)
    hashed = key[start + 1 : end] if start >= 0 and end > start + 1 else key
    return binascii.crc_hqx(hashed.encode(), 0) % SLOTS


class Cluster:
    """Primaries without replicas that share the slots among them."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    async def form(self) -> None:
        """Make the servers one Cluster."""
        share = -(-SLOTS // len(self.servers))
        for number, server in enumerate(self.servers):
            async with aioredis.from_url(server.url) as client:
                last = min(SLOTS, share * (number + 1)) - 1
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", share * number, last)
                await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                first = self.servers[0]
                await client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, first.options["cluster-port"])
        await self.settle()

    async def settle(self) -> None:
        """Return once every server finds the Cluster complete."""
        async with asyncio.timeout(60):
            for server in self.servers:
                async with aioredis.from_url(server.url) as client:
                    while not await self._is_complete(client):
                        await asyncio.sleep(0.02)

    async def _is_complete(self, client: aioredis.Redis) -> bool:
        try:
            info = await client.execute_command("CLUSTER INFO")
        except aioredis.ConnectionError:
            return False
        is_whole = int(info["cluster_slots_ok"]) == SLOTS and int(info["cluster_known_nodes"]) == len(self.servers)
        return info["cluster_state"] == "ok" and is_whole

    async def clear(self) -> None:
        """Remove all keys: slots with keys do not move at once."""
        for server in self.servers:
            async with aioredis.from_url(server.url) as client:
                await client.flushall()

    async def owner(self, slot: int) -> RedisServer:
        """Return the server that has a slot."""
        async with aioredis.from_url(self.servers[0].url) as client:
            for first, last, (_, port, *_), *_ in await client.execute_command("CLUSTER SLOTS", NEVER_DECODE=True):
                if first <= slot <= last:
                    return next(server for server in self.servers if server.port == port)
        raise AssertionError(slot)


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory) -> AsyncIterator[Cluster]:
    servers = []
    for number in range(3):
        folder = tmp_path_factory.mktemp(f"node-{number}")
        options = {"cluster_port": str(free_port()), "cluster_node_timeout": "1000"}
        # Where some slots have no server, sessions in the others go on. A server that is killed while it syncs its
        # file to disk may lose what it acknowledged meanwhile, unless it waits for that.
        options |= {"cluster_require_full_coverage": "no", "appendfsync": "always"}
        servers.append(RedisServer(folder, require_binary("redis"), cluster_enabled="yes", **options).start())
    try:
        cluster = Cluster(servers)
        await cluster.form()
        yield cluster
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def store_url(cluster: Cluster) -> str:
    return cluster.url


NAMESPACES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
SESSIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True)


@given(NAMESPACES, SESSIONS)
def test_all_keys_that_a_script_may_touch_are_in_one_slot(namespace, session):
    assert len({slot_of(key) for key in session_keys(namespace, session)}) == 1


async def test_the_slots_computed_here_are_the_servers(cluster):
    async with aioredis.from_url(cluster.servers[0].url) as client:
        for key in ("123456789", "a{b}c", "{}x", "{", "a{}{b}", "{{b}}", *session_keys("app", "s:1")):
            assert await client.execute_command("CLUSTER KEYSLOT", key) == slot_of(key)


async def test_sessions_are_spread_over_all_servers(cluster, make_store, namespace):
    store = make_store(cluster.url)
    names = [f"s{number}" for number in range(30)]
    for name in names:
        await store.release(await store.commit(await store.acquire(name, "w"), [Record(Kind.RESULT, "a")]))
    owners = {(await cluster.owner(slot_of(session_keys(namespace, name)[0]))).port for name in names}
    assert len(owners) == 3
    async with asyncio.timeout(10):
        while {head.session for head in await store.sessions()} != set(names):
            await asyncio.sleep(0.02)


async def test_a_session_whose_slot_moves_to_another_server_goes_on(cluster, make_store, namespace):
    """Key by key, as redis-cli does it: on the way some keys of the session are here and some there."""
    store = make_store(cluster.url, budget_s=30)
    lease = await store.commit(await store.acquire("s", "w"), [Record(Kind.RESULT, "k0")])
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", 1), trim=False))
    slot = slot_of(session_keys(namespace, "s")[0])
    source = await cluster.owner(slot)
    target = next(server for server in cluster.servers if server is not source)
    written = ["k0"]

    async def write_until(moved: asyncio.Event) -> None:
        nonlocal lease
        while not moved.is_set() or len(written) < 20:
            written.append(f"k{len(written)}")
            lease = await store.commit(lease, [Record(Kind.RESULT, written[-1])])

    moved = asyncio.Event()
    writing = asyncio.create_task(write_until(moved))
    async with aioredis.from_url(source.url) as old, aioredis.from_url(target.url) as new:
        old_id, new_id = [(await each.execute_command("CLUSTER MYID")).decode() for each in (old, new)]
        await new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        await old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        while keys := await old.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
            await old.execute_command("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
            await asyncio.sleep(0.05)
        for each in (new, old):
            await each.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)
    moved.set()
    await writing
    assert [record.key for record in (await store.load("s")).records] == written
    assert [record.key for record in (await make_store(cluster.url).load("s")).records] == written
    assert (await cluster.owner(slot)) in (source, target)


async def test_many_sessions_at_once_follow_their_slots_that_have_moved(cluster, make_store, namespace):
    await cluster.clear()
    store = make_store(cluster.url, budget_s=30)
    await store.release(await store.acquire("s", "w"))  # knows the servers from now on
    names = [f"s{number}" for number in range(60)]
    slots = {slot_of(session_keys(namespace, name)[0]) for name in names} - {slot_of(session_keys(namespace, "s")[0])}
    # All of them to one server: if two got newer epochs by turns, each could believe what the other said before.
    target = cluster.servers[0]
    await cluster.settle()
    assert {await cluster.owner(slot) for slot in slots} - {target}
    for slot in slots:
        source = await cluster.owner(slot)
        if source is target:
            continue
        async with aioredis.from_url(source.url) as old, aioredis.from_url(target.url) as new:
            old_id = await old.execute_command("CLUSTER MYID")
            new_id = await new.execute_command("CLUSTER MYID")
            # Only who imports a slot gets a newer epoch with it; else the third server may give it back.
            await new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
            for each in (new, old):
                await each.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)

    async def live(name: str) -> None:
        lease = await store.commit(await store.acquire(name, "w"), [Record(Kind.RESULT, "a")])
        assert (await store.commit(lease, [Record(Kind.RESULT, "b")])).seq == 2

    await asyncio.gather(*(live(name) for name in names))


async def test_a_server_that_dies_takes_only_its_own_sessions_with_it_until_it_is_back(cluster, make_store, namespace):
    names = [f"s{number}" for number in range(40)]
    by_owner: dict[int, str] = {}
    for name in names:
        by_owner.setdefault((await cluster.owner(slot_of(session_keys(namespace, name)[0]))).port, name)
    victim = cluster.servers[2]
    gone, there = by_owner[victim.port], by_owner[cluster.servers[0].port]
    store = make_store(cluster.url, budget_s=2)
    leases = {}
    for name in (gone, there):
        leases[name] = await store.commit(await store.acquire(name, "w"), [Record(Kind.RESULT, "a")])
    victim.kill()
    try:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.commit(leases[gone], [Record(Kind.RESULT, "b")])
        assert time.monotonic() - started < 10
        patient = make_store(cluster.url, budget_s=30)
        leases[there] = await patient.commit(leases[there], [Record(Kind.RESULT, "b")])
    finally:
        victim.start()
        await cluster.settle()
    patient = make_store(cluster.url, budget_s=30)
    for name in (gone, there):
        lease = await patient.commit(leases[name], [Record(Kind.RESULT, "c" if name == there else "b")])
        keys = [record.key for record in (await patient.load(name)).records]
        assert (keys, lease.seq) == ((["a", "b", "c"], 3) if name == there else (["a", "b"], 2))
    lease = await store.commit(leases[gone], [Record(Kind.RESULT, "b")])  # the same one, which saw the outage
    assert lease.seq == 2


async def test_a_connection_that_redis_py_closes_while_it_is_opened_is_a_lost_one(cluster, namespace):
    client = RedisClient(cluster.url, budget_s=30)
    key = session_keys(namespace, "s")[0]
    await client.command("EXISTS", key)
    try:
        for number in range(300):
            for node in client.raw.get_nodes():
                await node.disconnect()
            call = asyncio.create_task(client.command("EXISTS", key))
            for _ in range(number % 40):  # from before its first write until after its end
                await asyncio.sleep(0)
            for node in client.raw.get_nodes():
                await node.disconnect()
            assert await call == 0
    finally:
        await client.close()


async def test_waiting_for_a_replica_is_refused_as_a_cluster_cannot_confirm_it(cluster, make_store):
    store = make_store(cluster.url)
    lease = await store.acquire("s", "w")
    with pytest.raises(StoreMisconfigured, match="cannot be confirmed on a Cluster"):
        await store.commit(lease, [Record(Kind.RESULT, "a")], Change(durability=Durability.REPLICA))


async def test_an_agent_lives_on_a_cluster(cluster, namespace):
    steps = Steps()

    async def agent(session, q: str) -> list[str]:
        parts = await session.gather(*(session.step("part", steps.upper, f"{q}{n}") for n in range(4)))
        return [*parts, await session.effect("pay", steps.upper, "paid", once=False), await session.wait_for("go")]

    async with AsyncExitStack() as stack:
        lab = Lab(cluster.url, namespace, stack)
        waiting = await (await lab.worker(agent, "w1")).answer("j1", session_id="s", q="a")
        assert waiting["status"] == "waiting"
        other = await lab.worker(agent, "w2")
        answer = await other.answer("j2", session_id="s", event={"name": "go", "value": "now"})
    assert answer == ["A0", "A1", "A2", "A3", "PAID", "now"]
    assert len(steps.seen) == 5
