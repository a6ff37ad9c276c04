"""Redis as it misbehaves: restarts, frozen, behind a bad network, full, failing over. No step is lost or doubled."""

import asyncio
import time

import pytest
import redis.asyncio as aioredis

from flashkit.errors import JournalLost, SessionFenced, StoreFull, StoreMisconfigured, StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redis_client import read_script
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import Change, Durability
from tests.sessions.servers import Proxy


def result(key: str, output: bytes = b"1") -> Record:
    return Record(Kind.RESULT, key, output)


async def keys_of(store):
    return [record.key for record in (await store.load("s")).records]


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_a_killed_server_that_comes_back_has_every_acknowledged_record(own_redis, make_store, fsync):
    server = own_redis(appendfsync=fsync)
    store = make_store(server.url, budget_s=10)
    lease = await store.acquire("s", "w")
    for number in range(30):
        if number in (10, 20):
            server.kill()
            restart = asyncio.create_task(asyncio.to_thread(server.start))
        lease = await store.commit(lease, [result(f"k{number}")])
    await restart
    assert await keys_of(store) == [f"k{number}" for number in range(30)]


async def test_pending_records_go_in_one_call_when_the_server_is_back(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url, budget_s=0.3)
    lease = await store.acquire("s", "w")
    server.kill()
    pending = [result("a")]
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
        await store.commit(lease, pending)
    assert time.monotonic() - started < 1
    pending.append(result("b"))
    server.start()
    lease = await store.commit(lease, pending)
    assert (await keys_of(store), lease.seq) == (["a", "b"], 2)


async def test_a_server_that_comes_back_empty_fences_the_worker(own_redis, make_store):
    server = own_redis(appendonly="no")
    store = make_store(server.url)
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    server.kill()
    server.start()
    with pytest.raises(SessionFenced, match="the store lost it"):
        await store.commit(lease, [result("b")])
    assert (await store.acquire("s", "w")).incarnation != lease.incarnation


async def test_a_cancellation_is_heard_in_whatever_round_of_the_loop_it_comes(own_redis, make_store):
    store = make_store(own_redis().url)
    await store.check()

    async def look_for_ever():
        while True:
            await store.due(limit=1)

    for rounds in [*range(1, 40)] * 5:  # one in ten was forgotten by redis-py before Python 3.12
        looking = asyncio.create_task(look_for_ever())
        for _ in range(rounds):
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking], timeout=5)
        assert looking.cancelled(), rounds


@pytest.mark.parametrize("rounds", [0, 1, 2])
async def test_a_cancellation_is_heard_also_when_the_call_fails(make_store, own_redis, rounds):
    client = make_store(own_redis().url)._client
    written = asyncio.Event()
    attempts = []

    async def write():
        await written.wait()
        raise ConnectionResetError("the server is gone")

    async def attempt():  # as redis-py makes it
        attempts.append(1)
        if len(attempts) > 1:
            return "second"
        return await asyncio.wait_for(write(), 5)

    calling = asyncio.create_task(client.persist(attempt))
    await asyncio.sleep(0.01)
    written.set()
    for _ in range(rounds):
        await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling], timeout=5)
    assert calling.cancelled()


async def test_a_frozen_server_gets_one_record_of_many_attempts(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url, budget_s=1.2)  # an attempt waits 0.3 s
    lease = await store.acquire("s", "w")
    server.freeze()
    commit = asyncio.create_task(store.commit(lease, [result("a")]))
    await asyncio.sleep(0.7)
    server.thaw()
    lease = await commit
    assert await keys_of(store) == ["a"]
    server.freeze()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.commit(lease, [result("b")])
    assert 1 < time.monotonic() - started < 2
    server.thaw()
    await store.commit(lease, [result("b")])
    assert await keys_of(store) == ["a", "b"]


async def test_a_lost_reply_is_asked_for_again_and_doubles_nothing(redis_server, make_store):
    async with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url)
        lease = await store.acquire("s", "w")
        for number in range(10):
            proxy.mode = "lose replies"
            lease = await store.commit(lease, [result(f"k{number}"), result(f"l{number}")])
        assert proxy.replies_lost == 10
        image = await store.load("s")
        assert [record.seq for record in image.records] == list(range(1, 21))
        proxy.mode = "lose replies"
        await store.commit(lease, [result("last")], Change(snapshot=Snapshot(b"{}", 1), release=True))
        proxy.mode = "lose replies"
        assert (await store.acquire("s", "w2")).seq == 21
        proxy.mode = "lose replies"
        posted = await store.post("s", "m", b"hello")
        assert (posted.position, len(await store.inbox("s"))) == (1, 1)
        proxy.mode = "lose replies"
        assert (await store.claim("k", "job")).mine


