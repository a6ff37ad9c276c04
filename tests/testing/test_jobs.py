"""Single jobs in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel

from flashkit import Session, cpu_endpoint, current_job, orchestrator_endpoint
from flashkit.errors import ConfigurationError, HandlerError, SetupError
from flashkit.testing import LocalWorker, run_job, run_job_async

CPU = "cpu3c-2-4"


@cpu_endpoint(cpu=CPU)
def double(n: int) -> int:
    if n < 0:
        raise ValueError("n is negative")
    current_job().progress({"at": n})
    return 2 * n


@cpu_endpoint(cpu=CPU)
async def count(n: int) -> AsyncIterator[int]:
    for index in range(n):
        yield index


@cpu_endpoint(cpu=CPU, name="counter")
class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def setup(self) -> None:
        self.is_set_up = True

    def run(self) -> dict[str, int]:
        self.calls += 1
        return {"calls": self.calls, "set_up": int(self.is_set_up)}


@cpu_endpoint(cpu=CPU, name="broken")
class Broken:
    def setup(self) -> None:
        raise RuntimeError("no such model")

    def run(self) -> None:
        pass


class Notes(BaseModel):
    seen: list[str] = []


@orchestrator_endpoint(cpu=CPU)
async def agent(session: Session[Notes], word: str) -> list[str]:
    session.state.seen.append(await session.step("shout", str.upper, word))
    return session.state.seen


def test_a_job_s_output_and_progress():
    done = run_job(double, {"n": 21})
    assert done.result() == done.output == 42
    assert done.progress == [{"at": 21}]
    assert done.error is None


def test_a_stream_s_chunks():
    done = run_job(count, {"n": 3})
    assert done.chunks == done.output == [0, 1, 2]


def test_a_job_that_fails_is_a_result_that_says_how():
    done = run_job(double, {"n": -1})
    assert done.error is not None
    assert done.error.type == "ValueError"
    with pytest.raises(HandlerError, match="n is negative"):
        done.result()


def test_bad_input_is_refused_as_a_worker_refuses_it():
    done = run_job(double, {"m": 1})
    assert done.error is not None
    assert done.error.code == "input_invalid"


def test_an_endpoint_that_cannot_be_set_up_says_why():
    with pytest.raises(SetupError, match="no such model"):
        run_job(Broken)


async def test_a_worker_is_set_up_once_for_several_jobs():
    async with LocalWorker(Counter) as worker:
        assert [(await worker.run()).output for _ in range(2)] == [
            {"calls": 1, "set_up": 1},
            {"calls": 2, "set_up": 1},
        ]


async def test_a_session_lives_as_long_as_its_worker():
    async with LocalWorker(agent) as worker:
        for word in ("a", "b"):
            last = await worker.run({"session_id": "s", "word": word})
    assert last.result() == ["A", "B"]
    assert (await run_job_async(agent, {"session_id": "s", "word": "c"})).result() == ["C"]


async def test_a_job_that_comes_again_gets_the_stored_answer(tmp_path):
    state = f"sqlite:///{tmp_path / 'sessions.db'}"
    first = await run_job_async(agent, {"session_id": "s", "word": "a"}, job_id="one", state=state)
    again = await run_job_async(agent, {"session_id": "s", "word": "b"}, job_id="one", state=state)
    assert first.output == again.output == ["A"]


async def test_async_tests_are_told_what_to_use():
    with pytest.raises(ConfigurationError, match="run_job_async"):
        run_job(double, {"n": 1})
