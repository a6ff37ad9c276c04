"""Damaged sessions: shown as such, refused, kept, and brought back to what of them is whole; on every store."""

import asyncio
import os
from dataclasses import replace

import pytest
import redis.asyncio as aioredis

from flashkit import Session
from flashkit.errors import (
    InputError,
    JournalLost,
    RecordCorrupt,
    RecordKeyMissing,
    RecordTooNew,
    SessionBlocked,
    SessionBusy,
    SessionError,
    SessionFenced,
    SessionNotFound,
    StoreFull,
)
from flashkit.worker.sessions import admin
from flashkit.worker.sessions.forking import ForkPoint
from flashkit.worker.sessions.records import Keyring, Kind, Record, Snapshot
from flashkit.worker.sessions.redis_client import read_script
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.salvage import RewindPoint
from flashkit.worker.sessions.store import Change, Status
from tests.sessions.vandal import Vandal

ran = []


# ---- with workers ------------------------------------------------------------------------------------------


def note(text: str) -> str:
    ran.append(text)
    return text.upper()


def fail() -> None:
    raise ConnectionError("no network")


async def agent(session: Session, word: str, fails: bool = False) -> str:
    first = await session.step("first", note, word)
    paid = await session.effect("pay", note, f"pay {word}")
    last = await session.step("last", note, f"{word}!")
    if fails:
        await session.step("failing", fail)
    session.history.add("user", word)
    return f"{first} {paid} {last}"


async def mended(session: Session, word: str, fails: bool = False) -> str:
    first = await session.step("first", note, word)
    paid = await session.effect("pay", note, f"pay {word}")
    return f"{first} {paid} {await session.step('new', note, 'new')}"


@pytest.fixture(autouse=True)
def forget():
    ran.clear()


@pytest.fixture
async def worker(lab):
    return await lab.worker(agent, keep_journals=True)


@pytest.fixture
async def lab_store(lab):
    async with lab.store() as store:
        yield store


@pytest.fixture
def spoil(lab):
    """Return who spoils a session."""
    return lambda session: Vandal(lab.url, lab.namespace, session)


async def seq_of(store, session, key, kind=Kind.RESULT) -> int:
    records = (await store.load(session)).records
    return [record.seq for record in records if (record.key, record.kind) == (key, kind)][-1]


async def go_on(lab, store, session, handler=agent):
    job = await admin.wake(store, session)
    return await (await lab.worker(handler, "w2", keep_journals=True)).answer("again", **job.input)


async def test_damage_in_a_turn_is_shown_refused_and_taken_off(lab, lab_store, worker, spoil):
    store = lab_store
    await worker.answer("j0", session_id="fine", word="x")
    await worker.error("j1", session_id="s1", word="a", fails=True)
    await spoil("s1").flip_record(await seq_of(store, "s1", "last"))

    async with asyncio.timeout(5):  # the index is written a moment later
        while len(found := await admin.list_sessions(store)) < 2:
            await asyncio.sleep(0.01)
    told = {each.session: (each.status, each.reason) for each in found}
    assert told["fine"] == ("idle", "")
    assert told["s1"][0] == "damaged"
    assert "checksum" in told["s1"][1]
    assert (await worker.error("j2", session_id="s1", word="a", fails=True)).code == "record_corrupt"
    with pytest.raises(SessionBlocked, match="is damaged") as caught:
        await admin.wake(store, "s1")
    assert "flashkit sessions rewind s1 --to last-good" in caught.value.report.hint

    assert "checksum" in await admin.quarantine(store, "s1")
    assert (await worker.error("j3", session_id="s1", word="a", fails=True)).code == "session_blocked"
    assert (await admin.describe(store, "s1")).summary.status == "damaged"

    ran.clear()
    done = await admin.rewind(store, "s1")
    assert [step.key for step in done.view.open_turn.steps] == ["first", "pay"]
    assert (done.view.summary.status, done.records, done.effects) == ("interrupted", 1, ())
    assert await go_on(lab, store, "s1", mended) == "A PAY A NEW"
    assert ran == ["new"]
    copy = await admin.describe(store, done.copy)
    assert copy.summary.status == "damaged"
    assert (await store.head(done.copy)).reason.startswith("set aside when s1 was rewound: a stored record is damaged")
    assert [step.key for step in copy.open_turn.steps] == ["first", "pay"]
    assert (await worker.error("j4", session_id=done.copy, word="a")).code == "session_blocked"


