"""Kill the workers of an agent and of the endpoint that it calls, and count what was lost or done twice.

A real `flashkit dev` with its real workers, spoken to over HTTP, and a real Redis with an append-only file. Half
of the kills come from inside the workers, at the points before, inside and after each step, and around the called
endpoint's effect; the other half are SIGKILLs of either endpoint's workers at random moments. Redis is killed and
started again in between. A job that the platform gives up after three dead workers is sent to its `/retry`: under
its old id it finds the answer also where a worker died between the turn's end and the result's delivery.
Submitted as a new job it would be a new request to the session, and start another turn.

- lost_steps: bodies that ran again although the step had returned before, and results that are wrong.
- repeated_effects: effects whose key is there already. A call that was cut short by the death of the *called*
  worker, between its effect and its result, is handed out again by the platform, as on Runpod: nobody but the
  endpoint itself could know that its effect happened. These are counted apart, as tool_reruns.
- resume_p95_s: from a kill to the first move of the same session in another worker, Redis restarts included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop
from measure import print_result
from servers import RedisServer

from flashkit.client import Client, EndpointClient, JobHandle
from flashkit.protocol import JobStatus
from flashkit.settings import DEV_FILE, Settings

APP = Path(__file__).parent / "chaos_apps" / "agent.py"
STEPS = 12
CALLS = range(1, STEPS, 3)
SESSIONS_AT_ONCE = 4
LEASE_SECONDS = 5.0
KILLS_A_REDIS_RESTART = 25
DRAIN_SECONDS = 60.0
DEV_START_SECONDS = 60.0
TOO_MANY_FAILURES = 3
TOOL_SHARE = 0.25
"""Of the kills at random moments."""
SETTLE_SECONDS = 2.0
"""How long a called worker may take, Redis restarts included, to put its result down for others to find."""
POINTS = [f"{where}:{number}" for number in range(STEPS) for where in ("before", "inside", "after")]
POINTS += [f"{where}:{number}" for number in CALLS for where in ("tool-before", "tool-after")]


class Moves:
    """What the agents wrote down; each look reads on from the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.lines: list[dict[str, Any]] = []
        self.deaths = 0
        self.working: set[int] = set()
        """Processes that are in the middle of a session."""

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in map(orjson.loads, whole.splitlines()):
            self.lines.append(line)
            self.deaths += line["what"] == "killed"
            if line.get("point", "").startswith("tool"):
                continue
            (self.working.discard if line["what"] in ("end", "killed") else self.working.add)(line["pid"])


@dataclass
class Run:
    """What happens, and what happened so far."""

    agent: EndpointClient
    dev: psutil.Process
    redis: RedisServer
    folder: Path
    chance: random.Random
    moves: Moves
    jobs: dict[str, JobHandle] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    random_kills: list[tuple[float, int]] = field(default_factory=list)
    tool_kills: int = 0
    retried: int = 0
    redis_restarts: int = 0
    points: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return len(self.random_kills) + self.moves.deaths

    async def submit_new(self) -> None:
        """Begin a session that is to die at one or two points; all points come up before one comes again."""
        if len(self.points) < 2:
            self.points += self.chance.sample(POINTS, len(POINTS))
        crashes = [self.points.pop() for _ in range(self.chance.choice((1, 2)))]
        name = f"s{len(self.jobs) + len(self.outputs) + len(self.failures)}"
        self.jobs[name] = await self.agent.run({"session_id": name, "crashes": crashes})

    async def collect(self) -> None:
        """Take finished jobs; retry what the platform gave up because its workers died."""
        self.moves.read()
        for name, job in list(self.jobs.items()):
            state = await job.status()
            if not state.status.is_final:
                continue
            if state.status is JobStatus.COMPLETED:
                self.outputs[name] = state.output
            elif "worker_died" in (error := str(state.error)) or "worker_start_failed" in error:
                self.retried += 1
                await job.retry()
                continue
            else:
                self.failures[name] = error[:600]
            del self.jobs[name]

    def kill_a_worker(self) -> None:
        """Kill a worker in the middle of a session, known by what it wrote, or one of the called endpoint."""
        if self.chance.random() < TOOL_SHARE:
            victims = [pid for pid, name in self.workers() if name == "ledger"]
        else:
            victims = [pid for pid, name in self.workers() if name == "agent" and pid in self.moves.working]
        if victims:
            pid = self.chance.choice(sorted(victims))
            self.random_kills.append((time.time(), pid))
            self.tool_kills += pid not in self.moves.working
            self.moves.working.discard(pid)
            os.kill(pid, signal.SIGKILL)

    def workers(self) -> list[tuple[int, str]]:
        """Return the processes of `flashkit dev` that run an endpoint, and which one."""
        found = []
        for child in self.dev.children(recursive=True):
            try:
                file, _, name = child.cmdline()[-1].partition(":")
            except (psutil.Error, IndexError):
                continue
            if file == APP.name:
                found.append((child.pid, name))
        return found

    async def restart_redis(self) -> None:
        """Leave clients without a server for a moment."""
        self.redis.kill()
        await asyncio.sleep(self.chance.uniform(0, 0.3))
        self.redis.start()
        self.redis_restarts += 1


