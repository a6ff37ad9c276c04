"""The check at start, and the ways to name a server: each wrong set-up is told from the others."""

import asyncio
import contextlib
import os

import pytest
import redis.asyncio as aioredis

from flashkit.errors import ConfigurationError, StoreFull, StoreMisconfigured, StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import Busy, Change, Lease, Status, open_store
from tests.ports import free_port


async def test_a_good_server_passes_and_says_what_it_is(make_store, store_url):
    report = await make_store(store_url).check()
    assert report.server.split()[0] in ("sqlite", "redis", "valkey")
    assert not [warning for warning in report.warnings if "once=True" not in warning]


async def test_a_server_that_cannot_confirm_writes_to_disk_says_what_that_costs(own_redis, make_store):
    for policy in ("everysec", "always"):
        report = await make_store(own_redis(appendfsync=policy).url).check()
        is_told = any("once=True are refused" in warning for warning in report.warnings)
        version = tuple(int(part) for part in report.server.split()[1].split(".")[:2])
        assert is_told == (policy == "everysec" and version < (7, 2))


async def test_a_server_that_still_loads_its_data_is_waited_for(own_redis, make_store):
    server = own_redis(key_load_delay="20000", loading_process_events_interval_bytes="1024")
    async with aioredis.from_url(server.url) as client:
        for number in range(60):
            await client.set(f"filling:{number}", os.urandom(2048))
        await client.bgrewriteaof()  # while it loads the result, the server answers INFO
        async with asyncio.timeout(10):
            while (await client.info("persistence"))["aof_rewrite_in_progress"]:
                await asyncio.sleep(0.01)
        server.kill()
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        async with asyncio.timeout(10):
            while not await is_loading(client):
                await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable, match="LOADING"):
        await make_store(server.url).check(budget_s=0.1)
    assert (await make_store(server.url).check(budget_s=20)).server
    await starting


async def is_loading(client) -> bool:
    try:
        return (await client.info("persistence"))["loading"] == 1
    except aioredis.RedisError:
        return False


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
async def test_a_server_that_evicts_sessions_is_refused(own_redis, make_store, policy):
    with pytest.raises(StoreMisconfigured, match=f"maxmemory-policy {policy}"):
        await make_store(own_redis(maxmemory_policy=policy).url).check()


async def test_what_may_cost_sessions_is_a_warning(own_redis, make_store):
    (warning,) = (await make_store(own_redis(appendonly="no").url).check()).warnings
    assert "appendonly is off" in warning


async def test_a_read_only_replica_is_refused_with_advice(own_redis, make_store):
    server = own_redis()
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    store = make_store(replica.url, budget_s=0.3)
    with pytest.raises(StoreMisconfigured, match="read-only replica"):
        await store.check()
    with pytest.raises(StoreUnavailable, match="read only"):  # a failover under way looks the same: waited for
        await store.acquire("s", "w")


@pytest.mark.parametrize("password", ["", "wrong"])
async def test_a_wrong_password_is_told_at_once_and_not_shown(own_redis, make_store, password):
    server = own_redis(requirepass="right")
    url = f"redis://:{password}@127.0.0.1:{server.port}/0" if password else server.url
    store = make_store(url)
    for call in (store.check(), store.acquire("s", "w")):
        with pytest.raises(StoreMisconfigured, match="check user and password") as caught:
            await call
        assert "wrong@" not in str(caught.value)
    assert (await make_store(f"redis://:right@127.0.0.1:{server.port}/0").check()).server.startswith("redis")


async def test_a_user_that_may_not_run_scripts_is_told_what_to_allow(own_redis, make_store):
    server = own_redis()
    async with aioredis.from_url(server.url) as client:
        await client.acl_setuser("poor", enabled=True, passwords="+pw", keys="*", commands=["+@all", "-@scripting"])
        allowed = {"categories": ["+@all", "-@dangerous"], "commands": ["+info"], "keys": ["fk1:*"]}
        await client.acl_setuser("fine", enabled=True, passwords="+pw", **allowed)
    address = f"127.0.0.1:{server.port}/0"
    with pytest.raises(StoreMisconfigured, match="allow the user EVAL"):
        await make_store(f"redis://poor:pw@{address}").check()
    store = make_store(f"redis://fine:pw@{address}")
    await store.check()
    assert isinstance(await store.acquire("s", "w"), Lease)


