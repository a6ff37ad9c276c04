"""The search for the cheapest setting."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashkit.errors import InputError
from flashkit.simulation.load import Traffic, load_of
from flashkit.simulation.results import Prices
from flashkit.simulation.running import WorkerTimes
from flashkit.simulation.search import Search, Target
from flashkit.spec import Kind
from tests.simulation.test_running import make_spec

HOUR = Traffic("burst", jobs_per_second=0.5, seconds=3.0, window_seconds=2400, peak=5.0).make()
COLD = WorkerTimes(cold_start=20.0)


def search(target: float, load=HOUR, **options) -> Search:
    return Search(options.pop("spec", make_spec(0, 3)), load, Target(target), COLD, **options)


def test_the_setting_that_is_found_meets_the_target_and_nothing_cheaper_that_was_tried_does():
    looking = search(2.0)
    best = looking.run()
    assert best.result.waits.p95 <= 2.0
    cheaper = [one for one in looking.tried.values() if (one.result.cost_usd or 0) < (best.result.cost_usd or 0)]
    assert cheaper
    assert all(one.result.waits.p95 > 2.0 for one in cheaper)


def test_a_looser_target_never_costs_more():
    costs = [search(target).run().result.cost_usd for target in (0.0, 1.0, 5.0, 30.0, 300.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] != costs[-1]


def test_with_all_the_time_in_the_world_nothing_is_kept_running():
    best = search(600.0, load_of([(0, 3.0), (1800, 3.0), (3500, 3.0)])).run()
    assert best.workers.min == 0
    assert best.idle_timeout == 5


def test_a_search_repeats_and_says_how_far_it_is():
    steps: list[int] = []
    first, second = search(2.0, on_step=steps.append).run(), search(2.0).run()
    assert first == second
    assert steps == list(range(1, len(steps) + 1))


def test_a_target_that_cannot_be_met_says_the_best_that_was_found():
    with pytest.raises(InputError, match="no setting with up to 1 workers keeps the p95 wait within") as caught:
        search(0.5, most_workers=1).run()
    assert "the best found is workers=(1, 1), with a p95 wait of" in str(caught.value)
    assert caught.value.report.details["best"]["workers"] == [1, 1]


def test_without_a_price_worker_seconds_are_compared():
    best = search(2.0, spec=make_spec(kind=Kind.CPU, gpu=(), cpu="cpu3c-2-4")).run()
    assert best.result.cost_usd is None
    assert best.result.waits.p95 <= 2.0


def test_a_target_in_which_a_job_is_dropped_is_not_met():
    spec = make_spec(1, 1)
    result = Search(spec, load_of([(0, 1)]), Target(10.0)).run().result
    assert not Target(10.0).is_met(dataclasses.replace(result, dropped=1))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 3), st.floats(0.5, 30), st.integers(1, 3))
def test_whatever_is_found_has_been_simulated_and_meets_the_target(seed, target, concurrency):
    load = Traffic(jobs_per_second=0.5, seconds=4.0, window_seconds=900, seed=seed).make()
    looking = Search(make_spec(0, 3, concurrency=concurrency), load, Target(target), COLD, Prices(0.001, 0.0007))
    best = looking.run()
    assert Target(target).is_met(best.result)
    assert best in looking.tried.values()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_target_that_is_no_time_is_refused(seconds):
    with pytest.raises(InputError, match="no target for a wait"):
        Target(seconds)


def test_no_workers_can_never_meet_a_target():
    with pytest.raises(InputError, match="0 workers can never run a job"):
        search(1.0, most_workers=0)
