"""Large values leave the store with the last thing that names them, so a session may go on for ever (row 15)."""

from __future__ import annotations

import random

import pytest

from flashkit.worker.sessions.admin import ForkPoint, fork, state_after
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.store import Change, Limits

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    """Return JSON of so many bytes, which does not compress to nothing."""
    return b'"' + random.Random(seed).randbytes(size).hex().encode()[: size - 2] + b'"'


async def test_a_trimming_snapshot_frees_what_it_does_not_name_also_what_no_record_named(store):
    lease = await store.acquire("s", "w")
    kept, dropped = await store.put_blob("s", noise(50_000)), await store.put_blob("s", noise(60_000, 1))
    orphan = await store.put_blob("s", noise(70_000, 2))  # its worker died before it wrote a record
    lease = await store.commit(lease, [Record(Kind.RESULT, "a", b"null", blob=dropped)])
    before = (await store.head("s")).stored_bytes
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", 1), blobs=frozenset({kept})))
    assert (await store.export("s")).blobs.keys() == {kept}
    raw = await store.export("s")
    stored = sum(map(len, (*raw.blobs.values(), *raw.history.values(), raw.snapshot)))
    assert stored == (await store.head("s")).stored_bytes < before - 50_000
    assert await store.get_blob("s", kept) == noise(50_000)
    assert await store.put_blob("s", noise(70_000, 2)) == orphan
    assert await store.get_blob("s", orphan) == noise(70_000, 2)
    await store.commit(lease, [Record(Kind.RESULT, "b", b"1")])


@pytest.mark.parametrize("change", [{"trim": False, "blobs": frozenset()}, {"blobs": None}])
async def test_a_snapshot_that_keeps_the_journal_keeps_its_large_values(store, change):
    lease = await store.acquire("s", "w")
    name = await store.put_blob("s", noise(50_000))
    lease = await store.commit(lease, [Record(Kind.RESULT, "a", b"null", blob=name)])
    await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", 1), **change))
    assert await store.get_blob("s", name) == noise(50_000)


async def test_a_snapshot_may_take_the_room_of_what_it_frees(make_store, store_url):
    store = make_store(store_url, limits=Limits(session_bytes=100_000))
    lease = await store.acquire("s", "w")
    await store.put_blob("s", noise(160_000))
    await store.commit(lease, (), Change(snapshot=Snapshot(noise(150_000, 1), 1), blobs=frozenset()))
    assert (await store.export("s")).blobs == {}


async def test_turns_with_large_steps_and_large_answers_go_on_for_ever(lab):
    async def agent(session, n: int) -> str:
        await session.step("large", lambda: noise(3 * MIB, n).decode())
        return noise(20_000, n).decode()

    worker = await lab.worker(agent)
    for n in range(24):
        assert await worker.answer(f"j{n}", session_id="s", n=n) == noise(20_000, n).decode()
    assert (await lab.head("s")).stored_bytes < 17 * 21_000
    assert await worker.answer("j20", session_id="s", n=20) == noise(20_000, 20).decode()
    async with lab.store() as store:
        assert len((await store.export("s")).blobs) == 16


async def test_kept_journals_keep_what_they_name_until_they_are_trimmed(lab):
    async def agent(session, n: int) -> str:
        await session.step("large", lambda: noise(3 * MIB, n).decode())
        return noise(20_000, n).decode()

    worker = await lab.worker(agent, keep_journals=True)
    for n in range(3):
        await worker.answer(f"j{n}", session_id="s", n=n)
    async with lab.store() as store:
        assert len((await store.export("s")).blobs) == 6
        await fork(store, "s", "copy", ForkPoint(turn=2))
        assert (await state_after(store, "s", turn=2))["answer"] == noise(20_000, 1).decode()
    for n in range(3, 36):
        await worker.answer(f"j{n}", session_id="s", n=n)
    async with lab.store() as store:
        head = await store.head("s")
        assert head.stored_bytes < 32 * MIB
        for snapshot in await store.past("s"):
            assert (await state_after(store, "s", turn=snapshot.turn))["answer"]
        await fork(store, "s", "whole")
