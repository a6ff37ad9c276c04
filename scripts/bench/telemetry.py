"""What traces and metrics cost: the same workers with both on and with both off, side by side in one run.

- throughput_cost: the share of jobs/s that is lost by a no-op worker at concurrency 50. Each pair of fresh workers runs
  backlogs of jobs in turn, on and off, off and on; the median of the ratios of neighbours counts.
- step_ms: milliseconds that a session's step takes longer, of steps in turn likewise; the store is SQLite.
- off_us: microseconds that the seam takes of a job and its spans while nobody wants spans.

On: spans go to the platform, which keeps them, and metrics to it as well, as under `flashkit dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from measure import print_result

from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.telemetry import Op, enter_job, span
from flashkit.telemetry.store import open_traces

HANDLERS = Path(__file__).parent / "handlers"
JOBS = 2_500
STEPS = 400
_LONGEST_S = 120
_SWITCHED_OFF = {"FLASHKIT_METRICS_URL": "", "FLASHKIT_TRACES_URL": ""}


def endpoint(name: str, *, kind: Kind, concurrency: int, folder: Path, is_on: bool) -> LocalEndpoint:
    spec = EndpointSpec(
        name=name, kind=kind, cpu="cpu3c-2-4", workers=WorkerBounds(1, 1), idle_timeout=3600, concurrency=concurrency
    )
    words = [sys.executable, "-m", "flashkit.worker", f"telemetry_handlers.py:{name}"]
    # What the platform sets goes before an endpoint's own variables, so that off is said by the command.
    command = words if is_on else ["env", *(f"{key}={value}" for key, value in _SWITCHED_OFF.items()), *words]
    env = {"FLASHKIT_STATE": f"sqlite:///{folder}/sessions.db"}
    return LocalEndpoint(spec=spec, command=tuple(command), cwd=HANDLERS, env=env)


@asynccontextmanager
async def platform(folder: Path, *, is_on: bool) -> AsyncIterator[Emulator]:
    """Give an emulator with a warm worker of each endpoint."""
    endpoints = [
        endpoint("noop", kind=Kind.CPU, concurrency=50, folder=folder, is_on=is_on),
        endpoint("steps", kind=Kind.ORCHESTRATOR, concurrency=1, folder=folder, is_on=is_on),
    ]
    traces = open_traces(f"sqlite:///{folder}/traces.db") if is_on else None
    environ = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
    async with Emulator(endpoints, state_dir=folder, traces=traces, environ=environ, shutdown_grace=1.0) as emulator:
        await backlog(emulator, 200)
        await step_ms(emulator, 50)
        yield emulator


async def backlog(emulator: Emulator, count: int) -> float:
    """Return jobs/s of so many jobs that wait when the first one begins."""
    jobs = [emulator.submit("noop", JobRequest(input={"n": 1})) for _ in range(count)]
    await asyncio.wait_for(_all_done(jobs), _LONGEST_S)
    assert all(job.status == "COMPLETED" for job in jobs), {job.status for job in jobs}
    return count / (max(job.finished_at for job in jobs) - min(job.started_at for job in jobs))


async def _all_done(jobs: list) -> None:
    while not all(job.status.is_final for job in jobs):
        await asyncio.sleep(0.01)


async def step_ms(emulator: Emulator, count: int) -> float:
    job = emulator.submit("steps", JobRequest(input={"count": count}))
    await asyncio.wait_for(_all_done([job]), _LONGEST_S)
    assert job.status == "COMPLETED", job.error
    return float(job.output)


async def compare(pairs: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the ratios of jobs/s, on to off, and the differences of a step in ms, of neighbours in time."""
    ratios: list[float] = []
    differences: list[float] = []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory(prefix="bench-telemetry-") as text:
            folders = {is_on: Path(text) / str(is_on) for is_on in (True, False)}
            for folder in folders.values():
                folder.mkdir()
            async with platform(folders[True], is_on=True) as on, platform(folders[False], is_on=False) as off:
                for number in range(rounds):
                    order = [on, off] if number % 2 == pair % 2 else [off, on]
                    rates = {id(each): await backlog(each, JOBS) for each in order}
                    took = {id(each): await step_ms(each, STEPS) for each in order}
                    ratios.append(rates[id(on)] / rates[id(off)])
                    differences.append(took[id(on)] - took[id(off)])
                    print(
                        f"pair {pair} round {number}: {rates[id(off)]:8.0f} jobs/s off, {rates[id(on)]:8.0f} on;  "
                        f"step {took[id(off)]:.3f} ms off, {took[id(on)]:.3f} on",
                        flush=True,
                    )
    return ratios, differences


def off_us() -> float:
    """Return what a job with one span inside costs while nobody wants spans, in microseconds."""

    def job() -> None:
        with enter_job(Op.JOB, "noop", {}, job_id="job", traceparent=None), span(Op.STEP, "one"):
            pass

    return min(timeit.repeat(job, number=20_000, repeat=5)) / 20_000 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of fresh workers")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each pair")
    options = parser.parse_args()
    began = time.monotonic()
    ratios, differences = uvloop.run(compare(options.pairs, options.rounds))
    figures = {
        "throughput_cost": 1 - statistics.median(ratios),
        "step_ms": statistics.median(differences),
        "off_us": off_us(),
        "seconds": time.monotonic() - began,
    }
    for name, value in figures.items():
        print(f"{name:16} {value:.4f}")
    print_result("telemetry", figures)


if __name__ == "__main__":
    main()
