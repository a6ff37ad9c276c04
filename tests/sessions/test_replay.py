"""Code that no longer fits a journal is noticed before it does something twice."""

import asyncio
import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashkit.worker.sessions.admin import describe
from tests.sessions.session_lab import Steps, until


@pytest.fixture
def steps() -> Steps:
    return Steps()


def agent_of(steps: Steps, *names: str, fails: bool):
    """Return a handler that takes these steps, and then fails or not."""

    async def agent(session) -> list[str]:
        results = [await session.step(name, steps.upper, name) for name in names]
        if fails:
            raise ConnectionError
        return results

    return agent


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (["plan", "search", "write"], ["plan", "find", "write"], ("find", "search")),
        (["plan", "search", "write"], ["search", "plan", "write"], ("search", "plan")),
        (["plan", "search", "write"], ["plan", "write"], ("write", "search")),
        (["plan", "search"], ["warm up", "plan", "search"], ("warm up", "plan")),
        (["plan", "plan"], ["plan", "search"], ("search", "plan#2")),
    ],
    ids=["renamed", "reordered", "removed", "added", "renamed-second-use"],
)
async def test_steps_that_differ_from_the_journal_end_the_turn_and_both_are_named(lab, steps, before, after, named):
    asked, recorded = named
    await (await lab.worker(agent_of(steps, *before, fails=True))).error("j1", session_id="s")
    ran = len(steps.seen)
    error = await (await lab.worker(agent_of(steps, *after, fails=False), "w2")).error("j1", session_id="s")
    assert error.code == "replay_mismatch"
    assert f"asks for step {asked!r} where the journal has {recorded!r}" in error.message
    assert (error.details["asked"], error.details["recorded"]) == (asked, recorded)
    assert "written by code" in error.message
    assert len(steps.seen) == ran


async def test_steps_after_the_last_recorded_one_may_be_new(lab, steps):
    await (await lab.worker(agent_of(steps, "plan", fails=True))).error("j1", session_id="s")
    worker = await lab.worker(agent_of(steps, "plan", "search", "write", fails=False), "w2")
    assert await worker.answer("j1", session_id="s") == ["PLAN", "SEARCH", "WRITE"]


async def test_the_old_code_can_finish_a_turn_that_the_new_code_could_not(lab, steps):
    await (await lab.worker(agent_of(steps, "plan", "write", fails=True))).error("j1", session_id="s")
    await (await lab.worker(agent_of(steps, "think", fails=False))).error("j1", session_id="s")
    worker = await lab.worker(agent_of(steps, "plan", "write", fails=False))
    assert await worker.answer("j1", session_id="s") == ["PLAN", "WRITE"]
    assert steps.seen == ["plan", "write"]


async def test_the_next_turn_may_take_other_steps(lab, steps):
    await (await lab.worker(agent_of(steps, "plan", fails=False))).answer("j1", session_id="s")
    worker = await lab.worker(agent_of(steps, "think", fails=False))
    assert await worker.answer("j2", session_id="s") == ["THINK"]


async def test_a_step_with_other_input_keeps_its_recorded_result(lab, steps):
    runs = itertools.count()

    async def agent(session) -> str:
        result = await session.step("roll", steps.upper, f"try {next(runs)}")
        if len(steps.seen) == 1:
            steps.seen.append("crash")
            raise ConnectionError
        return result

    worker = await lab.worker(agent)
    await worker.error("j1")
    assert await worker.answer("j1") == "TRY 0"


async def test_other_input_is_told_in_the_log_and_in_the_timeline(lab, steps, caplog):
    def make(text: str, *, fails: bool):
        async def agent(session) -> str:
            result = await session.step("say", steps.upper, text)
            await session.step("next" if fails else "after", steps.upper, "same")
            if fails:
                raise ConnectionError
            return result

        return agent

    async def again(session) -> str:
        result = await session.step("say", steps.upper, "b")
        await session.step("next", steps.upper, "same")
        await session.step("last", steps.upper, "c")
        raise ConnectionError(result)

    await (await lab.worker(make("a", fails=True))).error("j1", session_id="s")
    assert "has another input" not in caplog.text
    second = await lab.worker(again, "w2")
    assert (await second.error("j1", session_id="s")).message == "A"
    assert "session s: step 'say' has another input now than when it ran" in caplog.text
    async with lab.store() as store:
        notes = {step.key: step.has_other_input for step in (await describe(store, "s")).turns[-1].steps}
    assert notes == {"say": True, "next": False, "last": False}
    await second.error("j1", session_id="s")
    async with lab.store() as store:
        kinds = [record.kind.name for record in (await store.load("s")).records]
    assert kinds.count("NOTE") == 1


async def test_a_last_step_that_the_code_no_longer_takes_ends_the_turn(lab, steps):
    await (await lab.worker(agent_of(steps, "plan", "write", fails=True))).error("j1", session_id="s")
    error = await (await lab.worker(agent_of(steps, "plan", fails=False), "w2")).error("j1", session_id="s")
    assert error.code == "replay_mismatch"
    assert "has ended without asking for step 'write', which the journal has (written by code" in error.message
    worker = await lab.worker(agent_of(steps, "plan", "write", fails=False))
    assert await worker.answer("j1", session_id="s") == ["PLAN", "WRITE"]
    assert steps.seen == ["plan", "write"]


async def test_a_last_step_of_a_branch_that_the_code_no_longer_takes_ends_the_turn(lab, steps):
    def make(*names: str, fails: bool):
        async def agent(session) -> None:
            async def branch() -> None:
                for name in names:
                    await session.step(name, steps.upper, "x")

            await session.gather(branch(), session.step("beside", steps.upper, "y"))
            if fails:
                raise ConnectionError

        return agent

    await (await lab.worker(make("a", "b", fails=True))).error("j1", session_id="s")
    error = await (await lab.worker(make("a", fails=False), "w2")).error("j1", session_id="s")
    assert "without asking for step 'gather1[0]/b'" in error.message


