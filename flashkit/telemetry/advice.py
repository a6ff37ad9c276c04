"""Advice on an app's settings from the figures of its platform: pure functions, so that each can be argued about.

A piece of advice names the figure it comes from and the setting to change. Where there is too little data there is no
advice: a queue that grows for ten seconds is a burst, and three jobs say nothing of a share.

An app has two layers: orchestrators and tools on CPUs, and models on GPUs. An orchestrator that waits for a model looks
busy, so which of them holds the app up is told by both layers' queues, not by how busy each is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

LEAST_SECONDS: Final = 60.0
"""Figures of a shorter time give no advice."""
LEAST_JOBS: Final = 20
"""Fewer jobs say nothing of a share."""
GROWING_DEPTH: Final = 5.0
"""A shorter queue is none."""
GROWTH: Final = 1.5
"""A queue that is so many times as long as it was grows."""
IDLE_SHARE: Final = 0.5
"""A fleet of which so much is never used is too large."""
HEADROOM: Final = 1.3
"""What is kept over the highest use that was seen."""
COLD_SHARE: Final = 0.1
"""A start for more than every tenth job is often."""
BUSY_SHARE: Final = 0.9
CALM_SHARE: Final = 0.6
FULL_CACHE: Final = 0.85
_GPU_KINDS: Final = ("gpu", "embedding")
_LEAST_MOMENTS: Final = 6
_A_THIRD: Final = 3

Topic = Literal["queue_growing", "fleet_idle", "cold_starts", "orchestration_bound", "gpu_bound", "no_machines"]


class Moment(NamedTuple):
    """An endpoint at one time."""

    at: float
    queued: float
    running: float
    idle_workers: float
    busy_workers: float
    starting_workers: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSituation:
    """What is known of an endpoint over the last minutes."""

    endpoint: str
    kind: str
    min_workers: int
    max_workers: int
    moments: Sequence[Moment] = ()
    """Oldest first, evenly apart."""
    jobs: int = 0
    """Jobs that ended in this time."""
    cold_starts: int = 0
    throttled: int = 0
    """Workers that it wants and there are no machines for."""
    kv_cache_usage: float | None = None
    usd_per_worker_hour: float | None = None

    @property
    def seconds(self) -> float:
        """How long the figures reach back."""
        return self.moments[-1].at - self.moments[0].at if len(self.moments) >= _LEAST_MOMENTS else 0.0

    @property
    def is_on_gpu(self) -> bool:
        """True for the layer of the models."""
        return self.kind in _GPU_KINDS

    @property
    def peak_busy(self) -> int:
        """The most workers that were at work at once."""
        return math.ceil(max((moment.busy_workers for moment in self.moments), default=0))

    @property
    def busy_share(self) -> float:
        """Share of the workers that were at work, in the middle; 0 without workers."""
        busy = _mean(moment.busy_workers for moment in self.moments)
        ready = busy + _mean(moment.idle_workers for moment in self.moments)
        return busy / ready if ready else 0.0


@dataclass(frozen=True, slots=True)
class Advice:
    """What to change, and why."""

    topic: Topic
    endpoint: str
    figure: str
    """What was seen."""
    setting: str
    """What to change, and to what."""

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.figure}; {self.setting}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def advise(situations: Sequence[EndpointSituation]) -> list[Advice]:
    """Return the advice for an app's endpoints, the most urgent first."""
    known = [each for each in situations if each.seconds >= LEAST_SECONDS]
    return [
        *(advice for each in known for advice in (advise_queue(each),) if advice),
        *advise_layers(known),
        *(advice for each in known for advice in (advise_cold_starts(each),) if advice),
        *(advice for each in known for advice in (advise_idle(each),) if advice),
    ]


def advise_queue(given: EndpointSituation) -> Advice | None:
    """Advise on a queue that grows while all the workers are there that may be."""
    first, last = _thirds(moment.queued for moment in given.moments)
    if last < GROWING_DEPTH or last < GROWTH * first:
        return None
    grown = f"its queue grew from {first:.0f} to {last:.0f} jobs in {_words(given.seconds)}"
    if given.throttled:
        return Advice(
            "no_machines", given.endpoint, f"{grown}, and there are no machines for {given.throttled} of its workers",
            "allow more types in gpu=(...), or more data centres",
        )  # fmt: skip
    latest = given.moments[-1]
    if latest.busy_workers + latest.idle_workers + latest.starting_workers < given.max_workers:
        return None  # the scaler is at it
    wanted = _workers_for(given, first, last)
    return Advice(
        "queue_growing", given.endpoint, f"{grown} with all {given.max_workers} workers there",
        f"raise max: workers=({given.min_workers}, {wanted})",
    )  # fmt: skip


def _workers_for(given: EndpointSituation, first: float, last: float) -> int:
    """Return how many workers finish what comes, by what these have finished; twice as many where that was nothing."""
    if not given.jobs:
        return 2 * given.max_workers
    ratio = min(4.0, (given.jobs + last - first) / given.jobs)
    return max(given.max_workers + 1, math.ceil(given.max_workers * ratio * HEADROOM))


