"""The engine of the tests: it runs while it is held, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.images.conftest import SCRIPTS, engine_script

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("images")]


def run(*words, before=(), **options):
    """Run the engine's command to its end."""
    command = [*before, sys.executable, str(SCRIPTS / "engine.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.fixture
def own_places(tmp_path_factory, monkeypatch):
    """Another engine beside the one of the session, with the programs of that one."""
    usual = engine_script.Places.usual()
    folder = Path("/var/tmp") / f"fk-{os.getpid()}"  # a socket's path is short
    places = engine_script.Places(folder)
    folder.mkdir()
    places.programs.symlink_to(usual.programs)
    monkeypatch.setenv("FLASHKIT_IMAGES_DIR", str(folder))
    yield places
    run("down")
    subprocess.run(["rm", "-rf", folder], check=True)


def processes_of(places) -> list[psutil.Process]:
    """Everything that runs for an engine: its keeper, its daemon, its containers' shims."""
    found = []
    for process in psutil.process_iter():
        try:
            is_part = any(str(places.root) in word for word in process.cmdline()) and process.pid != os.getpid()
            if is_part and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_gone(places, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_of(places):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.1)
    mounts = Path("/proc/mounts").read_text()
    assert f" {places.root}/" not in mounts
    assert not places.docker_socket.exists()


def test_two_holders_share_an_engine_and_the_last_one_ends_it(own_places):
    first, second = engine_script.hold_engine(own_places), engine_script.hold_engine(own_places)
    first.let_go()
    ask = ["docker", "version", "--format", "{{.Server.Version}}"]
    assert subprocess.run(ask, env=second.environment, capture_output=True, check=True).stdout.startswith(b"26.")
    second.let_go()
    wait_until_gone(own_places)


def test_an_engine_ends_with_a_holder_that_is_killed(own_places):
    program = f"import sys, time; sys.path.insert(0, {str(SCRIPTS)!r}); import engine\n"
    program += "held = engine.hold_engine(); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert processes_of(own_places)
        holder.send_signal(signal.SIGKILL)
    wait_until_gone(own_places)


def test_an_engine_starts_again_after_all_of_it_was_killed(own_places):
    engine = engine_script.hold_engine(own_places)
    for process in processes_of(own_places):
        with contextlib.suppress(psutil.NoSuchProcess):  # some end with another one
            process.kill()
    engine.let_go()
    done = run("run", "docker", "info", "--format", "{{.Driver}}")
    assert (done.returncode, done.stdout.strip()) == (0, "overlay2")
    wait_until_gone(own_places)


def test_up_stays_and_down_ends_it(own_places):
    assert f"export DOCKER_HOST=unix://{own_places.docker_socket}\n" in run("up").stdout
    assert processes_of(own_places)
    assert run("down").returncode == 0
    wait_until_gone(own_places)


def test_the_command_that_runs_with_an_engine_gives_its_exit_code(own_places):
    assert run("run", "sh", "-c", "exit 3").returncode == 3


def test_a_machine_that_cannot_have_an_engine_is_told_why():
    long = "/var/tmp/" + "x" * 100
    done = run("run", "true", env={**os.environ, "FLASHKIT_IMAGES_DIR": long})
    assert done.returncode == engine_script.EXIT_UNAVAILABLE
    assert done.stderr == f"no Docker engine here: the path {long} is too long for a socket: set FLASHKIT_IMAGES_DIR\n"


def test_only_root_can_have_an_engine():
    done = run("run", "true", before=["setpriv", "--reuid=65534", "--clear-groups"])
    assert done.returncode == engine_script.EXIT_UNAVAILABLE
    assert done.stderr == "no Docker engine here: only root can start one\n"
