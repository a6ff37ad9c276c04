"""Run the local platform under load with faults on, and account for every job that it took.

Clients submit, poll, stream, cancel, retry, hang up and send rubbish, over HTTP; workers are flashkit's and the plain
SDK's; every kind of fault strikes now and then, workers freeze and thaw, machines are reclaimed. At the end the load
stops, jobs run out, and everything is counted:

- submitted: jobs that the platform answered with an id, by its own events.
- accounted: of these, COMPLETED, FAILED, CANCELLED, or TIMED_OUT (time to live included). Must be all of them.
- webhooks_missing: jobs that named a webhook, came to an end, and were never reported to it, although the receiver
  refuses none of them twice. Must be 0.
- unknown_ids: ids that `/run` and `/runsync` answered with and that no event told of. Must be 0.
- requests_sent, requests_answered: to a load-balanced endpoint; an error is an answer too. Must be equal.
- leaked_processes: children of the emulator that are there after its end. Must be 0.
- orphans: processes with another parent whose command line or environment names our state folder. Must be 0.
- leaked_fds: file descriptors open after the load minus those before it, with no worker running. Must be 0.
- rss_growth_mb: resident memory after the load minus that after the first fifth of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import uvloop
from aiohttp import web
from measure import print_result

from flashkit.emulator.events import Event, FaultEvent, JobEvent, WorkerEvent
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

APPS = Path(__file__).parent / "chaos_apps"
FAULTS = (
    "error=0.03,drop=0.02,latency=20ms±20ms,kill=0.01,oom=0.005,reclaim=0.005,429=0.01,500=0.01,start=0.03",
    "slow:kill=0.02+500ms,slow=2MB/s",
)
DEFAULTS = PlatformDefaults(
    poll_hold=5.0, stop_grace=1.0, drain_grace=5.0, run_retention=20.0, runsync_retention=10.0, frozen_keep=20.0
)
DRAIN_SECONDS = 90.0
SETTLE_SECONDS = 30.0
_CLIENT = aiohttp.ClientTimeout(total=30)
_REQUEST = aiohttp.ClientTimeout(total=150)
"""Longer than a request waits for a worker."""


@dataclass
class Ledger:
    """What the platform's own events say of each job."""

    latest: dict[str, JobStatus] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobEvent):
            self.latest[event.job_id] = event.status
        elif isinstance(event, FaultEvent):
            self.faults[event.kind] += 1
        elif isinstance(event, WorkerEvent):
            self.workers[event.what] += 1

    @property
    def open(self) -> int:
        return sum(not status.is_final for status in self.latest.values())

    @property
    def by_status(self) -> Counter[str]:
        return Counter(status.value for status in self.latest.values())


def flashkit_endpoint(name: str) -> LocalEndpoint:
    sys.path.insert(0, str(APPS))
    import mixed

    command = (sys.executable, "-m", "flashkit.worker", f"mixed.py:{name}")
    return LocalEndpoint(spec=getattr(mixed, name).definition.spec, command=command, cwd=APPS)


def plain_endpoint() -> LocalEndpoint:
    spec = EndpointSpec(
        name="plain",
        kind=Kind.CPU,
        cpu="cpu3c-2-4",
        workers=WorkerBounds(0, 2),
        idle_timeout=3,
        execution_timeout_ms=5_000,
    )
    return LocalEndpoint(spec=spec, command=(sys.executable, "plain_handler.py"), cwd=APPS)


