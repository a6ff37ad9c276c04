"""The cheapest setting that keeps waiting short: bounds of workers and idle timeout, found by simulating them.

For each idle timeout the smallest floor that meets the target is found by halving, as a higher floor never makes
waiting longer by more than chance; then the smallest maximum for the cheapest of them. Every setting that is proposed
has been simulated itself, so that a guess that does not hold costs time, never truth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from flashkit.errors import InputError
from flashkit.simulation.load import Load
from flashkit.simulation.results import Prices, Result, summarise
from flashkit.simulation.running import WorkerTimes, simulate
from flashkit.spec import EndpointSpec, WorkerBounds

IDLE_TIMEOUTS: Final = (5, 30, 120, 600)
"""Seconds that are tried, beside the endpoint's own."""
_IDLE_STEPS: Final = 8
"""How finely the idle timeout is searched between two of those."""
_FLOORS_REFINED: Final = 3
"""Floors for which that is done where a longer idle timeout allows several lower ones."""
_ACTIVE_WEIGHT: Final = 0.75
"""What a second of the floor's workers counts against one of the others where no price is known: about the ratio of the
catalogue's prices."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting with what it comes to."""

    workers: WorkerBounds
    idle_timeout: int
    result: Result

    @property
    def burden(self) -> float:
        """Cost, or worker-seconds where no price is known: only good for comparing."""
        if self.result.cost_usd is not None:
            return self.result.cost_usd
        return self.result.flex_seconds + _ACTIVE_WEIGHT * self.result.active_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without the course of time."""
        result = self.result.to_dict()
        del result["points"]
        return {"workers": [self.workers.min, self.workers.max], "idle_timeout": self.idle_timeout, **result}


@dataclass(frozen=True, slots=True)
class Target:
    """How long jobs may wait."""

    p95_seconds: float

    def __post_init__(self) -> None:
        if not 0 <= self.p95_seconds < math.inf:
            raise InputError(
                f"{self.p95_seconds!r} is no target for a wait", hint="give seconds, as in --target-p95 2s"
            )

    def is_met(self, result: Result) -> bool:
        """True when 95 % of the jobs waited no longer, and all of them ran."""
        return result.waits.p95 <= self.p95_seconds and not result.dropped


@dataclass(slots=True)
class Search:
    """Looks for the cheapest setting of one endpoint under one load.

    Args:
        spec: What is not searched stays as it is here.
        load: The jobs.
        target: How long they may wait.
        times: What workers spend beside jobs.
        prices: By default the catalogue's.
        most_workers: No setting has a higher maximum; by default as many as would keep any job from waiting.
        on_step: Called after each simulation with the number of them so far.
    """

    spec: EndpointSpec
    load: Load
    target: Target
    times: WorkerTimes = field(default_factory=WorkerTimes)
    prices: Prices | None = None
    most_workers: int | None = None
    on_step: Callable[[int], None] = lambda count: None
    tried: dict[tuple[int, int, int], Candidate] = field(default_factory=dict)
    """Candidates by floor, maximum and idle timeout."""

    def __post_init__(self) -> None:
        if self.most_workers is not None and self.most_workers < 1:
            raise InputError(f"{self.most_workers!r} workers can never run a job", hint="--most-workers is 1 or more")

    def run(self) -> Candidate:
        """Return the cheapest setting that meets the target.

        Raises:
            InputError: None does; the message has the best that was found.
        """
        most = self.most_workers or max(1, math.ceil(self.load.most_at_once() / self.spec.concurrency))
        if not self._meets(most, most, self.spec.idle_timeout):
            raise self._unreachable(most)
        self._find_floors(most)
        best = self._best()
        low, idle = best.workers.min, best.idle_timeout
        self._smallest(max(1, low), best.workers.max, lambda high: self._meets(low, high, idle))
        return self._best()

    def _find_floors(self, most: int) -> None:
        """Find the smallest floor for each idle timeout, and how short idling may be for each floor."""
        floor, shorter = most, 0
        for idle in sorted({*IDLE_TIMEOUTS, self.spec.idle_timeout}):
            lower = self._smallest(0, floor, partial(self._meets, high=most, idle=idle))
            step = max(1, (idle - shorter) // _IDLE_STEPS)
            for low in range(lower, min(floor, lower + _FLOORS_REFINED)) if shorter else ():
                self._smallest(shorter, idle, partial(self._meets, low, most), step=step)
            floor, shorter = lower, idle

    def _smallest(self, low: int, high: int, is_enough: Callable[[int], bool], *, step: int = 1) -> int:
        """Return the smallest number that is enough, within a step; `high` is known to be, or taken if none is."""
        while high - low >= step:
            middle = (low + high) // 2
            if is_enough(middle):
                high = middle
            else:
                low = middle + 1
        return high

    def _meets(self, low: int, high: int, idle: int) -> bool:
        return self.target.is_met(self.candidate(low, high, idle).result)

    def candidate(self, low: int, high: int, idle: int) -> Candidate:
        """Return a setting with what it comes to."""
        key = (low, high, idle)
        if key not in self.tried:
            bounds = WorkerBounds(low, high)
            spec = dataclasses.replace(self.spec, workers=bounds, idle_timeout=idle)
            result = summarise(simulate(spec, self.load, self.times), self.prices)
            self.tried[key] = Candidate(bounds, idle, result)
            self.on_step(len(self.tried))
        return self.tried[key]

    def _best(self) -> Candidate:
        met = [candidate for candidate in self.tried.values() if self.target.is_met(candidate.result)]
        return min(met, key=lambda one: (one.burden, one.workers.max, one.idle_timeout))

    def _unreachable(self, most: int) -> InputError:
        best = min(self.tried.values(), key=lambda one: (one.result.dropped, one.result.waits.p95))
        result = best.result
        found = f"a p95 wait of {result.waits.p95:.3g} s" + (
            f" and {result.dropped} dropped jobs" * bool(result.dropped)
        )
        return InputError(
            f"no setting with up to {most} workers keeps the p95 wait within {self.target.p95_seconds:g} s: the best "
            f"found is workers=({best.workers.min}, {best.workers.max}), with {found}",
            hint="allow more workers, a higher concurrency, or a longer wait",
            details={"best": best.to_dict()},
        )
