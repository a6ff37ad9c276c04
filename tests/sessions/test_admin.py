"""What people do with sessions beside the workers: look, resume, settle, copy, compare, delete."""

import asyncio
import dataclasses

import orjson
import pytest
from pydantic import BaseModel

from flashkit import Session
from flashkit.errors import InputError, SessionBlocked, SessionBusy, SessionError, SessionNotFound
from flashkit.settings import Settings
from flashkit.worker.sessions import admin
from flashkit.worker.sessions.comparing import Difference, compare
from flashkit.worker.sessions.forking import ForkPoint
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Change, Status
from flashkit.worker.sessions.timeline import StepState, TurnState

ran = []


class Notes(BaseModel):
    questions: list[str] = []
    total: int = 0


def shout(text):
    ran.append(text)
    return text.upper()


def pay(amount):
    ran.append(f"pay {amount}")
    return f"paid {amount}"


def fail():
    raise ConnectionError("no network")


async def agent(session: Session[Notes], question: str, do: str = "") -> str:
    first = await session.step("first", shout, question)
    if do == "fail":
        await session.step("failing", fail)
    if do == "wait":
        first += str(await session.wait_for("word"))
    if do == "pay":
        first += await session.effect("pay", pay, 3)
    second = await session.step("second", shout, f"{question}!")
    session.state.questions.append(question)
    session.state.total += len(question)
    session.history.add("user", question)
    return first + second


async def mended(session: Session[Notes], question: str, do: str = "") -> str:
    return await session.step("first", shout, question) + await session.step("last", shout, do)


@pytest.fixture(autouse=True)
def forget():
    ran.clear()


@pytest.fixture
async def worker(lab):
    return await lab.worker(agent, keep_journals=True)


@pytest.fixture
async def store(lab):
    async with lab.store() as store:
        yield store


async def leave_open_payment(store, worker, session):
    """Leave a session as a worker does that dies while it pays."""
    await worker.error("j1", session_id=session, question="a", do="fail")
    lease = await store.acquire(session, "w-dead")
    extra = {"path": "", "n": 1}
    lease = await store.commit(lease, [Record(Kind.INTENT, "pay", code="old", extra=extra)])
    await store.commit(lease, change=Change(status=Status.BLOCKED, reason="OutcomeUnknown: pay", release=True))


# ---- looking -----------------------------------------------------------------------------------------------


async def listed(store, count: int) -> tuple[admin.Summary, ...]:
    """Return the sessions; the index that lists them is written a moment after the sessions themselves."""
    async with asyncio.timeout(5):
        while len(found := await admin.list_sessions(store)) < count:
            await asyncio.sleep(0.01)
    return found


