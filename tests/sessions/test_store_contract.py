"""What a store promises, on every store: leases, commits, inbox, large values, idempotency keys, listing."""

import asyncio
import dataclasses

import pytest

from flashkit.errors import (
    InboxFull,
    InputError,
    JournalLost,
    PayloadTooLarge,
    RecordCorrupt,
    RecordKeyMissing,
    SessionBlocked,
    SessionBusy,
    SessionFenced,
    SessionNotFound,
)
from flashkit.worker.sessions.records import Keyring, Kind, Record, Snapshot
from flashkit.worker.sessions.store import Busy, Change, Durability, Lease, Limits, Message, Status
from tests.sessions.session_lab import commit_soon


def result(key: str, output: bytes = b"1") -> Record:
    return Record(Kind.RESULT, key, output)


async def keys_of(store, session="s"):
    return [record.key for record in (await store.load(session)).records]


# ------------------------------------------------------------------ leases


async def test_the_first_worker_gets_the_session_and_the_second_learns_who_has_it(store):
    lease = await store.acquire("s", "w1", ttl_s=10)
    assert isinstance(lease, Lease)
    assert (lease.fence, lease.seq, lease.owner) == (1, 0, "w1")
    assert lease.head.status is Status.IDLE
    busy = await store.acquire("s", "w2")
    assert isinstance(busy, Busy)
    assert (busy.owner, busy.fence, busy.ttl_s) == ("w1", 1, 10)
    assert 9 < busy.left_s <= 10
    head = await store.head("s")
    assert (head.status, head.owner, head.is_held, head.incarnation) == (Status.RUNNING, "w1", True, lease.incarnation)


async def test_a_released_session_can_be_taken_at_once_and_the_old_lease_writes_no_more(store):
    first = await store.acquire("s", "w1")
    await store.release(first)
    second = await store.acquire("s", "w2")
    assert second.fence == 2
    for write in (store.commit(first, [result("a")]), store.renew(first), store.commit(first)):
        with pytest.raises(SessionFenced, match="worker 'w2' took it over"):
            await write
    await store.release(first)  # does nothing to the second one's lease
    assert (await store.head("s")).is_held


async def test_a_lease_that_ran_out_still_writes_while_nobody_took_the_session(store):
    first = await store.acquire("s", "w1", ttl_s=0.03)
    await asyncio.sleep(0.05)
    assert not (await store.head("s")).is_held
    first = await store.commit(first, [result("a")])
    assert (await store.head("s")).is_held
    await asyncio.sleep(0.05)
    second = await store.acquire("s", "w2")
    with pytest.raises(SessionFenced):
        await store.commit(first, [result("b")])
    assert second.seq == 1


async def test_renewing_and_committing_keep_the_lease(store):
    lease = await store.acquire("s", "w1", ttl_s=0.3)
    for _ in range(3):
        await asyncio.sleep(0.15)
        lease = await store.renew(lease)
        await asyncio.sleep(0.15)
        lease = await store.commit(lease, [result("a")])
        assert isinstance(await store.acquire("s", "w2"), Busy)


async def test_a_lease_is_stolen_with_a_heartbeat_that_did_not_change(store):
    lease = await store.acquire("s", "w1", ttl_s=3600)  # as if the store's clock had jumped back
    seen = await store.acquire("s", "w2")
    await store.renew(lease)
    assert isinstance(await store.acquire("s", "w2", witness=seen.heartbeat), Busy)
    seen = await store.acquire("s", "w2")
    stolen = await store.acquire("s", "w2", witness=seen.heartbeat)
    assert isinstance(stolen, Lease)
    with pytest.raises(SessionFenced):
        await store.commit(lease, [result("a")])


async def test_acquiring_ones_own_session_again_gives_a_new_fence(store):
    first = await store.acquire("s", "w1")
    second = await store.acquire("s", "w1")
    assert second.fence == first.fence + 1
    with pytest.raises(SessionFenced):
        await store.commit(first, [result("a")])


async def test_a_session_whose_workers_keep_dying_is_blocked_with_the_reason(store):
    for number in range(3):
        await store.acquire("s", f"w{number}", ttl_s=0.001, max_attempts=3)
        await asyncio.sleep(0.005)
    for _ in range(2):
        with pytest.raises(SessionBlocked, match="3 workers in a row ended without progress; the last was w2"):
            await store.acquire("s", "w9", max_attempts=3)
    head = await store.head("s")
    assert (head.status, head.is_held) == (Status.BLOCKED, False)
    assert "without progress" in head.reason
    lease = await store.acquire("s", "w9", unblock=True, max_attempts=3)
    assert lease.head.status is Status.BLOCKED
    assert (await store.head("s")).status is Status.RUNNING


