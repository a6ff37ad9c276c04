"""What a run comes to: waits, cold starts, use, worker-seconds, money, and the same over time for a plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

from flashkit.catalog import usd_per_second
from flashkit.protocol import JobStatus
from flashkit.simulation.running import Run
from flashkit.spec import EndpointSpec

POINTS: Final = 96
"""Stretches into which a run is cut for a plot: of a day, quarters of an hour."""
_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a second of one worker; None where no source gives a price."""

    flex: float | None = None
    active: float | None = None
    """For a worker that is always there, as the floor's."""

    @classmethod
    def of(cls, spec: EndpointSpec) -> Prices:
        """Return the catalogue's prices of the endpoint's preferred GPU. There are none of CPU workers."""
        if not spec.gpu:
            return cls()
        flex, active = usd_per_second(spec.gpu[0]), usd_per_second(spec.gpu[0], is_active=True)
        return cls(_times(spec.gpu_count, flex), _times(spec.gpu_count, active))


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds in the queue."""

    p50: float
    p95: float
    p99: float
    longest: float
    mean: float


class Point(NamedTuple):
    """A stretch of the run."""

    at: float
    """Its beginning, in seconds."""
    jobs: int
    """Jobs that arrived in it."""
    wait_p95: float | None
    """Of those jobs; None without any."""
    workers: float
    """Those that were paid for, on the average."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run comes to."""

    jobs: int
    completed: int
    timed_out: int
    """Jobs that ran into their execution timeout."""
    dropped: int
    """Jobs that never ran: their time to live ran out in the queue, or no worker came up."""
    waits: Waits
    cold_starts: int
    warm_starts: int
    """Starts of workers that FlashBoot had kept."""
    cold_share: float
    """Share of the jobs that waited for a cold start."""
    utilisation: float
    """Share of the paid room for jobs in which one ran."""
    worker_seconds: float
    active_seconds: float
    """Those of them that the floor's workers make, at the lower price."""
    most_workers: int
    seconds: float
    """How long the run was."""
    cost_usd: float | None
    """None where a price is not known."""
    points: tuple[Point, ...] = ()

    @property
    def flex_seconds(self) -> float:
        """Worker-seconds above the floor."""
        return self.worker_seconds - self.active_seconds

    @property
    def cost_per_hour(self) -> float | None:
        """US dollars."""
        return None if self.cost_usd is None else self.cost_usd / self.seconds * _HOUR

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "waits": {f"{name}_seconds": value for name, value in values["waits"].items()},
            "flex_seconds": self.flex_seconds,
            "cost_usd_per_hour": self.cost_per_hour,
            "points": [point._asdict() for point in self.points],
        }


def summarise(run: Run, prices: Prices | None = None) -> Result:
    """Return what the run comes to; prices are the catalogue's by default."""
    prices = Prices.of(run.spec) if prices is None else prices
    staffed = _integrate(run, 0.0, run.until)
    flex_seconds = staffed.worker_seconds - staffed.active_seconds
    room = staffed.worker_seconds * run.spec.concurrency
    return Result(
        jobs=len(run.load),
        completed=run.ended[JobStatus.COMPLETED],
        timed_out=run.ended[JobStatus.TIMED_OUT] + run.ended[JobStatus.FAILED] - run.expired,
        dropped=run.expired,
        waits=_describe_waits(run.waits),
        cold_starts=run.cold_starts,
        warm_starts=run.warm_starts,
        cold_share=run.cold_jobs / len(run.load),
        utilisation=run.busy_seconds / room if room else 0.0,
        worker_seconds=staffed.worker_seconds,
        active_seconds=staffed.active_seconds,
        most_workers=max(accumulate(change for _, change in run.staffing), default=0),
        seconds=run.until,
        cost_usd=_sum(_times(staffed.active_seconds, prices.active), _times(flex_seconds, prices.flex)),
        points=_points(run),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share of the sorted values does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _describe_waits(waits: Sequence[float]) -> Waits:
    ordered = sorted(waits)
    p50, p95, p99 = (percentile(ordered, share) for share in (0.50, 0.95, 0.99))
    return Waits(p50, p95, p99, ordered[-1], math.fsum(ordered) / len(ordered))


class _Staffed(NamedTuple):
    worker_seconds: float
    active_seconds: float


def _integrate(run: Run, begin: float, end: float) -> _Staffed:
    """Return the worker-seconds between two times: all of them, and those up to the floor."""
    workers, floor, at = 0, 0, begin
    total, active = [], []
    for when, is_floor, value in _changes(run):
        until = min(max(when, begin), end)
        total.append((until - at) * workers)
        active.append((until - at) * min(workers, floor))
        at = until
        workers, floor = (workers, value) if is_floor else (workers + value, floor)
    total.append((end - at) * workers)
    active.append((end - at) * min(workers, floor))
    return _Staffed(math.fsum(total), math.fsum(active))


def _changes(run: Run) -> list[tuple[float, bool, int]]:
    staffing = [(when, False, change) for when, change in run.staffing]
    return sorted([*staffing, *((when, True, floor) for when, floor in run.floors)], key=lambda change: change[0])


def _points(run: Run) -> tuple[Point, ...]:
    width = run.until / POINTS
    if not width:
        return ()
    waits: list[list[float]] = [[] for _ in range(POINTS)]
    for arrival, wait in zip(run.load.arrivals, run.waits, strict=True):
        waits[min(int(arrival / width), POINTS - 1)].append(wait)
    workers = _workers_over_time(run, width)
    return tuple(
        Point(number * width, len(some), percentile(sorted(some), 0.95) if some else None, workers[number] / width)
        for number, some in enumerate(waits)
    )


def _workers_over_time(run: Run, width: float) -> list[float]:
    """Return the worker-seconds of each stretch."""
    stretches = [0.0] * POINTS
    changes = [*run.staffing, (run.until, 0)]
    workers, at = 0, 0.0
    for when, change in changes:
        until = min(max(when, 0.0), run.until)
        while at < until:
            number = min(int(at / width), POINTS - 1)
            end = until if number == POINTS - 1 else min(until, max((number + 1) * width, math.nextafter(at, math.inf)))
            stretches[number] += (end - at) * workers
            at = end
        workers += change
    return stretches


def _times(count: float, price: float | None) -> float | None:
    """Return the price of so many; none cost nothing, whatever one costs."""
    if count == 0:
        return 0.0
    return None if price is None else count * price


def _sum(*amounts: float | None) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return math.fsum(known) if len(known) == len(amounts) else None
