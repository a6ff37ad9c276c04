"""Jobs become turns: begun once, resumed where they stopped, answered the same way every time they come."""

import asyncio
import time
from typing import ClassVar

import pytest
from pydantic import BaseModel

from flashkit import InputError, Session
from flashkit.errors import SessionBusy
from flashkit.settings import Settings
from flashkit.worker.sessions.runner import Request
from tests.sessions.session_lab import Steps, output_of, until


@pytest.fixture
def steps() -> Steps:
    return Steps()


class Notes(BaseModel):
    topics: list[str] = []


class Renamed(BaseModel):
    """What `Notes` became two versions later."""

    state_version: ClassVar[int] = 3
    subjects: list[str] = []
    count: int = 0

    @staticmethod
    def migrate(data, version):
        if version == 1:
            return {"subjects": data["topics"]}
        return {**data, "count": len(data["subjects"])}


class Stuck(BaseModel):
    state_version: ClassVar[int] = 2


class Demanding(BaseModel):
    name: str


# ------------------------------------------------------------------ jobs and sessions


@pytest.mark.parametrize("session_id", ["a", "user:1.2_3-4", "0" * 128, "2e4"])
def test_a_job_names_its_session_and_the_handler_does_not_see_the_id(session_id):
    data = {"session_id": session_id, "question": "why"}
    request = Request.from_job("job-1", data)
    assert (request.session_id, request.data) == (session_id, {"question": "why"})
    assert data["session_id"] == session_id


@pytest.mark.parametrize("session_id", ["", " a", "-a", "a/b", "a b", "ä", "a\n", "0" * 129, None, 5, ["a"], {}])
def test_what_is_no_session_id_is_refused(session_id):
    with pytest.raises(InputError, match="is not a session's id"):
        Request.from_job("job-1", {"session_id": session_id})


@pytest.mark.parametrize("data", [{"question": "why"}, {}, None, [1]])
def test_a_job_without_a_session_id_is_a_session_of_its_own(data):
    request = Request.from_job("sync-job-1-u1", data)
    assert (request.session_id, request.data) == ("sync-job-1-u1", data)


@pytest.mark.parametrize("event", [5, "ok", {}, {"value": 1}, {"name": 3}])
def test_an_event_without_a_name_is_refused(event):
    with pytest.raises(InputError, match="names no event"):
        Request.from_job("job-1", {"session_id": "a", "event": event})


# ------------------------------------------------------------------ turns


async def test_an_orchestrator_resumes_when_its_job_is_run_again(lab, steps):
    crash = [True]

    async def agent(session, question: str) -> list[str]:
        plan = await session.step("plan", steps.upper, question)
        if crash.pop():
            raise ConnectionResetError("the worker goes away")
        return [plan, await session.step("write", steps.lower, question)]

    crash.insert(0, False)
    error = await (await lab.worker(agent)).error("j1", question="Why")
    assert error.type == "ConnectionResetError"
    assert await (await lab.worker(agent, "w2")).answer("j1", question="Why") == ["WHY", "why"]
    assert steps.seen == ["Why", "Why"]


async def test_a_finished_job_that_comes_again_gets_its_stored_answer(lab, steps):
    async def agent(session, q: str) -> dict[str, object]:
        return {"said": await session.step("say", steps.upper, q), "turn": session.turn, "large": 2**70 + 1}

    first = await (await lab.worker(agent)).answer("j1", session_id="s", q="a")
    worker = await lab.worker(agent, "w2")
    await worker.answer("j2", session_id="s", q="b")
    assert await worker.answer("j1", session_id="s", q="a") == first
    assert first["large"] == 2**70 + 1
    assert steps.seen == ["a", "b"]


async def test_an_answer_too_large_for_the_snapshot_is_stored_too(lab, steps):
    async def agent(session) -> str:
        steps.seen.append("ran")
        return "x" * 2_000_000

    worker = await lab.worker(agent)
    assert len(await worker.answer("j1", session_id="s")) == 2_000_000
    assert len(await worker.answer("j1", session_id="s")) == 2_000_000
    assert steps.seen == ["ran"]