async def test_progress_and_orderly_releases_are_no_failed_attempts(store):
    for number in range(4):
        lease = await store.acquire("s", f"w{number}", ttl_s=0.001, max_attempts=2)
        await store.commit(lease, [result("a")])
        await asyncio.sleep(0.005)
    for number in range(4):
        await store.release(await store.acquire("s", f"w{number}", max_attempts=2))
    for number in range(2):  # an intent is no progress
        lease = await store.acquire("s", f"v{number}", ttl_s=0.001, max_attempts=2)
        await store.commit(lease, [Record(Kind.INTENT, "pay")])
        await asyncio.sleep(0.005)
    with pytest.raises(SessionBlocked):
        await store.acquire("s", "w", max_attempts=2)


async def test_finished_sessions_stay_finished_when_a_job_of_theirs_comes_again(store):
    lease = await store.acquire("s", "w1")
    await store.commit(lease, [result("a")], Change(status=Status.DONE, release=True))
    again = await store.acquire("s", "w2")
    assert again.head.status is Status.DONE
    assert (await store.head("s")).status is Status.DONE


@pytest.mark.parametrize("session", ["", "-a", "a/b", "{a}", "a" * 129, "ä"])
async def test_what_is_no_session_id_reaches_no_key(store, session):
    for call in (store.acquire(session, "w"), store.head(session), store.post(session, "m", b"")):
        with pytest.raises(InputError):
            await call


# ------------------------------------------------------------------ journal and snapshot


async def test_records_come_back_as_they_were_written(store):
    extra = {"usage": {"tokens": 3}, "ü": None}
    record = Record(Kind.RESULT, "search#2", b'{"a":[1,2]}', "d1g", "blobname", 5, 0.25, 3, "v1", extra)
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [record, Record(Kind.ERROR, "x", b"a\nb")])
    assert lease.seq == 2
    image = await store.load("s")
    assert image.records[0] == dataclasses.replace(record, seq=1)
    assert image.records[1] == Record(Kind.ERROR, "x", b"a\nb", seq=2)
    assert (image.head.seq, image.snapshot, image.tail) == (2, None, image.records)


async def test_a_commit_whose_reply_was_lost_is_recognised(store):
    lease = await store.acquire("s", "w")
    records = [result("a"), result("b")]
    first = await store.commit(lease, records)
    again = await store.commit(lease, records)
    assert (again.seq, again.last_crc) == (first.seq, first.last_crc) == (2, first.last_crc)
    assert await keys_of(store) == ["a", "b"]
    last = await store.commit(first, [result("c")], Change(release=True, status=Status.DONE))
    await store.commit(first, [result("c")], Change(release=True, status=Status.DONE))
    assert not (await store.head("s")).is_held
    assert (await store.head("s")).seq == last.seq == 3


@pytest.mark.parametrize("keyring", [None, Keyring({1: b"a" * 32}, active=1)])
async def test_records_whose_reply_never_came_may_be_sent_again_with_later_ones(make_store, store_url, keyring):
    store = make_store(store_url, keyring=keyring)
    lease = await store.acquire("s", "w")
    await store.commit(lease, [result("a")])
    await store.commit(lease, [result("a"), result("b")], Change(info=b"1"))
    after = await store.commit(lease, [result("a"), result("b")], Change(info=b"2", snapshot=Snapshot(b"{}", 1)))
    assert ((await store.head("s")).info, (await store.load("s")).snapshot.seq) == (b"2", 2)
    after = await store.commit(after, [result("c")])
    assert (await keys_of(store), after.seq) == (["c"], 3)
    with pytest.raises(JournalLost):
        await store.commit(lease, [result("a"), result("other")])


async def test_a_snapshot_replaces_the_records_that_it_stands_for(store):
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [result("a")])
    lease = await store.commit(lease, [result("b")], Change(snapshot=Snapshot(b'{"n":1}', turn=1)))
    lease = await store.commit(lease, [result("c")])
    image = await store.load("s")
    assert image.snapshot == Snapshot(b'{"n":1}', turn=1, seq=2)
    assert [record.key for record in image.records] == ["c"]
    assert (image.head.turn, image.head.snapshot_seq, image.head.seq) == (1, 2, 3)
    assert await store.past("s") == ()


