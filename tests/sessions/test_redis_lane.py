"""Calls of many sessions share one connection: none waits for another's answer, and none gets another's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError, ResponseError

from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.redis_lane import Lane
from flashkit.worker.sessions.store import Change, Durability, Lease
from tests.sessions.session_lab import commit_soon


class SlowServer:
    """Speaks Redis's protocol: answers `ECHO` only when it is told to."""

    def __init__(self) -> None:
        self.connections: list[asyncio.StreamWriter] = []
        self.asked: list[bytes] = []
        self._server: asyncio.Server

    async def start(self) -> int:
        """Return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and hang up."""
        self._server.close()
        for writer in self.connections:
            writer.close()
        await self._server.wait_closed()

    async def wait_for(self, *asked: bytes) -> None:
        """Return once these were asked for, in this order."""
        async with asyncio.timeout(10):
            while self.asked != list(asked):
                await asyncio.sleep(0.005)

    def answer(self, text: bytes) -> None:
        """Send raw bytes on the newest connection."""
        self.connections[-1].write(text)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        while line := await reader.readline():
            words = [(await reader.readline(), await reader.readline())[1].strip() for _ in range(int(line[1:]))]
            if words[0] == b"ECHO":
                self.asked.append(words[1])
            else:  # what redis-py says at the beginning
                writer.write(b"+OK\r\n")


@pytest.fixture
async def server() -> AsyncIterator[SlowServer]:
    server = SlowServer()
    yield server
    await server.close()


async def open_lane(server: SlowServer, *, attempt_s: float = 10.0) -> Lane:
    pool = BlockingConnectionPool(host="127.0.0.1", port=await server.start(), protocol=2, timeout=5)
    return Lane(pool, attempt_s=attempt_s)


def ask(lane: Lane, word: bytes) -> asyncio.Task[object]:
    return asyncio.create_task(lane.call(pack_command(("ECHO", word))))


async def test_a_call_is_sent_while_the_answer_to_an_earlier_one_is_awaited(server: SlowServer) -> None:
    lane = await open_lane(server)
    first = ask(lane, b"one")
    await server.wait_for(b"one")
    second, third = ask(lane, b"two"), ask(lane, b"three")
    await server.wait_for(b"one", b"two", b"three")
    third.cancel()  # its answer is taken off the connection all the same
    server.answer(b"$1\r\n1\r\n-ERR no\r\n$1\r\n3\r\n")
    assert await first == b"1"
    with pytest.raises(ResponseError, match="no"):
        await second
    fourth = ask(lane, b"four")
    await server.wait_for(b"one", b"two", b"three", b"four")
    server.answer(b"$1\r\n4\r\n")
    assert await fourth == b"4"
    await lane.close()
    assert len(server.connections) == 1


async def test_a_connection_that_breaks_fails_what_it_owes_and_the_next_call_takes_a_new_one(
    server: SlowServer,
) -> None:
    lane = await open_lane(server)
    calls = [ask(lane, b"one"), ask(lane, b"two"), ask(lane, b"three")]
    await server.wait_for(b"one", b"two", b"three")
    server.answer(b"$1\r\n1\r\n$1\r\n")  # the second answer is cut off
    assert await calls[0] == b"1"
    server.connections[-1].close()
    for call in calls[1:]:
        with pytest.raises(RedisConnectionError):
            await call
    later = ask(lane, b"later")
    await server.wait_for(b"one", b"two", b"three", b"later")
    server.answer(b"$1\r\nl\r\n")
    assert await later == b"l"
    await lane.close()
    assert len(server.connections) == 2


async def test_a_server_that_does_not_answer_is_given_up_with_all_that_it_was_asked(server: SlowServer) -> None:
    lane = await open_lane(server, attempt_s=0.2)
    first = ask(lane, b"one")
    await server.wait_for(b"one")
    second = ask(lane, b"two")
    for call in (first, second):
        with pytest.raises(RedisConnectionError, match="the connection broke: TimeoutError"):
            await call
    third = ask(lane, b"three")
    await server.wait_for(b"one", b"two", b"three")
    server.answer(b"$1\r\n3\r\n")
    assert await third == b"3"
    await lane.close()