async def test_a_lost_result_of_an_effect_is_unknown_and_not_done_twice(lab, lab_store, worker, spoil):
    await worker.error("j1", session_id="s1", word="a", fails=True)
    await spoil("s1").drop_record(await seq_of(lab_store, "s1", "pay"))
    done = await admin.rewind(lab_store, "s1")
    assert [(step.key, step.state) for step in done.view.open_turn.steps] == [("first", "done"), ("pay", "unknown")]
    assert done.records == 2
    await admin.settle(lab_store, "s1", "pay", result="BY HAND")
    assert await go_on(lab, lab_store, "s1", mended) == "A BY HAND NEW"
    assert ran.count("pay a") == 1


async def test_a_damaged_snapshot_gives_way_to_the_one_before_and_the_turn_ends_again(lab, lab_store, worker, spoil):
    for number, word in enumerate("abc"):
        await worker.answer(f"j{number}", session_id="s1", word=word)
    before = await admin.state_after(lab_store, "s1")
    await spoil("s1").flip_snapshot()
    assert (await admin.describe(lab_store, "s1")).summary.status == "damaged"
    ran.clear()
    done = await admin.rewind(lab_store, "s1")
    assert (done.view.open_turn.number, done.records) == (3, 0)
    assert await go_on(lab, lab_store, "s1") == "C PAY C C!"
    assert ran == []
    after = await admin.state_after(lab_store, "s1")
    assert (after["history"], after["answer"]) == (before["history"], before["answer"])
    assert len((await admin.describe(lab_store, "s1")).turns) == 3


async def test_damage_in_a_past_turn_costs_its_timeline_and_no_state(lab, lab_store, worker, spoil):
    for number, word in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", word=word)
    before = await admin.state_after(lab_store, "s1")
    await spoil("s1").flip_record(2)
    await spoil("s1").flip_snapshot(turn=1)
    done = await admin.rewind(lab_store, "s1")
    assert (done.view.turns, done.view.summary.status, done.view.summary.turn) == ((), "idle", 2)
    assert await admin.state_after(lab_store, "s1") == before
    assert await lab_store.past("s1") == ()
    assert await worker.answer("j9", session_id="s1", word="c") == "C PAY C C!"


async def test_a_damaged_large_value_is_taken_off_with_its_step(lab, lab_store, spoil):
    async def large(session, word: str) -> int:
        ran.append(word)
        text = await session.step("big", lambda: word * (1 << 20))
        more = await session.step("more", lambda: "yz")
        if len(ran) == 1:
            fail()
        return len(text) + len(more)

    worker = await lab.worker(large, keep_journals=True)
    await worker.error("j1", session_id="s1", word="xy")
    blob = (await lab_store.load("s1")).records[1].blob
    await spoil("s1").flip_blob(blob)
    assert (await worker.error("j2", session_id="s1", word="xy")).code == "record_corrupt"
    done = await admin.rewind(lab_store, "s1")
    assert (done.view.open_turn.steps, done.records) == ((), 2)
    with pytest.raises(RecordCorrupt):
        await lab_store.get_blob(done.copy, blob)


async def test_a_whole_session_goes_back_to_a_step_and_on_with_new_code(lab, lab_store, worker):
    await worker.answer("j1", session_id="s1", word="a")
    await worker.answer("j2", session_id="s1", word="b")
    ran.clear()
    done = await admin.rewind(lab_store, "s1", RewindPoint("first", 1))
    assert (done.effects, done.view.open_turn.number) == (("pay", "pay"), 1)
    assert [step.key for step in done.view.open_turn.steps] == ["first"]
    assert await go_on(lab, lab_store, "s1", mended) == "A PAY A NEW"
    assert ran == ["pay a", "new"]
    assert (await admin.describe(lab_store, "s1")).summary.turn == 1
    restored = await admin.fork(lab_store, done.copy, "s1-as-it-was", ForkPoint("last"))
    assert [step.key for step in restored.open_turn.steps] == ["first", "pay"]
    assert (await admin.state_after(lab_store, done.copy))["answer"] == "B PAY B B!"


