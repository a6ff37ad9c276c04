"""Steps run once in the life of a turn, whatever happens to the worker between them."""

import asyncio
import dataclasses
import datetime
import enum
import functools
import sys
import threading
from typing import Annotated

import numpy as np
import pytest
from pydantic import BaseModel, StringConstraints

from flashkit import SessionError, cpu_endpoint
from flashkit.errors import HandlerExit, PayloadTooLarge
from tests.sessions.session_lab import Steps, output_of, until


@dataclasses.dataclass
class Page:
    url: str
    body: bytes = b""


class Plan(BaseModel):
    parts: list[str]


@pytest.fixture
def steps() -> Steps:
    return Steps()


async def test_a_step_runs_its_function_and_returns_its_result(lab, steps):
    async def agent(session) -> list[object]:
        results = [await session.step("sync", steps.upper, "a"), await session.step("async", steps.lower, text="B")]
        return [results, session.completed_steps, repr(session)]

    worker = await lab.worker(agent)
    assert await worker.answer("j1", session_id="s1") == [
        ["A", "b"], ["sync", "async"], "<session 's1', turn 1, 2 steps done>",
    ]  # fmt: skip


async def test_after_a_failure_completed_steps_answer_from_the_journal(lab, steps):
    async def agent(session) -> list[str]:
        one = await session.step("one", steps.upper, "a")
        return [one, await session.step("two", steps.upper, "b")]

    async def failing(session) -> list[str]:
        return [await session.step("one", steps.upper, "a"), await session.step("two", steps.fail)]

    error = await (await lab.worker(failing)).error("j1")
    assert error.type == "ConnectionError"
    assert await (await lab.worker(agent, "w2")).answer("j1") == ["A", "B"]
    assert steps.seen == ["a", "fail", "b"]


async def test_another_session_knows_nothing_of_the_first(lab, steps):
    async def agent(session) -> str:
        return await session.step("one", steps.upper, session.id)

    worker = await lab.worker(agent)
    assert [await worker.answer("j1", session_id="s1"), await worker.answer("j2", session_id="s2")] == ["S1", "S2"]
    assert steps.seen == ["s1", "s2"]


@pytest.mark.parametrize("order", [["x", "x", "x"], ["x", "x#2", "x", "x"], ["x#2", "x", "x", "x#2"]])
async def test_names_may_repeat_and_each_use_is_a_step_of_its_own(lab, steps, order):
    answers = []

    async def agent(session) -> None:
        answers.append([await session.step(name, steps.upper, f"a{number}") for number, name in enumerate(order)])
        assert len(session.completed_steps) == len(order)
        raise ConnectionError

    worker = await lab.worker(agent)
    for _ in range(2):
        await worker.error("j1")
    assert answers == [[f"A{number}" for number in range(len(order))]] * 2
    assert len(steps.seen) == len(order)


async def test_a_steps_parameters_may_be_called_name_and_function(lab):
    def tell(name, function, endpoint, self):
        return [name, function, endpoint, self]

    async def agent(session):
        return await session.step("tell", tell, name=1, function=2, endpoint=3, self=4)

    assert await (await lab.worker(agent)).answer("j1") == [1, 2, 3, 4]


async def test_results_come_back_in_the_declared_type_on_every_run(lab):
    def page() -> Page:
        return Page("u", b"\xff")

    def plan() -> Plan:
        return Plan(parts=["a"])

    def table() -> dict[int, tuple[int, datetime.date]]:
        return {1: (2, datetime.date(2026, 1, 2))}

    def plain():
        return {1: (2, {3})}

    def big() -> int:
        return 2**70 + 1

    def array() -> np.ndarray:
        return np.arange(2)

    def nothing() -> None: ...

    runs = []

    async def agent(session) -> None:
        assert await session.step("page", page) == Page("u", b"\xff")
        assert await session.step("plan", plan) == Plan(parts=["a"])
        assert await session.step("table", table) == {1: (2, datetime.date(2026, 1, 2))}
        assert await session.step("plain", plain) == {"1": [2, [3]]}
        assert await session.step("big", big) == 2**70 + 1
        assert await session.step("array", array) == [0, 1]
        assert await session.step("nothing", nothing) is None
        assert await session.step("class", Page, "v") == Page("v")
        assert await session.step("builtin", len, "abc") == 3
        runs.append(len(session.completed_steps))
        if len(runs) == 1:
            raise ConnectionError

    worker = await lab.worker(agent)
    assert (await worker.error("j1")).type == "ConnectionError"
    await worker.answer("j1")
    assert runs == [9, 9]