async def chaos(run: Run, *, kills: int, minutes: float) -> None:
    """Kill until there were enough, then let what is under way come to its end."""
    deadline = time.monotonic() + minutes * 60
    next_restart, next_kill = KILLS_A_REDIS_RESTART, 0.0
    end = deadline - min(DRAIN_SECONDS, minutes * 20)
    while (done := run.kills) < kills and time.monotonic() < end and len(run.failures) < TOO_MANY_FAILURES:
        await run.collect()
        while len(run.jobs) < SESSIONS_AT_ONCE:
            await run.submit_new()
        if time.monotonic() > next_kill and len(run.random_kills) <= done / 2:
            run.kill_a_worker()
            next_kill = time.monotonic() + run.chance.uniform(0.05, 0.5)
        if done >= next_restart:
            await run.restart_redis()
            next_restart += KILLS_A_REDIS_RESTART
        await asyncio.sleep(0.01)
    while run.jobs and time.monotonic() < deadline:
        await run.collect()
        await asyncio.sleep(0.02)
    run.moves.read()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def count_lost_steps(run: Run) -> int:
    """Count bodies that ran after their step had returned, and sessions with a wrong result."""
    returned: set[tuple[str, int]] = set()
    lost = 0
    for line in run.moves.lines:
        step = (line["session"], line.get("step"))
        if line["what"] == "done":
            returned.add(step)
        elif line["what"] == "run" and step in returned:
            lost += 1
            print(f"ran again: {line}", file=sys.stderr)
    texts = ("thought {number}", "booked call {session} {number}", "paid {number}")
    for name, output in run.outputs.items():
        wanted = [texts[number % 3].format(number=number, session=name) for number in range(STEPS)]
        if output != wanted:
            lost += 1
            print(f"wrong result of {name}: {output}", file=sys.stderr)
    return lost


@dataclass(frozen=True)
class Repeats:
    """Effects that happened more than once."""

    repeated: int
    tool_reruns: int


def count_repeats(run: Run) -> Repeats:
    happened: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in read_lines(run.folder / "effects"):
        happened[line["key"]].append(line)
    returned = {(line["key"], line["pid"]): line["t"] for line in read_lines(run.folder / "returns")}
    deaths = times_of_death(run)
    taken = {(line["session"], line["step"]): line["t"] for line in run.moves.lines if line["what"] == "done"}
    repeated = reruns = 0
    for key, lines in happened.items():
        for before, again in pairwise(lines):
            died = deaths.get(before["pid"], 0.0)
            cut_short = before["t"] <= died <= returned.get((key, before["pid"]), died) + SETTLE_SECONDS
            was_taken = again["t"] > taken.get((again.get("session"), again.get("step")), again["t"])
            if "session" in again and cut_short and not was_taken:
                reruns += 1
                continue
            repeated += 1
            print(f"again: {before} {again} died {died} returned {returned.get((key, before['pid']))}", file=sys.stderr)
    return Repeats(repeated, reruns)


def times_of_death(run: Run) -> dict[int, float]:
    planned = {line["pid"]: line["t"] for line in run.moves.lines if line["what"] == "killed"}
    return planned | {pid: when for when, pid in run.random_kills if pid not in planned}