async def test_an_effect_that_runs_again_has_the_key_it_had(lab, lab_store):
    from flashkit.worker.sessions.session import effect_key

    async def paying(session, word: str) -> str:
        await session.step("first", note, word)
        return await session.effect("pay", effect_key)

    worker = await lab.worker(paying, keep_journals=True)
    key = await worker.answer("j1", session_id="s1", word="a")
    await admin.rewind(lab_store, "s1", RewindPoint("first"))
    assert await worker.answer("j2", **(await admin.wake(lab_store, "s1")).input) == key


async def test_a_session_goes_back_to_the_end_of_a_turn(lab, lab_store, worker):
    for number, word in enumerate("abc"):
        await worker.answer(f"j{number}", session_id="s1", word=word)
    done = await admin.rewind(lab_store, "s1", RewindPoint(turn=1))
    assert (done.view.summary.status, done.view.summary.turn, done.view.open_turn) == ("idle", 1, None)
    await worker.answer("j9", session_id="s1", word="d")
    history = (await admin.state_after(lab_store, "s1"))["history"]
    assert [message["content"] for message in history] == ["a", "d"]


async def test_a_turn_that_took_the_place_of_another_one_stays_with_it(lab, lab_store, worker, spoil):
    await worker.error("j1", session_id="s1", word="a", fails=True)
    await worker.error("j2", session_id="s1", word="b", fails=True)
    await spoil("s1").flip_record(await seq_of(lab_store, "s1", "last"))
    done = await admin.rewind(lab_store, "s1")
    assert [(turn.number, turn.state) for turn in done.view.turns] == [(1, "given up"), (2, "interrupted")]


async def test_without_kept_states_a_damaged_snapshot_leaves_only_its_own_turns_beginning(lab, lab_store, spoil):
    forgetful = await lab.worker(agent)
    await forgetful.answer("j1", session_id="s1", word="a")
    await spoil("s1").flip_snapshot()
    with pytest.raises(SessionError, match="nothing of session 's1' is whole") as caught:
        await admin.rewind(lab_store, "s1")
    assert "quarantine s1" in caught.value.report.hint
    assert (await lab_store.head("s1")).status is Status.IDLE
    assert not (await lab_store.head("s1")).is_held


async def test_a_point_that_is_not_there_changes_nothing(lab, lab_store, worker):
    await worker.error("j1", session_id="s1", word="a", fails=True)
    before = await lab_store.load("s1")
    for point, words in (
        (RewindPoint("third"), "no step 'third' that is done"),
        (RewindPoint("first", 7), "no step 'first' in turn 7"),
        (RewindPoint(turn=7), "no turn 7"),
    ):
        with pytest.raises(InputError, match=words):
            await admin.rewind(lab_store, "s1", point)
    after = await lab_store.load("s1")
    assert (after.records, after.head.status, after.head.reason) == (
        before.records, Status.FAILED, "ConnectionError: no network",
    )  # fmt: skip


async def test_a_whole_session_that_was_quarantined_is_opened_again(lab, lab_store, worker):
    await worker.answer("j1", session_id="s1", word="a")
    assert await admin.quarantine(lab_store, "s1", reason="odd answers") == "quarantined: odd answers"
    assert (await worker.error("j2", session_id="s1", word="b")).code == "session_blocked"
    with pytest.raises(InputError) as caught:
        await admin.wake(lab_store, "s1")
    assert "rewind s1 --to last-good" in caught.value.report.hint
    done = await admin.rewind(lab_store, "s1")
    assert (done.copy, done.records, done.view.summary.status, done.view.summary.reason) == (None, 0, "idle", "")
    await worker.answer("j2", session_id="s1", word="b")
    await admin.rewind(lab_store, "s1")
    assert "a person wants to look" in await admin.quarantine(lab_store, "s1")