@dataclass
class Receiver:
    """Who is told of finished jobs, when in the mood for it."""

    chance: random.Random
    url: str = ""
    told: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Each is refused once at most: the platform tries three times."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hook", self.take)
        runner = web.AppRunner(app, keepalive_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = "http://{}:{}/hook".format(*runner.addresses[0])
            yield
        finally:
            await runner.cleanup()

    async def take(self, request: web.Request) -> web.Response:
        job = await request.json()
        if job["id"] not in self.refused and self.chance.random() < 0.1:
            self.refused.add(job["id"])
            return web.Response(status=503)
        self.told.add(job["id"])
        return web.Response()


@dataclass
class Client:
    """One of those who use the platform, with a chance of its own."""

    url: str
    hook: str
    http: aiohttp.ClientSession
    chance: random.Random
    surprises: Counter[str]
    to_be_told: set[str]
    ids: set[str]
    requests: Counter[str]

    async def act_until(self, end: float, pause_s: float) -> None:
        while time.monotonic() < end:
            act = self.chance.choices(
                [
                    *(self.poll, self.sync, self.stream, self.cancel, self.retry, self.hang_up, self.rubbish),
                    *(self.purge, self.request),
                ],
                [40, 20, 10, 10, 5, 8, 6, 1, 20],
            )[0]
            try:
                await act()
            except (aiohttp.ClientError, TimeoutError) as exc:
                self.surprises[f"{act.__name__}: {type(exc).__name__}"] += 1
            await asyncio.sleep(self.chance.expovariate(1 / pause_s))

    def job(self) -> tuple[str, dict]:
        name = self.chance.choice(["quick", "quick", "slow", "stream", "moody", "plain"])
        given = {
            "quick": {"n": self.chance.randrange(100)},
            "slow": {"seconds": self.chance.choice([0.05, 0.2, 0.5, 1.0, 8.0])},
            "stream": {"parts": self.chance.randrange(1, 30)},
            "moody": {"n": self.chance.randrange(100)},
            "plain": {"seconds": self.chance.choice([0, 0.1])},
        }[name]
        policy = self.chance.choice([{}, {}, {}, {"ttl": 10_000}, {"executionTimeout": 5_000}, {"lowPriority": True}])
        return name, {"input": given, "policy": policy, **({"webhook": self.hook} if not policy else {})}

    async def post(self, path: str, body: object = None) -> dict | None:
        async with self.http.post(f"{self.url}/v2/{path}", json=body, timeout=_CLIENT) as answer:
            if answer.status not in (200, 429, 500, 404):
                self.surprises[f"POST {path.partition('/')[2].partition('/')[0]} {answer.status}"] += 1
            job = await answer.json() if answer.status == 200 else None
        if job is not None and path.partition("/")[2].startswith("run"):
            self.ids.add(job["id"])
        return job

    async def get(self, path: str) -> dict | None:
        async with self.http.get(f"{self.url}/v2/{path}", timeout=_CLIENT) as answer:
            return await answer.json() if answer.status == 200 else None

    async def submit(self) -> tuple[str, str] | None:
        name, body = self.job()
        answer = await self.post(f"{name}/run", body)
        if answer is None:
            return None
        if "webhook" in body:
            self.to_be_told.add(answer["id"])
        return name, answer["id"]

    async def poll(self) -> None:
        if job := await self.submit():
            for _ in range(self.chance.randrange(20)):
                answer = await self.get(f"{job[0]}/status/{job[1]}")
                if answer is not None and answer["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                    return
                await asyncio.sleep(0.1)

    async def sync(self) -> None:
        name, body = self.job()
        await self.post(f"{name}/runsync?wait=5000", body)

    async def stream(self) -> None:
        if job := await self.submit():
            for _ in range(10):
                await self.get(f"{job[0]}/stream/{job[1]}")
                await asyncio.sleep(0.05)

    async def cancel(self) -> None:
        if job := await self.submit():
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await self.post(f"{job[0]}/cancel/{job[1]}")

    async def retry(self) -> None:
        answer = await self.post("moody/runsync?wait=5000", {"input": {"n": 1}})
        if answer is not None and answer["status"] == "FAILED":
            await self.post(f"moody/retry/{answer['id']}")

    async def hang_up(self) -> None:
        name, body = self.job()
        async with self.http.post(f"{self.url}/v2/{name}/runsync?wait=20000", json=body):
            pass  # reads nothing of the answer

    async def rubbish(self) -> None:
        path, body = self.chance.choice(
            [("quick/run", b"{"), ("quick/run", b"[]"), ("nobody/run", b"{}"), ("quick/run", b'{"input":1,"policy":1}')]
        )
        async with self.http.post(f"{self.url}/v2/{path}", data=body) as answer:
            assert answer.status in (400, 404, 429, 500), answer.status

    async def request(self) -> None:
        self.requests["sent"] += 1
        path = self.chance.choice(["add?a=1&b=2", "add?a=1&b=2", "add?a=x", "nowhere"])
        async with self.http.get(f"{self.url}/lb/routes/{path}", timeout=_REQUEST) as answer:
            await answer.read()
            self.requests["answered"] += 1
            if answer.status not in (200, 404, 422, 400):
                self.surprises[f"request {answer.status}"] += 1

    async def purge(self) -> None:
        await self.post("slow/purge-queue")


async def soak(seconds: float, seed: int, clients: int) -> dict[str, float]:
    ledger, surprises = Ledger(), Counter()
    process = psutil.Process()
    endpoints = [*map(flashkit_endpoint, ("quick", "slow", "stream", "moody", "routes")), plain_endpoint()]
    rss: list[float] = []
    to_be_told: set[str] = set()
    ids: set[str] = set()
    requests: Counter[str] = Counter()
    receiver = Receiver(random.Random(seed))
    with tempfile.TemporaryDirectory(prefix="chaos-platform-") as folder:
        emulator = Emulator(
            endpoints,
            state_dir=Path(folder),
            defaults=DEFAULTS,
            on_event=ledger,
            faults=FAULTS,
            seed=seed,
            flashboot=True,
        )
        async with receiver.listening(), emulator:
            fds_before = process.num_fds()
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                chances = [random.Random(f"{seed}/{number}") for number in range(clients)]
                crowd = [
                    Client(emulator.url, receiver.url, http, chance, surprises, to_be_told, ids, requests)
                    for chance in chances
                ]
                await load(crowd, ledger, rss, seconds=seconds)
            await drain(emulator, ledger)
            fds_after = await settled_fds(process, fds_before)
            health = {name: emulator.platform.health(name)["jobs"] for name in emulator.platform.specs}
        left = process.children(recursive=True)
        orphans = find_orphans(Path(folder), besides=left)
    statuses = ledger.by_status
    print(f"jobs {dict(statuses)}, faults {dict(ledger.faults)}, workers {dict(ledger.workers)}", file=sys.stderr)
    print(f"surprises {dict(surprises)}, still open {ledger.open}, health {health}", file=sys.stderr)
    return {
        "submitted": len(ledger.latest),
        "accounted": sum(count for status, count in statuses.items() if JobStatus(status).is_final),
        **{status.lower(): count for status, count in statuses.items()},
        "faults": ledger.faults.total(),
        "workers_started": ledger.workers["starting"],
        "webhooks": len(receiver.told),
        "webhooks_missing": len(to_be_told - receiver.told),
        "unknown_ids": len(ids - ledger.latest.keys()),
        "requests_sent": requests["sent"],
        "requests_answered": requests["answered"],
        "leaked_processes": len(left),
        "orphans": len(orphans),
        "leaked_fds": fds_after - fds_before,
        "rss_growth_mb": rss[-1] - rss[len(rss) // 5],
        "rss_mb": rss[-1],
        "minutes": seconds / 60,
    }


def find_orphans(folder: Path, *, besides: list[psutil.Process]) -> list[psutil.Process]:
    """Return processes that were ours and have another parent now: each worker's HOME is below the state folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process in besides:
                continue
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process)
    return found


async def load(crowd: list[Client], ledger: Ledger, rss: list[float], *, seconds: float) -> None:
    """Let clients do what they do for so long, and look at the memory now and then."""
    end = time.monotonic() + seconds
    working = asyncio.gather(*(client.act_until(end, pause_s=0.5) for client in crowd))
    while not working.done():
        await asyncio.wait([working], timeout=min(10.0, seconds / 10))
        rss.append(psutil.Process().memory_info().rss / 1e6)
        print(
            f"{max(0.0, end - time.monotonic()):4.0f} s: {len(ledger.latest):,} jobs, {ledger.open} open, "
            f"{ledger.faults.total()} faults, {rss[-1]:.0f} MB, {psutil.Process().num_fds()} fds, "
            f"load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )
    working.result()


async def settled_fds(process: psutil.Process, before: int) -> int:
    """Return the open files once connections that were kept for later are closed, or after some time anyway."""
    end = time.monotonic() + SETTLE_SECONDS
    while (now := process.num_fds()) > before and time.monotonic() < end:
        await asyncio.sleep(0.5)
    return now


async def drain(emulator: Emulator, ledger: Ledger) -> None:
    """Wait, without faults, until every job has come to its end and no worker runs."""
    emulator.faults.set(())
    end = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < end:
        workers = sum(len(emulator.platform.workers(name)) for name in emulator.platform.specs)
        if not ledger.open and not workers:
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(1.0)
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos platform", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=24)
    options = parser.parse_args()
    print_result("chaos platform", uvloop.run(soak(options.minutes * 60, options.seed, options.clients)))


if __name__ == "__main__":
    main()
