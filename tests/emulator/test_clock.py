"""The platform's clock: real, sped up, standing still, and moved on from timer to timer."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from flashkit.emulator.clock import Clock
from flashkit.errors import InputError


async def test_by_default_it_shows_the_machines_own_time():
    clock = Clock()
    assert abs(clock.now() - time.monotonic()) < 1.0


async def test_one_that_stands_still_moves_by_advance_only():
    clock = Clock(speed=0, start=100.0)
    await asyncio.sleep(0.01)
    assert clock.now() == 100.0
    await clock.advance(3600)
    assert clock.now() == 3700.0


async def test_a_quick_one_runs_its_timers_early():
    clock = Clock(speed=10_000)
    begin = clock.now()
    await clock.sleep(3600)
    assert clock.now() - begin >= 3600


async def test_a_new_speed_counts_for_timers_that_wait():
    clock = Clock(speed=0, start=0.0)
    sleeping = asyncio.ensure_future(clock.sleep(3600))
    await asyncio.sleep(0.01)
    assert not sleeping.done()
    clock.set_speed(100_000)
    await asyncio.wait_for(sleeping, 30)
    assert clock.now() >= 3600


async def test_a_new_speed_does_not_move_it_back():
    clock = Clock(speed=50, start=0.0)
    await asyncio.sleep(0.01)
    before = clock.now()
    clock.set_speed(1)
    assert before <= clock.now() < before + 10


async def test_advance_runs_each_timer_at_its_time_and_in_their_order():
    clock = Clock(speed=0, start=0.0)
    seen = []
    for when in (30, 10, 20, 20.5, 41):
        clock.call_at(when, lambda when=when: seen.append((when, clock.now())))
    await clock.advance(40)
    assert seen == [(10, 10), (20, 20), (20.5, 20.5), (30, 30)]
    await clock.advance(1)
    assert seen[-1] == (41, 41)


async def test_timers_of_one_moment_run_in_the_order_in_which_they_were_set():
    clock = Clock(speed=0, start=0.0)
    seen = []
    for name in "abc":
        clock.call_at(5, lambda name=name: seen.append(name))
    await clock.advance(5)
    assert seen == ["a", "b", "c"]


async def test_a_timer_that_sets_another_is_followed_on_the_way():
    clock = Clock(speed=0, start=0.0)
    seen = []

    def again():
        seen.append(clock.now())
        clock.call_at(clock.now() + 10, again)

    clock.call_at(10, again)
    await clock.advance(45)
    assert seen == [10, 20, 30, 40]


async def test_those_who_wait_for_a_timer_go_on_before_the_next_one():
    """A retry that sleeps ten seconds twice is done after twenty, not after one jump and another sleep."""
    clock = Clock(speed=0, start=0.0)
    seen = []

    async def retry():
        for _ in range(3):
            await clock.sleep(10)
            seen.append(clock.now())

    task = asyncio.ensure_future(retry())
    await clock.advance(25)
    assert seen == [10, 20]
    await clock.advance(5)
    assert seen == [10, 20, 30]
    await task


async def test_two_advances_at_once_add_up():
    clock = Clock(speed=0, start=0.0)
    await asyncio.gather(clock.advance(10), clock.advance(5))
    assert clock.now() == 15


async def test_a_cancelled_timer_calls_nobody():
    clock = Clock(speed=0, start=0.0)
    seen = []
    clock.call_at(1, lambda: seen.append(1)).cancel()
    clock.call_at(2, lambda: seen.append(2))
    await clock.advance(10)
    assert seen == [2]


async def test_cancelled_timers_do_not_pile_up():
    clock = Clock(speed=0, start=0.0)
    waiting = clock.call_at(1_000_000, lambda: None)
    for _ in range(10_000):
        clock.call_at(500_000, lambda: None).cancel()
    assert len(clock._timers) < 200
    assert not waiting.is_over


async def test_changes_are_told():
    clock = Clock(speed=0, start=0.0)
    told = []
    clock.on_change = lambda seconds: told.append((seconds, clock.now(), clock.speed))
    await clock.advance(5)
    clock.set_speed(0)
    assert told == [(5, 5, 0), (0.0, 5, 0)]


async def test_advance_waits_until_it_is_quiet_and_then_no_longer_than_it_is_patient():
    clock = Clock(speed=0, start=0.0)
    busy_until = time.monotonic() + 0.05
    clock.is_quiet = lambda *, spares_jobs: time.monotonic() >= busy_until
    await clock.advance(10)
    assert time.monotonic() >= busy_until
    clock.is_quiet = lambda *, spares_jobs: False
    await clock.advance(10, patience=0.01)
    assert clock.now() == 20


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
async def test_time_does_not_go_back(seconds):
    with pytest.raises(InputError, match="cannot be advanced"):
        await Clock().advance(seconds)


@pytest.mark.parametrize("speed", [-1, math.nan, math.inf])
async def test_a_speed_must_be_one(speed):
    with pytest.raises(InputError, match="no speed"):
        Clock(speed=speed)
    with pytest.raises(InputError, match="no speed"):
        Clock().set_speed(speed)


async def test_timers_go_on_after_an_advance_that_was_cancelled_half_way():
    clock = Clock(start=0.0)
    clock.call_at(1_000, lambda: None)
    done = asyncio.Event()
    clock.call_at(1_001, done.set)
    clock.is_quiet = lambda *, spares_jobs: clock.now() < 1_000  # held up once the first timer has run
    advancing = asyncio.ensure_future(clock.advance(1_000.1, patience=60))
    while clock.now() < 1_000:
        await asyncio.sleep(0.01)
    advancing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await advancing
    await asyncio.wait_for(done.wait(), 60)  # the alarm of before would ring in a quarter of an hour


async def test_a_timer_that_fails_takes_no_others_with_it():
    clock = Clock(speed=0, start=0.0)
    seen = []

    def fail():
        raise ZeroDivisionError

    clock.call_at(5, fail)
    for name in "ab":
        clock.call_at(5, lambda name=name: seen.append(name))
    with pytest.raises(ZeroDivisionError):
        await clock.advance(5)
    assert seen == []
    await clock.advance(0)
    assert seen == ["a", "b"]
