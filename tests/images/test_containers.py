"""Workers that are containers: they get the same, and end the same ways, as those that are processes."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import signal
import sys
import time

import pytest

from flashkit.cli.containers import ContainerChoice, in_container
from flashkit.emulator.container import run_command
from flashkit.emulator.events import LogLine, WorkerEvent
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.supervisor import LocalEndpoint
from flashkit.errors import DockerUnavailable, ImageError, InputError
from flashkit.images.docker import Docker
from flashkit.images.record import write_images
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from tests.cli.conftest import Dev, clean_environment
from tests.images.conftest import APP, BUILD_SECONDS
from tests.images.test_record import built

pytestmark = pytest.mark.timeout(BUILD_SECONDS)


@pytest.fixture(scope="module")
def docker(images):
    return Docker.find(images.environment)


@pytest.fixture
def tool(docker, tool_image, tmp_path):
    """The endpoint whose workers run the tool's image."""

    def make(*, workers=(0, 1), options=(), **changes):
        spec = EndpointSpec(
            name="tool", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(*workers), env={"MODEL": "tiny"},
            **{"idle_timeout": 300, **changes},
        )  # fmt: skip
        return in_container(LocalEndpoint(spec, ("unused",), tmp_path), tool_image, docker, options=options)

    return make


@pytest.fixture
async def run_tool(start_emulator, tool, images):
    """Start a platform with it, and give back what tells of it and what sends it a job."""

    async def start(**options):
        seen = []
        environ = {**images.environment, "ONLY_ON_HOST": "1", "RUNPOD_API_KEY": "secret"}
        emulator = await start_emulator(tool(**options), environ=environ, on_event=seen.append)

        async def send(**given):
            job = emulator.submit("tool", JobRequest(input=given))
            deadline = time.monotonic() + 90
            while not job.status.is_final:
                assert time.monotonic() < deadline, (job, [event for event in seen if not isinstance(event, LogLine)])
                await asyncio.sleep(0.05)
            return job

        return emulator, seen, send

    return start


def workers_seen(seen, what):
    return [event for event in seen if isinstance(event, WorkerEvent) and event.what == what]