async def test_an_untrimmed_snapshot_keeps_the_records_for_the_timeline(store):
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [result("a"), result("b")])
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", 1), trim=False))
    lease = await store.commit(lease, [result("c")])
    image = await store.load("s")
    assert [record.key for record in image.records] == ["a", "b", "c"]
    assert [record.key for record in image.tail] == ["c"]
    lease = await store.commit(lease, [result("d")], Change(snapshot=Snapshot(b"{}", 2)))
    assert (await store.load("s")).records == ()


async def test_earlier_turns_are_kept_as_many_as_asked_for(store):
    lease = await store.acquire("s", "w")
    for turn in range(1, 6):
        change = Change(snapshot=Snapshot(b"%d" % turn, turn), history=2)
        lease = await store.commit(lease, [result(f"t{turn}")], change)
    assert [snapshot.data for snapshot in await store.past("s")] == [b"3", b"4"]
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"5b", 5), history=2))  # the same turn again
    assert [snapshot.data for snapshot in await store.past("s")] == [b"3", b"4"]
    assert (await store.load("s")).snapshot.data == b"5b"


async def test_status_reason_info_code_and_retention_are_written_with_the_commit(store):
    lease = await store.acquire("s", "w")
    change = Change(status=Status.WAITING, reason="for approval", info=b"\x00i", code="v2", retain_s=60, release=True)
    await store.commit(lease, (), change)
    head = await store.head("s")
    assert (head.status, head.reason, head.info, head.code) == (Status.WAITING, "for approval", b"\x00i", "v2")
    assert not head.is_held


async def test_large_states_are_compressed_and_sizes_counted(store):
    lease = await store.acquire("s", "w")
    data = b'"' + b"words and more words " * 20_000 + b'"'
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(data, 1)))
    image = await store.load("s")
    assert image.snapshot.data == data
    assert image.head.stored_bytes < len(data) / 10


@pytest.mark.parametrize("durability", [Durability.DEFAULT, Durability.FSYNC])
async def test_a_commit_can_wait_for_the_disk(make_store, valkey_url, tmp_path, durability):
    for url in (valkey_url, f"sqlite:///{tmp_path}/s.db"):
        store = make_store(url)
        await store.check()
        lease = await store.acquire("s", "w")
        lease = await store.commit(lease, [result("a")], Change(durability=durability))
        assert lease.seq == 1


async def test_what_is_over_a_limit_is_refused_and_nothing_is_written(make_store, store_url):
    limits = Limits(record_bytes=100, snapshot_bytes=200, blob_bytes=300, message_bytes=50, session_bytes=600,
                    journal_records=4)  # fmt: skip
    store = make_store(store_url, limits=limits)
    lease = await store.acquire("s", "w")
    for call, what in (
        (store.commit(lease, [result("ok"), result("big", b"x" * 101)]), "the output of step 'big' has 101 bytes"),
        (store.commit(lease, [result("ok")], Change(snapshot=Snapshot(b"x" * 201, 1))), "state has 201 bytes"),
        (store.put_blob("s", b"x" * 301), "301"),
        (store.post("s", "m", b"x" * 51), "message 'm' has 51"),
        (store.commit(lease, [result("x")] * 5), "has 4 records"),
    ):
        with pytest.raises(PayloadTooLarge, match=what):
            await call
    await store.put_blob("s", bytes(range(250)))
    lease = await store.commit(lease, [result("a", b"x" * 100)])
    with pytest.raises(PayloadTooLarge, match="session 's' would store"):
        await store.commit(lease, [result("b", b"x" * 100), result("c", b"x" * 100)])
    assert await keys_of(store) == ["a"]
    lease = await store.commit(lease, [result("b")], Change(snapshot=Snapshot(b"{}", 1)))
    assert lease.seq == 2


async def test_a_lease_may_bring_the_data_along_as_it_was_when_it_was_acquired(store):
    first = await store.acquire("s", "w1", with_data=True)
    change = Change(snapshot=Snapshot(b'{"n": 1}', turn=1), trim=False)
    first = await store.commit(first, [result("a")], change)
    await store.commit(first, [result("b")], Change(release=True))
    second = await store.acquire("s", "w2", with_data=True)
    image = await store.load("s", lease=second)
    assert image == dataclasses.replace(await store.load("s"), head=second.head)
    assert ([record.key for record in image.tail], image.snapshot.data) == (["b"], b'{"n": 1}')

    third = await store.commit(second, [result("c")])
    assert [record.key for record in (await store.load("s", lease=third)).tail] == ["b", "c"]
    assert [record.key for record in (await store.load("s", lease=await store.renew(second))).tail] == ["b", "c"]
    assert (await store.acquire("s", "w2")).stored is None