async def test_a_session_that_a_worker_has_is_left_alone(lab_store):
    await lab_store.acquire("s1", "w1", ttl_s=60)
    for work in (admin.rewind(lab_store, "s1"), admin.quarantine(lab_store, "s1")):
        with pytest.raises(SessionBusy, match="'w1'"):
            await work
    for work in (admin.rewind(lab_store, "nobody"), admin.quarantine(lab_store, "nobody")):
        with pytest.raises(SessionNotFound):
            await work


# ---- on each store -----------------------------------------------------------------------------------------

KEYRING = Keyring({1: os.urandom(32)}, active=1)


async def write_session(store, session: str = "s") -> None:
    """A snapshot after two records, a blob, and three records of an open turn."""
    lease = await store.acquire(session, "w")
    lease = await store.commit(lease, [Record(Kind.TURN, "turn:1", extra={"request": "j1"}), Record(Kind.RESULT, "a")])
    lease = await store.commit(lease, (), Change(snapshot=Snapshot(b'{"n":1}', 1), trim=False, history=4))
    blob = await store.put_blob(session, b"large")
    turn = Record(Kind.TURN, "turn:2", extra={"request": "j2"})
    lease = await store.commit(lease, [turn, Record(Kind.RESULT, "b", blob=blob), Record(Kind.RESULT, "c")])
    await store.release(lease)


@pytest.fixture(params=[None, KEYRING], ids=["plain", "encrypted"])
async def sealed(request, make_store, store_url):
    store = make_store(store_url, keyring=request.param)
    await write_session(store)
    return store


@pytest.mark.parametrize("how", ["flip", "drop"])
async def test_a_rewound_session_and_its_copy_are_read_and_written_like_any_other(
    sealed, store_url, namespace, make_store, how
):
    vandal = Vandal(store_url, namespace)
    await (vandal.flip_record(5) if how == "flip" else vandal.drop_record(5))
    damaged = await sealed.export("s")
    done = await admin.rewind(sealed, "s")
    image = await sealed.load("s")
    assert [record.key for record in image.records] == ["turn:1", "a", "turn:2", "b"]
    assert (image.head.seq, image.head.status, image.head.incarnation) == (4, Status.RUNNING, damaged.head.incarnation)
    lease = await sealed.acquire("s", "w")
    lease = await sealed.commit(lease, [Record(Kind.RESULT, "d")])
    assert [record.seq for record in (await sealed.load("s")).records] == [1, 2, 3, 4, 5]
    kept = await sealed.load(done.copy, strict=False)
    assert isinstance(kept.damage, RecordCorrupt)
    assert [record.key for record in kept.records] == ["turn:1", "a", "turn:2", "b"]
    assert kept.snapshot.data == b'{"n":1}'
    assert await sealed.get_blob(done.copy, kept.records[3].blob) == b"large"
    bytes_kept = (await sealed.export(done.copy)).journal
    assert len(bytes_kept) == len(damaged.journal)
    if sealed.keyring is None:
        assert bytes_kept == damaged.journal
    elif how == "flip":
        assert bytes_kept[4] == damaged.journal[4]
    if how == "flip":  # a head still counts what was dropped behind its back
        assert (await sealed.head(done.copy)).stored_bytes == damaged.head.stored_bytes


async def test_a_copy_of_a_whole_session_is_whole(sealed):
    done = await admin.rewind(sealed, "s", RewindPoint("b"))
    copy = await sealed.load(done.copy)
    assert [record.key for record in copy.records] == ["turn:1", "a", "turn:2", "b", "c"]
    assert copy.head.status is Status.BLOCKED
    assert [record.key for record in (await sealed.load("s")).records] == ["turn:1", "a", "turn:2", "b"]


async def test_a_long_id_has_a_copy_too(store):
    name = "x" * 128
    await write_session(store, name)
    done = await admin.rewind(store, name, RewindPoint("b"))
    assert (await store.load(done.copy)).head.seq == 5


