"""`flashkit build` before Docker is asked for anything, without it, and what it shows."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from flashkit.cli.build_screen import BuildScreen, describe_step, format_size, shorten
from flashkit.errors import DockerUnavailable, InputError
from flashkit.images.build_log import State, Step
from flashkit.images.building import check_tag, registry_of, split_secret
from flashkit.images.docker import Docker, explain_missing_buildx, no_daemon
from tests.cli.conftest import run_flashkit
from tests.images.conftest import APP, BUILD_SECONDS

pytestmark = pytest.mark.timeout(BUILD_SECONDS)  # for the first one that needs the engine


@pytest.fixture
def project(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def build(project):
    """Run `flashkit build` on a machine without Docker."""

    def run(*words, **environ):
        return run_flashkit("build", *words, folder=project, PATH=str(project), **environ)

    return run


def test_without_docker_the_hint_has_the_command_that_installs_it(build):
    done = build("app.py")
    assert done.code == 2
    assert done.err.startswith("DockerUnavailable: there is no docker command on the PATH\n  hint: ")
    assert "install" in done.err


def test_the_recipe_is_printed_without_docker(build):
    done = build("--print-dockerfile")
    assert done.code == 0
    assert done.out.startswith("ARG BASE=flashkit-worker:0.1.0-cpu\nFROM ${BASE}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--platform", "linux/amd46"], "--platform 'linux/amd46' is not known"),
        (["--tag", "Upper:1"], "--tag 'Upper:1' is no name of an image"),
        (["--push"], "--push needs to know where to: --tag USER/NAME:TAG"),
        (["--push", "--tag", "tools:1"], "--tag 'tools:1' names no account to push to"),
        (["--secret", "src=x"], "--secret 'src=x' has no id"),
        (["--secret", "id=a,src=nowhere"], "--secret a: there is no file 'nowhere'"),
        (["--base", "tpu"], "there is no base image 'tpu'"),
    ],
)
def test_a_wrong_command_line_is_refused_before_docker_is_asked(build, words, message):
    done = build(*words)
    assert (done.code, message in done.err) == (2, True), done.err


def test_a_folder_without_an_app_says_so(tmp_path):
    done = run_flashkit("build", folder=tmp_path, PATH=str(tmp_path))
    assert done.code == 2


def test_a_daemon_that_does_not_run_is_told_apart(images, project):
    done = images.build(folder=project, DOCKER_HOST=f"unix://{project}/nothing.sock")
    assert done.code == 2
    assert "DockerUnavailable: the Docker daemon does not answer: Cannot connect to the Docker daemon" in done.err
    assert "hint: start it: sudo systemctl start docker" in done.err


def test_a_docker_without_buildx_says_what_to_install(images, project):
    (project / "Dockerfile").write_text("FROM scratch\nCOPY app.py /\n")
    done = images.build(folder=project, DOCKER_CONFIG=str(project / "empty"))
    assert done.code == 1
    assert "docker cannot build with BuildKit here" in done.err
    assert "sudo apt-get install docker-buildx" in done.err


def test_a_user_without_rights_is_told_of_the_group():
    error = no_daemon(
        "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
    )
    assert error.report.message == "this user may not talk to the Docker daemon"
    assert "usermod -aG docker" in error.report.hint


def test_a_daemon_that_hangs_is_not_waited_for_for_ever(tmp_path):
    slow = tmp_path / "docker"
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    slow.chmod(0o755)
    with pytest.raises(DockerUnavailable, match=r"has not answered for 0\.2 s"):
        Docker(str(slow), {}).check_daemon(timeout=0.2)


def test_other_complaints_are_not_taken_for_a_missing_buildx():
    assert explain_missing_buildx(["ERROR: failed to solve: process exit code 1"]) is None


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("me/tools:1", None),
        ("127.0.0.1:5000/x", "127.0.0.1:5000"),
        ("localhost/x", "localhost"),
        ("example.org/a/b:1", "example.org"),
    ],
)
def test_the_registry_of_a_reference(reference, registry):
    assert registry_of(reference) == registry


@pytest.mark.parametrize("tag", ["me/tools:1.2", "tools", "example.org:5000/a/b-c_d:x"])
def test_names_of_images(tag):
    assert check_tag(tag, is_pushed=False) == tag


@pytest.mark.parametrize("tag", ["a b", "me/tools@sha256:00", "tools:" + "x" * 200, "/x"])
def test_what_is_no_name_of_an_image(tag):
    with pytest.raises(InputError):
        check_tag(tag, is_pushed=False)


def test_secrets_are_read_as_docker_takes_them(tmp_path):
    (tmp_path / "key").write_text("x")
    assert split_secret(f"id=a,src={tmp_path / 'key'}") == {"id": "a", "src": str(tmp_path / "key")}
    assert split_secret("id=a,env=B") == {"id": "a", "env": "B"}


def steps():
    done = Step(1, "[1/3] FROM flashkit-worker:0.1.0-cpu", State.CACHED)
    running = Step(2, "[2/3] RUN pip install runpod")
    running.output.append("Collecting runpod")
    return done, running, Step(3, "[internal] load .dockerignore", State.DONE, 0.1)


def test_a_terminal_shows_running_steps_with_their_last_line():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    screen = BuildScreen(is_json=False, console=console)
    with screen.building("x:1", ("tool",)) as show:
        for step in steps():
            show(step)
    text = console.file.getvalue()
    assert "building x:1 for tool" in text
    assert "·   cached  [1/3] FROM flashkit-worker:0.1.0-cpu" in text
    assert "▸           [2/3] RUN pip install runpod" in text
    assert "Collecting runpod" in text
    assert "[internal]" not in text


def test_a_pipe_gets_a_line_for_each_step_that_has_ended():
    console = Console(file=io.StringIO(), width=100)
    screen = BuildScreen(is_json=False, console=console)
    with screen.building("x:1", ()) as show:
        for step in (*steps(), *steps()):
            show(step)
    assert console.file.getvalue().splitlines()[1:-1] == ["  ·   cached  [1/3] FROM flashkit-worker:0.1.0-cpu"]


def test_a_push_shows_what_docker_says():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with BuildScreen(is_json=False, console=console).pushing("me/x:1") as say:
        say("a1b2: Pushing 12 MB")
    assert "pushed me/x:1" in console.file.getvalue()


def test_steps_and_sizes_in_words():
    assert describe_step(Step(1, "[1/2] RUN x", State.FAILED)).plain.split() == ["✗", "[1/2]", "RUN", "x"]
    assert shorten("RUN /bin/sh -c pip install   x # buildkit") == "RUN pip install x"
    assert shorten("/bin/sh -c #(nop) ADD file:1 in /") == "ADD file:1 in /"
    assert len(shorten("RUN " + "x" * 500)) == 90
    assert [format_size(size) for size in (812, 3_400_000, 12_300_000_000)] == ["812 B", "3.4 MB", "12.3 GB"]
