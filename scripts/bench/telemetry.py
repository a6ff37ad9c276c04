"""What traces and metrics cost: the same workers with both on and with both off, in turn, in one run.

- throughput_cost: the share of jobs/s that is lost by a no-op worker at concurrency 50. One worker runs blocks of 250
  jobs, on, off, off, on. The median of the ratios of neighbours counts, which are tenths of a second apart, so that
  other work on the machine does little to it.
- cpu_cost: the same of the CPU seconds of worker and platform together, in blocks of 4,000 jobs, until all that is to
  be told was sent.
- step_ms: milliseconds that a session's step takes longer, of blocks of steps in turn likewise; the store is SQLite.
- off_us: microseconds that the seam takes of a job and a span inside it while nobody wants spans.

On: spans go to the platform, which keeps them, and metrics go there as well, as under `flashkit dev`. A worker that is
on half of the time begins half as many traces a second as one that is on all of the time.
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

import psutil
import uvloop
from handlers.telemetry_handlers import BLOCK, FLUSH, SWITCH_OFF, SWITCH_ON, TELL
from measure import print_result

from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.telemetry import Op, enter_job, span
from flashkit.telemetry.store import open_traces

HANDLERS = Path(__file__).parent / "handlers"
JOBS = 4_000
"""That wait at once."""
STEPS = 75
STEP_BLOCKS = 12
HALF_OF_THE_TRACES = "10"
_LONGEST_S = 120
_PAIRS_A_BATCH = JOBS // (2 * BLOCK)
"""Pairs of blocks by turns, which one batch of jobs makes. The last block of one lasts until the next one has come."""


def endpoint(name: str, *, kind: Kind, concurrency: int, folder: Path) -> LocalEndpoint:
    spec = EndpointSpec(
        name=name, kind=kind, cpu="cpu3c-2-4", workers=WorkerBounds(1, 1), idle_timeout=3600, concurrency=concurrency
    )
    command = (sys.executable, "-m", "flashkit.worker", f"telemetry_handlers.py:{name}")
    env = {"FLASHKIT_STATE": f"sqlite:///{folder}/sessions.db", "FLASHKIT_TRACES_PER_SECOND": HALF_OF_THE_TRACES}
    return LocalEndpoint(spec=spec, command=command, cwd=HANDLERS, env=env)


@asynccontextmanager
async def platform(folder: Path) -> AsyncIterator[Emulator]:
    endpoints = [
        endpoint("turns", kind=Kind.CPU, concurrency=50, folder=folder),
        endpoint("noop", kind=Kind.CPU, concurrency=50, folder=folder),
        endpoint("steps", kind=Kind.ORCHESTRATOR, concurrency=1, folder=folder),
    ]
    traces = open_traces(f"sqlite:///{folder}/traces.db")
    environ = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
    async with Emulator(endpoints, state_dir=folder, traces=traces, environ=environ, shutdown_grace=1.0) as emulator:
        yield emulator


async def run(emulator: Emulator, name: str, *inputs: dict) -> list:
    """Run jobs that all wait when the first one begins, and return them."""
    jobs = [emulator.submit(name, JobRequest(input=each)) for each in inputs]
    async with asyncio.timeout(_LONGEST_S):
        while not all(job.status.is_final for job in jobs):
            await asyncio.sleep(0.005)
    assert all(job.status == "COMPLETED" for job in jobs), {job.error for job in jobs}
    return jobs


async def measure_turns(emulator: Emulator, batches: int) -> list[float]:
    """Return the jobs/s with all on, as shares of those with all off, of blocks side by side."""
    for number in range(batches):
        await run(emulator, "turns", *({"n": 1} for _ in range(JOBS)))
        if number % 5 == 4:
            print(f"{(number + 1) * JOBS} jobs by turns", flush=True)
    (job,) = await run(emulator, "turns", {"n": TELL})
    took = job.output["took"]
    pairs = [dict((took[i], took[i + 1])) for i in range(0, len(took) - 1, 2)]
    pairs = pairs[_PAIRS_A_BATCH:]  # the traces that were saved up are used up by then
    return [
        pair[False] / pair[True]
        for number, pair in enumerate(pairs)
        if number % _PAIRS_A_BATCH not in (0, _PAIRS_A_BATCH - 1)
    ]


async def measure_cpu(emulator: Emulator, *, is_on: bool) -> float:
    """Return the CPU seconds of a block of jobs."""
    await run(emulator, "noop", {"n": SWITCH_ON if is_on else SWITCH_OFF})
    before = cpu_seconds()
    await run(emulator, "noop", *({"n": 1} for _ in range(JOBS)))
    await run(emulator, "noop", {"n": FLUSH})
    return cpu_seconds() - before


def cpu_seconds() -> float:
    """Return what this process and its workers have used so far."""
    total = time.process_time()
    for process in psutil.Process().children():
        times = process.cpu_times()
        total += times.user + times.system
    return total


async def measure(batches: int, pairs: int, sessions: int) -> dict[str, float]:
    """Run everything and return the figures."""
    cpu, steps = [], []
    with tempfile.TemporaryDirectory(prefix="bench-telemetry-") as text:
        async with platform(Path(text)) as emulator:
            rates = await measure_turns(emulator, batches)
            for pair in range(-1, pairs):
                order = (True, False) if pair % 2 == 0 else (False, True)
                used = {is_on: await measure_cpu(emulator, is_on=is_on) for is_on in order}
                if pair >= 0:  # the first one warms
                    cpu.append(used[True] / used[False])
                    print(
                        f"CPU us a job: {used[False] / JOBS * 1e6:.0f} off, {used[True] / JOBS * 1e6:.0f} on",
                        flush=True,
                    )
            for _ in range(sessions):
                (job,) = await run(emulator, "steps", {"count": STEPS, "blocks": STEP_BLOCKS})
                took = job.output
                steps += [
                    took[i] - took[i + 1] if i % 4 == 0 else took[i + 1] - took[i] for i in range(0, len(took), 2)
                ]
                print(f"ms of a step: {took[1]:.3f} off, {took[0]:.3f} on", flush=True)
    return {
        "throughput_cost": 1 - statistics.median(rates),
        "cpu_cost": statistics.median(cpu) - 1,
        "step_ms": statistics.median(steps),
        "off_us": off_us(),
    }


def off_us() -> float:
    """Return what a job with one span inside costs while nobody wants spans, in microseconds."""

    def job() -> None:
        with enter_job(Op.JOB, "noop", {}, job_id="job", traceparent=None), span(Op.STEP, "one"):
            pass

    return min(timeit.repeat(job, number=20_000, repeat=5)) / 20_000 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=120, help=f"times {JOBS} jobs, by turns on and off")
    parser.add_argument("--pairs", type=int, default=10, help="blocks of jobs that are on, each with one that is off")
    parser.add_argument("--sessions", type=int, default=10, help="sessions whose steps are measured")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.batches, options.pairs, options.sessions))
    for name, value in figures.items():
        print(f"{name:16} {value:.4f}")
    print_result("telemetry", figures)


if __name__ == "__main__":
    main()
