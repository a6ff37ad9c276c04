"""Tells the advice of the running platform on the screen of `flashkit dev`, each piece once in a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flashkit.telemetry.advice import Advice

LOOK_SECONDS = 15.0
AGAIN_SECONDS = 600.0
"""The same topic of the same endpoint is not told again for so long."""


class Say(Protocol):
    """Shows a line."""

    def __call__(self, message: str, *, style: str = "") -> None:
        """Show it."""


class AdviceTeller:
    """Says what is new."""

    def __init__(self, say: Say, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}

    def tell(self, advice: Sequence[Advice]) -> None:
        """Say each piece that was not said lately."""
        now = self._clock()
        for each in advice:
            key = (each.topic, each.endpoint)
            if now - self._said.get(key, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                self._said[key] = now
                self._say(f"advice: {each}", style="cyan")


async def advise_for_ever(current: Callable[[], Sequence[Advice]], say: Say) -> None:
    """Look at the advice now and then, and say what is new."""
    teller = AdviceTeller(say)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        teller.tell(current())
