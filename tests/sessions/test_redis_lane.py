"""Calls of many sessions share one connection: none waits for another's answer, and none gets another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from flashkit.worker.sessions.redis_lane import Lane, pack


class SlowServer:
    """Speaks Redis's protocol: answers `ECHO` only when it is told to."""

    def __init__(self) -> None:
        self.connections: list[asyncio.StreamWriter] = []
        self.asked: list[bytes] = []
        self._server: asyncio.Server

    async def start(self) -> int:
        """Return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
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
    return asyncio.create_task(lane.call([b"*2\r\n", *pack(("ECHO", (word[:1], word[1:])))]))


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
