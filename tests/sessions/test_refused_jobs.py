"""A job that is refused leaves its session as it found it; a damaged session is blocked until a person looks."""

import asyncio
import base64
import os
import sqlite3
from typing import ClassVar

import pytest
import redis.asyncio as aioredis
from pydantic import BaseModel

from flashkit import Session
from flashkit.errors import RecordCorrupt
from flashkit.worker.sessions import admin
from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import Change, Status
from tests.sessions.session_lab import Steps, until
from tests.sessions.vandal import Vandal

LARGE = 2 << 20


async def agent(session: Session[None], q: str = "", wait: str = "", size: int = 0) -> str:
    """Take a step, wait for an event if it is told to, take another one."""
    await session.step("first", lambda: q + "x" * size)
    said = await session.wait_for(wait) if wait else "nothing"
    return await session.step("last", lambda: f"{q} {said}")


def new_key() -> str:
    """Return a key for sessions as the setting has it."""
    return base64.b64encode(os.urandom(32)).decode()


async def as_seen(lab, session="s"):
    """Return what tells whether a session was left alone."""
    head = await lab.head(session)
    return head.status, head.reason, head.is_held, head.attempts, head.seq


async def test_a_damaged_session_is_blocked_and_the_error_says_how_it_goes_on(lab):
    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a", wait="yes")
    await Vandal(lab.url, lab.namespace).flip_record(2)
    error = await worker.error("j1", session_id="s", q="a", wait="yes")
    assert error.code == "record_corrupt"
    assert "session 's' is damaged: a stored record is damaged" in error.message
    assert "flashkit sessions rewind s --to last-good" in error.hint
    status, reason, is_held, _, _ = await as_seen(lab)
    assert (status, is_held) == (Status.BLOCKED, False)
    assert "session 's' is damaged" in reason
    assert (await worker.error("j2", session_id="s", q="b")).code == "session_blocked"
    async with lab.store() as store:
        done = await admin.rewind(store, "s")
        assert done.copy is not None
        await admin.bring_event(store, "s", "yes", True)
    assert await worker.answer("j3", session_id="s", event={"name": "yes", "value": 1}) == "a 1"


async def test_a_large_value_that_is_damaged_blocks_the_session_too(lab):
    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a", wait="yes", size=LARGE)
    async with lab.store() as store:
        (blob,) = (await store.export("s")).blobs
    await Vandal(lab.url, lab.namespace).flip_blob(blob)
    error = await worker.error("j2", session_id="s", event={"name": "yes", "value": 1})
    assert (error.code, "rewind s --to last-good" in error.hint) == ("record_corrupt", True)
    assert (await as_seen(lab))[:1] == (Status.BLOCKED,)


async def test_an_event_for_no_turn_leaves_the_session_at_rest(lab):
    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    before = await as_seen(lab)
    for _ in range(6):
        assert (await worker.error("j2", session_id="s", event=None)).code == "input_invalid"
    assert await as_seen(lab) == before
    assert before[:3] == (Status.IDLE, "", False)


@pytest.mark.parametrize("wrong", [{"citty": "Oslo"}, {"city": ["Oslo"]}, {"city": "Oslo", "size": "big"}])
async def test_input_that_does_not_fit_leaves_a_waiting_turn_waiting(lab, wrong):
    async def travel(session: Session[None], city: str, size: int = 0) -> str:
        return f"{city} {await session.wait_for('approval')}"

    worker = await lab.worker(travel)
    await worker.answer("j1", session_id="s", city="Rome")
    before = await as_seen(lab)
    assert before[0] is Status.WAITING
    for job in ("j2", "j2", "j3"):
        error = await worker.error(job, session_id="s", **wrong)
        assert (error.code, "endpoint 'travel'" in error.message) == ("input_invalid", True)
    assert await as_seen(lab) == before
    assert await worker.answer("j4", session_id="s", event={"name": "approval", "value": 1}) == "Rome 1"
    assert (await worker.error("j5", session_id="s", **wrong)).code == "input_invalid"
    assert (await as_seen(lab))[:3] == (Status.IDLE, "", False)


async def test_code_for_another_state_leaves_a_waiting_turn_waiting(lab):
    class Old(BaseModel):
        state_version: ClassVar[int] = 2

    class New(Old):
        state_version: ClassVar[int] = 3

    async def old(session: Session[Old], q: str) -> str:
        return f"{q} {await session.wait_for('yes')}"

    async def new(session: Session[New], q: str) -> str:
        return "not reached"

    workers = await lab.worker(old, "w1"), await lab.worker(new, "w2")
    await workers[0].answer("j1", session_id="s", q="a")
    await workers[0].answer("j2", session_id="s", event={"name": "yes", "value": 1})
    await workers[0].answer("j3", session_id="s", q="b")
    before = await as_seen(lab)
    assert "there is no way to 3" in (await workers[1].error("j4", session_id="s", q="c")).message
    assert await as_seen(lab) == before
    assert await workers[0].answer("j5", session_id="s", event={"name": "yes", "value": 2}) == "b 2"


