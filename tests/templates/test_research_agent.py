"""The research agent as a user gets it: rendered, its own tests run, and asked a question on the local platform."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter

from flashkit.cli.apps import describe_app
from flashkit.client import Client
from flashkit.emulator.events import Event, JobEvent
from flashkit.emulator.server import Emulator
from flashkit.settings import Settings
from tests.processes import arguments_of

ROOT = Path(__file__).parents[2]
MODELS = ROOT / ".flashkit" / "models"


def render(folder: Path, **answers: str) -> Path:
    """Return the folder of a rendered project."""
    template = str(ROOT / "worker_templates" / "research_agent")
    return Path(cookiecutter(template, no_input=True, output_dir=str(folder), extra_context=answers))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A research agent with the default answers."""
    return render(tmp_path_factory.mktemp("rendered"))


@pytest.fixture
def pages(project: Path) -> Iterator[str]:
    """The project's sample pages on loopback, as the URL of their search."""
    sys.path.insert(0, str(project))
    try:
        from serve_pages import make_server

        server: ThreadingHTTPServer = make_server(project / "pages", quiet=True)
    finally:
        sys.path.remove(str(project))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/search?q={{query}}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_rendered_project_passes_its_own_tests(project: Path) -> None:
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environ.pop("CI", None)  # its platform tests need a running platform, which the test below provides
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not platform", "-p", "no:cacheprovider"],
        cwd=project, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_a_folder_name_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedHookException):
        render(tmp_path, project_slug="9 lives")
    assert not list(tmp_path.iterdir())


def require_models() -> None:
    """Skip without the models on a laptop, fail where everything must be there."""
    if (MODELS / "HuggingFaceTB").is_dir() and (MODELS / "sentence-transformers").is_dir():
        return
    message = "the models are missing: run scripts/fetch_models"
    if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
        pytest.fail(message)
    pytest.skip(message)


@asynccontextmanager
async def running_agent(project: Path, pages: str, folder: Path) -> AsyncIterator[tuple[Client, list[Event]]]:
    """The agent's endpoints on a local platform, a client for them, and everything that happens."""
    require_models()
    env = {
        "FLASHKIT_WEIGHTS_DIR": str(MODELS),
        "FLASHKIT_STATE": f"sqlite:///{folder / 'sessions.db'}",
        "SEARCH_URL": pages,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    events: list[Event] = []
    endpoints = await describe_app(project / "app.py", env=env)
    async with (
        Emulator([each.local for each in endpoints], state_dir=folder / "state", on_event=events.append) as emulator,
        Client(Settings(base_url=f"{emulator.url}/v2")) as client,
    ):
        yield client, events


def finished(events: list[Event]) -> list[str]:
    """Return the endpoint of every job that completed, in order."""
    return [event.endpoint for event in events if isinstance(event, JobEvent) and event.status == "COMPLETED"]


@pytest.mark.models
@pytest.mark.timeout(420)
async def test_a_question_gets_a_cited_answer_from_all_four_endpoints(
    project: Path, pages: str, tmp_path: Path
) -> None:
    async with running_agent(project, pages, tmp_path) as (client, events):
        question = "What happens to a session when its worker dies?"
        report: dict[str, Any] = await client.endpoint("agent").call({"question": question}, timeout=400)

    assert report["sources"], report
    assert all(f"[{source['number']}]" in report["answer"] for source in report["sources"])
    completed = finished(events)
    assert completed.count("web-retrieval") == 3
    assert {"agent", "llm", "kb-search"} <= set(completed)


@pytest.mark.models
@pytest.mark.timeout(420)
async def test_an_agent_killed_after_retrieval_answers_without_fetching_again(
    project: Path, pages: str, tmp_path: Path
) -> None:
    async with running_agent(project, pages, tmp_path) as (client, events):
        question = "What happens to a session when its worker dies?"
        asking = asyncio.create_task(client.endpoint("agent").call({"question": question}, timeout=400))
        while finished(events).count("web-retrieval") < 3 or not is_searching(events):
            assert not asking.done()
            await asyncio.sleep(0.01)
        agents = [each for each in psutil.Process().children() if "app.py:research" in " ".join(arguments_of(each))]
        agents[0].kill()
        report: dict[str, Any] = await asking

    assert report["sources"], report
    completed = finished(events)
    assert completed.count("web-retrieval") == 3
    submitted = {event.job_id for event in events if isinstance(event, JobEvent) and event.endpoint == "llm"}
    assert len(submitted) == completed.count("llm")  # none was submitted twice
    attempts = [event.attempt for event in events if isinstance(event, JobEvent) and event.endpoint == "agent"]
    assert max(attempts) == 2


def is_searching(events: list[Event]) -> bool:
    """True once the search over pages and knowledge base has begun."""
    return any(isinstance(event, JobEvent) and event.endpoint == "kb-search" for event in events)
