"""What traffic costs on serverless workers, and from which load on another way of paying is cheaper.

Jobs arrive independently of each other (Poisson) and wait while their worker starts or works: the queue M/G/1 with a
start-up time and an idle timeout, whose cycle of start, work, waiting and absence has a closed form; for workers that
take several jobs at a time it is M/G/infinity, without the queue of the start. A load of several workers is spread
evenly over as many as it needs at 80 %. It is for choosing between ways of paying: `flashkit plan
simulate` runs a load through the scaler itself, with its further workers for jobs that wait too long.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

from flashkit.catalog import POD_USD_PER_HOUR, READ_ON, GpuPool, GpuType, usd_per_second
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure, count_of
from flashkit.plan.sizing import PLANNED_SHARE

SECONDS_PER_DAY: Final = 86_400
_SECONDS_PER_HOUR: Final = 3600
DAYS_PER_MONTH: Final = 365 / 12
_NEVER_STOPS: Final = 500
"""Jobs that come within one idle timeout from which on a worker does not live to see it pass."""
FLEX_SOURCE: Final = f"docs.runpod.io/serverless/pricing by way of flashkit's catalogue, read on {READ_ON}"
ACTIVE_SOURCE: Final = "earlier, undated copies of docs.runpod.io/serverless/pricing (flashkit/catalog.py)"
POD_SOURCE: Final = "deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10: a third party's table, so give your own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Jobs of one endpoint."""

    jobs_per_day: float
    seconds_per_job: float
    concurrency: int = 1
    """Jobs that one worker runs at the same time."""
    idle_timeout: float = 5.0
    cold_start_seconds: float = 60.0
    hours_per_day: float = 24.0
    """In which the jobs come."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("jobs_per_day", self.jobs_per_day, "above 0"),
            ("seconds_per_job", self.seconds_per_job, "above 0"),
            ("concurrency", self.concurrency, "above 0"),
            ("hours_per_day", self.hours_per_day, "above 0"),
        ):
            if not math.isfinite(value) or value <= 0:
                raise ConfigurationError(
                    f"{name}={value:g} is no traffic", hint=f"give a number {least}: --{name.replace('_', '-')}"
                )
        for name, value in (("idle_timeout", self.idle_timeout), ("cold_start_seconds", self.cold_start_seconds)):
            if not math.isfinite(value) or value < 0:
                raise ConfigurationError(f"{name}={value:g} is no time", hint="give seconds, 0 or more")
        if self.hours_per_day > 24:  # noqa: PLR2004 - of a day
            raise ConfigurationError(f"hours_per_day={self.hours_per_day:g}: a day has 24", hint="give 24 or less")

    @property
    def rate(self) -> float:
        """Jobs a second while they come."""
        return self.jobs_per_day / (self.hours_per_day * _SECONDS_PER_HOUR)

    @property
    def load(self) -> float:
        """Workers that are busy on average while jobs come."""
        return self.rate * self.seconds_per_job / self.concurrency


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one worker, all its GPUs together, in US dollars a second; None where no source gives one."""

    flex: float
    active: float | None = None
    pod: float | None = None
    flex_source: str = FLEX_SOURCE
    active_source: str = ACTIVE_SOURCE
    pod_source: str = POD_SOURCE


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What a month costs in each way."""

    traffic: Traffic
    cold_starts: Figure
    """A day."""
    billed: Figure
    """Seconds of flex workers a day."""
    flex: Figure
    """US dollars a month."""
    per_job: Figure
    """US dollars, on flex workers."""
    steady_workers: Figure
    """That would be needed if they were always there."""
    active: Figure | None
    pod: Figure | None
    active_break_even: Figure | None
    """Share of the day from which one worker that is always there costs less than a flex worker for the same time."""
    pod_break_even: Figure | None
    active_jobs: Figure | None
    """Jobs a day from which one active worker is cheaper."""
    pod_jobs: Figure | None

    @property
    def cheapest(self) -> str:
        """The cheapest way: flex, active or pod."""
        ways = {"flex": self.flex, "active": self.active, "pod": self.pod}
        known = {name: figure.value for name, figure in ways.items() if figure is not None}
        return min(known, key=lambda name: known[name])

    def figures(self) -> dict[str, Figure]:
        """Return all figures by name."""
        named = {
            "cold_starts": self.cold_starts, "billed": self.billed, "flex": self.flex, "per_job": self.per_job,
            "steady_workers": self.steady_workers, "active": self.active, "pod": self.pod,
            "active_break_even": self.active_break_even, "pod_break_even": self.pod_break_even,
            "active_jobs": self.active_jobs, "pod_jobs": self.pod_jobs,
        }  # fmt: skip
        return {name: figure for name, figure in named.items() if figure is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"cheapest": self.cheapest, **{name: figure.to_dict() for name, figure in self.figures().items()}}


def rates_of(gpu: GpuType | GpuPool, gpu_count: int = 1, *, pod_usd_per_hour: float | None = None) -> Rates:
    """Return the dated prices of a worker.

    Raises:
        ConfigurationError: No source gives a flex price.
    """
    flex = usd_per_second(gpu)
    if flex is None:
        raise ConfigurationError(
            f"no source gives a price of {gpu.value}", hint="give one: --flex-price USD_PER_SECOND"
        )
    active = usd_per_second(gpu, is_active=True)
    pod = pod_usd_per_hour
    if pod is None and isinstance(gpu, GpuType):
        pod = POD_USD_PER_HOUR.get(gpu)
    return Rates(
        flex * gpu_count,
        None if active is None else active * gpu_count,
        None if pod is None else pod / _SECONDS_PER_HOUR * gpu_count,
        pod_source="yours" if pod_usd_per_hour is not None else POD_SOURCE,
    )


def plan_cost(traffic: Traffic, rates: Rates) -> CostPlan:
    """Return what a month of this traffic costs."""
    cold = _cold_starts(traffic)
    billed = _billed_seconds(traffic, cold)
    month = DAYS_PER_MONTH * billed.value * rates.flex
    steady = _steady_workers(traffic)
    return CostPlan(
        traffic,
        cold,
        billed,
        Figure(
            month, "USD per month",
            f"{billed.value:,.0f} s a day x ${rates.flex:.5f} a second x {DAYS_PER_MONTH:.2f} days", rates.flex_source,
        ),
        Figure(
            month / DAYS_PER_MONTH / traffic.jobs_per_day, "USD per job",
            f"{billed.value:,.0f} s a day x ${rates.flex:.5f} / {traffic.jobs_per_day:,.10g} jobs", rates.flex_source,
        ),
        steady,
        _always(steady, rates.active, rates.active_source),
        _always(steady, rates.pod, rates.pod_source),
        _break_even(rates.active, rates, rates.active_source, "active"),
        _break_even(rates.pod, rates, rates.pod_source, "Pod"),
        _break_even_jobs(traffic, rates.active, rates),
        _break_even_jobs(traffic, rates.pod, rates),
    )  # fmt: skip


def flex_usd_per_month(traffic: Traffic, rates: Rates) -> float:
    """Return what a month of this traffic costs on flex workers."""
    return DAYS_PER_MONTH * _billed_seconds(traffic, _cold_starts(traffic)).value * rates.flex


def steady_usd_per_month(traffic: Traffic, usd_per_second: float) -> float:
    """Return what a month costs on workers that are always there."""
    return _steady_workers(traffic).value * usd_per_second * SECONDS_PER_DAY * DAYS_PER_MONTH


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What one worker goes through between two starts, in seconds."""

    workers: int
    rate: float
    """Jobs a second for one worker."""
    load: float
    """Share of its time that it works."""
    seconds: float
    """Infinite where the worker never stops."""

    @classmethod
    def of(cls, traffic: Traffic) -> _Cycle:
        workers = max(1, math.ceil(traffic.load / PLANNED_SHARE))
        rate = traffic.rate / workers
        load = rate * traffic.seconds_per_job
        if traffic.concurrency > 1:  # jobs run side by side: the worker is busy while there is any
            load = 1 - math.exp(-load)
        exponent = rate * traffic.idle_timeout
        if exponent > _NEVER_STOPS or load >= 1:
            return cls(workers, rate, load, math.inf)
        away_and_waiting = math.exp(exponent) / rate
        return cls(workers, rate, load, (traffic.cold_start_seconds + away_and_waiting) / (1 - load))


