"""Damage in the stored data: it is found, told by its name, and what comes before it can still be read."""

import sqlite3

import pytest
import redis.asyncio as aioredis

from flashkit.errors import RecordCorrupt
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import Change, Status


class Vandal:
    """Changes stored data behind the store's back, in Redis or in SQLite."""

    def __init__(self, url: str, namespace: str):
        self.url = url
        self.namespace = namespace
        self.keys = session_keys(namespace, "s")
        self.is_sqlite = url.startswith("sqlite")

    async def records(self) -> list[bytes]:
        if self.is_sqlite:
            with sqlite3.connect(self.url[10:]) as db:
                return [row[0] for row in db.execute("SELECT data FROM journal WHERE sid = 's' ORDER BY seq")]
        async with aioredis.from_url(self.url) as client:
            return [fields[b"r"] for _, fields in await client.xrange(self.keys[1])]

    async def write_records(self, numbered: dict[int, bytes]) -> None:
        if self.is_sqlite:
            with sqlite3.connect(self.url[10:]) as db:
                db.execute("DELETE FROM journal")
                rows = [(self.namespace, "s", seq, data) for seq, data in numbered.items()]
                db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?)", rows)
            return
        async with aioredis.from_url(self.url) as client:
            await client.delete(self.keys[1])
            for seq, data in numbered.items():
                await client.xadd(self.keys[1], {"r": data}, id=f"{seq}-0")

    async def change_snapshot(self, change) -> None:
        if self.is_sqlite:
            with sqlite3.connect(self.url[10:]) as db:
                (data,) = db.execute("SELECT data FROM snapshot").fetchone()
                changed = change(data)
                if changed is None:
                    db.execute("DELETE FROM snapshot")
                else:
                    db.execute("UPDATE snapshot SET data = ?", (changed,))
            return
        async with aioredis.from_url(self.url) as client:
            changed = change(await client.get(self.keys[2]))
            await (client.delete(self.keys[2]) if changed is None else client.set(self.keys[2], changed))


@pytest.fixture
async def vandal(store, store_url, namespace) -> Vandal:
    """A session of a snapshot and the records 3, 4 and 5, and its vandal."""
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [Record(Kind.RESULT, key) for key in "ab"])
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b'{"n":1}', 1)))
    for key in "cde":
        lease = await store.commit(lease, [Record(Kind.RESULT, key)])
    await store.release(lease)
    return Vandal(store_url, namespace)


DAMAGES = {
    "a flipped bit": (lambda c, d, e: {3: c, 4: d[:-1] + bytes([d[-1] ^ 1]), 5: e}, 1, "checksum"),
    "a missing record": (lambda c, d, e: {3: c, 5: e}, 1, "record 4 is missing: the journal goes on with 5"),
    "the first one missing": (lambda c, d, e: {4: d, 5: e}, 0, "record 3 is missing"),
    "the last one missing": (lambda c, d, e: {3: c, 4: d}, 2, "ends with record 4, but 5 were acknowledged"),
    "all missing": (lambda c, d, e: {}, 0, "ends with record 2, but 5"),
    "exchanged records": (lambda c, d, e: {3: c, 4: e, 5: d}, 1, "does not follow"),
    "a record twice": (lambda c, d, e: {3: c, 4: d, 5: d}, 2, "does not follow"),
    "a record too many": (lambda c, d, e: {3: c, 4: d, 5: e, 6: e}, 3, "does not follow"),
    "an empty record": (lambda c, d, e: {3: c, 4: b"", 5: e}, 1, "truncated"),
    "a truncated record": (lambda c, d, e: {3: c, 4: d[:30], 5: e}, 1, "checksum"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_in_the_journal_is_found_and_what_is_before_it_readable(store, vandal, damage):
    change, readable, words = DAMAGES[damage]
    await vandal.write_records(change(*await vandal.records()))
    with pytest.raises(RecordCorrupt, match=words):
        await store.load("s")
    image = await store.load("s", strict=False)
    assert [record.key for record in image.records] == list("cde")[:readable]
    assert image.snapshot.data == b'{"n":1}'
    assert isinstance(image.damage, RecordCorrupt)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 8]), "checksum"),
        (lambda data: None, "the snapshot of session 's' is gone"),
        (lambda data: b"", "truncated"),
    ],
)
async def test_damage_in_the_snapshot_is_found(store, vandal, change, words):
    await vandal.change_snapshot(change)
    with pytest.raises(RecordCorrupt, match=words):
        await store.load("s")
    assert (await store.load("s", strict=False)).records == ()


async def test_a_record_of_another_session_does_not_fit(store, vandal):
    records = await vandal.records()
    lease = await store.acquire("other", "w")
    for key in "xyzuv":
        lease = await store.commit(lease, [Record(Kind.RESULT, key)])
    other = Vandal(vandal.url, vandal.namespace)
    other.keys = session_keys(vandal.namespace, "other")
    foreign = (await other.records())[3] if not vandal.is_sqlite else _sqlite_record(vandal.url, 4)
    await vandal.write_records({3: records[0], 4: foreign, 5: records[2]})
    with pytest.raises(RecordCorrupt, match="does not follow"):
        await store.load("s")


async def test_a_damaged_session_is_blocked_and_its_bytes_are_kept(store, vandal):
    await vandal.write_records({})
    lease = await store.acquire("s", "w")
    with pytest.raises(RecordCorrupt) as caught:
        await store.load("s")
    await store.commit(lease, (), Change(status=Status.BLOCKED, reason=caught.value.report.message, release=True))
    assert "ends with record 2" in (await store.head("s")).reason
    assert (await store.load("s", strict=False)).snapshot is not None


async def test_a_new_snapshot_heals_a_session_that_a_person_has_looked_at(store, vandal):
    await vandal.write_records({})
    lease = await store.acquire("s", "w", unblock=True)
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b'{"n":2}', 2)))
    lease = await store.commit(lease, [Record(Kind.RESULT, "f")])
    image = await store.load("s")
    assert (image.snapshot.data, [record.seq for record in image.records]) == (b'{"n":2}', [6])


def _sqlite_record(url: str, seq: int) -> bytes:
    with sqlite3.connect(url[10:]) as db:
        return db.execute("SELECT data FROM journal WHERE sid = 'other' AND seq = ?", (seq,)).fetchone()[0]
