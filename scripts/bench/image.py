"""What a CPU tool's image weighs, and how soon its worker asks for work, against the plain SDK in the same run.

- size: the image that `flashkit build` makes of a tool, against the smallest usual one for the same handler on the
  SDK: the same Python image, `pip install --no-cache-dir runpod`, the handler's file. Also against that one without
  compiled bytecode, which is smaller still and slower to start.
- start: from `docker run` to the first job-take, in the emulator; several starts of each, in turn.

Base images are stand-ins of this machine's own packages (scripts/images), the same for both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from measure import print_result

from flashkit.cli.containers import in_container
from flashkit.emulator.events import Event, LogLine, WorkerEvent
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.images.docker import Docker
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "images"))

from engine import EXIT_UNAVAILABLE, EngineUnavailable, hold_engine  # noqa: E402
from standins import StandInUnavailable, make_standins, pinned_contexts  # noqa: E402

FLASHKIT = (sys.executable, "-c", "from flashkit.cli import main; main()")
APP = """\
from flashkit import cpu_endpoint


@cpu_endpoint()
async def tool(n: int) -> dict[str, int]:
    return {"n": n}
"""
HANDLER = """\
import runpod


async def handler(job):
    return job["input"]


runpod.serverless.start({"handler": handler})
"""
PLAIN = """\
FROM python:3.11-slim
RUN pip install --no-cache-dir {option} runpod==1.12.0
WORKDIR /app
COPY handler.py /app/
CMD ["python", "-u", "handler.py"]
"""
IMAGES = {"flashkit": "bench-flashkit:1", "plain": "bench-plain:1", "uncompiled": "bench-uncompiled:1"}


def build_all(folder: Path) -> None:
    """Build the three images."""
    (folder / "app.py").write_text(APP)
    pins = [word for pin in pinned_contexts(ROOT / "Dockerfile.base") for word in ("--build-context", pin)]
    command = [*FLASHKIT, "build", "app.py", "--tag", IMAGES["flashkit"], "--", "--network=host", *pins]
    subprocess.run(command, cwd=folder, check=True)
    plain = folder / "plain"
    plain.mkdir()
    (plain / "handler.py").write_text(HANDLER)
    for name, option in (("plain", ""), ("uncompiled", "--no-compile")):
        build = ["docker", "build", "--quiet", "--network=host", "--tag", IMAGES[name], "--file", "-", str(plain)]
        subprocess.run(build, input=PLAIN.format(option=option), text=True, check=True, stdout=subprocess.DEVNULL)


@dataclass
class Start:
    """One start of a worker."""

    started: float = 0.0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, LogLine):
            self.lines.append(event.text)
        if isinstance(event, WorkerEvent) and event.what == "starting":
            self.started = time.monotonic()
        if isinstance(event, WorkerEvent) and event.what == "ready":
            self.seconds = time.monotonic() - self.started
            self.ready.set()


async def start_once(docker: Docker, name: str, folder: Path) -> float:
    """Return the seconds from `docker run` to the first job-take, once its job was answered."""
    spec = EndpointSpec(name="tool", kind=Kind.CPU, cpu="cpu3c-2-4", workers=WorkerBounds(0, 1), idle_timeout=3600)
    local = in_container(LocalEndpoint(spec, ("unused",), folder), IMAGES[name], docker)
    start = Start()
    async with Emulator([local], state_dir=folder / "state", on_event=start) as emulator:
        job = emulator.submit("tool", JobRequest(input={"n": 1}))
        try:
            await asyncio.wait_for(start.ready.wait(), 120)
        except TimeoutError:
            sys.exit("\n".join(["the worker did not ask for work", *start.lines]))
        while not job.status.is_final:
            await asyncio.sleep(0.01)
        assert job.status == "COMPLETED", job
    return start.seconds


async def measure_starts(docker: Docker, folder: Path, runs: int) -> dict[str, float]:
    """Return the median start of both workers; the first start of each only warms the disk's cache."""
    seconds: dict[str, list[float]] = {"plain": [], "flashkit": []}
    for run in range(runs + 1):
        for name, times in seconds.items():
            taken = await start_once(docker, name, folder)
            if run:
                times.append(taken)
                print(f"{name:9} {taken:6.2f} s")
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextmanager
def own_engine() -> Iterator[None]:
    """Have `docker` in this process mean the engine of the project's own."""
    engine = hold_engine()
    try:
        os.environ.update(engine.environment)
        make_standins()
        yield
    finally:
        engine.let_go()


def measure(runs: int) -> dict[str, float]:
    """Build, weigh and start, and return the figures."""
    with own_engine(), tempfile.TemporaryDirectory(prefix="bench-image-") as text:
        folder = Path(text)
        build_all(folder)
        docker = Docker.find()
        sizes = {name: docker.inspect(tag).size_bytes for name, tag in IMAGES.items()}
        base = docker.inspect("python:3.11-slim").size_bytes
        starts = asyncio.run(measure_starts(docker, folder, runs))
    return {
        "cpu_tool_size_ratio": sizes["flashkit"] / sizes["plain"],
        "start_ratio": starts["flashkit"] / starts["plain"],
        "size_ratio_uncompiled": sizes["flashkit"] / sizes["uncompiled"],
        "cpu_tool_mb": sizes["flashkit"] / 1e6,
        "smallest_mb": sizes["plain"] / 1e6,
        "smallest_uncompiled_mb": sizes["uncompiled"] / 1e6,
        "python_image_mb": base / 1e6,
        "start_s": starts["flashkit"],
        "plain_start_s": starts["plain"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="starts of each worker")
    try:
        figures = measure(parser.parse_args(arguments).starts)
    except (EngineUnavailable, StandInUnavailable) as exc:
        print(f"nothing can be measured here: {exc}", file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    for name, value in figures.items():
        print(f"{name:24} {value:.3f}")
    print_result("image", figures)


if __name__ == "__main__":
    main()
