"""Kill the workers of an agent, again and again, and count what was lost or done twice.

A real emulator with real workers, a real Redis with an append-only file. Half of the kills come from inside
the worker, at the points before, inside and after each step; the other half are SIGKILLs at random moments.
Redis is killed and started again in between. A job that the platform gives up after three dead workers is sent
to its `/retry`: under its old id it finds the answer also where a worker died between the turn's end and the
result's delivery. Submitted as a new job it would be a new request to the session, and start another turn.

- lost_steps: bodies that ran again although the step had returned before, and results that are wrong.
- repeated_effects: lines of the called endpoint and of effects whose key is there already.
- resume_p95_s: from a kill to the first move of the same session in another worker, Redis restarts included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop
from measure import print_result
from servers import RedisServer

from flashkit.emulator.events import Event, LogLine
from flashkit.emulator.platform import Job, JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

APPS = Path(__file__).parent / "chaos_apps"
STEPS = 12
SESSIONS_AT_ONCE = 4
LEASE_SECONDS = 5.0
KILLS_A_REDIS_RESTART = 25
DRAIN_SECONDS = 60.0
TOO_MANY_FAILURES = 3
POINTS = [f"{where}:{number}" for number in range(STEPS) for where in ("before", "inside", "after")]


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
            (self.working.discard if line["what"] in ("end", "killed") else self.working.add)(line["pid"])


@dataclass
class Run:
    """What happens, and what happened so far."""

    emulator: Emulator
    redis: RedisServer
    folder: Path
    chance: random.Random
    moves: Moves
    jobs: dict[str, Job] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    random_kills: list[tuple[float, int]] = field(default_factory=list)
    retried: int = 0
    redis_restarts: int = 0
    points: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return len(self.random_kills) + self.moves.deaths

    def submit_new(self) -> None:
        """Begin a session that is to die at one or two points; all points come up before one comes again."""
        if len(self.points) < 2:
            self.points += self.chance.sample(POINTS, len(POINTS))
        crashes = [self.points.pop() for _ in range(self.chance.choice((1, 2)))]
        name = f"s{len(self.jobs) + len(self.outputs) + len(self.failures)}"
        data = {"session_id": name, "crashes": crashes}
        self.jobs[name] = self.emulator.submit("agent", JobRequest(input=data))

    def collect(self) -> None:
        """Take finished jobs; retry what the platform gave up because its workers died."""
        self.moves.read()
        for name, job in list(self.jobs.items()):
            if not job.status.is_final:
                continue
            del self.jobs[name]
            if job.status == "COMPLETED":
                self.outputs[name] = plain(job.output)
            elif "worker_died" in (error := str(plain(job.error))) or "worker_start_failed" in error:
                self.retried += 1
                self.jobs[name] = self.emulator.dispatcher.apply(self.emulator.platform.retry, "agent", job.id)
            else:
                self.failures[name] = error[:600]

    def kill_a_worker(self) -> None:
        """Kill a worker in the middle of a session; processes are known by what they wrote."""
        ours = {child.pid for child in psutil.Process().children(recursive=True) if is_agent(child)}
        if working := sorted(self.moves.working & ours):
            pid = self.chance.choice(working)
            self.random_kills.append((time.time(), pid))
            self.moves.working.discard(pid)
            os.kill(pid, signal.SIGKILL)

    async def restart_redis(self) -> None:
        """Leave clients without a server for a moment."""
        self.redis.kill()
        await asyncio.sleep(self.chance.uniform(0, 0.3))
        self.redis.start()
        self.redis_restarts += 1


def is_agent(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[-1:] == ["agent.py:agent"]
    except psutil.Error:
        return False


def plain(value: Any) -> Any:
    """Return a job's value as JSON values; the emulator may hold it as text still."""
    if isinstance(value, orjson.Fragment):
        value = value.contents
    return orjson.loads(value) if isinstance(value, bytes) else value


