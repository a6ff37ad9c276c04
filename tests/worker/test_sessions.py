"""Sessions: steps run once in the life of a session, whatever happens to the worker between them."""

import asyncio
import dataclasses
import datetime
import functools
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
from pydantic import BaseModel

from flashkit import InputError, SessionError, cpu_endpoint, orchestrator_endpoint
from flashkit.errors import ConfigurationError, HandlerExit
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime
from flashkit.worker.sessions import Journal, Record, SessionFactory, open_journal


@dataclasses.dataclass
class Page:
    url: str
    body: bytes = b""


class Plan(BaseModel):
    parts: list[str]


class Calls:
    """Steps that count how often they ran."""

    def __init__(self):
        self.seen = []

    def upper(self, text: str) -> str:
        self.seen.append(text)
        return text.upper()

    async def lower(self, text: str) -> str:
        self.seen.append(text)
        return text.lower()

    def fail(self):
        self.seen.append("fail")
        raise ConnectionError("no network")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(state_url=f"sqlite:///{tmp_path}/state/sessions.db", base_url="http://127.0.0.1:1/v2")


@pytest.fixture
def calls() -> Calls:
    return Calls()


@asynccontextmanager
async def _session(settings, session_id="s1"):
    """Open the session as one worker would; opening it again is what another worker does after a crash."""
    factory = SessionFactory(settings)
    try:
        session, _ = await factory.open("job-1", {"session_id": session_id})
        yield session
    finally:
        await factory.close()


async def test_a_step_runs_its_function_and_returns_its_result(settings, calls):
    async with _session(settings) as session:
        assert await session.step("sync", calls.upper, "a") == "A"
        assert await session.step("async", calls.lower, text="B") == "b"
        assert session.completed_steps == ("sync", "async")
        assert repr(session) == "<session 's1', 2 steps done>"


async def test_after_a_crash_completed_steps_answer_from_the_journal(settings, calls):
    async with _session(settings) as session:
        await session.step("one", calls.upper, "a")
        with pytest.raises(ConnectionError):
            await session.step("two", calls.fail)
    async with _session(settings) as session:
        assert session.completed_steps == ("one",)
        assert await session.step("one", calls.upper, "a") == "A"
        assert await session.step("two", calls.upper, "b") == "B"
    assert calls.seen == ["a", "fail", "b"]