async def test_a_job_that_was_answered_before_leaves_the_session_at_rest(lab):
    worker = await lab.worker(agent)
    for _ in range(2):
        await worker.answer("j1", session_id="s", q="a")
        assert (await as_seen(lab))[:3] == (Status.IDLE, "", False)


@pytest.mark.parametrize("wait", ["", "yes"])
async def test_without_its_key_a_session_is_left_alone(lab, wait):
    key = new_key()
    keeper = await lab.worker(agent, "w1", state_keys=f"1:{key}")
    stranger = await lab.worker(agent, "w2", state_keys=f"2:{new_key()}")
    impostor = await lab.worker(agent, "w3", state_keys=f"1:{new_key()}")
    await keeper.answer("j1", session_id="s", q="a", wait=wait)
    before = await as_seen(lab)
    for _ in range(6):
        assert (await stranger.error("j2", session_id="s", q="b")).code == "record_key_missing"
        error = await impostor.error("j2", session_id="s", q="b")
        assert (error.code, "rewind" in error.hint) == ("record_corrupt", False)
        assert "session 's'" in error.message
    assert await as_seen(lab) == before
    assert before[0] is (Status.WAITING if wait else Status.IDLE)
    if wait:
        assert await keeper.answer("j3", session_id="s", event={"name": "yes", "value": 1}) == "a 1"


async def test_a_newer_snapshot_is_left_to_a_newer_worker(lab):
    worker = await lab.worker(agent)
    async with lab.store() as store:
        lease = await store.acquire("s", "newer")
        snapshot = Snapshot(b'{"format": 99}', turn=1)
        change = Change(snapshot=snapshot, status=Status.IDLE, release=True)
        await store.commit(lease, [Record(Kind.TURN, "turn:1")], change)
    before = await as_seen(lab)
    for _ in range(6):
        assert (await worker.error("j1", session_id="s", q="a")).code == "record_too_new"
    assert await as_seen(lab) == before


async def test_what_a_session_waited_for_is_forgotten_once_it_goes_on(lab):
    steps = Steps()
    worker = await lab.worker(agent_that_goes_on(steps))
    await worker.answer("j1", session_id="s")
    assert (await lab.head("s")).reason == "waits for event 'yes'"
    job = worker.start("j2", session_id="s", event={"name": "yes", "value": 1})
    await until(lambda: steps.seen)
    head = await lab.head("s")
    assert (head.status, head.reason, head.is_held) == (Status.RUNNING, "", True)
    steps.seen.clear()
    await job


def agent_that_goes_on(steps):
    """Return an agent that is under way after its event until the test takes note of it."""

    async def goes_on(session: Session[None]) -> None:
        await session.wait_for("yes")
        steps.seen.append("on")
        await until(lambda: not steps.seen)

    return goes_on


async def test_a_failed_turn_that_goes_on_has_no_reason_any_more(lab):
    steps, seen = Steps(), []

    async def fails_once(session: Session[None]) -> str:
        if not seen:
            seen.append(1)
            await session.step("fail", steps.fail)
        seen.append((await lab.head("s")).reason)
        return "done"

    worker = await lab.worker(fails_once)
    await worker.error("j1", session_id="s")
    assert (await lab.head("s")).reason.startswith("ConnectionError")
    assert await worker.answer("j2", session_id="s", event=None) == "done"
    assert seen == [1, ""]


@pytest.mark.parametrize("field", ["seq", "status", "jb", "turn"])
async def test_a_head_without_sense_is_listed_as_damaged_beside_the_others(lab, field):
    worker = await lab.worker(agent)
    for session in ("good", "bad", "other"):
        await worker.answer(f"job-{session}", session_id=session, q="a")
    await spoil_head(lab, "bad", field, "nonsense")
    async with lab.store() as store:
        listed = await listing(store, count=3)
        assert {name: each.status for name, each in listed.items()} == {
            "good": "idle",
            "bad": "damaged",
            "other": "idle",
        }
        assert "=nonsense" in listed["bad"].reason
        assert await store.due() == []
        with pytest.raises(RecordCorrupt, match="session 'bad' is damaged: its head has values that make no sense"):
            await store.load("bad")
        assert (await admin.describe(store, "bad")).turns == ()
        error = await worker.error("again", session_id="bad", q="b")
        assert (error.code, "sessions delete bad --force" in error.hint) == ("record_corrupt", True)
        await admin.delete(store, "bad", force=True)
        assert await store.head("bad") is None


async def listing(store, *, count):
    """Return the sessions of a store by id once there are as many: Redis has them in its index a moment later."""
    async with asyncio.timeout(10):
        while len(found := await admin.list_sessions(store)) < count:
            await asyncio.sleep(0.01)
    return {each.session: each for each in found}


async def spoil_head(lab, session: str, field: str, value: str) -> None:
    """Write nonsense into a session's head."""
    if lab.url.startswith("sqlite"):
        with sqlite3.connect(lab.url.removeprefix("sqlite:///")) as db:
            assert db.execute(f"UPDATE head SET {field} = ? WHERE sid = ?", (value, session)).rowcount == 1
        return
    async with aioredis.from_url(lab.url) as client:
        await client.hset(session_keys(lab.namespace, session)[0], field, value)
