"""What the starts of workers tell: whether the platform is ready, and which cold start took too long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashkit.cli import UNHEALTHY
from flashkit.emulator.events import Event, WorkerEvent
from flashkit.errors import PlatformError
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec

READY_TIMEOUT_SECONDS = 300.0
"""Loading weights takes minutes at times."""


class WorkersUnhealthy(PlatformError):
    """Workers that should always be there do not come up."""

    code = UNHEALTHY


@dataclass(frozen=True, slots=True)
class ColdStartSeen:
    """A worker's start, on the platform's clock."""

    endpoint: str
    worker_id: str
    seconds: float


class StartWatch:
    """Follows the starts of all workers. `now` is the platform's clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.cold_starts: list[ColdStartSeen] = []
        self._now = now
        self._begun: dict[str, float] = {}
        self._ready: set[str] = set()
        """Endpoints of which a worker came up."""
        self._failed: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}
        self._changed = asyncio.Event()

    def notice(self, event: Event) -> None:
        """Take an event of the platform."""
        if not isinstance(event, WorkerEvent):
            return
        match event.what:
            case "initializing" | "starting":
                self._begun.setdefault(event.worker_id, self._now())
            case "ready":
                self._note_ready(event)
            case "unhealthy":
                self._last_words[event.endpoint] = event.detail
            case "exited" if self._begun.pop(event.worker_id, None) is not None:
                self._failed[event.endpoint] += 1
                self._last_words.setdefault(event.endpoint, event.detail)
        self._changed.set()

    def _note_ready(self, event: WorkerEvent) -> None:
        self._ready.add(event.endpoint)
        begun = self._begun.pop(event.worker_id, None)
        if begun is not None:
            self.cold_starts.append(ColdStartSeen(event.endpoint, event.worker_id, self._now() - begun))

    def over(self, budget_seconds: float) -> list[ColdStartSeen]:
        """Return the cold starts that took longer, the longest first."""
        slow = [start for start in self.cold_starts if start.seconds > budget_seconds]
        return sorted(slow, key=lambda start: -start.seconds)

    async def wait_until_ready(self, specs: Sequence[EndpointSpec], *, seconds: float = READY_TIMEOUT_SECONDS) -> None:
        """Return once each endpoint that keeps workers has one.

        Raises:
            WorkersUnhealthy: One has none within this time, or its workers die before they are ready.
        """
        wanted = {spec.name for spec in specs if spec.workers.min}
        try:
            async with asyncio.timeout(seconds):
                while missing := wanted - self._ready:
                    self._refuse_failures(missing)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            names = ", ".join(sorted(wanted - self._ready))
            raise WorkersUnhealthy(
                f"no worker of {names} was ready within {seconds:g} s", hint="look at what it prints"
            ) from exc

    def _refuse_failures(self, names: set[str]) -> None:
        for name in sorted(names):
            if self._failed[name] >= PlatformDefaults().failed_starts:
                raise WorkersUnhealthy(
                    f"the workers of {name!r} do not come up: {self._failed[name]} ended before they were ready, "
                    f"the first one with {self._last_words[name] or 'no reason'}",
                    hint="look at what they printed above",
                )
