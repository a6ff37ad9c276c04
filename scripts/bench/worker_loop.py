"""A flashkit worker against a plain SDK worker: the same emulator, the same no-op handler, the same run.

- jobs/s at concurrency 1 and 50: all jobs are queued before a worker exists; counted from the first
  hand-out to the last result.
- /runsync latency: one job at a time over HTTP, worker warm.
- process start to first job-take, and resident memory when idle: several starts of each, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import uvloop
from measure import print_result

from flashkit.emulator.events import Event, WorkerEvent
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

HERE = Path(__file__).parent
JOBS = {"plain-1": 10, "plain-50": 200, "flashkit-1": 2_000, "flashkit-50": 5_000}


@dataclass
class Starts:
    """When workers were started and ready, by worker id."""

    started: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ready: dict[str, asyncio.Event] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, WorkerEvent):
            return
        if event.what == "starting":
            self.started[event.worker_id] = time.monotonic()
        elif event.what == "ready":
            seconds = time.monotonic() - self.started[event.worker_id]
            self.seconds.setdefault(event.endpoint, []).append(seconds)
            self.ready.setdefault(event.endpoint, asyncio.Event()).set()


def endpoint(name: str) -> LocalEndpoint:
    """Return one of the four endpoints: `plain` or `flashkit`, at a concurrency."""
    kind, _, concurrency = name.partition("-")
    command = {
        "plain": (sys.executable, "plain_handler.py", concurrency),
        "flashkit": (sys.executable, "-m", "flashkit.worker", f"flashkit_handler.py:noop_{concurrency}"),
    }[kind]
    spec = EndpointSpec(
        name=name,
        kind=Kind.CPU,
        cpu="cpu3c-2-4",
        workers=WorkerBounds(0, 1),
        idle_timeout=3600,
        concurrency=int(concurrency),
    )
    return LocalEndpoint(spec=spec, command=command, cwd=HERE / "handlers")


async def throughput(name: str, folder: Path) -> tuple[float, list[float]]:
    """Return jobs/s over a backlog, and then the latencies of single /runsync calls in ms."""
    starts = Starts()
    async with Emulator([endpoint(name)], state_dir=folder / name, on_event=starts) as emulator:
        now = time.monotonic()
        request = JobRequest(input={"n": 1})
        jobs = [emulator.submit(name, request) for _ in range(JOBS[name])]
        while any(not job.status.is_final for job in jobs):
            await asyncio.sleep(0.02)
            assert time.monotonic() - now < 120, "the backlog was not finished in two minutes"
        assert all(job.status == "COMPLETED" for job in jobs), {job.status for job in jobs}
        seconds = max(job.finished_at for job in jobs) - min(job.started_at for job in jobs)
        latencies = await runsync_latencies(f"{emulator.url}/v2/{name}/runsync", count=5 if "plain" in name else 300)
    return len(jobs) / seconds, latencies


async def runsync_latencies(url: str, *, count: int) -> list[float]:
    async with aiohttp.ClientSession() as session:
        latencies = []
        for _ in range(count):
            started = time.perf_counter()
            async with session.post(url, json={"input": {"n": 1}}) as response:
                body = await response.json()
            latencies.append((time.perf_counter() - started) * 1000)
            assert body["status"] == "COMPLETED", body
    return latencies


async def cold_starts(folder: Path, *, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return medians of seconds from process start to first take, and of idle RSS in MB."""
    seconds: dict[str, list[float]] = {}
    rss: dict[str, list[float]] = {}
    for _ in range(runs):
        for name in ("plain-1", "flashkit-1"):
            starts = Starts()
            starts.ready[name] = asyncio.Event()
            async with Emulator([endpoint(name)], state_dir=folder / "starts", on_event=starts) as emulator:
                emulator.submit(name, JobRequest(input={"n": 1}))
                await asyncio.wait_for(starts.ready[name].wait(), 60)
                rss.setdefault(name, []).append(_worker_rss_mb())
            seconds.setdefault(name, []).extend(starts.seconds[name])
    return ({key: statistics.median(value) for key, value in data.items()} for data in (seconds, rss))  # type: ignore[return-value]


def _worker_rss_mb() -> float:
    children = psutil.Process().children(recursive=True)
    return max((child.memory_info().rss for child in children), default=0) / 1e6


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measure(starts: int) -> dict[str, float]:
    """Run everything and return the figures."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        rates, latencies = {}, {}
        for name in JOBS:
            rates[name], latencies[name] = await throughput(name, folder)
            print(f"{name:12} {rates[name]:9.1f} jobs/s   runsync p50 {statistics.median(latencies[name]):8.2f} ms")
        seconds, rss = await cold_starts(folder, runs=starts)
    return {
        "speedup_c1": rates["flashkit-1"] / rates["plain-1"],
        "speedup_c50": rates["flashkit-50"] / rates["plain-50"],
        "runsync_p50_ms": statistics.median(latencies["flashkit-1"]),
        "runsync_p99_ms": percentile(latencies["flashkit-1"], 0.99),
        "plain_runsync_p50_ms": statistics.median(latencies["plain-1"]),
        "start_ratio": seconds["flashkit-1"] / seconds["plain-1"],
        "start_s": seconds["flashkit-1"],
        "plain_start_s": seconds["plain-1"],
        "rss_mb": rss["flashkit-1"],
        "plain_rss_mb": rss["plain-1"],
        "jobs_per_s_c1": rates["flashkit-1"],
        "jobs_per_s_c50": rates["flashkit-50"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="cold starts of each kind of worker")
    figures = uvloop.run(measure(parser.parse_args().starts))
    for name, value in figures.items():
        print(f"{name:22} {value:.3f}")
    print_result("worker_loop", figures)


if __name__ == "__main__":
    main()
