"""The limits as they are by default, at the last byte that fits and the first that does not (row 15)."""

from __future__ import annotations

import random

import pytest

from flashkit.errors import PayloadTooLarge
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.store import Change, Limits

LIMITS = Limits()
MIB = 1 << 20


def text(size: int) -> bytes:
    """Return JSON of so many bytes, which does not compress to nothing."""
    return b'"' + random.Random(0).randbytes(size).hex().encode()[: size - 2] + b'"'


def result(key: str, output: bytes = b"1") -> Record:
    return Record(Kind.RESULT, key, output)


@pytest.mark.parametrize("size", [255 << 10, 256 << 10, MIB])
async def test_results_up_to_the_limit_are_kept_as_they_are(store, size):
    lease = await store.acquire("s", "w")
    await store.commit(lease, [result("a", text(size))])
    assert (await store.load("s")).records[0].output == text(size)


async def test_the_first_byte_too_many_is_refused_before_anything_is_sent(store):
    lease = await store.commit(await store.acquire("s", "w"), [result("a")])
    before = await store.head("s")
    for records, change in (
        ([result("fits"), result("large", text(LIMITS.record_bytes + 1))], None),
        ([result("fits")], Change(snapshot=Snapshot(text(LIMITS.snapshot_bytes + 1), 1))),
        ([result("fits")], Change(answers=(("m", text(LIMITS.message_bytes + 1)),))),
    ):
        with pytest.raises(PayloadTooLarge):
            await store.commit(lease, records, change)
    with pytest.raises(PayloadTooLarge):
        await store.put_blob("s", text(LIMITS.blob_bytes + 1))
    with pytest.raises(PayloadTooLarge):
        await store.post("s", "m", text(LIMITS.message_bytes + 1))
    after = await store.head("s")
    assert (after.seq, after.stored_bytes, after.pending, after.heartbeat) == (
        *(before.seq, before.stored_bytes, before.pending, before.heartbeat),
    )
    name = await store.put_blob("s", text(LIMITS.blob_bytes))
    assert await store.get_blob("s", name) == text(LIMITS.blob_bytes)
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(text(LIMITS.snapshot_bytes), 1)))
    assert (await store.load("s")).snapshot.data == text(LIMITS.snapshot_bytes)


async def test_a_turn_may_take_so_many_records_and_the_next_one_names_the_limit(store):
    lease = await store.acquire("s", "w")
    many = [result(f"k{number}") for number in range(LIMITS.journal_records)]
    lease = await store.commit(lease, many)
    with pytest.raises(PayloadTooLarge, match=f"has {LIMITS.journal_records:,} records"):
        await store.commit(lease, [result("one more")])
    assert len((await store.load("s")).records) == LIMITS.journal_records
    lease = await store.commit(lease, [result("last")], Change(snapshot=Snapshot(b"{}", 1)))  # which trims
    assert (await store.commit(lease, [result("next")])).seq == LIMITS.journal_records + 2


async def test_a_runaway_agent_ends_with_a_typed_error_and_its_session_can_be_used(lab):
    async def agent(session, q: str) -> int:
        session.budget(steps=None)
        for number in range(2_000 if q == "many" else 2):
            await session.step("say", str.lower, f"{q} {number}")
        return number

    worker = await lab.worker(agent)
    error = await worker.error("j1", session_id="s", q="many")
    assert error.code == "payload_too_large"
    assert f"{LIMITS.journal_records:,} records" in error.message
    head = await lab.head("s")
    assert (head.is_held, head.seq) == (False, LIMITS.journal_records)
    async with lab.store() as store:
        assert len((await store.load("s")).records) == LIMITS.journal_records
        assert await store.delete("s")
    assert await worker.answer("j2", session_id="s", q="few") == 1


@pytest.mark.parametrize("size", [MIB - 2, MIB - 1, 8 * MIB - 2])
async def test_results_of_any_size_up_to_the_largest_come_back_after_a_restart(lab, size):
    runs = []

    def make() -> str:
        runs.append(size)
        return "x" * size  # in JSON two bytes more

    async def agent(session, q: str) -> int:
        made = await session.step("make", make)
        if len(runs) == 1 and q != "again":
            raise ConnectionError
        return len(made)

    first = await lab.worker(agent)
    assert (await first.error("j1", session_id="s", q="a")).type == "ConnectionError"
    runs.append(0)
    assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s", q="a") == size
    assert runs == [size, 0]
    head = await lab.head("s")
    assert head.stored_bytes < LIMITS.session_bytes


async def test_a_result_of_one_byte_too_many_names_its_step_and_both_sizes(lab):
    async def agent(session, q: str) -> int:
        return len(await session.step("make", lambda: "x" * (8 * MIB - 1)))

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert error.code == "payload_too_large"
    assert ("'make'" in error.message, f"{8 * MIB + 1:,}" in error.message, f"{8 * MIB:,}" in error.message) == (
        True,
    ) * 3