def resume_seconds(run: Run) -> list[float]:
    """Return, for each kill that hit a session, how long it took another worker to go on with it."""
    moves = run.moves.lines
    seconds = []
    for pid, when in times_of_death(run).items():
        last = next((line for line in reversed(moves) if line["pid"] == pid), None)
        if last is None or last["what"] == "end" or last.get("point", "").startswith("tool"):
            continue
        later = (line["t"] for line in moves if line["session"] == last["session"] and line["pid"] != pid)
        if resumed := next((moment for moment in later if moment > when), None):
            seconds.append(resumed - when)
    return sorted(seconds)


def make_figures(run: Run) -> dict[str, float]:
    seconds, repeats = resume_seconds(run), count_repeats(run)
    points = [line["point"] for line in run.moves.lines if line["what"] == "killed"]
    return {
        "kills": run.kills,
        "kills_at_random": len(run.random_kills),
        "kills_of_called": run.tool_kills + sum(point.startswith("tool") for point in points),
        "points_hit": len(set(points)) / len(POINTS),
        "sessions": len(run.outputs) + len(run.failures) + len(run.jobs),
        "finished": len(run.outputs),
        "lost_steps": count_lost_steps(run),
        "repeated_effects": repeats.repeated,
        "tool_reruns": repeats.tool_reruns,
        "resume_p50_s": seconds[len(seconds) // 2] if seconds else 0.0,
        "resume_p95_s": seconds[int(len(seconds) * 0.95)] if seconds else 0.0,
        "resume_max_s": seconds[-1] if seconds else 0.0,
        "lease_s": LEASE_SECONDS,
        "redis_restarts": run.redis_restarts,
        "jobs_retried": run.retried,
    }


@asynccontextmanager
async def flashkit_dev(folder: Path, redis: RedisServer) -> AsyncIterator[psutil.Process]:
    """Run `flashkit dev` in a folder; it ends with the block."""
    environ = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR", "HOME") if key in os.environ}
    environ |= {"CHAOS_FOLDER": str(folder), "FLASHKIT_LEASE_SECONDS": str(LEASE_SECONDS)}
    command = [sys.executable, "-m", "flashkit", "dev", str(APP), "--port", "0", "--no-reload", "--redis", redis.url]
    with (folder / "dev.log").open("wb") as log:
        dev = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(DEV_START_SECONDS):
            while not (folder / DEV_FILE).exists():
                if dev.poll() is not None:
                    raise RuntimeError((folder / "dev.log").read_text())
                await asyncio.sleep(0.05)
        yield psutil.Process(dev.pid)
    finally:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):  # the second one does not wait for jobs
            if dev.poll() is None:
                dev.send_signal(number)
                await asyncio.sleep(1)
        dev.wait()


def print_log(folder: Path) -> None:
    """Print what `flashkit dev` showed as going wrong, except for the deaths that were wanted."""
    for line in (folder / "dev.log").read_text(errors="replace").splitlines():
        if any(word in line for word in ("ERROR", "Traceback", "Error:")) and "worker_died" not in line:
            print(f"dev: {line}", file=sys.stderr)


async def measure(kills: int, minutes: float, seed: int) -> tuple[dict[str, float], bool]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as text:
        folder = Path(text)
        # `once` effects ask for the disk; this Redis may be too old to confirm it otherwise.
        with RedisServer(folder / "redis", fsync="always") as redis:
            async with flashkit_dev(folder, redis) as dev:
                url = orjson.loads((folder / DEV_FILE).read_bytes())["url"]
                async with Client(Settings(base_url=f"{url}/v2")) as client:
                    run = Run(
                        client.endpoint("agent"), dev, redis, folder, random.Random(seed), Moves(folder / "moves")
                    )
                    await chaos(run, kills=kills, minutes=minutes)
                    for name, job in run.jobs.items():
                        print(f"{name} is {(await job.status()).status} still", file=sys.stderr)
        for name, error in run.failures.items():
            print(f"{name} failed: {error}", file=sys.stderr)
        print_log(folder)
        figures = make_figures(run)
    is_good = figures["finished"] == figures["sessions"] and not figures["lost_steps"] + figures["repeated_effects"]
    return figures, bool(is_good)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos sessions", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10, help="the run ends after this time, whatever was done")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures, is_good = uvloop.run(measure(options.kills, options.minutes, options.seed))
    print_result("chaos_sessions", figures)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
