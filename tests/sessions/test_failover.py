"""A replica takes over without the tail that the primary had acknowledged, and Sentinel's real failover (row 12)."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from flashkit.errors import JournalLost, RecordCorrupt, SessionFenced, StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.store import Change, Durability, Lease, Status, Store
from tests.ports import free_port
from tests.sessions.servers import Proxy, RedisServer, require_binary
from tests.sessions.session_lab import Lab, Steps, until


class Pair:
    """A primary and its replica; clients reach the one in charge by `url`, the replica hears the primary by `link`."""

    def __init__(self, primary: RedisServer, replica: RedisServer, front: Proxy, link: Proxy) -> None:
        self.primary = primary
        self.replica = replica
        self.front = front
        self.link = link

    @property
    def url(self) -> str:
        return self.front.url

    async def catch_up(self) -> None:
        """Return once the replica has all that the primary has."""
        async with aioredis.from_url(self.primary.url) as primary, aioredis.from_url(self.replica.url) as replica:
            async with asyncio.timeout(30):
                while True:
                    told, heard = await primary.info("replication"), await replica.info("replication")
                    has_all = told["master_repl_offset"] == heard["slave_repl_offset"]
                    if has_all and heard["master_link_status"] == "up":
                        return
                    await asyncio.sleep(0.01)

    def cut_off(self) -> None:
        """Let nothing more of the primary reach the replica."""
        self.link.mode = "hold replies"

    async def fail_over(self) -> None:
        """Let the replica take the primary's place, which is gone for good."""
        self.primary.kill()
        async with aioredis.from_url(self.replica.url) as client:
            await client.execute_command("REPLICAOF", "NO", "ONE")
        self.front.target = self.replica.port
        self.front.reset()


@pytest.fixture
async def pair(own_redis) -> AsyncIterator[Pair]:
    primary = own_redis(repl_diskless_sync_delay="0")
    async with Proxy(primary.port) as front, Proxy(primary.port) as link:
        pair = Pair(primary, own_redis(replicaof=f"127.0.0.1 {link.port}"), front, link)
        await pair.catch_up()
        yield pair


def result(key: str) -> Record:
    return Record(Kind.RESULT, key)


async def begin(store: Store, *keys: str) -> Lease:
    """Take the session and write these records to it."""
    lease = await store.acquire("s", "w1")
    assert isinstance(lease, Lease)
    return await store.commit(lease, [result(key) for key in keys])


async def keys_of(store: Store) -> list[str]:
    return [record.key for record in (await store.load("s")).records]


async def test_the_writer_puts_its_acknowledged_tail_back_in_order(pair, make_store):
    store = make_store(pair.url)
    lease = await begin(store, "a")
    await store.post("s", "m1", b"first")
    await pair.catch_up()
    pair.cut_off()
    lease = await store.commit(lease, [result("b"), result("c")])
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b'{"n":1}', 1), consumed=1, status=Status.RUNNING))
    lease = await store.commit(lease, [result("d")])
    await pair.fail_over()
    assert (await store.head("s")).seq == 1
    lease = await store.commit(lease, [result("e")])
    image = await store.load("s")
    assert ([record.key for record in image.records], image.snapshot.data, lease.seq) == (["d", "e"], b'{"n":1}', 5)
    assert await store.inbox("s") == []  # the message is not given out again
    assert await keys_of(make_store(pair.url)) == ["d", "e"]


async def test_a_commit_under_way_in_the_failover_is_sent_to_the_new_primary_after_the_tail(pair, make_store):
    store = make_store(pair.url, budget_s=30)
    lease = await begin(store, "a")
    await pair.catch_up()
    pair.cut_off()
    lease = await store.commit(lease, [result("b")])
    pair.primary.freeze()
    commit = asyncio.create_task(store.commit(lease, [result("c")]))
    await asyncio.sleep(0.1)
    await pair.fail_over()
    lease = await commit
    assert (await keys_of(store), lease.seq) == (["a", "b", "c"], 3)


async def test_a_write_that_has_to_be_on_a_replica_is_refused_while_there_is_none(pair, make_store):
    store = make_store(pair.url, budget_s=2)
    lease = await begin(store, "a")
    durable = Change(durability=Durability.REPLICA)
    lease = await store.commit(lease, [result("b")], durable)
    pair.cut_off()
    lease = await store.commit(lease, [result("c")])  # asks for nothing, and is lost
    with pytest.raises(StoreUnavailable, match="WAIT was not confirmed"):
        await store.commit(lease, [result("d")], durable)
    await pair.fail_over()
    assert await keys_of(make_store(pair.url)) == ["a", "b"]  # what was confirmed, all of it, and no more
    lease = await store.commit(lease, [result("d")])
    assert (await keys_of(store), lease.seq) == (["a", "b", "c", "d"], 4)


