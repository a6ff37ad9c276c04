"""Figures: percentiles, tokens, cold starts, and cost, worked out by hand."""

from __future__ import annotations

import pytest

from flashkit.catalog import GpuPool, GpuType, usd_per_second
from flashkit.emulator.events import JobEvent, RequestEvent, WorkerEvent
from flashkit.emulator.lanes import Change, Lane
from flashkit.emulator.metrics import SERIES, Metrics, cold_starts, cost_per_second, percentiles
from flashkit.emulator.platform import JobRequest, Platform
from flashkit.emulator.recorder import Recorder
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, Kind, WorkerBounds


def spec(*, gpu=(GpuType.NVIDIA_A100_80GB_PCIe,), workers=(1, 3), gpu_count=1):
    return EndpointSpec(name="e", kind=Kind.GPU, gpu=gpu, gpu_count=gpu_count, workers=WorkerBounds(*workers))


class World:
    """A platform without processes, its recorder and its figures, at a time that tests set."""

    def __init__(self):
        self.now = 1_000.0
        self.platform = Platform()
        self.recorder = Recorder(clock=lambda: self.now)
        self.metrics = Metrics(self.platform, self.recorder, clock=lambda: self.now)
        self.platform.add_endpoint(0.0, spec())

    def tell(self, event):
        self.recorder.record(event)
        self.metrics.observe(event)

    def end(self, job_id, status=JobStatus.COMPLETED, *, delay=10, execution=20):
        self.tell(JobEvent("e", job_id, status, 1, "w", delay, execution, None, None, 0, 0))

    def figures(self):
        return self.metrics.describe()["e"]

    def sample(self):
        self.metrics.sample()
        return dict(zip(("at", *SERIES), self.metrics.series()["e"][-1], strict=True))


@pytest.fixture
def world():
    return World()


def test_percentiles_are_values_that_occurred():
    assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([7]) == {"p50": 7, "p95": 7, "p99": 7}
    assert percentiles([]) is None


def test_latencies_are_those_of_the_last_minutes(world):
    world.end("old", delay=5_000)
    world.now += 301
    world.end("new", delay=100, execution=50)
    latency = world.figures()["latency"]
    assert latency["jobs"] == 1
    assert latency["delay_ms"] == {"p50": 100, "p95": 100, "p99": 100}
    assert latency["total_ms"]["p95"] == 150


def test_samples_count_what_ended_since_the_last_one(world):
    world.platform.submit(world.now, "e", JobRequest(input=1), sync=False)
    world.end("a")
    world.end("b", JobStatus.FAILED)
    world.end("c", JobStatus.TIMED_OUT)
    sample = world.sample()
    assert (sample["finished"], sample["failed"], sample["queued"]) == (1, 2, 1)
    assert sample["p95_ms"] == 30
    world.now += 60
    sample = world.sample()
    assert (sample["finished"], sample["failed"], sample["p95_ms"]) == (0, 0, None)
    assert [row[0] for row in world.metrics.series(after=1_000.0)["e"]] == [1_060.0]


def test_requests_to_load_balanced_endpoints_are_counted_apart(world):
    for status in (200, 404, 502, None):
        world.tell(RequestEvent("e", "r", "GET", "/", status, "w", 5, 20, 1, 0, 0, None))
    assert world.figures()["requests"] == {"done": 3, "failed": 1}
    assert world.figures()["latency"]["total_ms"]["p95"] == 25
    assert world.sample()["finished"] == 3


def test_workers_are_counted_by_what_they_do(world):
    for worker_id, what in (("a", "starting"), ("b", "ready"), ("c", "draining"), ("d", "exited"), ("f", "frozen")):
        world.tell(WorkerEvent("e", worker_id, what))
    sample = world.sample()
    assert (sample["starting"], sample["idle"], sample["leaving"], sample["busy"]) == (1, 1, 1, 0)


def test_figures_of_a_removed_endpoint_are_gone(world):
    world.sample()
    world.platform.remove_endpoint(1.0, "e")
    world.metrics.sample()
    assert "e" not in world.metrics.series()


def test_tokens_of_outputs_are_summed(world):
    job = world.platform.submit(world.now, "e", JobRequest(input=1), sync=False)
    job.output = {"usage": {"prompt_tokens": 30, "completion_tokens": 12}}
    world.end(job.id)
    world.end("forgotten")
    assert world.figures()["tokens"] == {"prompt": 30, "completion": 12}
    assert world.sample()["tokens"] == 42


def test_tokens_of_streams_are_those_of_the_part_that_counts_them(world):
    job = world.platform.submit(world.now, "e", JobRequest(input=1), sync=False)
    job.usage = 'data: {"usage": {"prompt_tokens": 5, "completion_tokens": 6}}\n\n'
    world.end(job.id)
    assert world.figures()["tokens"] == {"prompt": 5, "completion": 6}


def test_a_cold_start_lasts_from_the_wish_until_the_worker_is_ready():
    lane = Lane("e", "w")
    for at, state in (
        (1, "initializing"),
        (3, "starting"),
        (6, "idle"),
        (7, "frozen"),
        (8, "starting"),
        (8.5, "running"),
    ):
        lane.changes.append(Change(at, state))
    assert cold_starts(lane) == [5, 0.5]
    lane.changes.clear()
    lane.changes.extend([Change(1, "starting"), Change(2, "exited")])
    assert cold_starts(lane) == []


def test_a_cold_start_is_part_of_the_figures(world):
    world.tell(WorkerEvent("e", "w", "starting"))
    world.now += 2
    world.tell(WorkerEvent("e", "w", "ready"))
    assert world.figures()["cold_starts"] == {"count": 1, "ms": {"p50": 2000, "p95": 2000, "p99": 2000}}


def lanes(*states):
    found = [Lane("e", str(place)) for place in range(len(states))]
    for lane, state in zip(found, states, strict=True):
        lane.change(1.0, state)
    return found


def test_workers_of_the_floor_cost_the_active_price_and_others_the_flex_price():
    assert cost_per_second(spec(), lanes("idle", "running")) == pytest.approx(0.00060 + 0.00076)
    assert cost_per_second(spec(gpu_count=2), lanes("starting")) == pytest.approx(2 * 0.00060)
    assert cost_per_second(spec(workers=(0, 2)), lanes("running", "frozen")) == pytest.approx(0.00076)


def test_what_has_no_price_costs_nothing_that_is_known():
    cpu = EndpointSpec(name="e", kind=Kind.CPU, cpu="cpu5c-4-8")
    assert cost_per_second(cpu, lanes("running")) is None
    assert cost_per_second(spec(gpu=(GpuType.NVIDIA_RTX_5090,)), lanes("running")) is None


def test_prices_come_from_the_catalogue():
    assert usd_per_second(GpuPool.AMPERE_80) == usd_per_second(GpuType.NVIDIA_A100_SXM4_80GB) == 0.00076
    assert usd_per_second(GpuType.NVIDIA_H100_NVL, is_active=True) == 0.00093
    # No source gives an active price of this pool: it is taken to cost what flex workers cost.
    assert usd_per_second(GpuPool.BLACKWELL_96, is_active=True) == 0.00111


def test_costs_add_up_over_time(world):
    world.tell(WorkerEvent("e", "w", "ready"))
    world.sample()
    world.now += 100
    world.sample()
    cost = world.figures()["cost"]
    assert cost["usd_per_hour"] == pytest.approx(0.00060 * 3600)
    assert cost["usd"] == pytest.approx(0.060)
