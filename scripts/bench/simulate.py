"""The scaling simulation against the local platform with real workers on the same load, and its speed.

Four endpoints run side by side, each with a scaler or an option of its own, and get a bursty load; their workers are
processes whose jobs sleep. Then each of them is simulated with the same arrivals and durations. What the simulation is
told of the real run is only what its user would tell it too: the mean times of cold starts, thaws and exits.

- p95_error: largest relative difference of the 95th percentile of the wait, of the four.
- worker_seconds_error: the same of the worker-seconds.
- jobs_100k_s: seconds for a day with 100,000 jobs: making the load, the run, and the summary; the median of three.
- million_ratio: time a job of a load of 1,000,000, against that of 100,000.
- endpoints_ratio: time a job of 1,000 endpoints with 1,000 jobs each, against that of one with 100,000.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from measure import print_result

from flashkit.emulator.events import Event, JobEvent, WorkerEvent
from flashkit.emulator.fleet import ColdStart
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.simulation.load import Load, Traffic
from flashkit.simulation.results import percentile, summarise
from flashkit.simulation.running import WorkerTimes, simulate
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

HANDLERS = Path(__file__).parent / "handlers"
LOAD_S = 8.0
"""Of each cold start, on top of the process's own: with a few tenths of a second alone, the machine's other work would
decide the result."""
_COMMON = {"kind": Kind.CPU, "cpu": "cpu3c-2-4", "idle_timeout": 3, "flashboot": False}


def specs() -> list[EndpointSpec]:
    """Return the endpoints that are compared."""
    return [
        EndpointSpec(name="delay", workers=WorkerBounds(0, 4), scaler_value=1, **_COMMON),
        EndpointSpec(
            name="count", workers=WorkerBounds(1, 5), scaler_type=ScalerType.REQUEST_COUNT, scaler_value=2, **_COMMON
        ),
        EndpointSpec(name="flashboot", workers=WorkerBounds(0, 4), scaler_value=1, **{**_COMMON, "flashboot": True}),
        EndpointSpec(name="concurrent", workers=WorkerBounds(0, 3), scaler_value=1, concurrency=3, **_COMMON),
    ]


def load_of(number: int, seconds: float) -> Load:
    """Return the load of one of the endpoints: a burst after a quiet time, twice."""
    rate = 2.0 if number == 3 else 0.8
    half = seconds / 2
    arrivals, durations = [], []
    for part in range(2):
        traffic = Traffic(
            "burst", jobs_per_second=rate, seconds=1.0, window_seconds=half, peak=20, seed=10 * number + part
        )
        made = traffic.make()
        arrivals += [part * half + arrival for arrival in made.arrivals]
        durations += made.seconds
    return Load(arrivals, durations, seconds)


@dataclass
class Seen:
    """What happened to one endpoint's jobs and workers."""

    waits: list[float] = field(default_factory=list)
    up_since: dict[str, float] = field(default_factory=dict)
    worker_seconds: float = 0.0
    begun: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=lambda: {"cold": [], "thaw": [], "exit": []})

    def note(self, now: float, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, JobEvent) and event.status.is_final:
            self.waits.append((event.delay_ms or 0) / 1000)
        elif isinstance(event, WorkerEvent):
            self._note_worker(now, event.worker_id, event.what)

    def _note_worker(self, now: float, worker: str, what: str) -> None:
        if what in ("initializing", "starting", "thawing"):
            self.up_since.setdefault(worker, now)
            self.begun.setdefault(f"thaw {worker}" if what == "thawing" else f"cold {worker}", now)
        elif what == "ready":
            for kind in ("cold", "thaw"):
                self._take(kind, worker, now)
        elif what in ("draining", "killed"):
            self.begun[f"exit {worker}"] = now
        elif what in ("exited", "frozen"):
            if worker in self.up_since:
                self.worker_seconds += now - self.up_since.pop(worker)
            self._take("exit", worker, now)

    def _take(self, kind: str, worker: str, now: float) -> None:
        begun = self.begun.pop(f"{kind} {worker}", None)
        if begun is not None:
            self.times[kind].append(now - begun)

    def worker_times(self) -> WorkerTimes:
        """Return the means of what workers spent beside their jobs."""
        means = {kind: statistics.fmean(values) if values else 0.0 for kind, values in self.times.items()}
        return WorkerTimes(cold_start=means["cold"], thaw=means["thaw"], exit=means["exit"])