async def test_a_step_survives_a_kill_of_the_process_right_after_it(settings, tmp_path):
    script = tmp_path / "crash.py"
    script.write_text(
        "import asyncio, os, signal, sys\n"
        "from flashkit.settings import Settings\n"
        "from flashkit.worker.sessions import SessionFactory\n"
        "async def main():\n"
        "    session, _ = await SessionFactory(Settings(state_url=sys.argv[1])).open('job-1', {})\n"
        "    await session.step('one', str.upper, 'a')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    crashed = subprocess.run([sys.executable, str(script), settings.state_url], check=False)
    assert crashed.returncode == -9
    async with _session(settings, "job-1") as session:
        assert session.completed_steps == ("one",)


async def test_another_session_knows_nothing_of_the_first(settings, calls):
    async with _session(settings, "s1") as session:
        await session.step("one", calls.upper, "a")
    async with _session(settings, "s2") as session:
        assert session.completed_steps == ()


@pytest.mark.parametrize("order", [["x", "x", "x"], ["x", "x#2", "x", "x"], ["x#2", "x", "x", "x#2"], ["", "", "#2"]])
async def test_names_may_repeat_and_each_use_is_a_step_of_its_own(settings, calls, order):
    async with _session(settings) as session:
        first = [await session.step(name, calls.upper, f"a{number}") for number, name in enumerate(order)]
        assert len(session.completed_steps) == len(order)
    async with _session(settings) as session:
        again = [await session.step(name, calls.fail) for name in order]
    assert first == again == [f"A{number}" for number in range(len(order))]


async def test_a_steps_parameters_may_be_called_name_and_function(settings):
    def tell(name, function, endpoint, self):
        return [name, function, endpoint, self]

    async with _session(settings) as session:
        assert await session.step("tell", tell, name=1, function=2, endpoint=3, self=4) == [1, 2, 3, 4]


@pytest.mark.parametrize("again", [False, True])
async def test_results_come_back_in_the_declared_type_on_every_run(settings, again):
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

    def undefined() -> "NotDefined":  # noqa: F821
        return [1]

    for _ in range(2 if again else 1):
        async with _session(settings) as session:
            assert await session.step("page", page) == Page("u", b"\xff")
            assert await session.step("plan", plan) == Plan(parts=["a"])
            assert await session.step("table", table) == {1: (2, datetime.date(2026, 1, 2))}
            assert await session.step("plain", plain) == {"1": [2, [3]]}
            assert await session.step("big", big) == 2**70 + 1
            assert await session.step("array", array) == [0, 1]
            assert await session.step("nothing", nothing) is None
            assert await session.step("undefined", undefined) == [1]
            assert await session.step("class", Page, "v") == Page("v")
            assert await session.step("builtin", len, "abc") == 3


async def test_a_step_may_be_a_lambda_a_partial_or_an_endpoint(settings, calls):
    endpoint = cpu_endpoint()(calls.lower)
    async with _session(settings) as session:
        assert await session.step("lambda", lambda: calls.lower("A")) == "a"
        assert await session.step("partial", functools.partial(calls.lower, "B")) == "b"
        assert await session.step("endpoint", endpoint, "C") == "c"


async def test_sync_steps_run_outside_of_the_loops_thread(settings):
    async with _session(settings) as session:
        assert await session.step("thread", threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize(("name", "function"), [(len, "abc"), ("name", "abc"), (None, len), (1, len)])
async def test_a_step_without_a_name_or_function_is_refused_at_once(settings, name, function):
    async with _session(settings) as session:
        with pytest.raises(SessionError, match="does not name a step and its function"):
            session.step(name, function)


async def test_a_result_that_cannot_be_written_names_the_step(settings):
    async with _session(settings) as session:
        with pytest.raises(SessionError, match="step 'odd' returned a object"):
            await session.step("odd", object)
        assert session.completed_steps == ()


@pytest.mark.parametrize("together", [False, True])
async def test_a_step_that_exits_or_ends_an_iterator_fails_only_itself(settings, together):
    def leave():
        sys.exit(3)

    async def leave_on_loop():
        sys.exit(3)

    def end():
        return next(iter([]))

    async with _session(settings) as session:
        for function, error in ((leave, HandlerExit), (leave_on_loop, HandlerExit), (end, RuntimeError)):
            step = session.step("step", function)
            with pytest.raises(error):
                await asyncio.wait_for(session.gather(step) if together else step, 5)


async def test_gather_runs_steps_at_the_same_time_and_keeps_their_order(settings):
    meeting = asyncio.Barrier(3)

    async def meet(number: int) -> int:
        await meeting.wait()
        return number

    async with _session(settings) as session:
        assert await session.gather(*(session.step("meet", meet, number) for number in range(3))) == [0, 1, 2]
        assert await session.gather() == []
        assert await session.gather(partial=True) == []


async def test_the_first_failure_cancels_the_others_and_is_raised_itself(settings):
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

    async with _session(settings) as session:
        with pytest.raises(ConnectionError, match="the first one"):
            await session.gather(session.step("a", wait, "a"), session.step("b", fail), session.step("c", wait, "c"))
    assert events == ["a", "c"]


async def test_what_was_done_before_a_failure_in_gather_is_not_run_again(settings, calls):
    async def fail_later():
        await asyncio.sleep(0.1)
        raise ConnectionError

    async with _session(settings) as session:
        with pytest.raises(ConnectionError):
            await session.gather(session.step("a", calls.upper, "a"), session.step("b", fail_later))
    async with _session(settings) as session:
        results = await session.gather(session.step("a", calls.upper, "a"), session.step("b", calls.upper, "b"))
    assert results == ["A", "B"]
    assert calls.seen == ["a", "b"]


async def test_partial_gather_gives_exceptions_in_place_of_results(settings, calls):
    async def cancel_itself():
        raise asyncio.CancelledError

    async with _session(settings) as session:
        good, bad, gone = await session.gather(
            session.step("good", calls.upper, "a"),
            session.step("bad", calls.fail),
            session.step("gone", cancel_itself),
            partial=True,
        )
    assert good == "A"
    assert isinstance(bad, ConnectionError)
    assert isinstance(gone, asyncio.CancelledError)


@pytest.mark.parametrize("partial", [False, True])
async def test_cancelling_gather_cancels_every_step(settings, partial):
    events = []

    async def wait():
        events.append("started")
        try:
            await asyncio.sleep(60)
        finally:
            events.append("ended")

    async with _session(settings) as session:
        task = asyncio.create_task(
            session.gather(session.step("a", wait), session.step("b", wait), partial=partial)  # type: ignore[call-overload]
        )
        async with asyncio.timeout(5):
            while len(events) < 2:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert events == ["started", "started", "ended", "ended"]


async def test_of_two_workers_in_one_session_the_first_result_counts_for_both(settings):
    gate = asyncio.Event()

    async def answer(text: str) -> str:
        await gate.wait()
        return text

    async with _session(settings) as first, _session(settings) as second:
        tasks = [
            asyncio.create_task(session.step("x", answer, text)) for session, text in ((first, "1"), (second, "2"))
        ]
        await asyncio.sleep(0.01)
        gate.set()
        results = await asyncio.gather(*tasks)
    assert results in (["1", "1"], ["2", "2"])


async def test_several_processes_can_open_and_write_one_new_journal(tmp_path):
    script = tmp_path / "write.py"
    script.write_text(
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from flashkit.worker.sessions import Journal, Record\n"
        "async def main():\n"
        "    journal = Journal(Path(sys.argv[1]))\n"
        "    for number in range(10):\n"
        "        await journal.write('s', Record(f'step{number}', sys.argv[2].encode(), 0.0))\n"
        "    await journal.close()\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "new.db"
    commands = [[sys.executable, str(script), str(path), str(number)] for number in range(4)]
    workers = [subprocess.Popen(command) for command in commands]
    assert [await asyncio.to_thread(worker.wait) for worker in workers] == [0, 0, 0, 0]
    journal = Journal(path)
    assert len(await journal.read("s")) == 10
    await journal.close()


@pytest.mark.parametrize("session_id", ["a", "user:1.2_3-4", "0" * 128, "2e4"])
async def test_a_job_names_its_session_and_the_handler_does_not_see_the_id(settings, session_id):
    factory = SessionFactory(settings)
    data = {"session_id": session_id, "question": "why"}
    session, rest = await factory.open("job-1", data)
    await factory.close()
    assert (session.id, rest) == (session_id, {"question": "why"})
    assert data["session_id"] == session_id


@pytest.mark.parametrize("session_id", ["", " a", "-a", "a/b", "a b", "ä", "a\n", "0" * 129, None, 5, ["a"], {}])
async def test_what_is_no_session_id_is_refused(settings, session_id):
    factory = SessionFactory(settings)
    with pytest.raises(InputError, match="is not a session's id"):
        await factory.open("job-1", {"session_id": session_id})
    await factory.close()


@pytest.mark.parametrize("data", [{"question": "why"}, {}, None, [1]])
async def test_a_job_without_a_session_id_is_a_session_of_its_own(settings, data):
    factory = SessionFactory(settings)
    session, rest = await factory.open("sync-job-1-u1", data)
    await factory.close()
    assert (session.id, rest) == ("sync-job-1-u1", data)


def _corrupt(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is not a database" * 100)


def _a_folder(path):
    path.mkdir(parents=True)


def _below_a_file(path):
    path.parent.write_text("a file where the folder should be")


def _other_table(path):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE steps (something TEXT)")
    connection.close()


@pytest.mark.parametrize("break_it", [_corrupt, _a_folder, _below_a_file, _other_table])
async def test_a_journal_that_cannot_be_used_names_the_file(settings, tmp_path, break_it):
    path = tmp_path / "state" / "sessions.db"
    break_it(path)
    factory = SessionFactory(settings)
    for _ in range(2):
        with pytest.raises(SessionError) as caught:
            await factory.open("job-1", {})
        assert repr(str(path)) in caught.value.report.message
        assert "FLASHKIT_STATE" in caught.value.report.hint
    await factory.close()


async def test_a_journal_that_cannot_be_written_fails_the_step(settings, tmp_path, calls):
    async with _session(settings) as session:
        await session.step("one", calls.upper, "a")
    with sqlite3.connect(tmp_path / "state" / "sessions.db") as connection:
        connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    connection.close()
    async with _session(settings) as session:
        assert await session.step("one", calls.upper, "a") == "A"
        with pytest.raises(SessionError, match="disk full"):
            await session.step("two", calls.upper, "b")


async def test_a_journal_where_nothing_can_be_written_names_the_file():
    factory = SessionFactory(Settings(state_url="sqlite:////proc/flashkit/sessions.db"))
    with pytest.raises(SessionError, match=r"/proc/flashkit/sessions\.db"):
        await factory.open("job-1", {})
    await factory.close()


@pytest.mark.parametrize("url", ["", "sqlite://x", "sqlite:///", "redis://127.0.0.1", "/a/path.db", "mysql:///x"])
def test_a_store_that_does_not_exist_is_refused(url):
    with pytest.raises(ConfigurationError, match="is not a store"):
        open_journal(url)


async def test_a_journal_that_was_never_used_can_be_closed(tmp_path):
    await Journal(tmp_path / "never" / "x.db").close()
    assert not (tmp_path / "never").exists()


async def test_the_journal_returns_what_was_written_first(tmp_path):
    journal = Journal(tmp_path / "x.db")
    first = await journal.write("s", Record("step", b'"1"', 0.5))
    assert await journal.write("s", Record("step", b'"2"', 0.7)) == first == Record("step", b'"1"', 0.5)
    assert await journal.read("s") == {"step": first}
    await journal.close()


async def test_arguments_of_a_call_are_checked_before_it_is_awaited(settings):
    @cpu_endpoint()
    def tool(text: str) -> str:
        return text

    async with _session(settings) as session:
        with pytest.raises(InputError, match="missing a required argument: 'text'"):
            session.call(tool, txet="a")


async def test_a_call_that_completed_is_not_sent_again(settings):
    @cpu_endpoint(name="draw")
    def draw(text: str) -> Page:
        return Page(text)

    journal = open_journal(settings.state_url)
    await journal.write("s1", Record("call:draw", b'{"url":"u","body":"_w=="}', 0.1))
    await journal.close()
    async with _session(settings) as session:
        assert await session.call(draw, "u") == Page("u", b"\xff")


async def test_an_orchestrator_resumes_when_its_job_is_run_again(settings, calls):
    crash = [True]

    @orchestrator_endpoint()
    async def agent(session, question: str) -> list[str]:
        plan = await session.step("plan", calls.upper, question)
        if crash.pop():
            raise ConnectionResetError("the worker goes away")
        return [plan, await session.step("write", calls.lower, question)]

    async def drop(chunk): ...

    crash.insert(0, False)
    outcomes = []
    for _ in range(2):
        runtime = Runtime(agent.definition, settings)
        await runtime.start()
        outcomes.append(await runtime.run({"id": "job-1", "input": {"question": "Why"}}, emit=drop))
        await runtime.stop()
    assert outcomes[0].error.type == "ConnectionResetError"
    assert outcomes[1].output == b'["WHY","why"]'
    assert calls.seen == ["Why", "Why"]
