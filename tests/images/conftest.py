"""Images that are really built and run, by a Docker engine of our own, from stand-ins for published bases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FLASHKIT, clean_environment

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "images"
sys.path.insert(0, str(SCRIPTS))

import engine as engine_script  # noqa: E402
import standins  # noqa: E402

BUILD_SECONDS = 600
APP = """
import os
import sys
import time

from flashkit import cpu_endpoint


@cpu_endpoint(name="tool", cpu="cpu3c-1-2", workers=(0, 2), idle_timeout=300, env={"MODEL": "tiny"})
def tool(do: str = "look", seconds: float = 0) -> dict:
    print("asked to", do)
    if do == "exit":
        os._exit(7)
    if do == "die":
        os.kill(os.getpid(), 9)
    time.sleep(seconds)
    return {
        "uid": os.getuid(), "model": os.environ.get("MODEL"), "home": os.environ["HOME"], "folder": os.getcwd(),
        "python": sys.prefix, "key": os.environ.get("RUNPOD_API_KEY"), "host": os.environ.get("ONLY_ON_HOST"),
    }
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


class Images:
    """The engine, as tests use it."""

    def __init__(self, environment: dict[str, str], checkout: Path) -> None:
        self.environment = environment
        self._checkout = checkout
        pins = standins.pinned_contexts(ROOT / "Dockerfile.base")
        self.build_options = ["--network=host", *(word for pin in pins for word in ("--build-context", pin))]
        """What every build here needs: the machine's network, and stand-ins for pinned images."""

    @property
    def own_environment(self) -> dict[str, str]:
        """The engine's environment, with flashkit as it was when the tests began."""
        return {**self.environment, "PYTHONPATH": str(self._checkout)}

    def docker(self, *words: str, check: bool = True, stdin: str = "", **environ: str) -> str:
        """Run docker, and return what it printed, errors included."""
        done = subprocess.run(
            ["docker", *words], env={**self.environment, **environ}, input=stdin, capture_output=True, text=True,
            check=False, timeout=BUILD_SECONDS,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def flashkit(self, *words: str, folder: Path, **environ: str) -> Done:
        """Run a command of flashkit with this engine's docker."""
        done = subprocess.run(
            [*FLASHKIT, *words], cwd=folder, env={**clean_environment(), **self.own_environment, **environ},
            capture_output=True, text=True, check=False, timeout=BUILD_SECONDS,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def build(self, *words: str, folder: Path, **environ: str) -> Done:
        """Run `flashkit build`; bases that a fixture made are taken as they are."""
        return self.flashkit("build", "--keep-bases", *words, "--", *self.build_options, folder=folder, **environ)

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        return self.docker("ps", "--all", "--format", "{{.Names}}").split()

    def saved(self, reference: str) -> bytes:
        """The image's archive."""
        command = ["docker", "save", reference]
        return subprocess.run(command, env=self.environment, capture_output=True, check=True).stdout


def missing(reason: str) -> None:
    """Skip the test, or fail it where everything has to be there."""
    text = f"IMAGE TESTS NOT RUN: {reason}"
    if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What images are built from, copied: somebody who goes on working does not change bases between two tests."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Dockerfile.base", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("flashkit", "worker_templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def images(checkout: Path) -> Iterator[Images]:
    """The running engine with its stand-ins. Its keeper removes old images, and keeps what makes the next run quick."""
    try:
        engine = engine_script.hold_engine()
    except engine_script.EngineUnavailable as exc:
        missing(str(exc))
    try:
        os.environ.update(before := dict(os.environ), **engine.environment)
        try:
            standins.make_standins()
        except standins.StandInUnavailable as exc:
            missing(str(exc))
        finally:
            os.environ.clear()
            os.environ.update(before)
        yield Images(engine.environment, checkout)
    finally:
        engine.let_go()


@pytest.fixture(scope="session")
def cpu_base(images: Images) -> str:
    """The CPU base image, built by `flashkit build --base cpu`."""
    done = images.build("--base", "cpu", folder=ROOT)
    assert done.code == 0, done.out + done.err
    from flashkit import __version__

    return f"flashkit-worker:{__version__}-cpu"


@pytest.fixture(scope="session")
def tool_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one endpoint and no Dockerfile."""
    folder = tmp_path_factory.mktemp("fk-test-tool")
    (folder / "app.py").write_text(APP)
    (folder / ".env").write_text("PRIVATE=kept-out-of-images\n")
    return folder


@pytest.fixture(scope="session")
def tool_image(images: Images, cpu_base: str, tool_project: Path) -> str:
    """Its image, built by `flashkit build`."""
    done = images.build("--tag", "fk-test-tool:1", folder=tool_project)
    assert done.code == 0, done.out + done.err
    return "fk-test-tool:1"


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Write files into a new folder."""

    def make(name: str = "fk-test", **files: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, text in files.items():
            (folder / file.replace("__", ".")).write_text(text)
        return folder

    return make