async def until(found, *, seconds: float = 30):
    """Wait until the function returns something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return value


async def test_a_job_runs_in_the_container_as_the_images_user(run_tool, images):
    _, seen, send = await run_tool()
    job = await send()
    assert job.output == {
        "uid": 1000, "model": "tiny", "home": "/home/app", "folder": "/app", "python": "/opt/venv", "key": None,
        "host": None,
    }  # fmt: skip
    lines = [(event.text, event.job_id) for event in seen if isinstance(event, LogLine)]
    assert ("asked to look", job.id) in lines
    assert [name for name in images.containers() if name.startswith("flashkit-tool-1-")]


async def test_a_stopped_platform_leaves_no_container(tool, images, tmp_path, worker_environ):
    from flashkit.emulator.server import Emulator

    seen = []
    async with Emulator([tool(workers=(1, 1))], state_dir=tmp_path / "s", environ=worker_environ, on_event=seen.append):
        await until(lambda: workers_seen(seen, "ready"))
        (name,) = [name for name in images.containers() if name.startswith("flashkit-tool")]
    assert name not in images.containers()
    assert [event.detail for event in workers_seen(seen, "exited")] == ["exit code 0"]


async def test_a_worker_that_exits_has_the_handlers_exit_code(run_tool):
    _, seen, send = await run_tool()
    job = await send(do="exit")
    assert job.status == "FAILED"
    assert {event.detail for event in workers_seen(seen, "exited")} == {"exit code 7"}


async def test_a_worker_that_dies_by_a_signal_is_said_to_have(run_tool):
    _, seen, send = await run_tool()
    job = await send(do="die")
    assert job.status == "FAILED"
    assert {event.detail for event in workers_seen(seen, "exited")} == {"SIGKILL"}


async def test_a_killed_worker_takes_its_container_along_and_its_job_goes_to_another(run_tool, images):
    emulator, seen, send = await run_tool()
    waiting = asyncio.create_task(send(do="sleep", seconds=3))
    await until(lambda: any(isinstance(event, LogLine) and event.text == "asked to sleep" for event in seen))
    worker = workers_seen(seen, "ready")[0].worker_id
    emulator.kill_worker(worker)
    await until(lambda: workers_seen(seen, "exited"))
    assert f"flashkit-{worker}" not in images.containers()
    job = await waiting
    assert (job.status, job.attempt) == ("COMPLETED", 2)


async def test_a_job_over_its_time_ends_with_its_container(run_tool, images):
    _, _, send = await run_tool(execution_timeout_ms=5_000)
    job = await send(do="sleep", seconds=60)
    assert job.status in ("TIMED_OUT", "FAILED")
    await until(lambda: not [name for name in images.containers() if name.startswith("flashkit-tool")])


async def test_a_worker_needs_no_writable_root(run_tool):
    _, _, send = await run_tool(options=("--read-only", "--tmpfs", "/tmp"))
    assert (await send()).status == "COMPLETED"


async def test_a_container_cannot_be_frozen(run_tool):
    emulator, seen, send = await run_tool()
    await send()
    worker = workers_seen(seen, "ready")[0].worker_id
    with pytest.raises(InputError, match="runs in a container, which cannot be frozen here"):
        emulator.freeze_worker(worker)


async def test_an_image_without_the_command_says_so(start_emulator, tool, images):
    seen = []
    images.docker("build", "--tag", "fk-test-empty:1", "-", stdin='FROM python:3.11-slim\nCMD ["nothing-like-it"]\n')
    docker = Docker.find(images.environment)
    local = in_container(dataclasses.replace(tool(), env={}), "fk-test-empty:1", docker)
    emulator = await start_emulator(local, environ=images.environment, on_event=seen.append)
    job = emulator.submit("tool", JobRequest(input={}))
    await until(lambda: job.status.is_final)
    assert any("nothing-like-it" in event.text for event in seen if isinstance(event, LogLine))


def command(environ, **spec):
    usual = {"docker": ["docker"], "image": "i:1", "options": [], "env": [], "shares_store": False}
    return run_command({**usual, **spec}, environ, "flashkit-w-1")


def after(words, name):
    return [value for word, value in itertools.pairwise(words) if word == name]


def test_variables_go_on_by_name_and_this_machines_do_not():
    words = command(
        {"PATH": "/x", "HOME": "/y", "RUNPOD_POD_ID": "w", "SECRET": "s3cret", "FLASHKIT_WEIGHTS_DIR": "/m"}
    )
    assert after(words, "--env") == ["RUNPOD_POD_ID", "SECRET"]
    assert "s3cret" not in " ".join(words)
    assert words[:8] == ["docker", "run", "--rm", "--init", "--network", "host", "--name", "flashkit-w-1"]
    assert words[-1] == "i:1"
    assert after(command({"HOME": "/y"}, env=["HOME"]), "--env") == ["HOME"]


def test_the_volume_of_this_machine_is_mounted_where_the_platform_has_it():
    words = command({"FLASHKIT_VOLUME": "/data/volume"})
    assert after(words, "--volume") == ["/data/volume:/runpod-volume"]
    assert after(words, "--env") == []


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:////p/.flashkit/sessions.db", "/p/.flashkit"),
        ("unix:///run/x/redis.sock?db=0", "/run/x"),
        ("redis://127.0.0.1:6379/0", None),
    ],
)
def test_sessions_that_are_kept_here_are_reached_by_orchestrators(url, folder):
    words = command({"FLASHKIT_STATE": url}, shares_store=True)
    assert after(words, "--volume") == ([f"{folder}:{folder}"] if folder else [])
    assert bool(after(words, "--user")) == bool(folder)
    apart = command({"FLASHKIT_STATE": url})
    assert after(apart, "--volume") == []
    assert ("FLASHKIT_STATE" in after(apart, "--env")) == (folder is None)  # no worker waits for what it cannot reach


def test_gpus_go_to_endpoints_that_want_them_where_there_are_some(tmp_path):
    docker = Docker("docker", {"HOME": "/h", "DOCKER_HOST": "unix:///x.sock"})

    def options(spec, **given):
        local = in_container(LocalEndpoint(spec, ("unused",), tmp_path), "i:1", docker, **given)
        return json.loads(local.command[-1])

    gpu = EndpointSpec(name="a", kind=Kind.GPU, gpu=("A100",))
    cpu = EndpointSpec(name="b", kind=Kind.CPU, cpu="cpu3c-1-2")
    assert options(gpu, has_gpus=True)["options"] == ["--shm-size", "2g", "--gpus", "all"]
    assert options(gpu)["options"] == ["--shm-size", "2g"]
    assert options(cpu, has_gpus=True)["options"] == []
    assert options(cpu)["docker"] == ["docker", "--config", "/h/.docker", "--host", "unix:///x.sock"]


def test_images_are_chosen_by_endpoint(tmp_path):
    assert ContainerChoice(("a=x:1", "b=y:1")).choose(["a", "b", "c"]) == {"a": "x:1", "b": "y:1"}
    assert ContainerChoice(("x:1", "b=y:1")).choose(["a", "b"]) == {"a": "x:1", "b": "y:1"}
    with pytest.raises(InputError, match="names an endpoint 'd', which there is not"):
        ContainerChoice(("d=x:1",)).choose(["a"])
    other = tmp_path / "other"
    write_images(other, [built("b", reference="b:2")])
    assert ContainerChoice(("",), (tmp_path, other)).choose(["b"]) == {"b": "b:2"}
    with pytest.raises(InputError, match="no image was built for endpoint 'a'"):
        ContainerChoice(("",), (tmp_path,)).choose(["a"])


class DevInContainers(Dev):
    """A `flashkit dev` with this engine's docker."""

    def __init__(self, images, folder, *arguments):
        super().__init__(folder, *arguments, **{**clean_environment(), **images.own_environment})