async def test_two_copies_of_a_job_at_the_same_time_converge_to_one_run(lab, steps):
    gate = asyncio.Event()

    async def work() -> str:
        steps.seen.append("work")
        await gate.wait()
        return "done"

    async def agent(session) -> str:
        return await session.step("work", work)

    worker = await lab.worker(agent)
    tasks = [worker.start("j1", session_id="s") for _ in range(3)]
    await until(lambda: steps.seen)
    await asyncio.sleep(0.05)
    gate.set()
    assert [(await task).output for task in tasks] == [b'"done"'] * 3
    assert steps.seen == ["work"]


async def test_jobs_of_one_session_take_their_turns_one_after_the_other(lab):
    running = []

    async def agent(session, q: str) -> int:
        running.append(q)
        await asyncio.sleep(0.02)
        assert running.pop() == q
        return session.turn

    worker = await lab.worker(agent)
    tasks = [worker.start(f"j{number}", session_id="s", q=str(number)) for number in range(5)]
    assert sorted([(await task).output for task in tasks]) == [b"1", b"2", b"3", b"4", b"5"]


async def test_the_next_turn_starts_with_steps_of_its_own(lab, steps):
    async def agent(session, q: str) -> list[object]:
        return [session.turn, await session.step("say", steps.upper, q)]

    worker = await lab.worker(agent)
    assert await worker.answer("j1", session_id="s", q="a") == [1, "A"]
    assert await worker.answer("j2", session_id="s", q="b") == [2, "B"]


async def test_another_job_with_the_same_input_goes_on_with_a_failed_turn(lab, steps):
    crash = [False, True]

    async def agent(session, q: str) -> list[object]:
        said = await session.step("say", steps.upper, q)
        if crash.pop():
            raise ConnectionError
        return [session.turn, said]

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", q="a")
    assert await worker.answer("retry", session_id="s", q="a") == [1, "A"]
    assert await worker.answer("j1", session_id="s", q="a") == [1, "A"]
    assert steps.seen == ["a"]


async def test_a_job_with_other_input_gives_a_failed_turn_up(lab, steps):
    async def agent(session, q: str) -> list[object]:
        said = await session.step("say", steps.upper, q)
        if q == "bad":
            raise ConnectionError
        return [session.turn, said]

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", q="bad")
    assert await worker.answer("j2", session_id="s", q="good") == [2, "GOOD"]


async def test_the_job_of_a_turn_that_was_given_up_learns_it_while_the_next_turn_is_open(lab):
    async def agent(session, q: str) -> None:
        raise ConnectionError

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", q="a")
    await worker.error("j2", session_id="s", q="b")
    error = await worker.error("j1", session_id="s", q="a")
    assert error.code == "session_fenced"
    assert "another request" in error.message


async def test_the_job_of_a_turn_that_was_given_up_learns_it_after_later_turns_too(lab):
    async def agent(session, q: str) -> int:
        if q.startswith("bad"):
            raise ConnectionError
        return session.turn

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", q="bad 1")
    await worker.error("j2", session_id="s", q="bad 2")
    assert await worker.answer("j3", session_id="s", q="good") == 3
    assert await worker.answer("j4", session_id="s", q="good too") == 4
    for job_id, q in (("j1", "bad 1"), ("j2", "bad 2")):
        error = await worker.error(job_id, session_id="s", q=q)
        assert error.code == "session_fenced"
        assert "another request" in error.message
    assert await worker.answer("j3", session_id="s", q="good") == 3


async def test_a_turn_that_fails_again_and_again_is_not_taken_for_a_dying_worker(lab, steps):
    async def agent(session) -> str:
        if len(steps.seen) < 8:
            steps.fail()
        return "at last"

    worker = await lab.worker(agent)
    for _ in range(8):
        assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert (await lab.head("s")).status == "failed"
    assert await worker.answer("j1", session_id="s") == "at last"


async def test_input_of_any_size_of_number_reaches_the_handler_on_every_run(lab):
    runs = []

    async def agent(session, n: int) -> int:
        runs.append(n)
        if len(runs) == 1:
            raise ConnectionError
        return n

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", n=2**70 + 1)
    assert await worker.answer("j1", session_id="s", n=2**70 + 1) == 2**70 + 1


async def test_input_that_does_not_fit_fails_the_job_and_frees_the_session(lab):
    async def agent(session, n: int) -> int:
        return n

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s", n="many")).code == "input_invalid"
    assert not (await lab.head("s")).is_held
    assert await worker.answer("j2", session_id="s", n=2) == 2


