"""Advice: from which figures it comes, what it wants changed, and that too little data gives none."""

from __future__ import annotations

import pytest

from flashkit.telemetry.advice import EndpointSituation, Moment, advise, advise_now


def moments(*, seconds=180, queued=lambda share: 0, busy=lambda share: 0, idle=lambda share: 0, starting=0):
    """Return a moment each second; figures are functions of the share of the time that has passed."""
    shares = [second / seconds for second in range(seconds + 1)]
    return [
        Moment(1_000.0 + share * seconds, queued(share), busy(share), idle(share), busy(share), starting)
        for share in shares
    ]


def situation(endpoint="e", *, kind="gpu", workers=(0, 3), jobs=100, **more):
    given = {name: more.pop(name) for name in ("seconds", "queued", "busy", "idle", "starting") if name in more}
    return EndpointSituation(
        endpoint=endpoint,
        kind=kind,
        min_workers=workers[0],
        max_workers=workers[1],
        moments=moments(**given),
        jobs=jobs,
        **more,
    )


def constant(value):
    return lambda share: value


def growing(last):
    return lambda share: last * share


def only(situations):
    [advice] = advise(situations)
    return advice


def test_a_queue_that_grows_with_all_workers_there_wants_a_higher_max():
    advice = only([situation(queued=growing(60), busy=constant(3))])
    assert advice.topic == "queue_growing"
    assert advice.figure == "its queue grew from 10 to 50 jobs in 3 min with all 3 workers there"
    # 100 jobs ended and 40 more came than that: 3 workers x 1.4, and 30 % on top.
    assert advice.setting == "raise max: workers=(0, 6)"
    assert str(advice) == f"e: {advice.figure}; {advice.setting}"


def test_a_queue_that_grows_where_nothing_ends_wants_twice_the_workers():
    assert only([situation(queued=growing(60), busy=constant(3), jobs=0)]).setting.endswith("(0, 6)")


def test_a_queue_that_grows_for_want_of_machines_wants_more_types_of_them():
    advice = only([situation(queued=growing(60), busy=constant(1), throttled=2)])
    assert advice.topic == "no_machines"
    assert "no machines for 2 of its workers" in advice.figure
    assert "gpu=" in advice.setting


@pytest.mark.parametrize(
    "given",
    [
        {"queued": growing(60), "busy": constant(3), "seconds": 40},
        {"queued": growing(4), "busy": constant(3)},
        {"queued": constant(50), "busy": constant(3)},
        {"queued": lambda share: 60 * (1 - share), "busy": constant(3)},
        {"queued": growing(60), "busy": constant(1), "starting": 1},
    ],
    ids=["too short a time", "too short a queue", "long but steady", "going down", "the scaler is at it"],
)
def test_a_queue_that_is_no_trouble_of_the_settings_gives_no_advice(given):
    assert advise([situation(**given)]) == []


def test_a_fleet_that_is_never_used_wants_a_lower_max_and_says_what_it_costs():
    advice = only([situation(workers=(0, 10), busy=constant(2), idle=constant(4), usd_per_worker_hour=2.5)])
    assert advice.topic == "fleet_idle"
    assert advice.figure == "at most 2 of up to 10 workers were busy in 3 min, and 4.0 idle on average, $10.00 an hour"
    assert advice.setting == "lower max: workers=(0, 3)"


def test_a_floor_that_is_never_used_wants_a_lower_min_too():
    advice = only([situation(kind="cpu", workers=(6, 10), busy=constant(1), idle=constant(5))])
    assert advice.setting == "lower min and max: workers=(2, 2)"
    assert "$" not in advice.figure


@pytest.mark.parametrize(
    "given",
    [
        {"busy": constant(2), "idle": constant(4), "jobs": 19},
        {"busy": lambda share: 8 if share > 0.5 else 0, "idle": constant(2)},
        {"busy": constant(2), "idle": constant(0.5)},
        {"busy": constant(2), "idle": constant(4), "queued": constant(3)},
    ],
    ids=["too few jobs", "a peak needed them", "they are gone when idle", "jobs wait"],
)
def test_a_fleet_that_is_of_use_gives_no_advice(given):
    assert advise([situation(workers=(0, 10), **given)]) == []


