"""Rules for faults: how they are written, and whom they strike."""

from __future__ import annotations

import pytest

from flashkit.emulator.faults import (
    Fault,
    FaultKind,
    FaultPlan,
    parse_faults,
    read_fault_settings,
    read_job_faults,
)
from flashkit.errors import InputError


def plan_of(text: str, *, seed: int = 0, now: float = 0.0) -> FaultPlan:
    plan = FaultPlan()
    plan.set(parse_faults(text), now=now, seed=seed)
    return plan


def struck(plan: FaultPlan, kind: FaultKind, count: int = 200) -> list[int]:
    jobs = [f"job-{number}" for number in range(count)]
    for job in jobs:
        plan.count_job("embed", job)
    return [number for number, job in enumerate(jobs) if plan.strikes(kind, "embed", job, 1, now=0.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error=0.1", Fault("*", FaultKind.ERROR, 0.1)),
        ("embed:error=10%", Fault("embed", FaultKind.ERROR, 0.1)),
        ("latency=200ms±50ms", Fault("*", FaultKind.LATENCY, seconds=0.2, spread_s=0.05)),
        ("latency=1.5s+-500ms", Fault("*", FaultKind.LATENCY, seconds=1.5, spread_s=0.5)),
        ("latency=2", Fault("*", FaultKind.LATENCY, seconds=2.0)),
        ("slow=64KB/s", Fault("*", FaultKind.SLOW, bytes_per_s=64_000)),
        ("kill=0.02", Fault("*", FaultKind.KILL, 0.02)),
        ("kill=1+2s", Fault("*", FaultKind.KILL, 1.0, seconds=2.0)),
        ("429=0.5@10s", Fault("*", FaultKind.TOO_MANY, 0.5, begins_at=10)),
        ("redis=down@30s-1m", Fault("*", FaultKind.STORE, begins_at=30, ends_at=60)),
    ],
)
def test_a_rule_is_read_and_written(text: str, expected: Fault) -> None:
    assert parse_faults(text) == (expected,)
    assert parse_faults(str(expected)) == (expected,)


def test_an_endpoint_holds_for_the_rules_after_it() -> None:
    faults = parse_faults("start=0.1, embed:error=0.1,kill=0.2 ,llm:500=1")
    assert [(fault.endpoint, fault.kind.value) for fault in faults] == [
        ("*", "start"),
        ("embed", "error"),
        ("embed", "kill"),
        ("llm", "500"),
    ]


@pytest.mark.parametrize(
    ("text", "what", "next_step"),
    [
        ("error", "'error' cannot be read", "KIND=VALUE"),
        ("eror=0.1", "no fault 'eror'", "did you mean 'error'"),
        ("error=2", "'2' in the fault 'error=2' is no probability", "0 to 1"),
        ("error=often", "is no probability", "0 to 1"),
        ("latency=fast", "'fast' in the fault 'latency=fast' is no time", "200ms"),
        ("slow=5", "is no rate", "64KB/s"),
        ("slow=0KB/s", "is no rate", "64KB/s"),
        ("redis=up", "cannot be read", "redis=down"),
        ("kill=1@10s-5s", "ends before it begins", "@FROM-TO"),
        ("kill=1@soon", "'soon'", "200ms"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(text: str, what: str, next_step: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        parse_faults(text)
    assert next_step in (caught.value.report.hint or "")


def test_the_same_seed_strikes_the_same_jobs() -> None:
    first, again, other = (struck(plan_of("kill=0.2", seed=seed), FaultKind.KILL) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert 20 < len(first) < 60


def test_jobs_are_counted_anew_with_new_rules() -> None:
    plan = plan_of("kill=0.2", seed=7)
    first = struck(plan, FaultKind.KILL)
    plan.set(parse_faults("kill=0.2"), now=0.0)
    assert struck(plan, FaultKind.KILL) == first


def test_a_rule_strikes_its_own_endpoint_only_and_in_its_window_only() -> None:
    plan = plan_of("embed:kill=1@10s-20s", now=100.0)
    plan.count_job("embed", "a")
    times = [
        now for now in (100.0, 109.9, 110.0, 119.9, 120.0) if plan.strikes(FaultKind.KILL, "embed", "a", 1, now=now)
    ]
    assert times == [110.0, 119.9]
    assert plan.strikes(FaultKind.KILL, "llm", "a", 1, now=110.0) is None
    assert plan.strikes(FaultKind.OOM, "embed", "a", 1, now=110.0) is None


def test_rules_that_are_switched_off_do_not_strike() -> None:
    plan = plan_of("kill=1,redis=down")
    plan.is_enabled = False
    assert not plan.is_active
    assert plan.strikes(FaultKind.KILL, "embed", "a", 1, now=0.0) is None
    assert not plan.is_down(0.0)
    assert plan.describe() == {"enabled": False, "seed": 0, "faults": ["*:kill=1", "*:redis=down"]}


def test_a_job_brings_rules_of_its_own_which_end_with_it() -> None:
    plan = FaultPlan()
    plan.bring("mine", read_job_faults("kill=1"))
    assert plan.is_active
    assert plan.strikes(FaultKind.KILL, "embed", "mine", 1, now=0.0)
    assert plan.strikes(FaultKind.KILL, "embed", "other", 1, now=0.0) is None
    plan.forget_job("mine")
    assert not plan.is_active


def test_latency_stays_within_its_spread_and_above_zero() -> None:
    plan = plan_of("latency=100ms±300ms")
    delays = [plan.latency_s(plan.faults[0], "embed", f"job-{number}", 1) for number in range(100)]
    assert min(delays) == 0.0
    assert 0.2 < max(delays) <= 0.4


def test_a_request_cannot_bring_rules_about_the_platform() -> None:
    assert read_job_faults(None) == ()
    with pytest.raises(InputError, match="'429' is not one of a single job"):
        read_job_faults("429=1")


@pytest.mark.parametrize(
    "body",
    [
        *({"faults": [1]}, {"faults": {"a": 1}}, {"faults": "kill=1", "seed": "x"}, {"faults": "", "enabled": 1}),
        *({}, {"rules": ["kill=1"]}, {"faults": "kill=1", "enable": False}, {"enabled": None}, {"faults": None}),
    ],
)
def test_settings_of_the_wrong_shape_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(InputError):
        read_fault_settings(body)


def test_settings_are_read() -> None:
    assert read_fault_settings({"faults": ["kill=1", "llm:oom=0.5"], "seed": 3}) == (
        (*parse_faults("kill=1"), *parse_faults("llm:oom=0.5")),
        3,
        True,
    )
    assert read_fault_settings({"faults": "", "enabled": False}) == ((), None, False)
    assert read_fault_settings({"enabled": False}) == (None, None, False)
    assert read_fault_settings({"seed": 7}) == (None, 7, None)