async def test_a_job_that_only_goes_on_needs_a_turn_under_way_and_leaves_no_lease_behind(lab):
    async def agent(session, q: str = "") -> str:
        return q

    worker = await lab.worker(agent, lease_seconds=0.2)
    error = await worker.error("j1", session_id="s", event={"name": "ok"})
    assert "no turn under way" in error.message
    await asyncio.sleep(0.3)
    assert not (await lab.head("s")).is_held
    assert await worker.answer("j2", session_id="s", q="a") == "a"


async def test_a_worker_that_leaves_ends_turns_at_the_next_step_and_another_one_goes_on(lab, steps):
    async def agent(session) -> list[str]:
        one = await session.step("one", steps.upper, "a")
        if len(steps.seen) == 1:
            first.runtime.hand_back()
        return [one, await session.step("two", steps.upper, "b")]

    first = await lab.worker(agent)
    assert await first.is_handed_back("j1", session_id="s")
    assert not (await lab.head("s")).is_held
    assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s") == ["A", "B"]
    assert steps.seen == ["a", "b"]


async def test_a_worker_that_died_before_its_turn_began_is_followed_at_once_by_the_same_job(lab):
    async def agent(session, q: str) -> str:
        return q

    dying = (await lab.worker(agent, lease_seconds=600)).runtime._sessions
    await dying._acquire(Request.from_job("j1", {"session_id": "s", "q": "a"}), time.monotonic())
    async with asyncio.timeout(30):
        assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s", q="a") == "a"


async def test_a_worker_that_died_as_it_went_on_for_another_job_is_followed_at_once_by_that_job(lab):
    worker = await lab.worker(wait_for_approval)
    await worker.answer("j1", session_id="s", q="a")
    dying = (await lab.worker(wait_for_approval, "w2", lease_seconds=600)).runtime._sessions
    event = {"name": "approved", "value": 1}
    await dying._acquire(Request.from_job("j2", {"session_id": "s", "event": event}), time.monotonic())
    async with asyncio.timeout(30):
        assert await (await lab.worker(wait_for_approval, "w3")).answer("j2", session_id="s", event=event) == ["a", 1]


async def test_processes_outside_of_a_platform_do_not_take_each_other_for_the_same_worker(lab, steps):
    async def agent(session, q: str) -> int:
        steps.seen.append(q)
        await until(lambda: len(steps.seen) == 2 or gate.is_set())
        return session.turn

    gate = asyncio.Event()
    first, second = [await lab.worker(agent, Settings().worker_id) for _ in range(2)]
    task = first.start("j1", session_id="s", q="a")
    await until(lambda: steps.seen)
    waiting = second.start("j2", session_id="s", q="b")
    await asyncio.sleep(0.1)
    gate.set()
    assert [output_of(await task), output_of(await waiting)] == [1, 2]


# ------------------------------------------------------------------ events


async def wait_for_approval(session: Session[None], q: str, timeout: float | None = None) -> object:
    return [q, await session.wait_for("approved", timeout=timeout)]


async def test_a_waiting_session_gives_its_worker_back_and_the_event_resumes_it_on_another(lab, steps):
    async def agent(session, q: str) -> list[object]:
        draft = await session.step("draft", steps.upper, q)
        return [draft, await session.wait_for("approved"), session.turn]

    waiting = await (await lab.worker(agent)).answer("j1", session_id="s", q="a")
    assert waiting == {"status": "waiting", "session_id": "s", "event": "approved", "timeout": None}
    head = await lab.head("s")
    assert (head.status, head.reason, head.is_held) == ("waiting", "waits for event 'approved'", False)
    worker = await lab.worker(agent, "w2")
    event = {"name": "approved", "value": {"by": "Ada"}}
    assert await worker.answer("j2", session_id="s", event=event) == ["A", {"by": "Ada"}, 1]
    assert steps.seen == ["a"]


async def test_both_jobs_of_a_turn_that_waited_get_its_answer_again(lab):
    worker = await lab.worker(wait_for_approval)
    await worker.answer("j1", session_id="s", q="a")
    event = {"name": "approved", "value": 1}
    answers = [
        await worker.answer("j2", session_id="s", event=event),
        await worker.answer("j2", session_id="s", event=event),
        await worker.answer("j1", session_id="s", q="a"),
    ]
    assert answers == [["a", 1]] * 3