async def test_a_server_that_is_not_there_is_unavailable_within_the_budget(make_store):
    store = make_store("redis://127.0.0.1:1/0", budget_s=0.2)
    with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1/0"):
        await store.check(budget_s=0.2)
    with pytest.raises(StoreUnavailable):
        await store.acquire("s", "w")


async def test_a_full_server_is_told_at_start(own_redis, make_store):
    with pytest.raises(StoreFull):
        await make_store(own_redis(maxmemory="100kb").url).check()


@pytest.mark.parametrize(
    "url",
    ["", "redis", "sqlite://x.db", "sqlite:///", "http://x", "redis+other://h", "redis://h:port", "redis+cluster://",
     "redis+sentinel://h:1", "redis://h/0?socket_timeout=x", "redisx://h"],
)  # fmt: skip
def test_what_is_no_store_is_refused(url):
    with pytest.raises(ConfigurationError, match="is not a store for sessions"):
        open_store(url)


def test_a_password_in_a_wrong_url_is_not_shown():
    with pytest.raises(ConfigurationError) as caught:
        open_store("redis://user:secret@host:port/0")
    assert "secret" not in str(caught.value)


def test_a_namespace_that_could_leave_its_place_is_refused():
    for namespace in ("", "a:b", "a}", "x" * 65):
        with pytest.raises(ConfigurationError, match="is not a namespace"):
            open_store("sqlite:///x.db", namespace=namespace)


async def test_a_file_that_is_no_database_is_told(tmp_path, make_store):
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one " * 50)
    with pytest.raises(StoreMisconfigured, match=r"text\.db"):
        await make_store(f"sqlite:///{tmp_path}/text.db").check()
    with pytest.raises(StoreMisconfigured):
        await make_store(f"sqlite:///{tmp_path}/text.db/below.db").check()


async def test_sentinel_finds_the_primary(own_redis, make_store, tmp_path):
    server = own_redis()
    port, conf = free_port(), tmp_path / "sentinel.conf"
    conf.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {server.port} 1\n")
    process = await asyncio.create_subprocess_exec(
        str(server.binary.path), str(conf), "--sentinel", stdout=asyncio.subprocess.DEVNULL
    )
    try:
        store = make_store(f"redis+sentinel://127.0.0.1:{port}/main", budget_s=10)
        lease = await store.commit(await store.acquire("s", "w"), [Record(Kind.RESULT, "a")])
        assert (lease.seq, (await store.check()).server.split()[0]) == (1, "redis")
    finally:
        process.kill()
        await process.wait()


async def test_on_a_cluster_everything_of_a_session_is_in_one_slot(own_redis, make_store):
    server = own_redis(cluster_enabled="yes", cluster_port=str(free_port()))
    async with aioredis.from_url(server.url) as client:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        for session in ("s", "a:b", "x" * 128):
            slots = {await client.execute_command("CLUSTER", "KEYSLOT", key) for key in session_keys("app", session)}
            assert len(slots) == 1
        async with asyncio.timeout(10):
            while b"cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                await asyncio.sleep(0.02)
    store = make_store(f"valkey+cluster://127.0.0.1:{server.port}")
    assert (await store.check()).server.startswith("redis")
    for number in range(5):
        lease = await store.acquire(f"s{number}", "w")
        lease = await store.commit(lease, [Record(Kind.RESULT, "a")])
        await store.post(f"s{number}", "m", b"x")
        await store.put_blob(f"s{number}", b"x")
        await store.emit(f"s{number}", [b"x"])
        assert isinstance(await store.acquire(f"s{number}", "w2"), Busy)
        await store.commit(lease, (), Change(consumed=1, status=Status.DONE, release=True))
        assert len((await store.load(f"s{number}")).records) == 1
        assert len(await store.events(f"s{number}")) == 1
    assert (await store.claim("k", "job")).mine
    async with asyncio.timeout(5):
        while len(await store.sessions()) < 5:
            await asyncio.sleep(0.01)
    assert await store.due() == []
    assert await store.delete("s1")


def test_a_missing_package_is_named_in_the_error(monkeypatch):
    import sys

    with contextlib.suppress(KeyError):
        monkeypatch.delitem(sys.modules, "flashkit.worker.sessions.redis_client")
        monkeypatch.delitem(sys.modules, "flashkit.worker.sessions.redis_store")
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"flashkit-serverless\[redis\]"):
        open_store("redis://127.0.0.1/0")
