"""Policies that steer an endpoint from outside, beside the platform's own scaler: by the clock, or by its queue.

A policy is a generator of orders. It is woken at the time that its last order names, gets what there is to see, and
answers with the next order. On the real platform the same is done by a script that changes `workersMin`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from flashkit.errors import InputError
from flashkit.simulation.load import HOUR_SECONDS, Load, work_by_hour
from flashkit.spec import EndpointSpec, ScalerType, WorkerBounds

HEADROOM: Final = 0.3
"""Share of workers that a scheduled floor has above the mean need of the hour."""
HOURS_PER_DAY: Final = 24
_NEVER_LATE: Final = 10**9
"""Value of the queue-delay scaler with which it adds no worker: only the first one starts by itself."""


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees."""

    now: float
    queued: int
    workers: int
    """Those that take jobs or are starting up."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a policy wants."""

    next_at: float
    """When it is to be woken again; never, if infinite."""
    floor: int | None = None
    """Fewest workers from now on; None leaves them as they are."""
    more: int = 0
    """Workers to add now, once."""


class Policy(Protocol):
    """Steers one endpoint."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def settings(self, spec: EndpointSpec) -> EndpointSpec:
        """Return the endpoint as this policy wants it set."""

    def steer(self) -> Generator[Order, View, None]:
        """Yield orders; the first one is for the beginning."""


@dataclass(frozen=True, slots=True)
class ScheduledFloor:
    """A floor of workers for each hour of the day, the other hours' again after the last; rises ahead of its hour."""

    floors: Sequence[int]
    lead_seconds: float = 0.0
    """How long before an hour its workers are wanted: a cold start, so that they are there in time."""
    name: str = "scheduled floor"

    def __post_init__(self) -> None:
        if not self.floors or any(floor < 0 for floor in self.floors):
            raise InputError(f"{list(self.floors)} is no schedule", hint="give a floor of 0 or more for each hour")

    def settings(self, spec: EndpointSpec) -> EndpointSpec:
        """Return the endpoint with the first hour's floor, and room for the highest one."""
        bounds = WorkerBounds(self.floors[0], max(spec.workers.max, *self.floors))
        return dataclasses.replace(spec, workers=bounds)

    def steer(self) -> Generator[Order, View, None]:
        """Yield two orders for each hour: rise before it, fall when it has come."""
        lead = min(self.lead_seconds, HOUR_SECONDS)
        hour, floor = 0, self.floors[0]
        while True:
            hour += 1
            coming = self.floors[hour % len(self.floors)]
            yield Order(next_at=hour * HOUR_SECONDS - lead, floor=floor)
            yield Order(next_at=hour * HOUR_SECONDS, floor=max(floor, coming))
            floor = coming


def plan_floors(load: Load, *, concurrency: int = 1, headroom: float = HEADROOM) -> tuple[int, ...]:
    """Return a floor for each hour of the day: the workers that its jobs keep busy on the average, and headroom.

    The hours count from the beginning of the load. Of a load of several days the mean of the same hours is taken.
    """
    hours = work_by_hour(load)
    by_hour: list[list[float]] = [[] for _ in range(min(HOURS_PER_DAY, len(hours)))]
    for number, work in enumerate(hours):
        length = min(HOUR_SECONDS, load.window_seconds - number * HOUR_SECONDS) or HOUR_SECONDS
        by_hour[number % HOURS_PER_DAY].append(work / length / concurrency)
    means = (math.fsum(needs) / len(needs) for needs in by_hour)
    return tuple(math.ceil(round(mean * (1 + headroom), 9)) for mean in means)


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One more worker while the queue has been deep for some time; one less after some minutes without work."""

    name: str
    per_worker: int
    """The queue is deep with more waiting jobs than this for each worker."""
    hold_seconds: float
    """How long it has to be deep."""
    idle_timeout: int = 300
    look_every_seconds: float = 5.0

    def settings(self, spec: EndpointSpec) -> EndpointSpec:
        """Return the endpoint with its own scaler out of the way, but for the first worker."""
        return dataclasses.replace(
            spec, scaler_type=ScalerType.QUEUE_DELAY, scaler_value=_NEVER_LATE, idle_timeout=self.idle_timeout
        )

    def steer(self) -> Generator[Order, View, None]:
        """Yield an order each time it looks."""
        deep_since: float | None = None
        view = yield Order(next_at=0.0)
        while True:
            is_deep = view.queued > self.per_worker * view.workers
            deep_since = (view.now if deep_since is None else deep_since) if is_deep else None
            is_due = deep_since is not None and view.now - deep_since >= self.hold_seconds
            if is_due:
                deep_since = None
            view = yield Order(next_at=view.now + self.look_every_seconds, more=int(is_due))


BATCH: Final = QueueDepth("queue>0 30s", per_worker=0, hold_seconds=30.0)
"""For batches: one more worker when anything waits for 30 s."""
INTERACTIVE: Final = QueueDepth("queue>10 60s", per_worker=10, hold_seconds=60.0)
"""For people: one more worker when more than ten jobs a worker wait for 60 s."""
