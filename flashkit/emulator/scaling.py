"""How many workers an endpoint should have: pure functions of the load, without state.

Workers are added here and removed by their idle timeout, as on the real platform, so the answer is never
below the number that already runs. Documented: floor and ceiling, the two scalers and their values.
Chosen, as nothing is documented: the first job in the queue starts a worker at once when there is none,
and the queue-delay scaler adds one at a time and waits for it to come up before it adds the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashkit.spec import EndpointSpec, ScalerType


@dataclass(frozen=True, slots=True)
class Load:
    """What a scaler looks at."""

    queued: int = 0
    """Jobs that wait, without those of low priority: they never start a worker."""
    running: int = 0
    """Jobs that workers have, of any priority."""
    oldest_queued_at: float | None = None
    """When the first of the waiting jobs entered the queue."""
    workers: int = 0
    """Workers that take jobs or are starting up."""
    initializing: int = 0
    """Those of them that have not asked for a job yet."""


def desired_workers(spec: EndpointSpec, load: Load, *, now: float) -> int:
    """Return how many workers there should be now; never fewer than there are, except above the maximum."""
    wanted = max(kept_workers(spec, load), load.workers)
    if load.queued and not load.workers:
        wanted = max(wanted, 1)
    if spec.scaler_type is ScalerType.REQUEST_COUNT:
        if load.queued:
            wanted = max(wanted, _workers_by_count(spec, load))
    elif _is_late(spec, load, now):
        wanted = max(wanted, load.workers + 1)
    return min(wanted, spec.workers.max)


def kept_workers(spec: EndpointSpec, load: Load) -> int:
    """Return how many workers stay however long they are idle.

    The floor; of a load-balanced endpoint as many as its requests call for, whether or not any waits: one worker
    may have all of them, long ones perhaps, and the others would stop and start again for ever.
    """
    if not spec.load_balanced:
        return spec.workers.min
    return min(max(spec.workers.min, _workers_by_count(spec, load)), spec.workers.max)


def _workers_by_count(spec: EndpointSpec, load: Load) -> int:
    return math.ceil((load.queued + load.running) / spec.scaler_value)


def scaling_due_at(spec: EndpointSpec, load: Load) -> float | None:
    """Return when time alone raises the number of desired workers, None when only an event can.

    The same sum as in the test for lateness: the difference may round to just below the scaler's value.
    """
    is_waiting = load.queued and not load.initializing and 0 < load.workers < spec.workers.max
    if spec.scaler_type is ScalerType.REQUEST_COUNT or not is_waiting or load.oldest_queued_at is None:
        return None
    return load.oldest_queued_at + spec.scaler_value


def _is_late(spec: EndpointSpec, load: Load, now: float) -> bool:
    due_at = scaling_due_at(spec, load)
    return due_at is not None and now >= due_at