async def test_sessions_side_by_side_survive_cut_connections(redis_server, make_store):
    async with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url)

        async def live(number: int) -> None:
            lease = await store.acquire(f"s{number}", "w")
            for step in range(20):
                lease = await store.commit(lease, [result(f"k{step}")])
            image = await store.load(f"s{number}")
            assert [record.key for record in image.records] == [f"k{step}" for step in range(20)]

        lives = [asyncio.create_task(live(number)) for number in range(8)]
        while not all(task.done() for task in lives):
            await asyncio.sleep(0.02)
            proxy.reset()
        await asyncio.gather(*lives)


@pytest.mark.parametrize("mode", ["refuse", "swallow", "hold replies"])
async def test_a_network_that_stays_away_ends_in_a_typed_error_within_the_budget(redis_server, make_store, mode):
    async with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url, budget_s=0.6)
        lease = await store.acquire("s", "w")
        proxy.mode = mode
        proxy.reset()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"could not be used within 0\.6 s"):
            await store.commit(lease, [result("a")])
        assert 0.3 < time.monotonic() - started < 1.2
        proxy.mode = "pass"
        proxy.reset()
        await store.commit(lease, [result("a")])
        assert await keys_of(store) == ["a"]


async def test_replies_that_trickle_in_are_still_replies(redis_server, make_store):
    async with Proxy(redis_server.port) as proxy:
        proxy.mode = "one byte at a time"
        store = make_store(proxy.url)
        lease = await store.commit(await store.acquire("s", "w"), [result("a", b"x" * 500)])
        assert (lease.seq, await keys_of(store)) == (1, ["a"])


async def test_a_cancelled_commit_harms_no_other_session(redis_server, make_store):
    store = make_store(redis_server.url)
    one, other = await store.acquire("one", "w"), await store.acquire("other", "w")
    for number in range(20):
        doomed = asyncio.create_task(store.commit(one, [result("a")]))
        await asyncio.sleep(0)
        other_commit = asyncio.create_task(store.commit(other, [result(f"k{number}")]))
        await asyncio.sleep(0)
        doomed.cancel()
        other = await other_commit
    assert other.seq == 20
    one = await store.commit(one, [result("a")])
    assert one.seq == 1


async def test_what_a_failover_lost_is_put_back_by_the_worker_that_wrote_it(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url)
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    async with aioredis.from_url(server.url) as client:
        keys = await client.keys("fk1:*s}*")
        copies = {key: await client.dump(key) for key in keys}
        lease = await store.commit(lease, [result("b"), result("c")])
        lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", 1)))
        lease = await store.commit(lease, [result("d")])
        await client.delete("fk1:{" + store.namespace + ":s}:s")
        for key, dump in copies.items():
            await client.restore(key, 60_000, dump, replace=True)
    assert (await store.head("s")).seq == 1
    lease = await store.commit(lease, [result("e")])
    image = await store.load("s")
    assert ([record.key for record in image.records], image.snapshot.seq, lease.seq) == (["d", "e"], 3, 5)


async def test_a_journal_that_went_another_way_is_not_overwritten(own_redis, make_store):
    server = own_redis()
    store, newcomer = make_store(server.url), make_store(server.url)
    lease = await store.acquire("s", "w")
    fork = await newcomer.commit(lease, [result("x"), result("y")])
    with pytest.raises(JournalLost, match="has 2 records in the store, not 0"):
        await store.commit(lease, [result("a")])
    assert (await keys_of(store), fork.seq) == (["x", "y"], 2)


async def test_a_full_server_refuses_whole_writes_and_leases_can_still_be_given_back(own_redis, make_store):
    server = own_redis(maxmemory="3mb", maxmemory_policy="noeviction")
    store = make_store(server.url)
    await store.check()
    lease = await store.acquire("s", "w")
    with pytest.raises(StoreFull, match="has no room for writes"):  # noqa: PT012 - one of them is refused
        for number in range(200):
            lease = await store.commit(lease, [result(f"k{number}", b"x" * 50_000)])
    async with aioredis.from_url(server.url) as client:
        await client.config_set("maxmemory", "1")
        for records, change in (([result("more")], None), ((), Change(snapshot=Snapshot(b"{}", 1))), ((), None)):
            with pytest.raises(StoreFull):
                await store.commit(lease, records, change)
        for begin in (store.acquire("new", "w"), store.post("newer", "m", b"hello")):
            with pytest.raises(StoreFull):
                await begin
        image = await store.load("s")
        assert (image.head.seq, len(image.records), image.snapshot) == (lease.seq, lease.seq, None)
        await store.release(lease)
        assert not (await store.head("s")).is_held
        await client.config_set("maxmemory", "0")
    lease = await store.commit(await store.acquire("s", "w2"), [result("more")])
    assert lease.seq == image.head.seq + 1


