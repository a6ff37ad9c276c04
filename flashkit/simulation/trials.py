"""A question about an endpoint's settings and its answer: the trials that were simulated, and the cheapest setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from flashkit.plan.figures import Figure
from flashkit.simulation.load import Load
from flashkit.simulation.policies import BATCH, INTERACTIVE, Policy, ScheduledFloor, plan_floors
from flashkit.simulation.results import Prices, Result, summarise
from flashkit.simulation.running import WorkerTimes, simulate
from flashkit.simulation.search import Candidate, Search, Target
from flashkit.spec import EndpointSpec, WorkerBounds

OnProgress = Callable[[str, float], None]
"""Called with what is simulated and the share of it that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked."""

    spec: EndpointSpec
    load: Load
    times: WorkerTimes
    cold_start: Figure
    """Where the time of a cold start is from."""
    prices: Prices | None = None
    """By default the catalogue's."""
    target: Target | None = None
    """Find the cheapest setting that meets it."""
    most_workers: int | None = None
    is_comparing: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting with what it comes to."""

    name: str
    spec: EndpointSpec
    result: Result
    floors: tuple[int, ...] = ()
    """By the hour, of a schedule."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        spec = self.spec
        return {
            "name": self.name,
            "workers": [spec.workers.min, spec.workers.max],
            "idle_timeout": spec.idle_timeout,
            "scaler_type": spec.scaler_type,
            "scaler_value": spec.scaler_value,
            "concurrency": spec.concurrency,
            "flashboot": spec.flashboot,
            **({"floors": self.floors} if self.floors else {}),
            **self.result.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found."""

    question: Question
    trials: tuple[Trial, ...]
    """The endpoint's own setting first."""
    cheapest: Trial | None = None
    tried: int = 0
    """Settings that were simulated to find it."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        question, load = self.question, self.question.load
        return {
            "endpoint": question.spec.name,
            "load": {"words": load.words, "jobs": len(load), "window_seconds": load.window_seconds,
                     "mean_seconds": load.work_seconds / len(load)},
            "cold_start": question.cold_start.to_dict(),
            "thaw_seconds": question.times.thaw,
            "trials": [trial.to_dict() for trial in self.trials],
            "target_p95_seconds": question.target and question.target.p95_seconds,
            "cheapest": self.cheapest and self.cheapest.to_dict(),
            "tried": self.tried,
        }  # fmt: skip


class _Plan(NamedTuple):
    name: str
    spec: EndpointSpec
    policy: Policy | None = None
    floors: tuple[int, ...] = ()


def answer(question: Question, on_progress: OnProgress = lambda what, share: None) -> Answer:
    """Return what the endpoint's setting comes to, and what else was asked.

    Raises:
        InputError: With these settings no job could ever run, or no setting meets the target.
    """
    trials = tuple(_try(question, plan, on_progress) for plan in _plans(question))
    if question.target is None:
        return Answer(question, trials)
    search = Search(
        question.spec,
        question.load,
        question.target,
        question.times,
        question.prices,
        most_workers=question.most_workers,
        # Nobody knows how many there will be: two dozen is usual.
        on_step=lambda count: on_progress(f"setting {count}", count / (count + 8)),
    )
    best = search.run()
    return Answer(question, trials, _cheapest(question, best), len(search.tried))


def _cheapest(question: Question, best: Candidate) -> Trial:
    spec = dataclasses.replace(question.spec, workers=best.workers, idle_timeout=best.idle_timeout)
    return Trial("cheapest", spec, best.result)


def _plans(question: Question) -> Iterator[_Plan]:
    spec = question.spec
    yield _Plan("as it is", spec)
    if not question.is_comparing:
        return
    for floor, name in ((0, "none kept"), (1, "one kept")):
        if floor != spec.workers.min:
            yield _Plan(name, dataclasses.replace(spec, workers=WorkerBounds(floor, spec.workers.max)))
    floors = plan_floors(question.load, concurrency=spec.concurrency)
    yield _Plan("by the hour", spec, ScheduledFloor(floors, question.times.cold_start), floors)
    yield from (_Plan(policy.name, spec, policy) for policy in (BATCH, INTERACTIVE))


def _try(question: Question, plan: _Plan, on_progress: OnProgress) -> Trial:
    def tell(arrived: int) -> None:
        on_progress(plan.name, arrived / len(question.load))

    run = simulate(plan.spec, question.load, question.times, policy=plan.policy, on_progress=tell)
    return Trial(plan.name, run.spec, summarise(run, question.prices), plan.floors)