async def test_a_new_session_has_no_data_to_bring_along(store):
    lease = await store.acquire("s", "w1", with_data=True)
    assert (lease.stored.snapshot, list(lease.stored.entries)) == (None, [])
    image = await store.load("s", lease=lease)
    assert (image.snapshot, image.records) == (None, ())


async def test_there_is_nothing_to_load_of_a_session_that_never_began(store):
    assert await store.head("s") is None
    assert await store.past("s") == ()
    with pytest.raises(SessionNotFound):
        await store.load("s")
    with pytest.raises(SessionNotFound):
        await store.put_blob("s", b"x")


async def test_namespaces_and_ids_do_not_meet(make_store, store_url):
    one, other = make_store(store_url), make_store(store_url, namespace="other-ns")
    lease = await one.acquire("a:b", "w")
    await one.commit(lease, [result("x")])
    assert await other.head("a:b") is None
    assert await one.head("a") is None
    assert [head.session for head in await _settled(one.sessions)] == ["a:b"]


# ------------------------------------------------------------------ commits that are not waited for


async def test_a_commit_that_is_sent_at_once_is_like_any_other(store):
    lease = await store.acquire("s", "w", ttl_s=10)
    await store.post("s", "m", b"hello")
    for key in "abc":
        lease = await commit_soon(store, lease, [result(key)])
    assert (lease.seq, lease.pending) == (3, 1)
    lease = await commit_soon(store, lease, [result("d"), result("e")])
    assert await keys_of(store) == ["a", "b", "c", "d", "e"]
    change = Change(snapshot=Snapshot(b'"state"', 1), status=Status.IDLE, release=True)
    await commit_soon(store, lease, [result("f")], change)
    image = await store.load("s")
    assert (image.snapshot.data, image.snapshot.seq, image.head.is_held) == (b'"state"', 6, False)


async def test_one_whose_answer_was_lost_is_written_once(store):
    lease = await store.acquire("s", "w")
    first = await commit_soon(store, lease, [result("a"), result("b")])
    again = await commit_soon(store, lease, [result("a"), result("b")])
    assert (again.seq, again.last_crc) == (first.seq, first.last_crc)
    with pytest.raises(JournalLost):
        await commit_soon(store, lease, [result("c"), result("d")])
    assert await keys_of(store) == ["a", "b"]


async def test_one_of_a_worker_that_was_superseded_is_refused(store):
    first = await store.acquire("s", "w1")
    first = await commit_soon(store, first, [result("a")])
    await store.release(first)
    second = await store.acquire("s", "w2")
    with pytest.raises(SessionFenced, match="worker 'w2' took it over"):
        await commit_soon(store, first, [result("b")])
    assert (await commit_soon(store, second, [result("c")])).seq == 2


async def test_one_that_is_too_large_or_too_long_says_so(make_store, store_url):
    store = make_store(store_url, limits=Limits(record_bytes=100, session_bytes=400, journal_records=3))
    lease = await store.acquire("s", "w")
    with pytest.raises(PayloadTooLarge, match="the output of step 'a'"):
        await commit_soon(store, lease, [result("a", b"1" * 101)])
    for key in "abc":
        lease = await commit_soon(store, lease, [result(key)])
    with pytest.raises(PayloadTooLarge, match="3 records"):
        await commit_soon(store, lease, [result("d")])
    other = await store.acquire("t", "w")
    with pytest.raises(PayloadTooLarge, match="session 't'"):
        await commit_soon(store, other, [result("x" * 90, b"1" * 90) for _ in range(3)])


# ------------------------------------------------------------------ deletion, retention, listing


async def test_a_deleted_session_is_gone_and_its_worker_fenced(store):
    lease = await store.acquire("s", "w1")
    lease = await store.commit(lease, [result("a")], Change(snapshot=Snapshot(b"{}", 1), history=1))
    await store.put_blob("s", b"data")
    await store.post("s", "m", b"hello")
    with pytest.raises(SessionBusy, match="worker 'w1' works on session 's'"):
        await store.delete("s")
    assert await store.delete("s", force=True)
    assert not await store.delete("s")
    with pytest.raises(SessionFenced, match="it was deleted"):
        await store.commit(lease, [result("b")])
    again = await store.acquire("s", "w2")
    assert (again.seq, again.incarnation != lease.incarnation) == (0, True)
    assert await store.inbox("s") == []
    with pytest.raises(SessionFenced, match="began anew"):
        await store.commit(lease, [result("b")])