async def test_without_a_server_every_call_fails(server: SlowServer) -> None:
    lane = await open_lane(server)
    await server.close()
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await ask(lane, b"one")
    await lane.close()


async def test_a_server_that_is_no_primary_any_more_is_given_up_with_its_answer(server: SlowServer) -> None:
    lane = await open_lane(server)
    calls = [ask(lane, b"one"), ask(lane, b"two")]
    await server.wait_for(b"one", b"two")
    server.answer(b"-READONLY You can't write against a read only replica.\r\n")
    with pytest.raises(ReadOnlyError):
        await calls[0]
    with pytest.raises(ReadOnlyError):
        await calls[1]
    later = ask(lane, b"later")
    await server.wait_for(b"one", b"two", b"later")
    server.answer(b"$1\r\nl\r\n")
    assert await later == b"l"
    await lane.close()
    assert len(server.connections) == 2


async def test_bytes_that_are_no_answer_break_the_connection(server: SlowServer) -> None:
    lane = await open_lane(server)
    call = ask(lane, b"one")
    await server.wait_for(b"one")
    server.answer(b"what?\r\n")
    with pytest.raises(InvalidResponse):
        await call
    await lane.close()


async def test_closing_waits_for_the_answers_that_are_owed(server: SlowServer) -> None:
    lane = await open_lane(server)
    call = ask(lane, b"one")
    await server.wait_for(b"one")
    closing = asyncio.create_task(lane.close())
    done, _ = await asyncio.wait([closing], timeout=0.05)
    assert not done
    server.answer(b"$1\r\n1\r\n")
    assert await call == b"1"
    await closing


async def test_much_at_once_arrives_whole_and_in_order(server: SlowServer) -> None:
    lane = await open_lane(server)
    words = [b"%d-" % number + b"x" * 100_000 for number in range(8)]
    calls = [ask(lane, word) for word in words]
    await server.wait_for(*words)
    server.answer(b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
    assert await asyncio.gather(*calls) == words
    await lane.close()


class Secretive:
    """A pool of a redis-py whose connections do not show their transport."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool
        self.given: dict[int, Connection] = {}

    async def get_connection(self) -> SimpleNamespace:
        connection = await self._pool.get_connection()
        shown = SimpleNamespace(disconnect=connection.disconnect)
        self.given[id(shown)] = connection
        return shown

    async def release(self, shown: SimpleNamespace) -> None:
        await self._pool.release(self.given.pop(id(shown)))


async def test_a_redis_py_that_hides_its_transport_is_used_as_it_is(redis_server, make_store) -> None:
    store = make_store(redis_server.url)
    client = store._client
    pool = client._lane._pool = Secretive(client._lane._pool)
    lease = await store.acquire("s", "w")
    for number in range(3):
        lease = await commit_soon(store, lease, [Record(Kind.RESULT, f"k{number}")])
    assert lease.seq == 3
    assert not store.commit_soon(lease, [Record(Kind.RESULT, "k")], None, print)
    assert pool.given == {}


async def test_steps_are_sent_at_once_as_soon_as_there_is_a_connection(redis_server, make_store) -> None:
    store = make_store(redis_server.url)
    lease = await make_store(redis_server.url).acquire("s", "w")
    assert not store.commit_soon(lease, [Record(Kind.RESULT, "k")], None, print)
    lease = await store.commit(lease, [Record(Kind.RESULT, "k")])
    told: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
    assert store.commit_soon(lease, [Record(Kind.RESULT, "k")], None, told.set_result)
    moved = await told
    assert moved is not None
    assert moved.seq == 2
    assert not store.commit_soon(moved, [], Change(durability=Durability.FSYNC), print)


async def test_a_loop_that_was_held_up_does_not_take_that_for_the_servers_silence(redis_server) -> None:
    pool = BlockingConnectionPool.from_url(redis_server.url, protocol=2, timeout=5)
    lane = Lane(pool, attempt_s=1.0)
    await lane.call(pack_command(("ECHO", "open")))
    call = asyncio.create_task(lane.call(pack_command(("ECHO", "hello"))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is sent
    time.sleep(1.5)
    assert await call == b"hello"
    await lane.close()