async def test_an_event_that_came_before_it_is_waited_for_counts(lab):
    worker = await lab.worker(wait_for_approval)
    await worker.error("j0", session_id="s", event={"name": "approved", "value": "early"})
    assert await worker.answer("j1", session_id="s", q="a") == ["a", "early"]


async def test_another_event_leaves_the_session_waiting_and_is_kept(lab):
    async def agent(session, q: str) -> list[object]:
        return [await session.wait_for("one"), await session.wait_for("two")]

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    assert (await worker.answer("j2", session_id="s", event={"name": "two", "value": 2}))["event"] == "one"
    assert await worker.answer("j3", session_id="s", event={"name": "one", "value": 1}) == [1, 2]


async def test_an_event_that_nobody_took_is_kept_for_the_next_turn(lab):
    async def agent(session, q: str) -> object:
        return await session.wait_for("note") if q == "wait" else None

    worker = await lab.worker(agent)
    await worker.error("j0", session_id="s", event={"name": "note", "value": 2**70})
    assert await worker.answer("j1", session_id="s", q="skip") is None
    assert await worker.answer("j2", session_id="s", q="wait") == 2**70


async def test_events_of_one_name_are_taken_in_order_and_once_each(lab):
    crash = [False, True]

    async def agent(session, q: str) -> list[object]:
        first = await session.wait_for("note")
        if crash.pop():
            raise ConnectionError
        return [first, await session.wait_for("note")]

    worker = await lab.worker(agent)
    for value in (1, 2):
        await worker.error(f"e{value}", session_id="s", event={"name": "note", "value": value})
    await worker.error("j1", session_id="s", q="a")
    crash.append(False)
    assert await worker.answer("j1", session_id="s", q="a") == [1, 2]


@pytest.mark.parametrize("name", ["deploy/42", "a#2", "für:alle"])
async def test_the_name_of_an_event_may_be_anything(lab, name):
    crash = [False, True]

    async def agent(session, q: str) -> list[object]:
        first = await session.wait_for(name)
        if crash.pop():
            raise ConnectionError
        return [first, len(session.unread_events)]

    worker = await lab.worker(agent)
    await worker.error("e1", session_id="s", event={"name": name, "value": 1})
    await worker.error("j1", session_id="s", q="a")
    assert await worker.answer("j1", session_id="s", q="a") == [1, 0]


async def test_the_same_event_job_twice_is_one_event(lab):
    async def agent(session, q: str) -> list[object]:
        return [await session.wait_for("note"), await session.wait_for("note")]

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    event = {"name": "note", "value": 1}
    for _ in range(2):
        assert (await worker.answer("j2", session_id="s", event=event))["status"] == "waiting"
    assert await worker.answer("j3", session_id="s", event={"name": "note", "value": 2}) == [1, 2]


async def test_an_event_that_a_turn_did_not_use_before_it_was_given_up_is_kept(lab):
    async def agent(session, q: str) -> list[object]:
        used = await session.wait_for("used")
        if q == "bad":
            raise ConnectionError
        return [used, await session.wait_for("other")]

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="bad")
    assert (await worker.answer("e1", session_id="s", event={"name": "other", "value": 1}))["status"] == "waiting"
    await worker.error("e2", session_id="s", event={"name": "used", "value": 2})
    waiting = await worker.answer("j2", session_id="s", q="good")
    assert waiting["event"] == "used", "an event that was used is not there for another request"
    assert await worker.answer("e3", session_id="s", event={"name": "used", "value": 3}) == [3, 1]


async def test_an_event_that_comes_while_the_turn_is_at_work_is_there_when_it_waits(lab, steps):
    """Its job gives up before that, and nobody else would resume the session."""
    gate = asyncio.Event()

    async def work() -> None:
        steps.seen.append("work")
        await gate.wait()

    async def agent(session, q: str) -> object:
        await session.step("work", work)
        return await session.wait_for("approved")

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    task = first.start("j1", session_id="s", q="a")
    await until(lambda: steps.seen)
    event = {"name": "approved", "value": 7}
    error = await given_up(second, "j2", session_id="s", event=event)
    assert error.code == "session_busy"
    assert error.report.details == {"owner": "w1", "kept_event": "approved"}
    assert "do not send the event again" in error.report.hint
    gate.set()
    assert output_of(await task) == 7