def advise_idle(given: EndpointSituation) -> Advice | None:
    """Advise on workers that were there all the time and did nothing."""
    if given.jobs < LEAST_JOBS or _thirds(moment.queued for moment in given.moments)[1] >= 1:
        return None  # jobs that wait beside idle workers are no matter of how many there are
    idle = _mean(moment.idle_workers for moment in given.moments)
    enough = max(1, math.ceil(given.peak_busy * HEADROOM))
    if idle < 1 or given.peak_busy > given.max_workers * IDLE_SHARE or enough >= given.max_workers:
        return None
    cost = "" if given.usd_per_worker_hour is None else f", ${idle * given.usd_per_worker_hour:.2f} an hour"
    floor = min(given.min_workers, enough)
    what = "lower min and max" if floor < given.min_workers else "lower max"
    return Advice(
        "fleet_idle", given.endpoint,
        f"at most {given.peak_busy} of up to {given.max_workers} workers were busy in {_words(given.seconds)}, "
        f"and {idle:.1f} idle on average{cost}",
        f"{what}: workers=({floor}, {enough})",
    )  # fmt: skip


def advise_cold_starts(given: EndpointSituation) -> Advice | None:
    """Advise on an endpoint that starts a worker for many of its jobs."""
    if given.jobs < LEAST_JOBS or given.cold_starts < COLD_SHARE * given.jobs:
        return None
    usual = max(1, math.ceil(_mean(moment.busy_workers for moment in given.moments)))
    floor = min(given.max_workers, max(given.min_workers + 1, usual))
    setting = (
        f"raise min: workers=({floor}, {given.max_workers}), or a longer idle_timeout"
        if floor > given.min_workers
        else "raise idle_timeout"
    )
    return Advice(
        "cold_starts", given.endpoint,
        f"{given.cold_starts} cold starts for {given.jobs} jobs ({given.cold_starts / given.jobs:.0%}) in "
        f"{_words(given.seconds)}",
        setting,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """The endpoints on CPUs, or those on GPUs, together."""

    name: str
    busy_share: float
    queued: float
    kv_cache_usage: float | None
    busiest: EndpointSituation

    def __str__(self) -> str:
        cache = "" if self.kv_cache_usage is None else f", KV cache {self.kv_cache_usage:.0%} full"
        return f"{self.name}: workers {self.busy_share:.0%} busy, {self.queued:.0f} jobs wait{cache}"


def advise_layers(situations: Sequence[EndpointSituation]) -> Iterator[Advice]:
    """Advise where an app that has both layers is held up by one of them."""
    cpu = _layer("orchestration (CPU)", [each for each in situations if not each.is_on_gpu])
    gpu = _layer("models (GPU)", [each for each in situations if each.is_on_gpu])
    if cpu is None or gpu is None or sum(each.jobs for each in situations) < LEAST_JOBS:
        return
    is_gpu_full = gpu.queued >= GROWING_DEPTH or (gpu.kv_cache_usage or 0.0) >= FULL_CACHE
    if is_gpu_full and gpu.busy_share >= BUSY_SHARE:
        bounds = gpu.busiest
        yield Advice(
            "gpu_bound", bounds.endpoint, f"the GPUs hold the app up: {gpu}; {cpu}",
            f"raise max of {bounds.endpoint!r} above {bounds.max_workers}, or let it answer more at once; "
            "more orchestrators will not help",
        )  # fmt: skip
    elif cpu.queued >= GROWING_DEPTH and cpu.busy_share >= BUSY_SHARE and gpu.busy_share <= CALM_SHARE:
        bounds = cpu.busiest
        yield Advice(
            "orchestration_bound", bounds.endpoint, f"orchestration holds the app up: {cpu}; {gpu}",
            f"raise max or concurrency of {bounds.endpoint!r} (max is {bounds.max_workers}); more GPUs will not help",
        )  # fmt: skip


def _layer(name: str, situations: Sequence[EndpointSituation]) -> Layer | None:
    if not situations:
        return None
    busy = sum(_mean(moment.busy_workers for moment in each.moments) for each in situations)
    idle = sum(_mean(moment.idle_workers for moment in each.moments) for each in situations)
    queued = {each.endpoint: _thirds(moment.queued for moment in each.moments)[1] for each in situations}
    caches = [each.kv_cache_usage for each in situations if each.kv_cache_usage is not None]
    return Layer(
        name,
        busy / (busy + idle) if busy + idle else 0.0,
        sum(queued.values()),
        max(caches, default=None),
        max(situations, key=lambda each: (queued[each.endpoint], each.busy_share)),
    )


def advise_now(
    endpoint: str, health: Mapping[str, Mapping[str, int]], *, min_workers: int, max_workers: int
) -> Advice | None:
    """Advise from one look at a platform's `/health`, which tells a full house but no trend."""
    jobs, workers = health.get("jobs", {}), health.get("workers", {})
    waiting = int(jobs.get("inQueue", 0))
    there = int(workers.get("running", 0)) + int(workers.get("initializing", 0))
    if waiting < GROWING_DEPTH:
        return None
    if throttled := int(workers.get("throttled", 0)):
        return Advice(
            "no_machines", endpoint, f"{waiting} jobs wait, and there are no machines for {throttled} of its workers",
            "allow more types in gpu=(...), or more data centres",
        )  # fmt: skip
    if there < max_workers or waiting < GROWING_DEPTH * max_workers:
        return None
    return Advice(
        "queue_growing", endpoint, f"{waiting} jobs wait while all {max_workers} workers are at work",
        f"raise max: workers=({min_workers}, {2 * max_workers})",
    )  # fmt: skip


def _thirds(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean of the first third and that of the last."""
    all_of_them = list(values)
    count = max(1, len(all_of_them) // _A_THIRD)
    return _mean(all_of_them[:count]), _mean(all_of_them[-count:])


def _mean(values: Iterable[float]) -> float:
    all_of_them = list(values)
    return sum(all_of_them) / len(all_of_them) if all_of_them else 0.0


def _words(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 1.5 else f"{seconds:.0f} s"  # noqa: PLR2004 - less is better said in seconds