async def test_a_text_comes_back_the_same_on_the_first_run_as_on_a_later_one(lab):
    class Colour(enum.StrEnum):
        RED = "red"

    class Name(str): ...

    def declared(value: str) -> str:
        return value

    def undeclared(value):
        return value

    def date(value: str) -> datetime.date:
        return value  # type: ignore[return-value]  # a date's JSON form

    def stripped(value: str) -> Annotated[str, StringConstraints(strip_whitespace=True)]:
        return value

    def maybe(value: str) -> int | str:
        return value

    async def agent(session) -> None:
        texts = ["", "plain", "naïve \u2028 \0 \U0001f600", '"quoted"\n', "null"]
        results = [await session.step("text", function, text) for function in (declared, undeclared) for text in texts]
        assert results == 2 * texts
        results += [await session.step("text", declared, value) for value in (Colour.RED, Name("n"))]
        results += [await session.step("text", undeclared, value) for value in (Colour.RED, Name("n"))]
        results.append(await session.step("date", date, "2026-01-02"))
        results.append(await session.step("stripped", stripped, " a "))
        results.append(await session.step("maybe", maybe, "1"))
        runs.append([(type(result), result) for result in results])
        if len(runs) == 1:
            raise ConnectionError

    runs: list[object] = []
    worker = await lab.worker(agent)
    assert (await worker.error("j1")).type == "ConnectionError"
    await worker.answer("j1")
    assert runs[0] == runs[1]
    assert runs[0][-3:] == [(datetime.date, datetime.date(2026, 1, 2)), (str, "a"), (str, "1")]


async def test_an_annotation_that_cannot_be_resolved_says_nothing(lab):
    def undefined() -> "NotDefined":  # noqa: F821
        return [1]

    async def agent(session):
        return await session.step("undefined", undefined)

    assert await (await lab.worker(agent)).answer("j1") == [1]


async def test_a_step_may_be_a_lambda_a_partial_or_an_endpoint(lab, steps):
    endpoint = cpu_endpoint()(steps.lower)

    async def agent(session):
        return [
            await session.step("lambda", lambda: steps.lower("A")),
            await session.step("partial", functools.partial(steps.lower, "B")),
            await session.step("endpoint", endpoint, "C"),
        ]

    assert await (await lab.worker(agent)).answer("j1") == ["a", "b", "c"]


async def test_sync_steps_run_outside_of_the_loops_thread(lab):
    async def agent(session):
        return await session.step("thread", threading.get_ident) != threading.get_ident()

    assert await (await lab.worker(agent)).answer("j1") is True


@pytest.mark.parametrize(("name", "function"), [(len, "abc"), ("name", "abc"), (None, len), (1, len), ("", len)])
@pytest.mark.parametrize("method", ["step", "effect"])
async def test_a_step_without_a_name_or_function_is_refused_at_once(lab, method, name, function):
    async def agent(session) -> None:
        with pytest.raises(SessionError, match="does not name a step and its function"):
            getattr(session, method)(name, function)

    await (await lab.worker(agent)).answer("j1")


async def test_a_result_that_cannot_be_written_names_the_step(lab):
    async def agent(session) -> None:
        with pytest.raises(SessionError, match="step 'odd' returned a object"):
            await session.step("odd", object)
        assert session.completed_steps == ()

    await (await lab.worker(agent)).answer("j1")


async def test_a_result_too_large_for_the_journal_is_kept_beside_it(lab):
    runs = []

    def make() -> str:
        runs.append("x")
        return "x" * 3_000_000

    async def agent(session) -> int:
        text = await session.step("large", make)
        if len(runs) == 1:
            runs.append("crash")
            raise ConnectionError
        return len(text)

    worker = await lab.worker(agent)
    await worker.error("j1")
    assert await worker.answer("j1") == 3_000_000
    assert runs == ["x", "crash"]


async def test_a_result_over_every_limit_fails_its_step_and_the_session_goes_on(lab):
    async def agent(session, ok: bool) -> str:
        with pytest.raises(PayloadTooLarge):
            await session.step("huge", lambda: "x" * 9_000_000)
        return await session.step("small", lambda: "y")

    assert await (await lab.worker(agent)).answer("j1", ok=True) == "y"