async def run_for_real(endpoints: list[EndpointSpec], loads: list[Load]) -> dict[str, Seen]:
    """Play the loads to the platform with real workers, and return what happened."""
    seen = {spec.name: Seen() for spec in endpoints}

    def note(event: Event) -> None:
        if isinstance(event, JobEvent | WorkerEvent):
            seen[event.endpoint].note(emulator.clock.now(), event)

    local = [LocalEndpoint(spec, command_of(spec), HANDLERS) for spec in endpoints]
    with tempfile.TemporaryDirectory(prefix="bench-simulate-") as folder:
        emulator = Emulator(
            local, state_dir=Path(folder), on_event=note, flashboot=True, cold_start=ColdStart(load_s=LOAD_S)
        )
        async with emulator:
            while not all(
                emulator.platform.health(spec.name)["workers"]["ready"] >= spec.workers.min for spec in endpoints
            ):
                await asyncio.sleep(0.05)
            begun = emulator.clock.now()
            for one in seen.values():  # workers of the floor are up when the load begins
                one.up_since = dict.fromkeys(one.up_since, begun)
            await asyncio.gather(*(play(emulator, spec, load) for spec, load in zip(endpoints, loads, strict=True)))
            # As long as the simulation looks: until the end of the window, which the last job is well before.
            await asyncio.sleep(max(0.0, begun + loads[0].window_seconds - emulator.clock.now()))
            now = emulator.clock.now()
            for one in seen.values():
                one.worker_seconds += sum(now - since for since in one.up_since.values())
                one.up_since.clear()
    return seen


def command_of(spec: EndpointSpec) -> tuple[str, ...]:
    """Return what starts a worker that runs as many jobs at the same time as the endpoint says."""
    attribute = {1: "one", 3: "three"}[spec.concurrency]
    return (sys.executable, "-m", "flashkit.worker", f"waiting_app.py:{attribute}")


async def play(emulator: Emulator, spec: EndpointSpec, load: Load) -> None:
    """Submit the jobs of one endpoint, each at its time."""
    begun = time.monotonic()
    for arrival, seconds in zip(load.arrivals, load.seconds, strict=True):
        await asyncio.sleep(max(0.0, begun + arrival - time.monotonic()))
        emulator.submit(spec.name, JobRequest({"seconds": seconds}))


def compare(spec: EndpointSpec, load: Load, seen: Seen) -> tuple[float, float]:
    """Return the relative differences of p95 wait and worker-seconds."""
    times = seen.worker_times()
    found = summarise(simulate(spec, load, times))
    real_p95 = percentile(sorted(seen.waits), 0.95)
    errors = abs(found.waits.p95 / real_p95 - 1), abs(found.worker_seconds / seen.worker_seconds - 1)
    print(
        f"{spec.name}: {len(seen.waits)} of {len(load)} jobs; p95 wait {real_p95:.2f} s real, {found.waits.p95:.2f} s "
        f"simulated ({errors[0]:.1%}); worker-seconds {seen.worker_seconds:.1f} real, {found.worker_seconds:.1f} "
        f"simulated ({errors[1]:.1%}); cold starts {len(seen.times['cold'])} of {times.cold_start:.2f} s, "
        f"{found.cold_starts} simulated; thaws {len(seen.times['thaw'])}, {found.warm_starts} simulated; exit "
        f"{times.exit:.2f} s",
        file=sys.stderr,
    )
    return errors


def seconds_for(jobs: int, *, window_seconds: float = 86_400.0) -> float:
    """Return how long it takes to make, run and summarise a load of about so many jobs."""
    spec = EndpointSpec(name="llm", workers=WorkerBounds(1, 40), **{**_COMMON, "idle_timeout": 30, "flashboot": True})
    begun = time.perf_counter()
    load = Traffic("diurnal", jobs_per_second=jobs / window_seconds, seconds=5.0, window_seconds=window_seconds).make()
    # A day's worth of time to live is over for none of them: what counts is that all of them run.
    result = summarise(simulate(spec, load, WorkerTimes(cold_start=20.0)))
    assert result.completed == len(load), result
    return time.perf_counter() - begun


def measure_speed(rounds: int) -> dict[str, float]:
    """Return the figures of speed; what is compared is measured in turns."""
    small = [seconds_for(100_000) for _ in range(rounds)]
    many = sum(seconds_for(1_000) for _ in range(1_000))
    large = seconds_for(1_000_000, window_seconds=864_000.0)
    small += [seconds_for(100_000)]
    usual = statistics.median(small)
    print(
        f"100,000 jobs {usual:.2f} s; 1,000,000 jobs {large:.1f} s; 1,000 endpoints with 1,000 jobs {many:.1f} s; "
        f"load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
    )
    return {"jobs_100k_s": usual, "million_ratio": large / usual / 10, "endpoints_ratio": many / usual / 10}


async def measure_errors(seconds: float) -> dict[str, float]:
    """Return the largest differences between simulation and platform."""
    endpoints = specs()
    loads = [load_of(number, seconds) for number in range(len(endpoints))]
    seen = await run_for_real(endpoints, loads)
    errors = [compare(spec, load, seen[spec.name]) for spec, load in zip(endpoints, loads, strict=True)]
    return {"p95_error": max(p95 for p95, _ in errors), "worker_seconds_error": max(used for _, used in errors)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="length of the load of the real run")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    errors = uvloop.run(measure_errors(given.seconds))
    print_result("simulate", {**errors, **measure_speed(given.rounds)})


if __name__ == "__main__":
    main()