def _cold_starts(traffic: Traffic) -> Figure:
    cycle = _Cycle.of(traffic)
    window = traffic.hours_per_day * _SECONDS_PER_HOUR
    return Figure(
        cycle.workers * window / cycle.seconds, "cold starts per day",
        f"{count_of(cycle.workers, 'worker')} x {window:,.0f} s x (1 - {cycle.load:.3g} busy) / "
        f"({traffic.cold_start_seconds:g} s of start + e^({cycle.rate:.4g} jobs a second x "
        f"{traffic.idle_timeout:g} s of idle timeout) / "
        f"{cycle.rate:.4g})",
    )  # fmt: skip


def _billed_seconds(traffic: Traffic, cold: Figure) -> Figure:
    """Return the seconds of a day that are paid: work, starts, and waiting for the next job."""
    cycle = _Cycle.of(traffic)
    window = traffic.hours_per_day * _SECONDS_PER_HOUR
    busy, starting = cycle.workers * cycle.load * window, cold.value * traffic.cold_start_seconds
    away = cold.value / cycle.rate  # each time until the next job
    idle = max(0.0, cycle.workers * window - busy - starting - away)
    return Figure(
        busy + idle + starting, "s per day",
        f"{busy:,.0f} s of work + {idle:,.0f} s idle ({traffic.idle_timeout:g} after a job at most) + "
        f"{cold.value:,.0f} cold starts x {traffic.cold_start_seconds:g} s",
    )  # fmt: skip