async def test_the_writers_successor_never_loses_what_was_confirmed(pair, make_store):
    """The writer died with its tail: what it asked no confirmation for is gone, and what is left is whole."""
    store = make_store(pair.url, budget_s=5)
    lease = await begin(store, "a")
    lease = await store.commit(lease, [Record(Kind.INTENT, "pay")], Change(durability=Durability.REPLICA))
    pair.cut_off()
    await store.commit(lease, [result("pay")])
    await pair.fail_over()
    heir = make_store(pair.url)
    lease = await heir.acquire("s", "w2", witness=(await heir.head("s")).heartbeat)
    image = await heir.load("s")
    assert [(record.kind, record.key) for record in image.records] == [(Kind.RESULT, "a"), (Kind.INTENT, "pay")]
    assert (await heir.commit(lease, [result("b")])).seq == 3


async def test_a_large_value_that_the_failover_lost_is_missed_by_its_name(pair, make_store):
    """Only the journal's tail is kept in memory; a record whose value is gone is never taken for one without."""
    store = make_store(pair.url)
    lease = await begin(store, "a")
    await pair.catch_up()
    pair.cut_off()
    name = await store.put_blob("s", b"x" * 2_000_000)
    lease = await store.commit(lease, [Record(Kind.RESULT, "large", blob=name)])
    await pair.fail_over()
    await store.commit(lease, [result("b")])
    assert [record.blob for record in (await store.load("s")).records] == [None, name, None]
    with pytest.raises(RecordCorrupt, match="is gone"):
        await store.get_blob("s", name)


async def test_a_writer_whose_lease_was_lost_is_refused(pair, make_store):
    store = make_store(pair.url)
    await store.release(await begin(store, "a"))
    await pair.catch_up()
    pair.cut_off()
    lease = await begin(store, "b")
    await pair.fail_over()
    with pytest.raises(SessionFenced):
        await store.commit(lease, [result("c")])
    assert await keys_of(store) == ["a"]
    assert (await begin(store, "b2")).seq == 2


async def test_a_writer_whose_session_was_born_after_the_cut_is_refused(pair, make_store):
    store = make_store(pair.url)
    pair.cut_off()
    lease = await begin(store, "a")
    await pair.fail_over()
    with pytest.raises(SessionFenced, match="the store lost it"):
        await store.commit(lease, [result("b")])


async def test_a_newcomers_journal_on_the_new_primary_is_not_overwritten(pair, make_store):
    store, heir = make_store(pair.url), make_store(pair.url)
    lease = await begin(store, "a")
    await pair.catch_up()
    pair.cut_off()
    lease = await store.commit(lease, [result("b")])
    await pair.fail_over()
    taken = await heir.acquire("s", "w2", witness=(await heir.head("s")).heartbeat)
    await heir.commit(taken, [result("x")])
    with pytest.raises(SessionFenced, match="worker 'w2' took it over"):
        await store.commit(lease, [result("c")])
    assert await keys_of(heir) == ["a", "x"]


async def test_a_tail_that_is_no_longer_in_memory_ends_in_a_typed_error(pair, make_store):
    """The writer was started again with its lease's values, but without the calls that it had sent."""
    store = make_store(pair.url)
    lease = await begin(store, "a")
    await pair.catch_up()
    pair.cut_off()
    lease = await store.commit(lease, [result("b")])
    await pair.fail_over()
    forgetful = make_store(pair.url)
    with pytest.raises(JournalLost, match="has 1 records in the store, not 2"):
        await forgetful.commit(lease, [result("c")])
    assert await keys_of(forgetful) == ["a"]


