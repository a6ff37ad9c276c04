"""The images of every template's project: built as they are, and jobs sent to workers in them.

What the images of models start from has torch or vLLM for CUDA in it, several GB that cannot be had here. Their
stand-in is the CPU base under another name: it proves the Dockerfiles, and the workers that need no GPU library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashkit.images.record import read_images
from flashkit.templates import find_template, render_project
from flashkit.testing import LocalPlatform
from tests.images.conftest import Images

pytestmark = pytest.mark.timeout(900)
DESCRIBE = ("python", "-m", "flashkit.worker", "--describe", "app.py")


def make(template: str, folder: Path) -> Path:
    """Return a rendered project."""
    return render_project(find_template(template), folder / "fk_test", {})


@pytest.fixture(scope="module")
def model_bases(images: Images, cpu_base: str) -> Iterator[None]:
    """Stand-ins for the bases with torch and vLLM."""
    names = [cpu_base.replace("-cpu", f"-{variant}") for variant in ("embedding", "vllm")]
    for name in names:
        images.docker("tag", cpu_base, name)
    yield
    images.docker("rmi", *names)


def build(images: Images, project: Path, template: str) -> dict[str, str]:
    """Build a project's images and return them by endpoint."""
    done = images.build("--tag", f"fk-test-{template.replace('_', '-')}:1", folder=project)
    assert done.code == 0, done.out + done.err
    return {endpoint: image.reference for endpoint, image in read_images(project).items()}


def test_a_cpu_tool_fails_a_job_in_its_container_as_it_does_here(images, cpu_base, tmp_path):
    project = make("cpu_tool", tmp_path)
    build(images, project, "cpu_tool")
    run = images.flashkit("dev", "--once", "--input", '{"url": "ftp://nowhere"}', "--image", folder=project)
    assert run.code != 0
    assert "is not a web address" in run.err


def test_an_orchestrator_and_its_tool_share_an_image_and_answer(images, cpu_base, tmp_path):
    project = make("orchestrator", tmp_path)
    built = build(images, project, "orchestrator")
    assert built["prices"] == built["fk-test"]
    job = ("--endpoint", "fk-test", "--input", '{"items": {"lamp": 2}}')
    run = images.flashkit("dev", "--once", *job, "--image", folder=project)
    assert run.code == 0, run.err
    assert json.loads(run.out)["status"] == "ordered"


def test_a_language_models_worker_answers_from_its_container(images, model_bases, tmp_path):
    """The model is a scripted one on this machine, which the worker reaches by its base URL."""
    project = make("vllm_llm", tmp_path)
    build(images, project, "vllm_llm")
    job = ("--endpoint", "fk-test", "--input", '{"messages": [{"role": "user", "content": "What is a queue?"}]}')
    with LocalPlatform(project / "scripted.py") as scripted:
        url = f"{scripted.url}/v2/fk-test/openai/v1"
        run = images.flashkit("dev", "app.py", "--once", *job, "--image", folder=project, FLASHKIT_LLM_URL=url)
    assert run.code == 0, run.err
    assert "A queue holds jobs" in json.loads(run.out)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("weights", ["cached", "volume"])
def test_an_embedding_workers_image_is_built(images, model_bases, tmp_path, weights):
    project = render_project(find_template("embedding"), tmp_path / "fk_test", {"weights": weights})
    built = build(images, project, f"embedding_{weights}")
    listed = images.docker("run", "--rm", built["fk-test"], "ls", "/app").split()
    assert "app.py" in listed
    assert "tests" not in listed


def test_a_web_apis_image_is_built_and_starts(images, cpu_base, tmp_path):
    project = make("load_balanced_api", tmp_path)
    built = build(images, project, "load_balanced_api")
    described = images.docker(
        "run", "--rm", built["fk-test"], "python", "-m", "flashkit.worker", "--describe", "app.py"
    )
    assert json.loads(described)["endpoints"][0]["routes"]


def test_the_research_agents_four_endpoints_have_three_images(images, model_bases, tmp_path):
    project = make("research_agent", tmp_path)
    built = build(images, project, "research_agent")
    assert set(built) == {"web-retrieval", "kb-search", "llm", "agent"}
    assert built["web-retrieval"] == built["agent"]
    assert len(set(built.values())) == 3
    described = images.docker("run", "--rm", built["agent"], *DESCRIBE)
    assert len(json.loads(described)["endpoints"]) == 4
