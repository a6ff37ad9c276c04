"""Effects: what changes the world outside is not done twice, or somebody is told."""

import asyncio
import sys

import pytest

from flashkit import SessionError
from flashkit.worker.sessions import effect_key
from tests.sessions.session_lab import Steps, until


@pytest.fixture
def steps() -> Steps:
    return Steps()


class Bank:
    """A service outside: it books, and sometimes the worker dies right after it."""

    def __init__(self):
        self.keys = []
        self.dies = False

    def pay(self, amount: int) -> str:
        self.keys.append(effect_key())
        if self.dies:
            self.dies = False
            raise WorkerDied
        return f"paid {amount}"

    async def pay_on_the_loop(self, amount: int) -> str:
        return self.pay(amount)

    def probe(self, key: str) -> str | None:
        return "found" if key in self.keys else None


class WorkerDied(BaseException):
    """Leaves the journal as the death of a worker inside the effect does: begun, no result."""


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.mark.parametrize("method", ["pay", "pay_on_the_loop"])
@pytest.mark.parametrize("once", [True, False])
async def test_an_effect_that_completed_is_not_repeated(lab, bank, method, once):
    crash = [False, True]

    async def agent(session) -> str:
        said = await session.effect("pay", getattr(bank, method), 5, once=once)
        if crash.pop():
            raise ConnectionError
        return said

    await (await lab.worker(agent)).error("j1")
    assert await (await lab.worker(agent, "w2")).answer("j1") == "paid 5"
    assert len(bank.keys) == 1


async def test_an_effect_that_died_halfway_is_not_run_again_and_blocks_its_session(lab, bank):
    bank.dies = True

    async def agent(session, amount: int = 5) -> str:
        return await session.effect("pay", bank.pay, amount)

    await (await lab.worker(agent)).error("j1", session_id="s", amount=5)
    worker = await lab.worker(agent, "w2")
    error = await worker.error("j1", session_id="s", amount=5)
    assert (error.code, error.details) == ("outcome_unknown", {"session": "s", "step": "pay"})
    assert "flashkit sessions settle s pay" in error.hint
    head = await lab.head("s")
    assert (head.status, head.is_held) == ("blocked", False)
    assert "OutcomeUnknown" in head.reason
    assert (await worker.error("j2", session_id="s", amount=6)).code == "session_blocked"
    assert len(bank.keys) == 1


async def test_a_probe_that_finds_the_effect_gives_its_result(lab, bank):
    bank.dies = True

    async def agent(session) -> str:
        return await session.effect("pay", bank.pay, 5, probe=bank.probe)

    await (await lab.worker(agent)).error("j1")
    assert await (await lab.worker(agent, "w2")).answer("j1") == "found"
    assert len(bank.keys) == 1


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_probe_that_does_not_find_the_effect_lets_it_run(lab, bank, is_async):
    bank.dies = True

    def nothing(key: str) -> None: ...

    async def nothing_later(key: str) -> None: ...

    async def agent(session) -> str:
        return await session.effect("pay", bank.pay, 5, probe=nothing_later if is_async else nothing)

    await (await lab.worker(agent)).error("j1")
    assert await (await lab.worker(agent, "w2")).answer("j1") == "paid 5"
    assert len(bank.keys) == 2


async def test_an_idempotent_effect_runs_again_with_the_same_key(lab, bank):
    bank.dies = True

    async def agent(session) -> str:
        return await session.effect("pay", bank.pay, 5, once=False)

    await (await lab.worker(agent)).error("j1")
    assert await (await lab.worker(agent, "w2")).answer("j1") == "paid 5"
    assert len(bank.keys) == 2
    assert len(set(bank.keys)) == 1


async def test_keys_differ_by_place_input_turn_and_session(lab, bank):
    async def agent(session, amounts: list[int]) -> None:
        for amount in amounts:
            await session.effect("pay", bank.pay, amount)
        await session.gather(*(session.effect("pay", bank.pay, 5) for _ in range(2)))

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", amounts=[5, 5, 6])
    await worker.answer("j2", session_id="s", amounts=[5])
    await worker.answer("j3", session_id="t", amounts=[5])
    assert len(set(bank.keys)) == len(bank.keys) == 11
    assert all(len(key) == 32 for key in bank.keys)


async def test_effects_at_the_same_time_each_see_their_own_key(lab):
    async def read_twice() -> list[str]:
        first = effect_key()
        await asyncio.sleep(0.01)
        return [first, effect_key()]

    async def agent(session) -> list[list[str]]:
        return await session.gather(*(session.effect("read", read_twice) for _ in range(3)))

    keys = await (await lab.worker(agent)).answer("j1")
    assert all(first == second for first, second in keys)
    assert len({first for first, _ in keys}) == 3


async def test_there_is_no_key_outside_of_an_effect(lab):
    async def agent(session) -> None:
        with pytest.raises(SessionError, match="called outside of session"):
            await session.step("pay", effect_key)
        with pytest.raises(SessionError, match="called outside of session"):
            effect_key()

    await (await lab.worker(agent)).answer("j1")


async def test_that_it_begins_is_in_the_store_before_the_effect_does(lab, bank):
    seen = []

    async def look() -> None:
        async with lab.store() as store:
            seen.extend(record.kind.name for record in (await store.load("s")).records)

    async def agent(session) -> None:
        await session.effect("look", look)

    await (await lab.worker(agent)).answer("j1", session_id="s")
    assert seen == ["TURN", "INTENT"]


async def test_an_effect_does_not_begin_on_a_worker_that_leaves(lab, bank):
    async def agent(session) -> str:
        if not bank.keys:
            first.runtime.hand_back()
        return await session.effect("pay", bank.pay, 5)

    first = await lab.worker(agent)
    assert await first.is_handed_back("j1", session_id="s")
    assert bank.keys == []
    bank.keys.append("first worker left")
    assert await (await lab.worker(agent, "w2")).answer("j1", session_id="s") == "paid 5"


async def test_an_effect_whose_function_fails_may_have_happened(lab, steps):
    async def agent(session) -> str:
        return await session.effect("pay", steps.fail)

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).type == "ConnectionError"
    assert (await worker.error("j1", session_id="s")).code == "outcome_unknown"
    assert steps.seen == ["fail"]


async def test_an_effect_that_exits_fails_its_job_and_not_the_worker(lab):
    async def agent(session) -> str:
        return await session.effect("leave", sys.exit, 3)

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s")).code == "handler_exit"


async def test_a_cancelled_job_inside_an_effect_leaves_its_outcome_unknown(lab, steps):
    async def pay() -> None:
        steps.seen.append("began")
        await asyncio.sleep(60)

    async def agent(session) -> None:
        await session.effect("pay", pay)

    worker = await lab.worker(agent)
    task = worker.start("j1", session_id="s")
    await until(lambda: steps.seen)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await worker.error("j1", session_id="s")).code == "outcome_unknown"
    assert steps.seen == ["began"]


async def test_an_effect_that_runs_once_needs_a_server_that_writes_to_disk(own_redis, namespace, bank, lab):
    """Redis before 7.2 with `appendfsync everysec` cannot say when a write is on disk."""
    lab.url = own_redis(appendonly="no").url

    async def agent(session) -> str:
        return await session.effect("pay", bank.pay, 5)

    error = await (await lab.worker(agent)).error("j1", session_id="s")
    assert error.code == "store_misconfigured"
    assert "appendfsync always" in error.hint
    assert bank.keys == []