def test_many_cold_starts_want_a_higher_min():
    advice = only([situation(busy=constant(1.4), cold_starts=30)])
    assert advice.topic == "cold_starts"
    assert advice.figure == "30 cold starts for 100 jobs (30%) in 3 min"
    assert advice.setting == "raise min: workers=(2, 3), or a longer idle_timeout"


def test_cold_starts_of_a_fleet_whose_floor_is_its_ceiling_want_patience():
    assert only([situation(workers=(3, 3), busy=constant(3), cold_starts=30)]).setting == "raise idle_timeout"


@pytest.mark.parametrize(("jobs", "starts"), [(100, 9), (19, 19), (0, 3)])
def test_few_cold_starts_or_few_jobs_give_no_advice(jobs, starts):
    assert advise([situation(busy=constant(1), jobs=jobs, cold_starts=starts)]) == []


def test_an_app_whose_gpus_are_full_is_told_so_with_both_layers_side_by_side():
    orchestrator = situation("agent", kind="orchestrator", workers=(1, 4), busy=constant(3), idle=constant(1))
    model = situation("llm", workers=(0, 2), queued=constant(9), busy=constant(2), kv_cache_usage=0.93)
    advice = only([orchestrator, model])
    assert (advice.topic, advice.endpoint) == ("gpu_bound", "llm")
    assert "models (GPU): workers 100% busy, 9 jobs wait, KV cache 93% full" in advice.figure
    assert "orchestration (CPU): workers 75% busy, 0 jobs wait" in advice.figure
    assert "raise max of 'llm' above 2" in advice.setting
    assert "more orchestrators will not help" in advice.setting


def test_an_app_whose_orchestrators_are_full_is_told_that_gpus_will_not_help():
    orchestrator = situation("agent", kind="orchestrator", workers=(1, 2), queued=constant(12), busy=constant(2))
    model = situation("llm", workers=(1, 2), busy=constant(0.5), idle=constant(0.5), kv_cache_usage=0.1)
    advice = only([orchestrator, model])
    assert (advice.topic, advice.endpoint) == ("orchestration_bound", "agent")
    assert advice.setting == "raise max or concurrency of 'agent' (max is 2); more GPUs will not help"


def test_orchestrators_that_are_busy_waiting_for_busy_gpus_are_not_blamed():
    orchestrator = situation("agent", kind="orchestrator", workers=(1, 2), queued=constant(12), busy=constant(2))
    model = situation("llm", workers=(0, 2), queued=constant(0), busy=constant(2), kv_cache_usage=0.5)
    assert advise([orchestrator, model]) == []


def test_an_app_of_one_layer_or_few_jobs_is_not_compared():
    model = situation("llm", workers=(0, 2), queued=constant(9), busy=constant(2))
    assert advise([model]) == []
    idle = situation("agent", kind="cpu", jobs=3)
    few = situation("llm", workers=(0, 2), queued=constant(9), busy=constant(2), jobs=3)
    assert advise([idle, few]) == []


def test_what_is_urgent_comes_first():
    slow = situation("a", busy=constant(1.4), cold_starts=30)
    full = situation("b", queued=growing(60), busy=constant(3))
    assert [advice.topic for advice in advise([slow, full])] == ["queue_growing", "cold_starts"]


def test_no_figures_give_no_advice():
    assert advise([]) == []
    assert advise([EndpointSituation(endpoint="e", kind="cpu", min_workers=0, max_workers=1)]) == []


def test_one_look_at_a_platform_tells_a_full_house():
    full = {"jobs": {"inQueue": 20}, "workers": {"running": 2, "initializing": 1, "throttled": 0}}
    advice = advise_now("llm", full, min_workers=1, max_workers=3)
    assert advice.figure == "20 jobs wait while all 3 workers are at work"
    assert advice.setting == "raise max: workers=(1, 6)"
    scarce = {"jobs": {"inQueue": 20}, "workers": {"running": 1, "throttled": 2}}
    assert advise_now("llm", scarce, min_workers=1, max_workers=3).topic == "no_machines"
    for quiet in ({}, {"jobs": {"inQueue": 4}}, {"jobs": {"inQueue": 20}, "workers": {"running": 2}}):
        assert advise_now("llm", quiet, min_workers=1, max_workers=3) is None