async def test_sessions_end_with_their_retention_which_each_commit_starts_anew(store):
    lease = await store.acquire("s", "w", retain_s=0.4)
    for _ in range(3):
        await asyncio.sleep(0.2)
        lease = await store.commit(lease, [result("a")])
    assert await store.head("s") is not None
    await asyncio.sleep(0.5)
    assert await store.head("s") is None
    with pytest.raises(SessionFenced):
        await store.commit(lease, [result("b")])
    assert (await store.acquire("s", "w")).seq == 0
    assert await keys_of(store) == []


async def test_sessions_are_listed_the_last_changed_first_and_in_pages(store):
    for number in range(7):
        lease = await store.acquire(f"s{number}", "w")
        await asyncio.sleep(0.003)
        await store.commit(lease, [result("a")], Change(status=Status.IDLE, release=True))
    listed = await _settled(store.sessions, at_least=7)
    assert [head.session for head in listed] == [f"s{number}" for number in reversed(range(7))]
    page = await store.sessions(limit=3)
    following = await store.sessions(limit=3, before_ms=page[-1].updated_ms)
    assert [head.session for head in following] == ["s3", "s2", "s1"]
    await store.delete("s6")
    await asyncio.sleep(0.1)
    assert len(await store.sessions()) == 6


async def test_orphans_are_sessions_whose_worker_died_in_a_turn(store):
    await store.acquire("dead", "w1", ttl_s=0.01)
    await store.acquire("alive", "w1", ttl_s=60)
    done = await store.acquire("done", "w1")
    await store.commit(done, (), Change(status=Status.DONE, release=True))
    await store.release(await store.acquire("stopped", "w1"))
    await asyncio.sleep(0.1)
    assert {head.session for head in await store.due()} == {"dead", "stopped"}


# ------------------------------------------------------------------ inbox


async def test_a_message_is_taken_in_once_and_consumed_by_the_commit(store):
    first = await store.post("s", "m1", b"one")
    again = await store.post("s", "m1", b"one")
    await store.post("s", "m2", b"two")
    assert (first.position, first.duplicate, again.position, again.duplicate) == (1, False, 1, True)
    assert first.status is Status.IDLE
    lease = await store.acquire("s", "w")
    assert lease.pending == 2
    messages = await store.inbox("s")
    assert messages == [Message(1, "m1", b"one"), Message(2, "m2", b"two")]
    change = Change(consumed=messages[0].position, answers=(("m1", b"done"),))
    lease = await store.commit(lease, [Record(Kind.ANSWER, "ask", b'"one"')], change)
    assert lease.pending == 1
    assert [message.id for message in await store.inbox("s")] == ["m2"]
    known = await store.post("s", "m1", b"one")
    assert (known.duplicate, known.answer, known.pending, known.status) == (True, b"done", 1, Status.RUNNING)
    lease = await store.commit(lease, (), Change(consumed=99))  # never past what was posted
    assert (lease.pending, (await store.head("s")).consumed) == (0, 2)
    lease = await store.commit(lease, (), Change(consumed=1))  # nor back
    assert (await store.head("s")).consumed == 2


async def test_a_full_inbox_refuses_messages_until_some_are_consumed(make_store, store_url):
    store = make_store(store_url, limits=Limits(inbox_messages=2))
    await store.post("s", "m1", b"")
    await store.post("s", "m2", b"")
    with pytest.raises(InboxFull, match="2 messages wait"):
        await store.post("s", "m3", b"")
    assert (await store.post("s", "m2", b"")).duplicate
    lease = await store.acquire("s", "w")
    await store.commit(lease, (), Change(consumed=1))
    assert (await store.post("s", "m3", b"")).position == 3


async def test_two_posters_at_once_lose_nothing_and_double_nothing(make_store, store_url):
    stores = [make_store(store_url) for _ in range(2)]
    await asyncio.gather(*(store.post("s", f"m{n}", b"x") for n in range(15) for store in stores))
    messages = await stores[0].inbox("s")
    assert sorted(message.id for message in messages) == sorted(f"m{n}" for n in range(15))
    assert [message.position for message in messages] == list(range(1, 16))