async def test_an_error_in_any_script_leaves_nothing_half_written(own_redis, make_store):
    """A key of another type makes each write of the commit fail in turn; the head never runs ahead of the journal."""
    server = own_redis()
    store = make_store(server.url)
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    async with aioredis.from_url(server.url) as client:
        journal = "fk1:{" + store.namespace + ":s}:j"
        await client.rename(journal, "aside")
        await client.set(journal, "something else")
        with pytest.raises(StoreMisconfigured, match="refused a command"):
            await store.commit(lease, [result("b")])
        await client.rename("aside", journal)
    assert (await keys_of(store), (await store.head("s")).seq) == (["a"], 1)


@pytest.mark.parametrize("at", [*range(18), "too few values"])
async def test_a_call_with_a_broken_value_is_refused_before_the_first_write(redis_server, namespace, make_store, at):
    store = make_store(redis_server.url)
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    words = [lease.incarnation, str(lease.fence), lease.nonce, "1", "15000", "0", "1", "7", "1000000", "1000",
             "1", "2", "1", "1", "0", "1", "1", "1"]  # fmt: skip
    values = ["snapshot", "status", "done", "m", "answer", "blob", "record"]
    if at == "too few values":
        values = values[:3]
    else:
        words[at] = "x"
    script, keys = read_script("commit"), session_keys(namespace, "s")
    async with aioredis.from_url(redis_server.url) as client:
        before = [await client.dump(key) for key in keys]
        call = client.eval(script.text, len(keys), *keys, " ".join(words), *values)
        if at in (0, 1, 2):
            assert (await call)[0] == b"FENCED"
        else:
            with pytest.raises(aioredis.ResponseError):
                await call
        assert [await client.dump(key) for key in keys] == before


@pytest.mark.parametrize("at", range(9))
async def test_an_append_with_a_broken_value_is_refused_before_the_first_write(redis_server, namespace, make_store, at):
    store = make_store(redis_server.url)
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    words = [lease.incarnation, str(lease.fence), lease.nonce, "15000", "1000000", "1000", "1", "7", "1"]
    words[at] = "x"
    script, keys = read_script("append"), session_keys(namespace, "s")
    async with aioredis.from_url(redis_server.url) as client:
        before = [await client.dump(key) for key in keys]
        call = client.eval(script.text, 2, *keys[:2], *words, "record")
        if at in (0, 1, 2, 6):
            assert await call == [b"FULL"]
        else:
            with pytest.raises(aioredis.ResponseError):
                await call
        assert [await client.dump(key) for key in keys] == before


async def test_waiting_for_a_replica_that_is_not_there_ends_in_a_typed_error(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url, budget_s=0.5)
    lease = await store.acquire("s", "w")
    with pytest.raises(StoreUnavailable):
        await store.commit(lease, [result("a")], Change(durability=Durability.REPLICA))
    with pytest.raises(StoreMisconfigured, match="needs a server that confirms"):
        await store.commit(lease, [result("a")], Change(durability=Durability.FSYNC))


async def test_waiting_for_a_replica_that_is_there_succeeds(own_redis, make_store):
    server = own_redis(repl_diskless_sync_delay="0")
    own_redis(replicaof=f"127.0.0.1 {server.port}")
    store = make_store(server.url, budget_s=20)
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [result("a")], Change(durability=Durability.REPLICA))
    assert await keys_of(store) == ["a"]


async def test_every_key_has_a_lifetime_and_an_idle_session_few_of_them(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url)
    text = b'"' + b"".join(b"%x" % (n * n * 7919) for n in range(600))[:4094] + b'"'

    async def live(number: int) -> None:
        session = f"s{number}"
        lease = await store.acquire(session, "w")
        if number % 10 == 0:
            await store.post(session, "m", b"hello")
            await store.put_blob(session, b"data")
            await store.emit(session, [b"token"])
            await store.claim(f"key{number}", "job")
        for step in range(4):
            lease = await store.commit(lease, [result(f"k{step}", text[:400])])
        for turn in (1, 2) if number % 10 == 0 else (1,):
            lease = await store.commit(lease, (), Change(snapshot=Snapshot(text, turn), history=1))
        await store.release(lease)

    for start in range(0, 1000, 50):
        await asyncio.gather(*(live(number) for number in range(start, start + 50)))
    await store.post("only-posted", "m", b"hello")
    await store.check()
    await asyncio.sleep(0.1)
    async with aioredis.from_url(server.url) as client:
        keys = [key async for key in client.scan_iter(count=1000)]
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.ttl(key)
        assert [key for key, ttl in zip(keys, await pipe.execute(), strict=True) if ttl < 0] == []
        idle = [key for key in keys if b":s7}" in key]
        assert len(idle) <= 5
        assert sum([await client.memory_usage(key) for key in idle]) <= 8 * 1024
