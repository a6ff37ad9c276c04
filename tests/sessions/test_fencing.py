"""Of two workers in one session, one writes; the other learns it, and its handler is stopped."""

import asyncio
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from flashkit.errors import SessionBusy, SessionFenced
from tests.sessions.session_lab import Steps, Worker, output_of, until

OWNER = Path(__file__).with_name("owner_process.py")


@pytest.fixture
def steps() -> Steps:
    return Steps()


class Stall:
    """A step in which the first worker hangs, while the second one passes."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.events: list[str] = []
        self.gate = asyncio.Event()

    async def pass_through(self) -> str:
        """Hang when entered for the first time."""
        self.entered.append("entered")
        if len(self.entered) == 1:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        return f"by entry {len(self.entered)}"


async def agent_with(stall: Stall, session) -> list[str]:
    return [await session.step("slow", stall.pass_through), await session.step("last", str.upper, "b")]


async def test_a_job_handed_out_again_takes_its_session_at_once(lab):
    stall = Stall()

    async def agent(session) -> list[str]:
        return await agent_with(stall, session)

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s")
    await until(lambda: stall.entered)
    async with asyncio.timeout(2):  # the lease lasts 15 s
        assert await second.answer("j1", session_id="s") == ["by entry 2", "B"]
    stall.gate.set()
    outcome = await hanging
    assert outcome.output is None
    assert outcome.error.code == "session_fenced"


async def test_the_owner_learns_by_its_renewal_and_its_handler_is_cancelled(lab):
    stall = Stall()

    async def agent(session) -> list[str]:
        return await agent_with(stall, session)

    first, second = await lab.worker(agent, lease_seconds=0.3), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s")
    await until(lambda: stall.entered)
    await second.answer("j1", session_id="s")
    async with asyncio.timeout(2):
        outcome = await hanging
    assert outcome.error.code == "session_fenced"
    assert stall.events == ["cancelled"]


async def test_a_fenced_handler_that_does_not_let_itself_be_cancelled_has_no_result(lab):
    stall = Stall()

    async def agent(session) -> object:
        try:
            return await agent_with(stall, session)
        except (asyncio.CancelledError, SessionFenced):
            return "I go on"

    first, second = await lab.worker(agent, lease_seconds=0.3), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s")
    await until(lambda: stall.entered)
    await second.answer("j1", session_id="s")
    outcome = await hanging
    assert (outcome.output, outcome.error.code) == (None, "session_fenced")
    assert await second.answer("j1", session_id="s") == ["by entry 2", "B"]


async def test_another_job_waits_for_the_session_and_then_says_who_has_it(lab):
    stall = Stall()

    async def agent(session, q: str) -> list[str]:
        return await agent_with(stall, session)

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s", q="a")
    await until(lambda: stall.entered)
    data = {"session_id": "s", "q": "b"}
    with pytest.raises(SessionBusy, match="is held by worker 'w1'") as caught:  # a job waits half its timeout
        await second.runtime._sessions.run("j2", data, None, emit=None, budget_s=0.3)
    assert caught.value.report.details["owner"] == "w1"
    stall.gate.set()
    assert output_of(await hanging) == ["by entry 1", "B"]


async def test_another_job_gets_the_session_when_the_turn_before_it_ends(lab):
    stall = Stall()

    async def agent(session, q: str) -> list[object]:
        return [q, session.turn, *await agent_with(stall, session)]

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s", q="a")
    await until(lambda: stall.entered)
    waiting = second.start("j2", session_id="s", q="b")
    await asyncio.sleep(0.1)
    assert not waiting.done()
    stall.gate.set()
    assert output_of(await hanging) == ["a", 1, "by entry 1", "B"]
    assert output_of(await waiting) == ["b", 2, "by entry 2", "B"]


async def test_a_worker_that_leaves_stops_waiting_for_a_session(lab):
    stall = Stall()

    async def agent(session, q: str) -> list[str]:
        return await agent_with(stall, session)

    first, second = await lab.worker(agent), await lab.worker(agent, "w2")
    hanging = first.start("j1", session_id="s", q="a")
    await until(lambda: stall.entered)
    leaving = asyncio.create_task(second.is_handed_back("j2", session_id="s", q="b"))
    await asyncio.sleep(0.1)
    second.runtime.hand_back()
    async with asyncio.timeout(1):
        assert await leaving
    stall.gate.set()
    await hanging


async def test_many_workers_that_race_for_one_job_write_every_step_once(lab, steps):
    """Each handler sees the same results, although the session changes hands all the time."""
    numbers = itertools.count()

    async def agent(session) -> list[int]:
        results = []
        for index in range(10):
            results.append(await session.step(f"step {index}", next, numbers))
            await asyncio.sleep(0.005)
        return results

    workers = [await lab.worker(agent, f"w{index}") for index in range(4)]
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*(worker.outcome("j1", session_id="s") for worker in workers))
        finished = [output_of(outcome) for outcome in outcomes if outcome.error is None]
        codes = {outcome.error.code for outcome in outcomes if outcome.error is not None}
    assert codes <= {"session_fenced"}
    final = await workers[0].answer("j1", session_id="s")
    assert all(each == final for each in finished)
    assert len(set(final)) == 10


async def test_a_stopped_process_is_fenced_when_it_wakes_up(lab, tmp_path):
    """SIGSTOP for longer than the lease, as a frozen machine; the step it was in is its last."""
    log = tmp_path / "effects"
    arguments = [lab.url, lab.namespace, "w1", str(log), "0.5", "stall"]
    with subprocess.Popen([sys.executable, str(OWNER), *arguments], stdout=subprocess.PIPE) as owner:
        try:
            await until(lambda: log.exists() and "slow w1" in log.read_text(), seconds=20)
            owner.send_signal(signal.SIGSTOP)
            second = await start_owner(lab, log)
            async with asyncio.timeout(10):
                assert await second.answer("j2", session_id="s", q="a") == ["slow", "last"]
            owner.send_signal(signal.SIGCONT)
            output, _ = await asyncio.to_thread(owner.communicate, timeout=10)
        finally:
            owner.kill()
    assert orjson.loads(output.splitlines()[-1])["error"] == "session_fenced"
    assert log.read_text().split("\n")[:-1] == ["first w1", "slow w1", "slow w2", "last w2"]


async def start_owner(lab, log: Path) -> Worker:
    """Return a worker with the handler of the other process."""
    from tests.sessions.owner_process import make_agent

    return await lab.worker(make_agent("w2", log, stall=False), "w2")