def test_dev_runs_what_was_built_last(images, tool_image, tool_project):
    done = images.flashkit("dev", "app.py", "--once", "--input", '{"do": "look"}', "--image", folder=tool_project)
    assert done.code == 0, done.err
    assert json.loads(done.out)["uid"] == 1000


def test_dev_that_is_killed_leaves_no_container(images, tool_image, tool_project):
    dev = DevInContainers(images, tool_project, "app.py", "--image", f"tool={tool_image}")
    try:
        dev.wait_for(f"workers in containers of tool={tool_image}")
        dev.wait_for("Ctrl-C stops")
        sent = images.flashkit("run", "tool", '{"do": "sleep", "seconds": 0.1}', folder=tool_project)
        assert sent.code == 0, sent.err
        (name,) = [name for name in images.containers() if name.startswith("flashkit-tool")]
        dev.send(signal.SIGKILL)
        dev.end()
        deadline = time.monotonic() + 10
        while name in images.containers():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        dev.stop()


def test_an_image_that_is_not_there_is_said_before_anything_starts(images, tool_project):
    done = images.flashkit("dev", "app.py", "--image", "nobody/nothing:1", "--port", "0", folder=tool_project)
    assert done.code == 1
    assert "there is no image 'nobody/nothing:1' on this machine" in done.err
    assert "docker pull nobody/nothing:1, or flashkit build" in done.err


def test_flashboot_and_containers_exclude_each_other(images, tool_project):
    done = images.flashkit("dev", "app.py", "--image", "--flashboot", folder=tool_project)
    assert done.code == 2
    assert "--flashboot freezes processes, and cannot freeze the containers of --image" in done.err


def test_without_docker_dev_says_what_to_install(tmp_path):
    choice = ContainerChoice(("x:1",))
    with pytest.raises(DockerUnavailable, match="there is no docker command on the PATH"):
        Docker.find({"PATH": str(tmp_path)})
    assert list(choice.words()) == ["workers in containers of x:1"]


def test_a_missing_image_is_an_error(images):
    with pytest.raises(ImageError, match="there is no image 'nothing:0' here"):
        Docker.find(images.environment).inspect("nothing:0")


AGENT = (
    APP
    + """

from flashkit import Session, orchestrator_endpoint


@orchestrator_endpoint(name="agent", cpu="cpu3c-2-4", workers=(0, 1))
async def agent(session: Session, topic: str) -> dict:
    word = await session.step("shout", topic.upper)
    seen = await session.call(tool, "look", timeout=120)
    return {"word": word, "uid": seen["uid"], "own": os.getuid()}
"""
)


def test_an_agents_endpoints_share_an_image_and_keep_sessions_on_this_machine(images, cpu_base, make_project):
    folder = make_project("fk-test-agent", app__py=AGENT)
    done = images.build("--tag", "fk-test-agent:1", folder=folder)
    assert done.code == 0, done.out + done.err
    run = images.flashkit(
        "dev", "app.py", "--once", "--endpoint", "agent", "--input", '{"topic": "leases"}', "--image", folder=folder
    )
    assert run.code == 0, run.err
    assert json.loads(run.out)["word"] == "LEASES"
    assert json.loads(run.out)["uid"] == 1000


HANDLER = """
import os

import runpod


def handler(job):
    return {"echo": job["input"], "uid": os.getuid()}


runpod.serverless.start({"handler": handler})
"""


def test_a_plain_runpod_handler_runs_in_its_own_image(images, cpu_base, make_project):
    folder = make_project("fk-test-handler", handler__py=HANDLER)
    done = images.build("--tag", "fk-test-handler:1", folder=folder)
    assert done.code == 0, done.out + done.err
    run = images.flashkit("dev", "--once", "--input", '{"x": 41}', "--image", folder=folder)
    assert run.code == 0, run.err
    assert json.loads(run.out) == {"echo": {"x": 41}, "uid": 1000}


HTTP = """
import os

from flashkit import cpu_endpoint

api = cpu_endpoint(name="api", cpu="cpu3c-1-2", workers=(1, 1))


@api.get("/who")
async def who(name: str) -> dict:
    return {"hello": name, "uid": os.getuid()}


if __name__ == "__main__":
    import urllib.request

    url = os.environ["RUNPOD_ENDPOINT_BASE_URL"].removesuffix("/v2")
    print(urllib.request.urlopen(f"{url}/lb/api/who?name=you").read().decode())
"""


def test_http_routes_are_served_from_a_container(images, cpu_base, make_project):
    folder = make_project("fk-test-api", app__py=HTTP)
    done = images.build("--tag", "fk-test-api:1", folder=folder)
    assert done.code == 0, done.out + done.err
    run = images.flashkit("dev", "app.py", "--image", "--ci", "--", sys.executable, "app.py", folder=folder)
    assert run.code == 0, run.err
    assert json.loads(run.out) == {"hello": "you", "uid": 1000}
