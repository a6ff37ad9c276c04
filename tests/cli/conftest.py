"""`flashkit` as people start it: real processes in a project folder of their own."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.processes import arguments_of

FLASHKIT = (sys.executable, "-c", "from flashkit.cli import main; main()")
PLATFORM_VARIABLES = (
    "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_BASE_URL", "FLASHKIT_ENDPOINTS", "FLASHKIT_STATE", "FLASHKIT_NAMESPACE",
    "NO_COLOR", "FORCE_COLOR",
)  # fmt: skip

GREETER = """
import time
from collections.abc import AsyncIterator

from flashkit import cpu_endpoint, gpu_endpoint


@cpu_endpoint(name="greet", workers=(0, 2))
def greet(name: str, seconds: float = 0) -> dict[str, str]:
    print("about to greet", name)
    time.sleep(seconds)
    if name == "nobody":
        raise LookupError("there is nobody to greet")
    return {"text": f"hello {name}"}


@gpu_endpoint(name="count", gpu="A100", execution_timeout_ms=30_000)
async def count(n: int) -> AsyncIterator[str]:
    for index in range(n):
        yield f"{index} "
"""


def clean_environment(**extra):
    """The environment without what would choose a platform or colours."""
    kept = {name: value for name, value in os.environ.items() if name not in PLATFORM_VARIABLES}
    return {**kept, **extra}


@dataclass
class Result:
    code: int
    out: str
    err: str


def run_flashkit(*arguments, folder, stdin="", **environment):
    done = subprocess.run(
        [*FLASHKIT, *arguments], check=False,
        cwd=folder, input=stdin, capture_output=True, text=True, timeout=60, env=clean_environment(**environment),
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


class Dev:
    """A running `flashkit dev`: what it prints, and how it ends."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*FLASHKIT, "dev", *arguments, "--port", "0"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            env=clean_environment(**environment),
        )  # fmt: skip
        self.text = ""
        self._lines: queue.Queue[str] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def wait_for(self, text: str, *, seconds: float = 60.0) -> str:
        """Return what was printed up to and with the line that contains the text, from here on."""
        found = ""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come; until then:\n{self.text}") from None
            found += line
            if text in line:
                return found

    @property
    def record(self) -> Path:
        return self.folder / ".flashkit" / "dev.json"

    @property
    def url(self) -> str:
        return json.loads(self.record.read_text())["url"]

    def family(self) -> list[psutil.Process]:
        """Every process that it started, however deep."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, *, seconds: float = 40.0) -> int:
        """Wait for its end, and return the exit code."""
        code = self.process.wait(timeout=seconds)
        self._reading.join(timeout=5)
        return code

    def stop(self) -> None:
        for patience in (2.0, 60.0):  # the second signal kills jobs that still run
            if self.process.poll() is None:
                self.send(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.end(seconds=patience)
        assert self.process.poll() is not None, self.text
        self.process.stdout.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.text += line
            self._lines.put(line)


@pytest.fixture
def project(tmp_path):
    """A folder with the greeter app."""
    (tmp_path / "app.py").write_text(GREETER)
    return tmp_path


def _servers():
    """Start `flashkit dev` in a folder and wait for its banner."""
    started = []

    def start(folder, *arguments, until="Ctrl-C stops", **environment):
        dev = Dev(folder, *arguments, **environment)
        started.append(dev)
        if until:
            dev.wait_for(until)
        return dev

    yield start
    for dev in started:
        dev.stop()


start_dev = pytest.fixture(name="start_dev")(_servers)
start_shared_dev = pytest.fixture(name="start_shared_dev", scope="module")(_servers)


@pytest.fixture(scope="session")
def environment():
    """Make the environment of a process: this one's, without what would choose a platform or colours."""
    return clean_environment


@pytest.fixture(scope="session")
def flashkit():
    """Run one command to its end, and give back its exit code and what it printed."""
    return run_flashkit


@pytest.fixture(scope="session")
def assert_gone():
    """Fail when one of the processes is still there after so many seconds."""

    def check(processes, *, seconds):
        _, alive = psutil.wait_procs(processes, timeout=seconds)
        assert [arguments_of(process) for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []

    return check