async def test_the_list_has_the_last_changed_session_first(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    await worker.error("j2", session_id="s2", question="b", do="fail")
    found = await listed(store, 2)
    assert [(each.session, each.status, each.turn) for each in found] == [("s2", "failed", 0), ("s1", "idle", 1)]
    assert found[0].reason == "ConnectionError: no network"
    assert [each.session for each in await admin.list_sessions(store, limit=1)] == ["s2"]


async def test_a_timeline_tells_every_step_of_every_turn(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    await worker.answer("j2", session_id="s1", question="b", do="pay")
    view = await admin.describe(store, "s1")
    assert [(turn.number, turn.state, turn.request, turn.endpoint) for turn in view.turns] == [
        (1, TurnState.DONE, "j1", "agent"), (2, TurnState.DONE, "j2", "agent"),
    ]  # fmt: skip
    steps = [(step.key, step.kind, step.state, step.preview) for step in view.turns[1].steps]
    assert steps == [
        ("first", "step", StepState.DONE, '"B"'),
        ("pay", "effect", StepState.DONE, '"paid 3"'),
        ("second", "step", StepState.DONE, '"B!"'),
    ]
    first = view.turns[0].steps[0]
    assert first.size_bytes == 3
    assert first.code == view.turns[0].code
    assert first.started_ms >= view.turns[0].started_ms
    assert view.turns[1].preview == '{"question":"b","do":"pay"}'
    assert view.open_turn is None
    assert view.endpoint == "agent"


async def test_a_timeline_is_json(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    view = await admin.describe(store, "s1")
    told = orjson.loads(orjson.dumps(view))
    assert told["turns"][0]["steps"][0]["state"] == "done"
    assert told["summary"]["status"] == "idle"
    assert told == orjson.loads(orjson.dumps(dataclasses.asdict(view)))


async def test_without_kept_journals_a_finished_turn_has_no_steps_and_the_state_stays(lab, store):
    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s1", question="a")
    view = await admin.describe(store, "s1")
    assert view.turns == ()
    assert view.summary.turn == 1
    assert (await admin.state_after(store, "s1"))["state"] == {"questions": ["a"], "total": 1}


async def test_a_waiting_turn_shows_for_what_and_then_what_came(store, worker):
    await worker.answer("j1", session_id="s1", question="a", do="wait")
    turn = (await admin.describe(store, "s1")).open_turn
    assert turn.state is TurnState.WAITING
    assert [(step.key, step.kind, step.state) for step in turn.steps][-1] == ("event:word", "event", StepState.WAITING)
    await worker.answer("j2", session_id="s1", event={"name": "word", "value": "x"})
    turn = (await admin.describe(store, "s1")).turns[-1]
    assert [(event.name, event.preview) for event in turn.events] == [("word", '"x"')]
    assert {step.state for step in turn.steps} == {StepState.DONE}


async def test_a_turn_that_runs_is_told_from_one_whose_worker_is_gone(store):
    lease = await store.acquire("s1", "w1", ttl_s=60)
    turn = Record(Kind.TURN, "turn:1", b"{}", extra={"request": "j1"}, started_ms=1)
    attach = Record(Kind.ATTACH, "call:x", b'{"job":"abc"}', extra={"path": "", "n": 0})
    lease = await store.commit(lease, [turn, attach])
    view = await admin.describe(store, "s1")
    assert (view.summary.status, view.turns[0].state, view.turns[0].steps[0].state) == ("running", "running", "running")
    assert view.turns[0].steps[0].job == "abc"
    assert view.endpoint is None
    await store.release(lease)
    view = await admin.describe(store, "s1")
    assert view.summary.status == view.turns[0].state == "interrupted"
    assert view.turns[0].steps[0].state == "waiting"


async def test_a_turn_that_a_later_request_took_the_place_of_is_given_up(store, worker):
    await worker.error("j1", session_id="s1", question="a", do="fail")
    await worker.answer("j2", session_id="s1", question="b")
    view = await admin.describe(store, "s1")
    assert [(turn.number, turn.state) for turn in view.turns] == [(1, TurnState.GIVEN_UP), (2, TurnState.DONE)]


async def test_a_session_that_is_not_there_is_named(store):
    for work in (admin.describe, admin.wake, admin.delete):
        with pytest.raises(SessionNotFound, match="'nobody'"):
            await work(store, "nobody")


# ---- going on ----------------------------------------------------------------------------------------------


async def test_a_failed_turn_goes_on_without_repeating_steps(lab, store, worker):
    await worker.error("j1", session_id="s1", question="a", do="fail")
    job = await admin.wake(store, "s1")
    assert job.endpoint == "agent"
    assert await (await lab.worker(mended, "w2")).answer("j2", **job.input) == "AFAIL"
    assert ran == ["a", "fail"]


async def test_the_job_that_resumes_never_begins_a_turn(store, worker):
    await worker.error("j1", session_id="s1", question="a", do="fail")
    job = await admin.wake(store, "s1")
    await worker.answer("j2", session_id="s1", question="b")
    assert "no turn under way" in (await worker.error("j3", **job.input)).message


async def test_a_session_between_turns_cannot_be_resumed(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    with pytest.raises(InputError, match="no turn under way"):
        await admin.wake(store, "s1")


async def test_a_session_that_a_worker_has_is_left_alone(store, worker):
    await leave_open_payment(store, worker, "s1")
    await store.acquire("s1", "w1", ttl_s=60, unblock=True)
    for work in (admin.wake(store, "s1"), admin.settle(store, "s1", "pay", again=True), admin.delete(store, "s1")):
        with pytest.raises(SessionBusy, match="'w1'"):
            await work


async def test_a_session_that_ended_its_workers_is_opened_again(store, worker):
    await worker.error("j1", session_id="s1", question="a", do="fail")
    lease = await store.acquire("s1", "w-dead")
    await store.commit(lease, change=Change(status=Status.BLOCKED, reason="5 workers in a row", release=True))
    assert (await worker.error("j2", session_id="s1", question="a", do="fail")).code == "session_blocked"
    job = await admin.wake(store, "s1")
    assert (await worker.error("j3", **job.input)).message == "no network"


async def test_an_event_reaches_the_turn_that_waits(store, worker):
    await worker.answer("j1", session_id="s1", question="a", do="wait")
    job = await admin.bring_event(store, "s1", "word", {"x": 1})
    assert await worker.answer("j2", **job.input) == "A{'x': 1}A!"


async def test_an_event_between_turns_is_kept_for_the_next_one(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    assert await admin.bring_event(store, "s1", "word", "soon") is None
    assert (await admin.describe(store, "s1")).summary.pending == 1
    assert await worker.answer("j2", session_id="s1", question="b", do="wait") == "BsoonB!"


# ---- settling ----------------------------------------------------------------------------------------------


async def test_an_unknown_outcome_blocks_until_a_person_has_settled_it(store, worker):
    await leave_open_payment(store, worker, "s1")
    step = (await admin.describe(store, "s1")).open_turn.steps[-1]
    assert (step.key, step.kind, step.state) == ("pay", "effect", StepState.UNKNOWN)
    with pytest.raises(SessionBlocked, match="'pay'") as caught:
        await admin.wake(store, "s1")
    assert "flashkit sessions settle s1 pay" in caught.value.report.hint


async def paying(session: Session[Notes], question: str, do: str = "") -> str:
    return await session.step("first", shout, question) + await session.effect("pay", pay, 3)


async def test_a_step_that_happened_is_not_run(lab, store, worker):
    await leave_open_payment(store, worker, "s1")
    await admin.settle(store, "s1", "pay", result="paid before")
    step = (await admin.describe(store, "s1")).open_turn.steps[-1]
    assert (step.state, step.settled, step.preview) == (StepState.DONE, True, '"paid before"')
    job = await admin.wake(store, "s1")
    assert await (await lab.worker(paying, "w2")).answer("j2", **job.input) == "Apaid before"
    assert ran == ["a"]


async def test_a_step_that_did_not_happen_runs(lab, store, worker):
    await leave_open_payment(store, worker, "s1")
    await admin.settle(store, "s1", "pay", again=True)
    assert (await admin.describe(store, "s1")).open_turn.steps[-1].state is StepState.WAITING
    job = await admin.wake(store, "s1")
    assert await (await lab.worker(paying, "w2")).answer("j2", **job.input) == "Apaid 3"
    assert ran == ["a", "pay 3"]


async def test_only_a_step_whose_outcome_is_unknown_can_be_settled(store, worker):
    await leave_open_payment(store, worker, "s1")
    with pytest.raises(InputError, match="'first'") as caught:
        await admin.settle(store, "s1", "first", result=1)
    assert caught.value.report.hint == "these steps can be settled: pay"
    await worker.answer("j2", session_id="s2", question="a")
    with pytest.raises(InputError):
        await admin.settle(store, "s2", "first", result=1)
    assert (await store.head("s2")).status is Status.IDLE


# ---- copies ------------------------------------------------------------------------------------------------


async def test_a_copy_of_a_finished_session_has_its_state_turns_and_past(store, worker):
    for number, question in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    view = await admin.fork(store, "s1", "s2")
    assert view.forked_from == "s1"
    assert view.summary.status == "idle"
    assert [turn.state for turn in view.turns] == [TurnState.DONE, TurnState.DONE]
    assert await admin.diff(store, ("s1", None), ("s2", None)) == ()
    assert await admin.diff(store, ("s1", 1), ("s2", 1)) == ()
    await worker.answer("j9", session_id="s2", question="c")
    assert (await admin.state_after(store, "s2"))["state"]["questions"] == ["a", "b", "c"]
    assert (await admin.state_after(store, "s1"))["state"]["questions"] == ["a", "b"]


async def test_a_copy_runs_again_from_the_step_with_new_code(lab, store, worker):
    for number, question in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    ran.clear()
    view = await admin.fork(store, "s1", "s2", ForkPoint("second"))
    assert (view.open_turn.number, [step.key for step in view.open_turn.steps]) == (2, ["first"])
    job = await admin.wake(store, "s2")
    assert await (await lab.worker(mended, "w2")).answer("j9", **job.input) == "B"
    assert ran == [""]
    assert (await admin.describe(store, "s1")).summary.turn == 2


async def test_a_turn_of_the_past_runs_again_with_the_state_it_began_with(store, worker):
    for number, question in enumerate("abc"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    await admin.fork(store, "s1", "s2", ForkPoint(turn=2))
    job = await admin.wake(store, "s2")
    assert await worker.answer("j9", **job.input) == "BB!"
    assert (await admin.state_after(store, "s2"))["state"]["questions"] == ["a", "b"]
    assert await admin.diff(store, ("s1", 2), ("s2", None)) == ()


async def test_a_copy_can_begin_with_another_state(store, worker):
    for number, question in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    await admin.fork(store, "s1", "s2", ForkPoint(turn=2), state={"questions": ["z"], "total": 40})
    await worker.answer("j9", **(await admin.wake(store, "s2")).input)
    found = await admin.diff(store, ("s1", None), ("s2", None))
    assert found == (
        Difference("$.state.questions[0]", "changed", "a", "z"),
        Difference("$.state.total", "changed", 2, 41),
    )


async def test_the_first_turn_of_a_copy_can_begin_with_a_state_too(store, worker):
    for number, question in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    ran.clear()
    await admin.fork(store, "s1", "s2", ForkPoint("second", 1), state={"questions": ["z"], "total": 40})
    assert await worker.answer("j9", **(await admin.wake(store, "s2")).input) == "AA!"
    assert ran == ["a!"]
    assert (await admin.state_after(store, "s2"))["state"] == {"questions": ["z", "a"], "total": 41}
    await worker.answer("j10", session_id="s2", question="c")
    assert (await admin.state_after(store, "s2"))["state"]["questions"] == ["z", "a", "c"]
    again = await admin.fork(store, "s2", "s3", ForkPoint(turn=1))
    assert again.open_turn.number == 1
    await worker.answer("j11", **(await admin.wake(store, "s3")).input)
    assert (await admin.state_after(store, "s3"))["state"]["questions"] == ["z", "a"]


async def test_an_edited_state_of_a_failed_first_turn_has_the_shape_that_is_given(lab, store, worker):
    await worker.error("j1", session_id="s1", question="a", do="fail")
    await admin.fork(store, "s1", "s2", ForkPoint("first"), state={"questions": ["z"], "total": 40})
    assert await (await lab.worker(mended, "w2")).answer("j9", **(await admin.wake(store, "s2")).input) == "AFAIL"
    assert (await admin.state_after(store, "s2"))["state"] == {"questions": ["z"], "total": 40}


async def test_large_values_are_copied_too(lab, store):
    async def large(session, size: int) -> str:
        await session.step("big", lambda: "x" * size)
        return "y" * size

    worker = await lab.worker(large, keep_journals=True)
    size = store.limits.record_bytes + 1
    await worker.answer("j1", session_id="s1", size=size)
    await admin.fork(store, "s1", "s2")
    await admin.delete(store, "s1")
    step = (await admin.describe(store, "s2")).turns[0].steps[0]
    assert (await store.get_blob("s2", step.blob)) == b'"' + b"x" * size + b'"'
    assert (await admin.state_after(store, "s2"))["answer"] == "y" * size


async def test_a_copy_of_a_blocked_session_is_settled_by_itself(store, worker):
    await leave_open_payment(store, worker, "s1")
    await admin.fork(store, "s1", "s2")
    await admin.settle(store, "s2", "pay", result=1)
    assert (await store.head("s1")).status is Status.BLOCKED
    assert (await store.head("s2")).status is Status.RUNNING


async def test_a_branch_that_was_under_way_runs_again_in_the_copy(lab, store, worker):
    await leave_open_payment(store, worker, "s1")
    lease = await store.acquire("s1", "w1", unblock=True)
    late = Record(Kind.RESULT, "late", b"1", extra={"path": "", "n": 2})
    await store.commit(lease, [late], Change(status=Status.FAILED, release=True))
    view = await admin.fork(store, "s1", "s2", ForkPoint("late"))
    assert [step.key for step in view.open_turn.steps] == ["first"]
    job = await admin.wake(store, "s2")
    assert await (await lab.worker(paying, "w2")).answer("j9", **job.input) == "Apaid 3"


async def test_what_cannot_be_copied_is_said(lab, store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    await worker.answer("j2", session_id="s2", question="a")
    with pytest.raises(InputError, match="'s2' already"):
        await admin.fork(store, "s1", "s2")
    with pytest.raises(InputError, match="no step 'third' in turn 1"):
        await admin.fork(store, "s1", "s3", ForkPoint("third", 1))
    with pytest.raises(InputError, match="no turn 7"):
        await admin.fork(store, "s1", "s3", ForkPoint(turn=7))
    with pytest.raises(InputError, match="session_id"):
        await admin.fork(store, "s1", "no id")
    assert [each.session for each in await listed(store, 2)] == ["s2", "s1"]


async def test_a_turn_whose_beginning_was_not_kept_is_not_copied_with_a_wrong_state(lab, store):
    forgetful = await lab.worker(agent)
    await forgetful.answer("j1", session_id="s1", question="a")
    lease = await store.acquire("s1", "w1")
    old = Record(Kind.TURN, "turn:1", b"{}", extra={"request": "j1"})
    new = Record(Kind.TURN, "turn:2", b"{}", extra={"request": "j2"})
    await store.commit(lease, [old, new], Change(release=True))
    with pytest.raises(SessionError, match="state before turn 2"):
        await admin.fork(store, "s1", "s2", ForkPoint(turn=2))
    assert await store.head("s2") is None


async def test_kept_journals_are_trimmed_before_they_leave_no_room_for_a_turn(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    lease = await store.acquire("s1", "w1")
    filling = [Record(Kind.ANSWER, "noise") for _ in range(store.limits.journal_records // 2)]
    await store.commit(lease, filling, Change(status=Status.IDLE, release=True))
    await worker.answer("j2", session_id="s1", question="b")
    assert (await store.load("s1")).records == ()
    await worker.answer("j3", session_id="s1", question="c")
    assert [turn.number for turn in (await admin.describe(store, "s1")).turns] == [3]
    assert (await admin.state_after(store, "s1", turn=2))["state"]["questions"] == ["a", "b"]
    await admin.fork(store, "s1", "s2", ForkPoint("second"))
    await worker.answer("j9", **(await admin.wake(store, "s2")).input)
    assert await admin.diff(store, ("s1", None), ("s2", None)) == ()


# ---- comparing ---------------------------------------------------------------------------------------------


async def test_the_states_after_two_turns_are_compared(store, worker):
    for number, question in enumerate("ab"):
        await worker.answer(f"j{number}", session_id="s1", question=question)
    found = await admin.diff(store, ("s1", 1), ("s1", 2))
    assert [(each.path, each.what) for each in found] == [
        ("$.state.questions[1]", "added"),
        ("$.state.total", "changed"),
        ("$.history[1]", "added"),
        ("$.answer", "changed"),
    ]
    with pytest.raises(InputError, match="no state after turn 5"):
        await admin.state_after(store, "s1", turn=5)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [Difference("$.a[1].b", "changed", 2, 3)]),
        ({"a": 1}, {"b": None}, [Difference("$.a", "removed", 1), Difference("$.b", "added")]),
        ([1, 2], [1], [Difference("$[1]", "removed", 2)]),
        ({"a b": 1}, {"a b": "1"}, [Difference('$["a b"]', "changed", 1, "1")]),
        (1, True, [Difference("$", "changed", 1, True)]),
        ({}, [], [Difference("$", "changed", {}, [])]),
    ],
)
def test_values_are_compared_by_path(before, after, expected):
    assert list(compare(before, after)) == expected


# ---- the end -----------------------------------------------------------------------------------------------


async def test_a_deleted_session_is_gone_and_its_worker_fenced(store, worker):
    await worker.answer("j1", session_id="s1", question="a")
    await admin.delete(store, "s1")
    assert await store.head("s1") is None
    await store.acquire("s2", "w1", ttl_s=60)
    await admin.delete(store, "s2", force=True)
    assert await store.head("s2") is None


async def test_the_store_of_the_settings_is_opened_unless_another_one_is_named(tmp_path):
    settings = Settings(state_url=f"sqlite:///{tmp_path}/a.db", state_namespace="app")
    for url, name in ((None, "a.db"), (f"sqlite:///{tmp_path}/b.db", "b.db")):
        store = admin.open_session_store(settings, url=url)
        assert store.namespace == "app"
        await store.check()
        await store.close()
        assert (tmp_path / name).exists()