async def test_an_event_that_comes_while_another_branch_is_at_work_resumes_the_turn_by_itself(lab, steps):
    gate = asyncio.Event()

    async def work() -> str:
        steps.seen.append("work")
        await gate.wait()
        return "worked"

    async def agent(session, q: str) -> list[object]:
        return await session.gather(session.wait_for("approved"), session.step("work", work))

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    task = first.start("j1", session_id="s", q="a")
    await until(lambda: steps.seen)
    await given_up(second, "j2", session_id="s", event={"name": "approved", "value": 7})
    gate.set()
    assert output_of(await task) == [7, "worked"]
    assert steps.seen == ["work"]
    assert await second.answer("j2", session_id="s", event={"name": "approved", "value": 7}) == [7, "worked"]


async def test_another_event_that_comes_meanwhile_leaves_the_session_waiting(lab, steps):
    gate = asyncio.Event()

    async def work() -> None:
        steps.seen.append("work")
        await gate.wait()

    async def agent(session, q: str) -> object:
        await session.step("work", work)
        return [await session.wait_for("approved"), await session.wait_for("other")]

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    task = first.start("j1", session_id="s", q="a")
    await until(lambda: steps.seen)
    await given_up(second, "j2", session_id="s", event={"name": "other", "value": 1})
    gate.set()
    assert output_of(await task)["event"] == "approved"
    assert await second.answer("j3", session_id="s", event={"name": "approved", "value": 2}) == [2, 1]


async def given_up(worker, job_id, **data):
    """Run a job that waits no time for a session that another worker has, and return why it failed."""
    runner = worker.runtime._sessions
    with pytest.raises(SessionBusy) as caught:
        await runner.run(job_id, data, None, emit=None, budget_s=0.0)
    return caught.value


async def test_a_session_resumed_without_its_event_goes_on_waiting_until_its_time_is_over(lab):
    worker = await lab.worker(wait_for_approval)
    data = {"session_id": "s", "q": "a", "timeout": 0.3}
    assert (await worker.answer("j1", **data))["timeout"] == 0.3
    assert (await worker.answer("j1", **data))["status"] == "waiting"
    await asyncio.sleep(0.35)
    error = await worker.error("j1", **data)
    assert error.type == "TimeoutError"
    assert "waited 0.3 s for event 'approved'" in error.message


async def test_a_wait_that_timed_out_stays_timed_out_when_the_event_comes_after_all(lab, steps):
    crash = [False, True]

    async def agent(session, q: str) -> str:
        try:
            return str(await session.wait_for("approved", timeout=0.1))
        except TimeoutError:
            text = await session.step("without", steps.upper, q)
            if crash.pop():
                raise ConnectionError from None
            return text

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="a")
    await asyncio.sleep(0.15)
    assert (await worker.error("j1", session_id="s", q="a")).type == "ConnectionError"
    assert await worker.answer("j2", session_id="s", event={"name": "approved", "value": 1}) == "A"


async def test_a_branch_that_waits_lets_the_others_finish_first(lab, steps):
    async def slow() -> str:
        steps.seen.append("slow")
        await asyncio.sleep(0.05)
        return "B"

    async def agent(session, q: str) -> list[object]:
        return await session.gather(session.wait_for("approved"), session.step("slow", slow))

    worker = await lab.worker(agent)
    assert (await worker.answer("j1", session_id="s", q="a"))["status"] == "waiting"
    assert await worker.answer("j2", session_id="s", event={"name": "approved", "value": 1}) == [1, "B"]
    assert steps.seen == ["slow"]


# ------------------------------------------------------------------ state, history, budget


async def test_state_and_history_are_kept_between_turns(lab):
    async def agent(session: Session[Notes], q: str) -> dict[str, object]:
        session.state.topics.append(q)
        session.history.add("user", q)
        return {"topics": session.state.topics, "history": session.history.messages}

    await (await lab.worker(agent)).answer("j1", session_id="s", q="a")
    answer = await (await lab.worker(agent, "w2")).answer("j2", session_id="s", q="b")
    assert answer["topics"] == ["a", "b"]
    assert [message["content"] for message in answer["history"]] == ["a", "b"]


async def test_a_turn_that_fails_changes_neither_state_nor_history(lab):
    async def agent(session: Session[Notes], q: str) -> list[object]:
        session.state.topics.append(q)
        session.history.add("user", q)
        if q == "bad":
            raise ConnectionError
        return [session.state.topics, len(session.history)]

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s", q="bad")
    assert await worker.answer("j2", session_id="s", q="good") == [["good"], 1]


