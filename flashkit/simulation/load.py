"""The load of an endpoint: when jobs arrive and how long each one runs, made up or recorded.

Made-up loads repeat with their seed. Durations are log-normal, as those of most services are: many short ones, a few
long ones, none below zero.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from flashkit.errors import InputError

HOUR_SECONDS: Final = 3600.0
DAY_SECONDS: Final = 24 * HOUR_SECONDS
MOST_JOBS: Final = 5_000_000
"""A load with more is refused: one of 100,000 tells the same, and takes seconds."""
BUSIEST_HOUR: Final = 14
"""Hour of the day in which the rate of a diurnal load is highest."""
BURST_SHARE: Final = 1 / 60
"""Share of the time in which a bursty load bursts: a minute in every hour."""
PEAKS: Final = {"poisson": 1.0, "diurnal": 1.8, "burst": 10.0}
"""Shapes of made-up load, with the highest rate of each as a multiple of the mean, unless another one is asked for."""
_HIGHEST_PEAK: Final = {"poisson": 1.0, "diurnal": 2.0, "burst": 1 / BURST_SHARE}
"""With more, the rate would be negative at other times."""


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Jobs in the order of their arrival."""

    arrivals: Sequence[float]
    """Seconds from the beginning of the load."""
    seconds: Sequence[float]
    """How long each job runs."""
    window_seconds: float
    """How long the load is looked at, from its beginning: at least until the last arrival."""
    words: str = "load"
    """What it is, for people."""

    def __post_init__(self) -> None:
        if not len(self.arrivals):
            raise InputError(f"the {self.words} has no job", hint="raise the rate, or look at a longer time")
        if len(self.arrivals) != len(self.seconds):
            raise InputError(f"{len(self.arrivals)} arrivals do not go with {len(self.seconds)} durations")
        before = 0.0
        for number, (arrival, seconds) in enumerate(zip(self.arrivals, self.seconds, strict=True), start=1):
            if not before <= arrival < math.inf:
                raise InputError(
                    f"job {number} arrives at {arrival!r}, after one at {before!r}", hint="sort them by arrival"
                )
            if not 0 <= seconds < math.inf:
                raise InputError(f"job {number} runs for {seconds!r} s", hint="give 0 seconds or more")
            before = arrival
        if not before <= self.window_seconds < math.inf:
            raise InputError(f"the load ends after {self.window_seconds!r} s, before its last job at {before:g} s")

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def work_seconds(self) -> float:
        """How long all jobs run together."""
        return math.fsum(self.seconds)

    def most_at_once(self) -> int:
        """Return how many jobs run at the same time at most, if none waits."""
        jobs = list(zip(self.arrivals, self.seconds, strict=True))
        ends = sorted(arrival + seconds for arrival, seconds in jobs)
        # A job that takes no time is over by its arrival, but needs a worker all the same.
        return max(
            number - bisect_right(ends, arrival) + (arrival + seconds <= arrival)
            for number, (arrival, seconds) in enumerate(jobs, start=1)
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """A made-up load, described."""

    shape: str = "poisson"
    """`poisson`: the same rate all the time; `diurnal`: a day with a busy afternoon; `burst`: a busy minute an hour."""
    jobs_per_second: float = 1.0
    """Mean over the whole time."""
    seconds: float = 1.0
    """Mean duration of a job."""
    variation: float = 0.5
    """Standard deviation of the durations, as a share of their mean; 0 makes all the same."""
    window_seconds: float = DAY_SECONDS
    peak: float | None = None
    """Highest rate as a multiple of the mean; None: as usual for the shape."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in PEAKS:
            raise InputError(f"{self.shape!r} is no shape of a load", hint=f"there are {', '.join(PEAKS)}")
        _require_above_zero("rate", self.jobs_per_second, "jobs per second", "a load without jobs needs no workers")
        _require_above_zero("duration", self.seconds, "seconds")
        _require_above_zero("time", self.window_seconds, "seconds to look at")
        if not 0 <= self.variation < math.inf:
            raise InputError(f"variation={self.variation!r} is no spread of durations", hint="give 0 or more, as 0.5")
        highest = _HIGHEST_PEAK[self.shape]
        if self.peak is not None and not 1 <= self.peak <= highest:
            raise InputError(
                f"peak={self.peak!r} cannot be the highest rate of a {self.shape} load",
                hint=f"give a multiple of the mean from 1 to {highest:g}",
            )
        expected = self.jobs_per_second * self.window_seconds
        if expected > MOST_JOBS:
            raise InputError(
                f"{expected:,.0f} jobs are too many to simulate",
                hint=f"look at a shorter time: {MOST_JOBS:,} jobs at most, and 100,000 tell the same",
            )

    def make(self) -> Load:
        """Return the load; the same one for the same description.

        Raises:
            InputError: Not one job arrives in this time.
        """
        generator = random.Random(self.seed)  # noqa: S311 - numbers of a simulation, not secrets
        arrivals = array("d", self._arrivals(generator))
        draw = self._durations(generator)
        durations = array("d", (draw() for _ in arrivals))
        return Load(arrivals, durations, self.window_seconds, self.words)

    @property
    def words(self) -> str:
        """What the load is, for people."""
        return f"{self.shape} load of {self.jobs_per_second:.3g} jobs/s for {self.window_seconds / HOUR_SECONDS:g} h"

    def _arrivals(self, generator: random.Random) -> Iterator[float]:
        for stretch in self._stretches():
            yield from _poisson(generator, stretch)

    def _stretches(self) -> Iterator[_Stretch]:
        """Yield the stretches of time in which the rate is the same: minutes, of a day with its hours."""
        rate, window = self.jobs_per_second, self.window_seconds
        peak = PEAKS[self.shape] if self.peak is None else self.peak
        if self.shape == "poisson" or peak == 1:
            yield _Stretch(0.0, window, rate)
        elif self.shape == "diurnal":
            for begin, end in _cut(window, 60.0):
                yield _Stretch(begin, end, rate * (1 + (peak - 1) * _day_wave(begin)))
        else:
            period = min(HOUR_SECONDS, window)
            burst, middle = period * BURST_SHARE, period / 2
            calm = rate * (1 - peak * BURST_SHARE) / (1 - BURST_SHARE)
            for begin, end in _cut(window, period):
                yield _Stretch(begin, min(begin + middle, end), calm)
                yield _Stretch(begin + middle, min(begin + middle + burst, end), rate * peak)
                yield _Stretch(begin + middle + burst, end, calm)

    def _durations(self, generator: random.Random) -> Callable[[], float]:
        if not self.variation:
            return lambda: self.seconds
        spread = math.log1p(self.variation**2)
        middle = math.log(self.seconds) - spread / 2
        return lambda: generator.lognormvariate(middle, math.sqrt(spread))


class _Stretch(NamedTuple):
    begin: float
    end: float
    rate: float


def _poisson(generator: random.Random, stretch: _Stretch) -> Iterator[float]:
    if stretch.rate <= 0:
        return
    at = stretch.begin + generator.expovariate(stretch.rate)
    while at < stretch.end:
        yield at
        at += generator.expovariate(stretch.rate)


def _cut(window: float, width: float) -> Iterator[tuple[float, float]]:
    for number in range(math.ceil(window / width)):
        yield number * width, min((number + 1) * width, window)


def _day_wave(at: float) -> float:
    return math.cos(2 * math.pi * (at / HOUR_SECONDS - BUSIEST_HOUR) / 24)


def _require_above_zero(name: str, value: float, unit: str, hint: str | None = None) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{value!r} is no {name}: it has to be above 0 {unit}", hint=hint)


def work_by_hour(load: Load) -> list[float]:
    """Return the seconds of work that arrive in each hour of the load."""
    hours = [0.0] * max(1, math.ceil(load.window_seconds / HOUR_SECONDS))
    for arrival, seconds in zip(load.arrivals, load.seconds, strict=True):
        hours[min(int(arrival / HOUR_SECONDS), len(hours) - 1)] += seconds
    return hours


def load_of(jobs: Iterable[tuple[float, float]], *, words: str = "recorded load") -> Load:
    """Return the load of recorded jobs, each its arrival and its seconds, in any order; the first one arrives at 0.

    Raises:
        InputError: There are none, or one of them cannot be.
    """
    ordered = sorted(jobs)
    first = ordered[0][0] if ordered else 0.0
    arrivals = array("d", (arrival - first for arrival, _ in ordered))
    durations = array("d", (seconds for _, seconds in ordered))
    return Load(arrivals, durations, arrivals[-1] if ordered else 0.0, words)