def _steady_workers(traffic: Traffic) -> Figure:
    return Figure(
        _Cycle.of(traffic).workers, "workers",
        f"{traffic.rate:.4g} jobs a second x {traffic.seconds_per_job:g} s / {traffic.concurrency} at a time / "
        f"{PLANNED_SHARE:.0%} busy, rounded up",
    )  # fmt: skip


def _always(workers: Figure, price: float | None, source: str) -> Figure | None:
    if price is None:
        return None
    hours = SECONDS_PER_DAY / _SECONDS_PER_HOUR * DAYS_PER_MONTH
    return Figure(
        workers.value * price * _SECONDS_PER_HOUR * hours, "USD per month",
        f"{count_of(workers.value, 'worker')} x ${price * _SECONDS_PER_HOUR:.4g} an hour x {hours:.0f} hours", source,
    )  # fmt: skip


def _break_even(price: float | None, rates: Rates, source: str, name: str) -> Figure | None:
    if price is None:
        return None
    return Figure(
        price / rates.flex, "of the time",
        f"{name} ${price * _SECONDS_PER_HOUR:.4g} an hour / flex ${rates.flex * _SECONDS_PER_HOUR:.4g} an hour", source,
    )  # fmt: skip


def _break_even_jobs(traffic: Traffic, price: float | None, rates: Rates) -> Figure | None:
    """Return the jobs a day from which a worker that is always there is cheaper, found by halving."""
    if price is None:
        return None
    target = price * SECONDS_PER_DAY
    most = PLANNED_SHARE * traffic.hours_per_day * _SECONDS_PER_HOUR * traffic.concurrency / traffic.seconds_per_job
    if _flex_per_day(traffic, most, rates) < target:
        return None
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _flex_per_day(traffic, middle, rates) < target else (low, middle)
    return Figure(
        high, "jobs per day",
        f"where flex workers cost ${target:,.2f} a day: the price of one that is always there, "
        f"${price * _SECONDS_PER_HOUR:.4g} x 24",
    )  # fmt: skip


def _flex_per_day(traffic: Traffic, jobs: float, rates: Rates) -> float:
    if jobs <= 0:
        return 0.0
    other = dataclasses.replace(traffic, jobs_per_day=jobs)
    return _billed_seconds(other, _cold_starts(other)).value * rates.flex