async def test_an_agents_turn_goes_on_over_a_lossy_failover_and_no_step_runs_twice(pair, namespace):
    steps = Steps()
    gate = asyncio.Event()

    async def wait() -> str:
        await gate.wait()
        return "waited"

    async def agent(session, q: str) -> list[str]:
        said = [await session.step(f"s{n}", steps.upper, f"{q}{n}") for n in range(5)]
        said.append(await session.step("wait", wait))
        said += await session.gather(*(session.step("late", steps.lower, f"L{n}") for n in range(3)))
        return said

    async with AsyncExitStack() as stack:
        lab = Lab(pair.url, namespace, stack)
        worker = await lab.worker(agent, keep_journals=True)
        running = worker.start("j1", session_id="s", q="a")
        await until(lambda: steps.seen, seconds=30)
        await pair.catch_up()
        pair.cut_off()
        await until(lambda: len(steps.seen) == 5, seconds=30)
        await pair.fail_over()
        gate.set()
        answer = ["A0", "A1", "A2", "A3", "A4", "waited", "l0", "l1", "l2"]
        assert (await running).error is None
        assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s", q="a") == answer
        async with lab.store() as store:
            records = (await store.load("s")).records
    assert len(steps.seen) == 8
    assert [record.key for record in records if record.kind is Kind.RESULT][:6] == [
        *(f"s{n}" for n in range(5)),
        "wait",
    ]


# ------------------------------------------------------------------ Sentinel


class Watched:
    """A primary and a replica that a real Sentinel watches."""

    def __init__(self, primary: RedisServer, replica: RedisServer, port: int) -> None:
        self.primary = primary
        self.replica = replica
        self.port = port

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/main"

    async def promote(self) -> None:
        """Ask Sentinel for a failover, and return once it sends clients to the replica."""
        await self.ask("FAILOVER", "main")
        async with asyncio.timeout(60):
            while await self.ask("GET-MASTER-ADDR-BY-NAME", "main") != ["127.0.0.1", str(self.replica.port)]:
                await asyncio.sleep(0.01)

    async def demote(self) -> None:
        """Put the old primary under the new one, as Sentinel does too, but only after ten seconds."""
        async with aioredis.from_url(self.primary.url) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", self.replica.port)

    async def has_failed_over(self) -> bool:
        """Return whether the replica is in charge, and the old primary gone or under it."""
        roles = []
        for server in (self.replica, self.primary):
            try:
                async with aioredis.from_url(server.url) as client:
                    roles.append((await client.info("replication"))["role"])
            except aioredis.ConnectionError:
                roles.append("slave")
        return roles == ["master", "slave"]

    async def ask(self, *words: str) -> object:
        """Return Sentinel's answer to a command."""
        async with aioredis.Redis(port=self.port, decode_responses=True) as client:
            return await client.execute_command("SENTINEL", *words)


@pytest.fixture
async def watched(own_redis, tmp_path: Path) -> AsyncIterator[Watched]:
    primary = own_redis(repl_diskless_sync_delay="0")
    replica = own_redis(replicaof=f"127.0.0.1 {primary.port}", replica_priority="1")
    port, conf = free_port(), tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
    )
    command = [str(require_binary("redis").path), str(conf), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={})
    try:
        watched = Watched(primary, replica, port)
        async with asyncio.timeout(60):
            while not await _knows_a_good_replica(watched):
                await asyncio.sleep(0.05)
        yield watched
    finally:
        process.kill()
        process.wait()


async def _knows_a_good_replica(watched: Watched) -> bool:
    try:
        replicas = await watched.ask("REPLICAS", "main")
    except aioredis.ConnectionError:
        return False
    return any(each["master-link-status"] == "ok" and each["flags"] == "slave" for each in replicas)


@pytest.mark.parametrize("why", ["the primary died", "it was asked to"])
async def test_after_sentinels_failover_the_session_goes_on_at_the_new_primary(watched, make_store, why):
    store = make_store(watched.url, budget_s=40)
    assert (await store.check()).server.startswith("redis")
    lease = await begin(store, "a")
    lease = await store.commit(lease, [result("b")], Change(durability=Durability.REPLICA))
    written = ["a", "b"]
    if why == "the primary died":
        watched.primary.kill()
    else:
        await watched.promote()
        lease = await store.commit(lease, [result("split")])  # the old primary still takes it
        written.append("split")
        await watched.demote()
    async with asyncio.timeout(90):
        while not await watched.has_failed_over() or len(written) < 10:
            written.append(f"k{len(written)}")
            lease = await store.commit(lease, [result(written[-1])])  # to the old primary, as long as it takes it
            await asyncio.sleep(0.05)
    lease = await store.commit(lease, [result("end")])
    written.append("end")
    assert (await keys_of(store), lease.seq) == (written, len(written))
    assert await keys_of(make_store(watched.replica.url)) == written