def endpoint(name: str, folder: Path, redis: RedisServer, *, workers: int, concurrency: int) -> LocalEndpoint:
    spec = EndpointSpec(
        name=name,
        kind=Kind.CPU,
        cpu="cpu3c-1-2",
        workers=WorkerBounds(workers, workers),
        idle_timeout=3600,
        concurrency=concurrency,
    )
    environ = {
        "CHAOS_FOLDER": str(folder),
        "FLASHKIT_STATE": redis.url,
        "FLASHKIT_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    command = (sys.executable, "-m", "flashkit.worker", f"agent.py:{name}")
    return LocalEndpoint(spec=spec, command=command, cwd=APPS, env=environ)


async def chaos(run: Run, *, kills: int, minutes: float) -> None:
    """Kill until there were enough, then let what is under way come to its end."""
    deadline = time.monotonic() + minutes * 60
    next_restart, next_kill = KILLS_A_REDIS_RESTART, 0.0
    end = deadline - min(DRAIN_SECONDS, minutes * 20)
    while (done := run.kills) < kills and time.monotonic() < end and len(run.failures) < TOO_MANY_FAILURES:
        run.collect()
        while len(run.jobs) < SESSIONS_AT_ONCE:
            run.submit_new()
        if time.monotonic() > next_kill and len(run.random_kills) <= done / 2:
            run.kill_a_worker()
            next_kill = time.monotonic() + run.chance.uniform(0.05, 0.5)
        if done >= next_restart:
            await run.restart_redis()
            next_restart += KILLS_A_REDIS_RESTART
        await asyncio.sleep(0.01)
    while run.jobs and time.monotonic() < deadline:
        run.collect()
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


def count_repeated_effects(run: Run) -> int:
    counts = Counter(line["key"] for line in read_lines(run.folder / "effects"))
    for key, count in counts.items():
        if count > 1:
            print(f"{count} times: {key}", file=sys.stderr)
    return sum(count - 1 for count in counts.values())


def resume_seconds(run: Run) -> list[float]:
    """Return, for each kill that hit a session, how long it took another worker to go on with it."""
    moves = run.moves.lines
    killed_at = {pid: when for when, pid in run.random_kills}
    killed_at |= {line["pid"]: line["t"] for line in moves if line["what"] == "killed"}
    seconds = []
    for pid, when in killed_at.items():
        last = next((line for line in reversed(moves) if line["pid"] == pid), None)
        if last is None or last["what"] == "end":
            continue
        later = (line["t"] for line in moves if line["session"] == last["session"] and line["pid"] != pid)
        if resumed := next((moment for moment in later if moment > when), None):
            seconds.append(resumed - when)
    return sorted(seconds)


def make_figures(run: Run) -> dict[str, float]:
    seconds = resume_seconds(run)
    return {
        "kills": run.kills,
        "kills_at_random": len(run.random_kills),
        "points_hit": len({line["point"] for line in run.moves.lines if line["what"] == "killed"}) / len(POINTS),
        "sessions": len(run.outputs) + len(run.failures) + len(run.jobs),
        "finished": len(run.outputs),
        "lost_steps": count_lost_steps(run),
        "repeated_effects": count_repeated_effects(run),
        "resume_p50_s": seconds[len(seconds) // 2] if seconds else 0.0,
        "resume_p95_s": seconds[int(len(seconds) * 0.95)] if seconds else 0.0,
        "resume_max_s": seconds[-1] if seconds else 0.0,
        "lease_s": LEASE_SECONDS,
        "redis_restarts": run.redis_restarts,
        "jobs_retried": run.retried,
    }


def watch(event: Event) -> None:
    if isinstance(event, LogLine) and (event.level in ("ERROR", "WARN") or "Traceback" in event.text):
        print(f"{event.worker_id}: {event.text}", file=sys.stderr)


async def measure(kills: int, minutes: float, seed: int) -> tuple[dict[str, float], bool]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as text:
        folder = Path(text)
        # `once` effects ask for the disk; this Redis may be too old to confirm it otherwise.
        redis = RedisServer(folder / "redis", fsync="always")
        with redis:
            endpoints = [
                endpoint("agent", folder, redis, workers=2, concurrency=1),
                endpoint("ledger", folder, redis, workers=1, concurrency=8),
            ]
            async with Emulator(endpoints, state_dir=folder / "emulator", on_event=watch) as emulator:
                run = Run(emulator, redis, folder, random.Random(seed), Moves(folder / "moves"))
                await chaos(run, kills=kills, minutes=minutes)
        for name, error in run.failures.items():
            print(f"{name} failed: {error}", file=sys.stderr)
        for name, job in run.jobs.items():
            print(f"{name} is {job.status} still, attempt {job.attempt}", file=sys.stderr)
        figures = make_figures(run)
    is_good = figures["finished"] == figures["sessions"] and not figures["lost_steps"] + figures["repeated_effects"]
    return figures, bool(is_good)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("what", choices=["sessions"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10, help="the run ends after this time, whatever was done")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures, is_good = uvloop.run(measure(options.kills, options.minutes, options.seed))
    print_result("chaos_sessions", figures)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
