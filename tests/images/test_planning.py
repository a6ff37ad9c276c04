"""Which images a project needs, what they are called, and whether workers can hold them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flashkit.errors import ImageError, InputError
from flashkit.images.planning import check_size, choose, code_version, plan_images, tag_for
from flashkit.spec import EndpointSpec, EngineSpec, Kind, Weights


def spec(name, kind=Kind.CPU, **options):
    place = {} if "gpu" in options or "cpu" in options else {"cpu": "cpu3c-1-2"}
    return EndpointSpec(name=name, kind=kind, **place, **options)


def llm(name, model="Qwen/Qwen3-8B"):
    return spec(name, Kind.GPU, gpu=("A100",), engine=EngineSpec("vllm", Weights(model)))


AGENT = [
    spec("web"),
    spec("agent", Kind.ORCHESTRATOR),
    spec("search", Kind.EMBEDDING, gpu=("L4",), engine=EngineSpec("embedding", Weights("a/b"))),
    llm("llm"),
]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "app.py").touch()
    return tmp_path


def plan(project: Path, specs=AGENT, **options):
    return plan_images(specs, project=project, app=project / "app.py", **options)


def test_endpoints_with_the_same_ingredients_share_an_image(project):
    assert [(image.suffix, image.endpoints) for image in plan(project)] == [
        ("cpu", ("web", "agent")),
        ("embedding", ("search",)),
        ("vllm", ("llm",)),
    ]
    assert plan(project)[0].ingredients.extras == ("redis",)


def test_two_models_share_an_image_unless_they_are_baked(project):
    two = [llm("small"), llm("large", "Qwen/Qwen3-32B")]
    assert [image.endpoints for image in plan(project, two)] == [("small", "large")]
    baked = plan(project, two, bakes=True)
    assert [(image.suffix, image.ingredients.baked) for image in baked] == [
        ("small", (Weights("Qwen/Qwen3-8B"),)),
        ("large", (Weights("Qwen/Qwen3-32B"),)),
    ]


def test_the_projects_dockerfile_is_for_all_endpoints(project):
    (project / "Dockerfile").write_text("FROM scratch\n")
    (image,) = plan(project)
    assert (image.endpoints, image.suffix, image.dockerfile) == (
        ("web", "agent", "search", "llm"), "", project / "Dockerfile",
    )  # fmt: skip
    assert image.ingredients is None


def test_a_dockerfile_of_one_endpoint_is_for_it_alone(project):
    (project / "Dockerfile.llm").write_text("FROM scratch\n")
    assert [(image.suffix, image.endpoints, image.dockerfile) for image in plan(project)] == [
        ("cpu", ("web", "agent"), None),
        ("embedding", ("search",), None),
        ("llm", ("llm",), project / "Dockerfile.llm"),
    ]
    (project / "Dockerfile").write_text("FROM scratch\n")
    assert [image.endpoints for image in plan(project)] == [("web", "agent", "search"), ("llm",)]


def test_one_endpoints_image_can_be_chosen(project):
    assert [image.suffix for image in choose(plan(project), "agent")] == ["cpu"]
    assert len(choose(plan(project), None)) == 3
    with pytest.raises(InputError, match="there is no endpoint 'lm'") as caught:
        choose(plan(project), "lm")
    assert caught.value.report.hint == "the app has: web, agent, search, llm"


def names(images, project, **options):
    options = {"version": "abc1234", "tag": None, "is_only": len(images) == 1, **options}
    return [tag_for(image, project=project, **options) for image in images]


def test_images_are_called_after_the_project_and_its_commit(tmp_path):
    project = tmp_path / "My Agent_2"
    project.mkdir()
    (project / "app.py").touch()
    assert names(plan(project), project) == [
        "my-agent-2-cpu:abc1234", "my-agent-2-embedding:abc1234", "my-agent-2-vllm:abc1234",
    ]  # fmt: skip
    (project / "Dockerfile").touch()
    assert names(plan(project), project) == ["my-agent-2:abc1234"]


@pytest.mark.parametrize(
    ("tag", "called"),
    [
        ("me/agent:1.2", "me/agent:1.2-cpu"),
        ("me/agent", "me/agent:cpu"),
        ("127.0.0.1:5000/agent", "127.0.0.1:5000/agent:cpu"),
        ("127.0.0.1:5000/agent:1", "127.0.0.1:5000/agent:1-cpu"),
    ],
)
def test_a_given_name_is_told_apart_where_there_are_several_images(project, tag, called):
    assert names(plan(project), project, tag=tag)[0] == called
    assert names(plan(project)[:1], project, tag=tag) == [tag]


def test_the_version_is_the_commit_and_says_when_files_were_changed(tmp_path):
    assert code_version(tmp_path) == "dev"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "app.py").write_text("a = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "begin"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    commit = code_version(tmp_path)
    assert len(commit) >= 7
    (tmp_path / "app.py").write_text("a = 2\n")
    assert code_version(tmp_path) == f"{commit}-changed"


GB = 1_000_000_000


def test_an_image_that_no_workers_disk_can_hold_is_refused():
    with pytest.raises(
        ImageError, match=r"the image has 10\.5 GB, and a cpu3c-1-2 worker of 'web' has a disk of 10 GB"
    ):
        check_size([spec("web")], int(10.5 * GB))
    assert check_size([spec("web")], 2 * GB) == []


def test_a_disk_that_has_to_be_asked_for_is_said():
    assert check_size([spec("web", cpu="cpu5c-2-4")], 12 * GB) == [
        "12.0 GB is more than the usual disk of 10 GB: 'web' needs a larger one"
    ]
    assert check_size([spec("web", cpu="cpu5g-2-8")], 12 * GB) != []  # no source names its largest disk


def test_an_image_that_takes_longer_to_pull_than_a_start_may_is_said():
    assert check_size([llm("llm")], 24 * GB) == []
    disk, start = check_size([llm("llm")], 33 * GB)
    assert disk == "33.0 GB is more than the usual disk of 30 GB: 'llm' needs a larger one"
    assert start.startswith("a new host pulls it for about 9 min, and the platform gives a worker 7 min to start")
