"""Real damage in the stored bytes of a session, in Redis or in SQLite."""

import sqlite3

import redis.asyncio as aioredis

from flashkit.worker.sessions.redis_store import session_keys


class Vandal:
    """Changes stored bytes behind the store's back."""

    def __init__(self, url: str, namespace: str, session: str = "s") -> None:
        self._file = url.removeprefix("sqlite:///") if url.startswith("sqlite") else None
        self._url, self._ns, self._session = url, namespace, session
        self._keys = session_keys(namespace, session)

    async def flip_record(self, seq: int) -> None:
        """Change one bit in the middle of a record."""
        if self._file:
            self._flip_row("journal", "seq", seq)
            return
        async with aioredis.from_url(self._url) as client:
            entries = await client.xrange(self._keys[1])
            await client.delete(self._keys[1])
            for name, fields in entries:
                data = flip(fields[b"r"]) if name == b"%d-0" % seq else fields[b"r"]
                await client.xadd(self._keys[1], {"r": data}, id=name)

    async def drop_record(self, seq: int) -> None:
        if self._file:
            self._execute("DELETE FROM journal WHERE sid = ? AND seq = ?", self._session, seq)
            return
        async with aioredis.from_url(self._url) as client:
            await client.xdel(self._keys[1], f"{seq}-0")

    async def flip_snapshot(self, turn: int | None = None) -> None:
        """Change one bit of the snapshot, or of that after an earlier turn."""
        if self._file:
            self._flip_row(*("snapshot", "1", 1) if turn is None else ("history", "turn", turn))
            return
        async with aioredis.from_url(self._url) as client:
            if turn is None:
                await client.set(self._keys[2], flip(await client.get(self._keys[2])))
            else:
                await client.hset(self._keys[3], str(turn), flip(await client.hget(self._keys[3], str(turn))))

    async def flip_blob(self, name: str) -> None:
        if self._file:
            self._flip_row("blob", "name", name)
            return
        async with aioredis.from_url(self._url) as client:
            await client.hset(self._keys[6], name, flip(await client.hget(self._keys[6], name)))

    def _flip_row(self, table: str, column: str, value: object) -> None:
        where = f"FROM {table} WHERE sid = ? AND {column} = ?"
        with sqlite3.connect(self._file) as db:
            ((data,),) = db.execute(f"SELECT data {where}", (self._session, value))
        self._execute(f"UPDATE {table} SET data = ? WHERE sid = ? AND {column} = ?", flip(data), self._session, value)

    def _execute(self, query: str, *values: object) -> None:
        with sqlite3.connect(self._file) as db:
            assert db.execute(query, values).rowcount == 1


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
