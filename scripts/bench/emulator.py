"""What the local platform itself costs: an emulator in one process, workers in theirs, the client in this one.

- jobs_per_s: jobs through POST /run with 4 flashkit workers and a handler that does nothing, from the first
  request to the last result; the median of the rounds.
- rss_10k_mb: the emulator's resident memory with 10,000 jobs waiting in a queue.
- relay_p50_ms: from the moment a worker yields the first token of a stream until a client of /openai/v1 reads it.
- dashboard_cost: the share of jobs_per_s that is lost while the dashboard is open: its stream is read, as the page
  does, in a process of its own. Rounds with and without take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import uvloop
from measure import print_result

HERE = Path(__file__).parent
JOBS = 6_000
CLIENTS = 64
QUEUED = 10_000
STREAMS = 200
_LONGEST_S = 120


@asynccontextmanager
async def running_emulator(workers: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Give the URL and process of a fresh emulator whose workers are up."""
    environ = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
    command = [sys.executable, str(HERE / "emulator_host.py"), "--workers", str(workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as host:
        assert host.stdout is not None
        url = host.stdout.readline().strip()
        try:
            await until_ready(url, "noop", workers)
            await until_ready(url, "tokens", 1)
            yield url, psutil.Process(host.pid)
        finally:
            assert host.stdin is not None
            host.stdin.close()


async def until_ready(url: str, endpoint: str, workers: int) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(_LONGEST_S):
        while (await get_json(http, f"{url}/v2/{endpoint}/health"))["workers"]["ready"] < workers:
            await asyncio.sleep(0.05)


async def get_json(http: aiohttp.ClientSession, url: str) -> dict:
    async with http.get(url) as answer:
        return await answer.json()


async def post_all(http: aiohttp.ClientSession, url: str, count: int) -> None:
    """Send so many jobs, over as many connections as there are clients."""

    async def send(numbers: range) -> None:
        for number in numbers:
            async with http.post(url, data=b'{"input": {"n": %d}}' % number) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

    await asyncio.gather(*(send(range(first, count, CLIENTS)) for first in range(CLIENTS)))


async def measure_throughput(url: str) -> float:
    """Return jobs/s from the first request to the last result."""
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.timeout(_LONGEST_S):
        before = (await get_json(http, f"{url}/v2/noop/health"))["jobs"]["completed"]
        started = time.perf_counter()
        await post_all(http, f"{url}/v2/noop/run", JOBS)
        while (await get_json(http, f"{url}/v2/noop/health"))["jobs"]["completed"] < before + JOBS:
            await asyncio.sleep(0.01)
        return JOBS / (time.perf_counter() - started)


async def measure_queue(url: str, host: psutil.Process) -> float:
    """Return the emulator's resident MB with many jobs in a queue."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as http:
        await post_all(http, f"{url}/v2/stuck/run", QUEUED)
        assert (await get_json(http, f"{url}/v2/stuck/health"))["jobs"]["inQueue"] == QUEUED
    return host.memory_info().rss / 1e6


async def measure_relay(url: str) -> float:
    """Return the median of ms from a token's making to its arrival, one stream after the other."""
    delays = []
    async with aiohttp.ClientSession() as http:
        for _ in range(STREAMS):
            body = {"model": "none", "stream": True, "messages": []}
            async with http.post(f"{url}/v2/tokens/openai/v1/chat/completions", json=body) as answer:
                line = await answer.content.readline()
                arrived = time.time()
                await answer.read()
            delays.append((arrived - json.loads(line.removeprefix(b"data: "))["made_at"]) * 1000)
    return statistics.median(delays[STREAMS // 10 :])


async def watch(url: str) -> None:
    """Read what an open dashboard reads, until killed."""

    headers, for_ever = {"accept": "text/event-stream"}, aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, timeout=for_ever) as http:
        print("watching", flush=True)
        async with http.get(f"{url}/_/metrics") as answer:
            async for _ in answer.content.iter_any():
                pass


@asynccontextmanager
async def open_dashboard(url: str) -> AsyncIterator[None]:
    """Have the dashboard's readers at work."""
    with subprocess.Popen([sys.executable, __file__, "--watch", url], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        try:
            yield
        finally:
            reader.kill()


async def measure(rounds: int) -> dict[str, float]:
    plain, watched = [], []
    async with running_emulator(4) as (url, host):
        await measure_throughput(url)  # warm-up
        for number in range(rounds):
            plain.append(await measure_throughput(url))
            async with open_dashboard(url):
                watched.append(await measure_throughput(url))
            rates = f"{plain[-1]:,.0f} jobs/s, {watched[-1]:,.0f} with the dashboard"
            print(f"round {number + 1}: {rates}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        relay_ms = await measure_relay(url)
    async with running_emulator(1) as (url, host):
        rss_mb = await measure_queue(url, host)
    return {
        "jobs_per_s": statistics.median(plain),
        "rss_10k_mb": rss_mb,
        "relay_p50_ms": relay_ms,
        "dashboard_cost": 1 - statistics.median(watched) / statistics.median(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        uvloop.run(watch(options.watch))
    else:
        print_result("emulator", uvloop.run(measure(options.rounds)))


if __name__ == "__main__":
    main()
