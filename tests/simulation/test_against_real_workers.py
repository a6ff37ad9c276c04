"""The same jobs, simulated and given to real worker processes under a clock that is moved on: the same waits."""

from __future__ import annotations

import sys

import pytest

from flashkit.emulator.clock import Clock
from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.fleet import ColdStart
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.simulation.load import Load
from flashkit.simulation.results import summarise
from flashkit.simulation.running import WorkerTimes, simulate
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

APP = """
from flashkit import cpu_endpoint


@cpu_endpoint()
async def quick() -> int:
    return 1
"""
ARRIVALS = (0.0, 3.0, 3.5, 3.75, 41.0, 49.0, 90.0, 91.0, 120.0, 128.0, 180.0)
COLD_SECONDS = 30.0


@pytest.mark.parametrize(
    "options",
    [
        {"scaler_value": 2},
        {"scaler_type": ScalerType.REQUEST_COUNT, "scaler_value": 1},
        {"scaler_type": ScalerType.REQUEST_COUNT, "scaler_value": 2, "concurrency": 2},
        {"scaler_value": 2, "flashboot": True},
    ],
    ids=["queue delay", "request count", "concurrency", "flashboot"],
)
async def test_real_workers_make_the_same_jobs_wait_as_long(tmp_path, options):
    """Jobs take no time of a clock that stands while they run, and neither do processes: only the phases do."""
    chosen = {"kind": Kind.CPU, "cpu": "cpu3c-2-4", "idle_timeout": 10, "flashboot": False} | options
    spec = EndpointSpec(name="quick", workers=WorkerBounds(0, 3), **chosen)
    load = Load(ARRIVALS, [0.0] * len(ARRIVALS), 220.0)
    simulated = simulate(spec, load, WorkerTimes(cold_start=COLD_SECONDS, thaw=0.0))

    (tmp_path / "app.py").write_text(APP)
    local = LocalEndpoint(spec, (sys.executable, "-m", "flashkit.worker", "app.py:quick"), tmp_path)
    clock, events, jobs = Clock(speed=0, start=0.0), [], []
    async with Emulator(
        [local], state_dir=tmp_path / "state", clock=clock, on_event=events.append, flashboot=True,
        cold_start=ColdStart(load_s=COLD_SECONDS),
    ) as emulator:  # fmt: skip
        for arrival in ARRIVALS:
            await clock.advance(arrival - clock.now(), patience=60, spares_jobs=True)
            jobs.append(emulator.submit("quick", JobRequest({})))
        await clock.advance(load.window_seconds - clock.now(), patience=60, spares_jobs=True)
        waits = [(job.delay_ms or 0) / 1000 for job in jobs]

    started = [event.worker_id for event in events if isinstance(event, WorkerEvent) and event.what == "starting"]
    thawed = [event.worker_id for event in events if isinstance(event, WorkerEvent) and event.what == "thawing"]
    result = summarise(simulated)
    assert waits == pytest.approx(list(simulated.waits), abs=0.05)
    assert (len(started), len(thawed)) == (result.cold_starts, result.warm_starts)
