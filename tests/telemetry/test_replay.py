"""A session run again from its journal: the same output, no step runs, and it ends where the journal ends."""

import json
from pathlib import Path

import pytest

from flashkit.cli.replaying import replay
from flashkit.errors import InputError, SessionNotFound
from flashkit.settings import Settings
from flashkit.worker.main import find_endpoint
from flashkit.worker.runtime import Runtime

APP = """
from pathlib import Path
from pydantic import BaseModel
from flashkit import Session, cpu_endpoint, orchestrator_endpoint

RUNS = Path(__file__).with_name("runs")


class Notes(BaseModel):
    asked: list[str] = []


@cpu_endpoint()
async def search(query: str) -> str: ...


@orchestrator_endpoint()
async def agent(session: Session[Notes], question: str, fail: bool = False) -> str:
    session.state.asked.append(question)
    parts = await session.gather(session.step("a", work, "a"), session.step("b", work, "b"))
    if fail:
        await session.step("broken", broken)
    big = await session.step("big", make, 3_000_000)
    return f"{len(session.state.asked)} {''.join(parts)} {len(big)}"


def work(name: str) -> str:
    with RUNS.open("a") as file:
        file.write(name)
    return name.upper()


def make(size: int) -> str:
    return "x" * size


def broken() -> None:
    raise RuntimeError("no way")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "replayed_app.py").write_text(APP)
    monkeypatch.setenv("FLASHKIT_STATE", f"sqlite:///{tmp_path}/sessions.db")
    monkeypatch.setenv("FLASHKIT_KEEP_JOURNALS", "1")
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", "http://127.0.0.1:9/v2")
    return tmp_path


async def run(project: Path, job_id: str, **data):
    definition = find_endpoint(str(project / "replayed_app.py"), "agent").definition
    runtime = Runtime(definition, Settings.from_environment())
    await runtime.start()
    try:
        return await runtime.run({"id": job_id, "input": data}, emit=_drop)
    finally:
        await runtime.stop()


async def _drop(chunk):
    pass


async def test_a_finished_turn_comes_to_the_same_output_and_no_step_runs(project):
    for number in (1, 2, 3):
        await run(project, f"job-{number}", session_id="s1", question=f"q{number}")
    runs = (project / "runs").read_text()
    done = await replay("s1", project / "replayed_app.py", turn=None, state_url=None)
    assert (done.is_same, done.turn, done.output, done.error, done.ended_at) == (True, 3, "3 AB 3000000", "", "")
    assert set(done.steps) == {"a", "b", "big"}
    earlier = await replay("s1", project / "replayed_app.py", turn=2, state_url=None)
    assert (earlier.is_same, earlier.output) == (True, "2 AB 3000000")
    assert (project / "runs").read_text() == runs


async def test_a_turn_that_failed_ends_where_its_journal_ends(project):
    outcome = await run(project, "job-1", question="q", fail=True)
    assert "no way" in outcome.error.message
    done = await replay("job-1", project / "replayed_app.py", turn=None, state_url=None)
    assert (done.is_same, done.ended_at, done.had_output) == (True, "broken", False)
    assert "the journal ends before step 'broken'" in done.render()


async def test_changed_code_that_does_not_fit_the_journal_is_said(project):
    await run(project, "job-1", question="q")
    app = project / "changed_app.py"
    app.write_text(APP.replace('session.step("big"', 'session.step("other"'))
    done = await replay("job-1", app, turn=None, state_url=None)
    assert not done.is_same
    assert "asks for step 'other' where the journal has 'big'" in done.render()


async def test_changed_code_with_another_output_is_said(project):
    await run(project, "job-1", question="q")
    app = project / "louder_app.py"
    app.write_text(APP.replace('return f"{len(session', 'return f"! {len(session'))
    done = await replay("job-1", app, turn=None, state_url=None)
    assert not done.is_same
    assert (done.output, done.recorded) == ("! 1 AB 3000000", "1 AB 3000000")
    assert "recorded was" in done.render()
    assert json.loads(json.dumps(done.to_json()))["is_same"] is False


async def test_a_session_or_a_turn_that_is_not_there_is_said(project):
    await run(project, "job-1", question="q")
    with pytest.raises(SessionNotFound):
        await replay("nobody", project / "replayed_app.py", turn=None, state_url=None)
    with pytest.raises(InputError, match="no turn 7"):
        await replay("job-1", project / "replayed_app.py", turn=7, state_url=None)
