"""The platform's time: real by default, sped up or moved on for tests that cannot wait.

Everything that the platform decides by time follows this clock: times to live, timeouts, retention, idle and
cold-start times, graces, delays of webhooks. What happens on the network keeps real time: how long a poll
is held, how long `/runsync` waits. Processes of workers live in real time as well, so a job that needs 0.1 s
needs 6 s of a clock that runs 60 times as fast.

`advance` goes from timer to timer: each runs at its own time, in their order, and whoever waits for one goes on
before the next. It moves everything, the execution timeouts of running jobs too, but is patient with processes
that start or stop because of it. A clock that stands still also lets nobody be killed for being slow.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from flashkit.errors import InputError

DEFAULT_PATIENCE: Final = 10.0
"""Real seconds for which `advance` waits for processes of workers, in all."""
_QUIET_POLL_SECONDS: Final = 0.01
_ROUNDS_TO_SETTLE: Final = 20
"""Rounds of the event loop after each timer: enough for what it woke to wake others in turn."""
_TIMERS_TOLERATED: Final = 64
"""Cancelled timers are searched for when there are so many, or twice as many as were alive the last time."""


class Quiet(Protocol):
    """What tells whether something goes on that takes real time."""

    def __call__(self, *, spares_jobs: bool) -> bool:
        """Return True when nothing does, or running jobs alone and they are not to be spared."""


@dataclass(order=True, slots=True)
class Timer:
    """A callback that waits for its time."""

    when: float
    serial: int
    callback: Callable[[], None] = field(compare=False)
    is_over: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Never call back; harmless when that has happened."""
        self.is_over = True

    def run(self) -> None:
        """Call back, unless that is over."""
        if not self.is_over:
            self.is_over = True
            self.callback()


class Clock:
    """Seconds that never go back, timers that follow them, and two ways to change their pace.

    Args:
        speed: Seconds of this clock for each real one; 0 makes it stand still, so that only `advance` moves it.
        start: What it shows first; the machine's own monotonic time by default.
    """

    def __init__(self, *, speed: float = 1.0, start: float | None = None) -> None:
        self._speed = _checked_speed(speed)
        self._real_base = time.monotonic()
        self._base = self._real_base if start is None else start
        self._timers: list[Timer] = []
        self._serial = 0
        self._sweep_at = _TIMERS_TOLERATED
        self._alarm: asyncio.TimerHandle | None = None
        self._advancing: asyncio.Lock | None = None
        self.is_quiet: Quiet = _is_always_quiet
        """Asked by `advance` whether to move on: not while a real process is starting, say."""
        self.on_change: Callable[[float], None] = _ignore
        """Called with the seconds of each `advance`, and with 0 for a new speed, once it is done."""

    @property
    def speed(self) -> float:
        """Seconds of this clock for each real one."""
        return self._speed

    def now(self) -> float:
        """Return the seconds that it shows."""
        return self._base + (time.monotonic() - self._real_base) * self._speed

    def set_speed(self, speed: float) -> None:
        """Run this many times as fast as real time from now on.

        Raises:
            InputError: It is negative or not a finite number.
        """
        speed = _checked_speed(speed)
        self._rebase(self.now())
        self._speed = speed
        self._set_alarm()
        self.on_change(0.0)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back in the event loop once the clock shows `when`."""
        self._serial += 1
        timer = Timer(when, self._serial, callback)
        heapq.heappush(self._timers, timer)
        if len(self._timers) >= self._sweep_at:
            self._timers = [timer for timer in self._timers if not timer.is_over]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + _TIMERS_TOLERATED
        if timer is self._timers[0]:
            self._set_alarm()
        return timer

    async def sleep(self, seconds: float) -> None:
        """Return once so many seconds of this clock have passed."""
        done = asyncio.Event()
        timer = self.call_at(self.now() + seconds, done.set)
        try:
            await done.wait()
        finally:
            timer.cancel()

    async def advance(self, seconds: float, *, patience: float = DEFAULT_PATIENCE, spares_jobs: bool = False) -> None:
        """Move on by so many seconds, stopping at each timer on the way.

        Args:
            seconds: Of this clock.
            patience: Real seconds, in all, for which it waits on its way until what it set off is over: worker
                processes that are starting or stopping.
            spares_jobs: Be patient with running jobs too, so that quick ones do not run into their timeouts.

        Raises:
            InputError: They are negative or not a finite number.
        """
        if not math.isfinite(seconds) or seconds < 0:
            raise InputError(
                f"the clock cannot be advanced by {seconds!r} seconds", hint="time goes on only: give a number >= 0"
            )
        if self._advancing is None:
            self._advancing = asyncio.Lock()
        async with self._advancing:  # two advances at once would each run into the other's time
            target = self.now() + seconds
            patient_until = time.monotonic() + patience
            try:
                await self._settle(patient_until, spares_jobs=spares_jobs)
                while (timer := self._first()) is not None and timer.when <= target:
                    self._rebase(max(timer.when, self.now()))
                    self._run_due()
                    await self._settle(patient_until, spares_jobs=spares_jobs)
                self._rebase(max(target, self.now()))
            finally:  # cancelled half-way, it has moved as well
                self._set_alarm()
        self.on_change(seconds)

    async def _settle(self, patient_until: float, *, spares_jobs: bool) -> None:
        """Let everything that is ready to run do so, and what takes real time come to its end."""
        for _ in range(_ROUNDS_TO_SETTLE):
            await asyncio.sleep(0)
        while not self.is_quiet(spares_jobs=spares_jobs) and time.monotonic() < patient_until:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_QUIET_POLL_SECONDS)

    def _rebase(self, shown: float) -> None:
        self._base, self._real_base = shown, time.monotonic()

    def _first(self) -> Timer | None:
        while self._timers and self._timers[0].is_over:
            heapq.heappop(self._timers)
        return self._timers[0] if self._timers else None

    def _run_due(self) -> None:
        """Run what is due by now; what that sets anew for the same moment has its turn after a settling.

        Where one fails, those after it wait for the next turn.
        """
        due: deque[Timer] = deque()
        now = self.now()
        while (timer := self._first()) is not None and timer.when <= now:
            due.append(heapq.heappop(self._timers))
        try:
            while due:
                due.popleft().run()
        finally:
            for timer in due:
                heapq.heappush(self._timers, timer)

    def _set_alarm(self) -> None:
        timer = self._first()
        due = math.inf
        if timer is not None and self._speed:
            due = time.monotonic() + max(0.0, timer.when - self.now()) / self._speed
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due < math.inf:
            self._alarm = asyncio.get_running_loop().call_later(due - time.monotonic(), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        try:
            self._run_due()
        finally:
            self._set_alarm()


def _checked_speed(speed: float) -> float:
    if not math.isfinite(speed) or speed < 0:
        raise InputError(
            f"speed={speed!r} is no speed for a clock", hint="1 is real time, 60 a minute a second, 0 stands still"
        )
    return speed


def _ignore(seconds: float) -> None:
    """Tell nobody."""


def _is_always_quiet(*, spares_jobs: bool) -> bool:
    return True
