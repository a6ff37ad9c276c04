"""Looks after an engine: notices that it died, that it hangs, and that the worker was frozen.

A worker whose engine is dead fails every job in no time, so the platform gives it the next one, and the next: it must
leave. The watchdog only finds out; `Runtime` fails the running jobs, and the worker's loop takes no more and exits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from flashkit.errors import EngineDied, FlashkitError
from flashkit.worker.engines.engine import Engine

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
"""How often the engine is asked whether it is well, besides right after a freeze."""
CHECK_BUDGET_SECONDS: Final = 30.0
"""How long it may take to say so."""
HANG_SECONDS: Final = 120.0
"""How long an engine with requests may make no progress: more than any step of a model takes."""
_FROZEN_SECONDS: Final = 2.0
"""A tick that comes this much late: the process was stopped, or its loop was blocked."""


async def watch_engine(
    engine: Engine,
    *,
    tick_seconds: float = TICK_SECONDS,
    check_seconds: float = CHECK_SECONDS,
    check_budget_seconds: float = CHECK_BUDGET_SECONDS,
    hang_seconds: float = HANG_SECONDS,
    wall_clock: Callable[[], float] = time.time,
) -> EngineDied:
    """Return why the engine cannot go on, when that happens."""
    loop = asyncio.get_running_loop()
    checked_at = moved_at = loop.time()
    progress = engine.progress
    while True:
        asked_at, day_time = loop.time(), wall_clock()
        await asyncio.sleep(tick_seconds)
        now = loop.time()
        # A worker that was restored from a snapshot may have a clock that did not go on, but not a time of day.
        late = max(now - asked_at, wall_clock() - day_time) - tick_seconds
        if late > _FROZEN_SECONDS:  # nothing could make progress meanwhile
            log.info("this worker stood still for %.1f s: looking after the engine", late)
            moved_at = now
        if late > _FROZEN_SECONDS or now - checked_at >= check_seconds:
            checked_at = now
            if (death := await _check(engine, check_budget_seconds)) is not None:
                return death
        if engine.progress != progress or not engine.is_busy:
            progress, moved_at = engine.progress, now
        elif now - moved_at > hang_seconds:
            return EngineDied(
                f"the engine hangs: it has requests, and has made no progress for {now - moved_at:.0f} s",
                hint="the worker is replaced; send the request again",
                details={"retryable": True},
            )


async def _check(engine: Engine, budget_seconds: float) -> EngineDied | None:
    try:
        async with asyncio.timeout(budget_seconds):
            await engine.check()
    except EngineDied as exc:
        return exc
    except TimeoutError:
        return EngineDied(
            f"the engine does not answer: it was asked whether it is well {budget_seconds:g} s ago",
            hint="the worker is replaced; send the request again",
            details={"retryable": True},
        )
    except FlashkitError:
        log.exception("the engine could not be checked")
    return None