@pytest.mark.parametrize("together", [False, True])
async def test_a_step_that_exits_or_ends_an_iterator_fails_only_itself(lab, together):
    def leave():
        sys.exit(3)

    async def leave_on_loop():
        sys.exit(3)

    def end():
        return next(iter([]))

    async def agent(session) -> None:
        for function, error in ((leave, HandlerExit), (leave_on_loop, HandlerExit), (end, RuntimeError)):
            step = session.step("step", function)
            with pytest.raises(error):
                await asyncio.wait_for(session.gather(step) if together else step, 5)

    await (await lab.worker(agent)).answer("j1")


async def test_gather_runs_steps_at_the_same_time_and_keeps_their_order(lab):
    meeting = asyncio.Barrier(3)

    async def meet(number: int) -> int:
        await meeting.wait()
        return number

    async def agent(session):
        assert await session.gather() == []
        assert await session.gather(partial=True) == []
        return await session.gather(*(session.step("meet", meet, number) for number in range(3)))

    assert await (await lab.worker(agent)).answer("j1") == [0, 1, 2]


async def test_the_first_failure_cancels_the_others_and_is_raised_itself(lab):
    events = []

    async def wait(name):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append(name)
            raise ValueError("failed in its clean-up") from None

    async def fail():
        await asyncio.sleep(0.01)
        raise ConnectionError("the first one")

    async def agent(session) -> None:
        with pytest.raises(ConnectionError, match="the first one"):
            await session.gather(session.step("a", wait, "a"), session.step("b", fail), session.step("c", wait, "c"))

    await (await lab.worker(agent)).answer("j1")
    assert events == ["a", "c"]


async def test_what_was_done_before_a_failure_in_gather_is_not_run_again(lab, steps):
    async def fail_once_later():
        if "failed" in steps.seen:
            return "B"
        await until(lambda: "a" in steps.seen)
        await asyncio.sleep(0.1)
        steps.seen.append("failed")
        raise ConnectionError

    async def agent(session):
        return await session.gather(session.step("a", steps.upper, "a"), session.step("b", fail_once_later))

    worker = await lab.worker(agent)
    assert (await worker.error("j1")).type == "ConnectionError"
    assert await worker.answer("j1") == ["A", "B"]
    assert steps.seen == ["a", "failed"]


async def test_partial_gather_gives_exceptions_in_place_of_results(lab, steps):
    async def cancel_itself():
        raise asyncio.CancelledError

    async def agent(session) -> list[str]:
        results = await session.gather(
            session.step("good", steps.upper, "a"),
            session.step("bad", steps.fail),
            session.step("gone", cancel_itself),
            partial=True,
        )
        return [type(result).__name__ for result in results]

    assert await (await lab.worker(agent)).answer("j1") == ["str", "ConnectionError", "CancelledError"]


@pytest.mark.parametrize("partial", [False, True])
async def test_a_cancelled_job_cancels_every_step_of_a_gather_and_frees_the_session(lab, partial):
    events = []

    async def wait():
        events.append("started")
        try:
            await asyncio.sleep(60)
        finally:
            events.append("ended")

    async def agent(session) -> None:
        await session.gather(session.step("a", wait), session.step("b", wait), partial=partial)

    worker = await lab.worker(agent)
    task = worker.start("j1", session_id="s1")
    await until(lambda: len(events) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["started", "started", "ended", "ended"]
    head = await lab.head("s1")
    assert (head.status, head.reason, head.is_held) == ("failed", "cancelled", False)


async def test_a_handler_that_catches_a_failing_step_can_go_on(lab, steps):
    async def agent(session) -> str:
        try:
            return await session.step("search", steps.fail)
        except ConnectionError:
            return await session.step("fallback", steps.upper, "from memory")

    assert output_of(await (await lab.worker(agent)).outcome("j1")) == "FROM MEMORY"


async def test_partial_outputs_reach_whoever_streams_the_job(lab):
    async def agent(session) -> str:
        await session.stream({"token": "a"})
        await session.stream(Page("u"))
        return "done"

    worker = await lab.worker(agent)
    assert await worker.answer("j1") == "done"
    assert worker.streamed == [{"token": "a"}, {"url": "u", "body": ""}]


async def test_iterators_reach_the_step_unread(lab):
    async def agent(session) -> list[int]:
        first = await session.step("sum", sum, (number for number in range(4)))
        return [first, await session.step("nested", lambda many: sum(many["n"]), {"n": iter([1, 2])})]

    assert await (await lab.worker(agent)).answer("j1") == [6, 3]