async def test_a_branch_that_its_siblings_error_ends_earlier_on_replay_is_no_mismatch(lab, steps):
    is_far = asyncio.Event()

    async def fail() -> None:
        steps.seen.append("fail")
        await is_far.wait()
        raise ConnectionError

    async def agent(session) -> str:
        async def long() -> None:
            for number in range(4):
                await session.step(f"long{number}", steps.upper, str(number))
                if number == 2:
                    is_far.set()
                    await asyncio.sleep(60)

        try:
            await session.gather(session.step("fail", fail), long())
        except ConnectionError:
            said = await session.step("caught", steps.upper, "caught")
        if steps.seen.count("crash") == 0:
            steps.seen.append("crash")
            raise LookupError
        return said

    worker = await lab.worker(agent)
    await worker.error("j1", session_id="s")
    assert await worker.answer("j1", session_id="s") == "CAUGHT"
    assert steps.seen.count("fail") == 1


async def test_branches_of_a_gather_may_overtake_each_other(lab, steps):
    orders = iter([[2, 0, 1], [1, 2, 0]])

    async def agent(session) -> list[list[str]]:
        order = next(orders)
        turns = [asyncio.Event() for _ in order]
        turns[order[0]].set()

        async def branch(number: int) -> list[str]:
            await turns[number].wait()
            texts = [await session.step(name, steps.upper, f"{name}{number}") for name in ("a", "b")]
            following = order.index(number) + 1
            if following < len(order):
                turns[order[following]].set()
            return texts

        result = await session.gather(*map(branch, range(3)))
        if len(steps.seen) == 6:
            steps.seen.append("crash")
            raise ConnectionError
        return result

    worker = await lab.worker(agent)
    await worker.error("j1")
    assert await worker.answer("j1") == [["A0", "B0"], ["A1", "B1"], ["A2", "B2"]]
    assert len(steps.seen) == 7


async def test_a_mismatch_inside_a_branch_names_the_branch(lab, steps):
    def make(name: str, *, fails: bool):
        async def agent(session) -> None:
            async def branch(number: int) -> None:
                await session.step(name if number == 1 else "same", steps.upper, "x")

            await session.gather(branch(0), branch(1))
            if fails:
                raise ConnectionError

        return agent

    await (await lab.worker(make("old", fails=True))).error("j1", session_id="s")
    error = await (await lab.worker(make("new", fails=False))).error("j1", session_id="s")
    assert "'gather1[1]/new' where the journal has 'gather1[1]/old'" in error.message


async def test_gathers_inside_gathers_keep_every_result_in_its_place(lab, steps):
    async def agent(session) -> list[object]:
        async def leaf(a: int, b: int) -> str:
            return await session.step("leaf", steps.upper, f"x{a}{b}")

        async def branch(a: int) -> list[str]:
            await asyncio.sleep(random.random() / 100)
            first = await session.gather(*(leaf(a, b) for b in range(2)))
            return [*first, *await session.gather(leaf(a, 2), session.step("direct", steps.upper, f"d{a}"))]

        result = await session.gather(*(branch(a) for a in range(3)))
        if "crash" not in steps.seen:
            steps.seen.append("crash")
            raise ConnectionError
        return [result, session.completed_steps[:0]]

    worker = await lab.worker(agent)
    await worker.error("j1")
    expected = [[f"X{a}0", f"X{a}1", f"X{a}2", f"D{a}"] for a in range(3)]
    assert await worker.answer("j1") == [expected, []]
    assert len(steps.seen) == 13


async def test_a_gather_cut_off_halfway_runs_only_what_is_missing(lab, steps):
    gate = asyncio.Event()

    async def work(number: int) -> int:
        if number % 2 and not gate.is_set():
            await asyncio.sleep(60)
        steps.seen.append(str(number))
        return number

    async def agent(session) -> list[int]:
        return await session.gather(*(session.step("work", work, number) for number in range(8)))

    first = await lab.worker(agent)
    task = first.start("j1", session_id="s")
    await until(lambda: len(steps.seen) == 4)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s") == list(range(8))
    assert sorted(steps.seen) == [str(number) for number in range(8)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.integers(0, 4), min_size=1, max_size=4), crash_after=st.integers(0, 8), seed=st.integers(0, 99))
async def test_any_mix_of_steps_and_fan_outs_runs_every_step_once(lab, plan, crash_after, seed):
    """Each number of the plan is a step (0) or a fan-out of that width; the turn fails after some steps."""
    seen: list[str] = []
    crashed: list[bool] = []
    rng = random.Random(seed)

    async def work(text: str) -> str:
        await asyncio.sleep(rng.random() / 500)
        if len(seen) >= crash_after and not crashed:
            crashed.append(True)
            raise ConnectionError
        seen.append(text)
        return text

    async def agent(session) -> list[object]:
        results: list[object] = []
        for index, width in enumerate(plan):
            if width == 0:
                results.append(await session.step("one", work, f"{index}"))
            else:
                results.append(
                    await session.gather(*(session.step("part", work, f"{index}.{n}") for n in range(width)))
                )
        return results

    worker = await lab.worker(agent)
    session = f"s{abs(hash((tuple(plan), crash_after, seed)))}-{random.getrandbits(64)}"
    outcome = await worker.outcome("j1", session_id=session)
    if outcome.error is not None:
        await worker.answer("j1", session_id=session)
    assert len(set(seen)) == len(seen) == sum(width or 1 for width in plan)