async def test_old_message_ids_are_forgotten_but_never_those_that_wait(store):
    lease = await store.acquire("s", "w")
    for number in range(1, 121):
        await store.post("s", f"m{number}", b"")
        if number > 20:
            lease = await store.commit(lease, (), Change(consumed=number - 20))
    assert (await store.post("s", "m101", b"")).duplicate
    assert (await store.post("s", "m60", b"")).duplicate
    assert not (await store.post("s", "m1", b"")).duplicate


# ------------------------------------------------------------------ large values, keys, events


async def test_large_values_are_stored_once_by_content(store):
    lease = await store.acquire("s", "w")
    data = bytes(range(256)) * 1000
    name = await store.put_blob("s", data)
    before = (await store.head("s")).stored_bytes
    assert await store.put_blob("s", data) == name
    assert (await store.head("s")).stored_bytes == before
    assert await store.get_blob("s", name) == data
    await store.commit(lease, [Record(Kind.RESULT, "a", blob=name)])
    with pytest.raises(RecordCorrupt, match="is gone"):
        await store.get_blob("s", "0" * 64)


async def test_an_idempotency_key_is_executed_by_one_job_and_answered_to_all(store):
    assert (await store.claim("k", "job1")).mine
    assert (await store.claim("k", "job1")).mine  # the same job, delivered again
    other = await store.claim("k", "job2")
    assert (other.mine, other.holder, other.result) == (False, "job1", None)
    assert not await store.settle("k", "job2", b"wrong")
    assert await store.settle("k", "job1", b"result")
    for job in ("job1", "job2"):
        claim = await store.claim("k", job)
        assert (claim.mine, claim.holder, claim.result) == (False, "job1", b"result")
    assert not await store.unclaim("k", "job1")


async def test_a_key_whose_job_died_or_gave_up_goes_to_the_next(store):
    await store.claim("k", "job1", lease_s=0.02)
    await asyncio.sleep(0.04)
    assert (await store.claim("k", "job2")).mine
    assert not await store.settle("k", "job1", b"late")
    assert not await store.unclaim("k", "job1")
    assert await store.unclaim("k", "job2")
    assert (await store.claim("k", "job3", keep_s=0.05)).mine
    await asyncio.sleep(0.1)
    assert not await store.settle("k", "job3", b"after its retention")


async def test_events_are_read_in_order_and_can_be_waited_for(store):
    assert await store.events("s") == []
    await store.emit("s", [b"a", b"b"])
    first, second = await store.events("s")
    assert (first.body, second.body) == (b"a", b"b")
    assert await store.events("s", after=second.id) == []
    waiting = asyncio.create_task(store.events("s", after=second.id, wait_s=5))
    await asyncio.sleep(0.05)
    await store.emit("s", [b"c"])
    assert [event.body for event in await waiting] == [b"c"]
    assert await store.events("s", after=second.id, wait_s=0.05) == await waiting


# ------------------------------------------------------------------ encryption


async def test_encrypted_sessions_need_the_key_and_survive_its_rotation(make_store, store_url):
    old, new = Keyring({1: b"a" * 32}, active=1), Keyring({1: b"a" * 32, 2: b"b" * 32}, active=2)
    lease = await make_store(store_url, keyring=old).acquire("s", "w")
    store = make_store(store_url, keyring=old)
    lease = await store.commit(lease, [result("secret-step", b'"secret"')])
    await store.post("s", "m", b"secret message")
    store = make_store(store_url, keyring=new)
    lease = await store.commit(lease, [result("b")])
    assert await keys_of(store) == ["secret-step", "b"]
    assert (await store.inbox("s"))[0].body == b"secret message"
    for keyring in (old, None):
        with pytest.raises(RecordKeyMissing):
            await make_store(store_url, keyring=keyring).load("s")
    with pytest.raises(RecordCorrupt, match="does not open with key 1"):
        await make_store(store_url, keyring=Keyring({1: b"c" * 32}, active=1)).load("s")
    image = await make_store(store_url, keyring=old).load("s", strict=False)
    assert [record.key for record in image.records] == ["secret-step"]
    assert isinstance(image.damage, RecordKeyMissing)


async def test_every_method_of_the_protocol_is_there(store):
    from flashkit.worker.sessions.store import Store

    assert [name for name in vars(Store) if not name.startswith("_") and not hasattr(store, name)] == []


async def _settled(listing, at_least=1):
    """Return a listing once the index has caught up."""
    async with asyncio.timeout(5):
        while len(found := await listing()) < at_least:
            await asyncio.sleep(0.01)
    return found
