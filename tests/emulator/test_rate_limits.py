"""Limits on requests: so many in ten seconds, so many at once, more with more workers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from flashkit.emulator.rate_limits import RateLimited, RateLimiter
from flashkit.protocol import RATE_LIMITS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def send(limiter: RateLimiter, action: str, count: int, *, workers: int = 0) -> int:
    """Return how many of so many requests, one after the other, pass."""
    passed = 0
    for _ in range(count):
        try:
            with limiter.admit("embed", action, running_workers=workers):
                passed += 1
        except RateLimited:
            continue
    return passed


def test_so_many_requests_pass_in_ten_seconds() -> None:
    clock = Clock()
    limiter = RateLimiter(per_worker=0.1, clock=clock)
    assert send(limiter, "cancel", 150) == RATE_LIMITS["cancel"].requests
    clock.now = 9.9
    assert send(limiter, "cancel", 1) == 0
    clock.now = 10.0
    assert send(limiter, "cancel", 150) == RATE_LIMITS["cancel"].requests


def test_so_many_requests_pass_at_the_same_time() -> None:
    limiter = RateLimiter(per_worker=0.1, clock=Clock())
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(limiter.admit("embed", "cancel", running_workers=0))
        with pytest.raises(RateLimited, match="20 at the same time"):
            stack.enter_context(limiter.admit("embed", "cancel", running_workers=0))
        with limiter.admit("other", "cancel", running_workers=0):
            pass
    assert send(limiter, "cancel", 1) == 1


def test_limits_grow_with_workers_and_never_shrink() -> None:
    assert send(RateLimiter(per_worker=0.1, clock=Clock()), "cancel", 500, workers=1) == 100
    assert send(RateLimiter(per_worker=0.1, clock=Clock()), "cancel", 500, workers=30) == 300


def test_a_refusal_says_when_to_come_again() -> None:
    clock = Clock()
    limiter = RateLimiter(per_worker=0.1, clock=clock)
    send(limiter, "purge-queue", 2)
    clock.now = 4.0
    with pytest.raises(RateLimited, match="no more purge-queue requests than 2 in 10 s") as caught:
        limiter.admit("embed", "purge-queue", running_workers=0).__enter__()
    assert caught.value.report.details["retry_after_s"] == 6.0


def test_routes_without_a_documented_limit_always_pass() -> None:
    assert send(RateLimiter(per_worker=0.1, clock=Clock()), "health", 5000) == 5000