async def test_a_state_of_an_older_version_is_migrated_step_by_step(lab):
    async def old(session: Session[Notes], q: str) -> None:
        session.state.topics.append(q)

    async def new(session: Session[Renamed], q: str) -> dict[str, object]:
        return session.state.model_dump()

    await (await lab.worker(old)).answer("j1", session_id="s", q="a")
    assert await (await lab.worker(new)).answer("j2", session_id="s", q="b") == {"subjects": ["a"], "count": 1}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (Notes, Stuck, "there is no way to 2"),
        (Renamed, Notes, "this worker's code has 1"),
        (Notes, Demanding, "does not fit Demanding"),
    ],
)
async def test_a_state_that_cannot_be_read_is_left_as_it_is(lab, before, after, message):
    async def old(session: Session[before], q: str) -> None: ...

    async def new(session: Session[after], q: str) -> None: ...

    old.__annotations__["session"], new.__annotations__["session"] = Session[before], Session[after]
    await (await lab.worker(old)).answer("j1", session_id="s", q="a")
    error = await (await lab.worker(new, lease_seconds=0.2)).error("j2", session_id="s", q="b")
    assert error.code == "session_error"
    assert message in error.message
    await asyncio.sleep(0.3)
    assert not (await lab.head("s")).is_held
    await (await lab.worker(old)).answer("j3", session_id="s", q="c")


async def test_a_new_session_needs_a_state_that_can_begin_empty(lab):
    async def agent(session: Session[Demanding], q: str) -> None: ...

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert "needs an empty Demanding" in error.message


async def test_a_state_that_cannot_be_saved_fails_the_turn_and_frees_the_session(lab):
    async def agent(session: Session[Notes], q: str) -> None:
        session.state.topics = ["x" * 9_000_000]

    worker = await lab.worker(agent, lease_seconds=0.2)
    error = await worker.error("j1", session_id="s", q="a")
    assert error.code == "payload_too_large"
    await asyncio.sleep(0.3)
    head = await lab.head("s")
    assert (head.status, head.is_held) == ("failed", False)


async def test_a_budget_counts_the_steps_before_a_restart_too(lab, steps):
    crash = [True]

    async def agent(session) -> None:
        session.budget(steps=3)
        for number in range(5):
            await session.step("search", steps.upper, str(number))
            if number == 1 and crash:
                crash.pop()
                raise ConnectionError

    worker = await lab.worker(agent)
    assert (await worker.error("j1")).type == "ConnectionError"
    error = await worker.error("j1")
    assert (error.code, error.details["ceiling"]) == ("budget_exceeded", "steps")
    assert steps.seen == ["0", "1", "2"]


async def test_an_agent_that_goes_round_in_circles_is_ended_across_restarts(lab, steps):
    crash = [True]

    async def agent(session) -> None:
        session.budget(repeats=5)
        for number in range(100):
            await session.step("think", steps.upper, "a")
            await session.step("search", steps.lower, "b")
            if number == 2 and crash:
                crash.pop()
                raise ConnectionError

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    error = await worker.error("j1", session_id="s")
    assert error.details["loop"] == ["think", "search"]
    assert len(steps.seen) == 11
    assert (await lab.head("s")).reason.startswith("BudgetExceeded: the session goes round in circles")


@pytest.mark.parametrize("ceiling", [{"steps": 0}, {"tokens": -1}, {"cost_usd": True}, {"repeats": "x"}])
async def test_what_is_no_ceiling_is_refused(lab, ceiling):
    async def agent(session) -> None:
        session.budget(**ceiling)

    assert "is not a ceiling" in (await (await lab.worker(agent)).error("j1")).message


async def test_what_was_spent_past_a_ceiling_ends_the_turn(lab):
    async def agent(session) -> None:
        session.budget(tokens=100, cost_usd=None)
        session.spend(tokens=60, cost_usd=5.0)
        session.spend(tokens=60)

    assert (await (await lab.worker(agent)).error("j1")).details["used"] == 120


async def test_a_turn_is_quick(lab, steps):
    async def agent(session, q: str) -> None:
        for number in range(20):
            await session.step("say", steps.lower, str(number))

    worker = await lab.worker(agent)
    await worker.answer("warm", q="a")
    started = time.monotonic()
    await worker.answer("j1", q="b")
    assert time.monotonic() - started < 2
