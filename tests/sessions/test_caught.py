"""What ends a turn ends it, also when the handler catches `Exception`."""

import contextlib

import pytest

from flashkit import Session
from flashkit.worker.sessions.store import Status
from tests.sessions.session_lab import Steps


@pytest.fixture
def steps() -> Steps:
    return Steps()


async def lost_on_the_way(lab, steps):
    """Leave a session of which nobody knows whether its payment happened."""

    async def agent(session: Session[None], q: str) -> str:
        return await session.effect("pay", steps.fail)

    await (await lab.worker(agent)).error("j1", session_id="s", q="a")


async def test_code_that_does_not_fit_the_journal_runs_nothing_more(lab, steps):
    async def old(session: Session[None], q: str) -> None:
        await session.step("a", steps.upper, "a")
        raise ConnectionError("boom")

    async def new(session: Session[None], q: str) -> str:
        with contextlib.suppress(Exception):
            await session.step("b", steps.upper, "b")
        with contextlib.suppress(Exception):
            await session.effect("pay", steps.upper, "pay")
        return "finished"

    await (await lab.worker(old)).error("j1", session_id="s", q="a")
    error = await (await lab.worker(new, "w2")).error("j1", session_id="s", q="a")
    assert (error.code, error.details["recorded"]) == ("replay_mismatch", "a")
    assert steps.seen == ["a"]
    assert (await lab.head("s")).status is Status.FAILED


async def test_a_ceiling_ends_a_loop_that_catches_everything(lab, steps):
    async def agent(session: Session[None], q: str) -> str:
        session.budget(steps=5)
        for index in range(50):
            with contextlib.suppress(Exception):
                await session.step("tool", steps.upper, str(index))
        return "finished"

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert error.code == "budget_exceeded"
    assert len(steps.seen) == 5


async def test_tokens_over_their_ceiling_end_the_turn_also_where_a_step_spends_them(lab):
    async def agent(session: Session[None], q: str) -> str:
        def ask() -> str:
            with contextlib.suppress(Exception):
                session.spend(tokens=101)
            return "answer"

        session.budget(tokens=100)
        return await session.step("ask", ask)

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert (error.code, error.details["used"]) == ("budget_exceeded", 101)


@pytest.mark.parametrize("answer", ["return", "raise", "wait", "partial"])
async def test_a_payment_of_which_nobody_knows_blocks_the_session_whatever_the_handler_does(lab, steps, answer):
    async def agent(session: Session[None], q: str) -> str:
        pay = session.effect("pay", steps.upper, "again")
        if answer == "partial":
            return repr(await session.gather(pay, partial=True))
        try:
            return await pay
        except Exception as exc:
            if answer == "raise":
                raise ValueError("payment failed") from exc
        if answer == "wait":
            await session.wait_for("go")
        return "payment failed"

    await lost_on_the_way(lab, steps)
    error = await (await lab.worker(agent, "w2")).error("j1", session_id="s", q="a")
    assert error.code == "outcome_unknown"
    assert steps.seen == ["fail"]
    head = await lab.head("s")
    assert (head.status, "OutcomeUnknown" in head.reason) == (Status.BLOCKED, True)


async def test_a_branch_that_ends_too_early_ends_the_turn_although_its_error_was_a_result(lab, steps):
    async def branch(session: Session[None], *texts: str) -> None:
        for text in texts:
            await session.step(text, steps.upper, text)

    async def old(session: Session[None], q: str) -> None:
        await session.gather(branch(session, "a", "b"), branch(session, "c"))
        raise ConnectionError("boom")

    async def new(session: Session[None], q: str) -> str:
        await session.gather(branch(session, "a"), branch(session, "c"), partial=True)
        return "finished"

    await (await lab.worker(old)).error("j1", session_id="s", q="a")
    error = await (await lab.worker(new, "w2")).error("j1", session_id="s", q="a")
    assert (error.code, error.details["recorded"]) == ("replay_mismatch", "gather1[0]/b")


async def test_work_that_was_under_way_is_written_although_the_turn_has_ended(lab, steps):
    async def agent(session: Session[None], q: str) -> str:
        async def pay() -> str:
            with contextlib.suppress(Exception):
                session.spend(tokens=101)  # the turn ends here, the payment has been made
            return steps.upper("paid")

        session.budget(tokens=100)
        return await session.effect("pay", pay)

    async def generous(session: Session[None], q: str) -> str:
        return await session.effect("pay", steps.fail)

    assert (await (await lab.worker(agent)).error("j1", session_id="s", q="a")).code == "budget_exceeded"
    assert await (await lab.worker(generous, "w2")).answer("j1", session_id="s", q="a") == "PAID"