async def test_without_the_keys_nothing_is_taken_for_damage(make_store, store_url):
    await write_session(make_store(store_url, keyring=KEYRING))
    keyless = make_store(store_url)
    view = await admin.describe(keyless, "s")
    assert (view.summary.status, "key 1" in view.summary.reason) == ("interrupted", True)
    for work in (admin.rewind(keyless, "s"), admin.wake(keyless, "s")):
        with pytest.raises(RecordKeyMissing):
            await work
    assert not (await keyless.head("s")).is_held


async def test_a_newer_format_is_not_taken_for_damage(store, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("flashkit.worker.sessions.records.FORMAT", 2)
        await write_session(store)
    with pytest.raises(RecordTooNew):
        await admin.rewind(store, "s")
    assert (await admin.describe(store, "s")).summary.status == "interrupted"


async def test_only_the_owner_rewrites_and_only_what_it_knows(store):
    await write_session(store)
    raw = await store.export("s")
    old = await store.acquire("s", "w1")
    await store.release(old)
    lease = await store.acquire("s", "w2")
    with pytest.raises(SessionFenced):
        await store.rewrite(old, raw)
    with pytest.raises(JournalLost):
        await store.rewrite(replace(lease, seq=lease.seq - 1), raw)
    assert (await store.load("s")).head.seq == 5
    await store.rewrite(lease, raw)
    assert [record.key for record in (await store.load("s")).records] == ["turn:1", "a", "turn:2", "b", "c"]
    with pytest.raises(SessionNotFound):
        await store.export("nobody")


async def test_a_copy_that_cannot_be_written_leaves_the_session_as_it_was(store, store_url, namespace, monkeypatch):
    await write_session(store)
    await Vandal(store_url, namespace).flip_record(5)
    rewrite = type(store).rewrite

    async def refuse(self, lease, raw):
        await rewrite(self, replace(lease, fence=lease.fence + 1), raw)

    monkeypatch.setattr(type(store), "rewrite", refuse)
    with pytest.raises(SessionFenced):
        await admin.rewind(store, "s")
    assert isinstance((await store.load("s", strict=False)).damage, RecordCorrupt)
    assert [each.session for each in await admin.list_sessions(store)] == ["s"]


async def test_a_full_server_refuses_a_rewind_before_its_first_write(own_redis, make_store):
    server = own_redis()
    store = make_store(server.url)
    await write_session(store)
    async with aioredis.from_url(server.url) as client:
        lease, raw = await store.acquire("s", "w"), await store.export("s")
        await client.config_set("maxmemory", "1")
        with pytest.raises(StoreFull):
            await store.rewrite(lease, replace(raw, journal=(), snapshot=None))
        assert (await store.load("s")).head.seq == 5
        await store.release(lease)
        with pytest.raises(StoreFull):
            await admin.rewind(store, "s", RewindPoint("b"))
        await client.config_set("maxmemory", "0")
    assert len((await store.load("s")).records) == 5


@pytest.mark.parametrize("at", range(19))
async def test_a_rewrite_with_a_broken_value_is_refused_before_the_first_write(redis_server, namespace, make_store, at):
    store = make_store(redis_server.url)
    await write_session(store)
    lease = await store.acquire("s", "w")
    words = [lease.incarnation, lease.fence, lease.nonce, 5, 1, 1, 1, 1]
    words += ["snapshot", "status", "idle", "1", "past", "name", "blob", 4, "record", 5, "record"]
    words[at : at + 1] = [] if at > 14 else ["x"]
    script, keys = read_script("rewrite"), session_keys(namespace, "s")
    async with aioredis.from_url(redis_server.url) as client:
        before = [await client.dump(key) for key in keys]
        call = client.eval(script.text, len(keys), *keys, *words)
        if at < 4:
            assert (await call)[0] in (b"FENCED", b"SEQ")
        elif at in range(4, 8) or at > 14:
            with pytest.raises(aioredis.ResponseError):
                await call
        else:
            assert (await call)[0] == b"OK"  # a value that a session may have
            return
        assert [await client.dump(key) for key in keys] == before
