"""How load-balanced workers are: each one's `/ping` is asked as long as it runs.

200 takes it into rotation, 204 means that it starts, anything else takes it out. The documented environment variable
`HEALTH_CHECK_PATH` of the endpoint names another path. Asking keeps real time, whatever the platform's clock does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import aiohttp

from flashkit.emulator.dispatch import Dispatcher
from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.load_balancing.balancer import Balancer
from flashkit.emulator.supervisor import HttpPorts
from flashkit.protocol import PlatformDefaults
from flashkit.settings import LOOPBACK

_STARTING_INTERVAL_SECONDS: Final = 0.1
_HEALTHY: Final = 200
_INITIALISING: Final = 204
_FOREIGN_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)


class Probes:
    """Asks the workers of load-balanced endpoints how they are."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        balancer: Balancer,
        *,
        ports_of: Callable[[str], HttpPorts | None],
        defaults: PlatformDefaults,
        session: aiohttp.ClientSession,
    ) -> None:
        self._dispatcher = dispatcher
        self._balancer = balancer
        self._ports_of = ports_of
        self._defaults = defaults
        self._session = session
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def notice(self, event: WorkerEvent) -> None:
        """Begin with a worker whose process starts or goes on, and end with one that leaves or is frozen."""
        if event.what in ("starting", "thawing"):
            self._stop(event.worker_id)
            self._tasks[event.worker_id] = asyncio.ensure_future(self._watch(event.endpoint, event.worker_id))
        elif event.what in ("frozen", "draining", "reclaimed", "killed", "exited"):
            self._stop(event.worker_id)

    def is_watching(self, worker_id: str) -> bool:
        """True for a worker that is asked, also when its endpoint is no more."""
        return worker_id in self._tasks

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = list(self._tasks.values())
        for worker_id in list(self._tasks):
            self._stop(worker_id)
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _stop(self, worker_id: str) -> None:
        task = self._tasks.pop(worker_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _watch(self, endpoint: str, worker_id: str) -> None:
        spec = self._dispatcher.platform.specs.get(endpoint)
        path = "/" + (spec.env.get("HEALTH_CHECK_PATH", "/ping") if spec else "/ping").removeprefix("/")
        clock, has_been_fit, unfit_since = self._dispatcher.clock, False, None
        while True:
            status = await self._ask(worker_id, path)
            if status == _HEALTHY:
                if unfit_since is not None:
                    self._tell(endpoint, worker_id, is_fit=True, detail=f"{path} answers 200 again")
                has_been_fit, unfit_since = True, None
                self._balancer.note_fit(endpoint, worker_id)
            elif has_been_fit:
                if unfit_since is None:
                    unfit_since = clock.now()
                    self._tell(endpoint, worker_id, is_fit=False, detail=_describe(path, status))
                self._balancer.note_unfit(worker_id)
                if clock.now() - unfit_since >= self._defaults.unhealthy_keep:
                    reason = f"{_describe(path, status)} for {self._defaults.unhealthy_keep:g} s"
                    self._dispatcher.worker_unhealthy(endpoint, worker_id, check=path, reason=reason)
                    return
            interval = self._defaults.ping_interval if has_been_fit else _STARTING_INTERVAL_SECONDS
            await asyncio.sleep(interval)

    async def _ask(self, worker_id: str, path: str) -> int | None:
        """Return the status of a ping, None when there was no answer."""
        ports = self._ports_of(worker_id)
        if ports is None:
            return None
        timeout = aiohttp.ClientTimeout(total=self._defaults.ping_timeout)
        try:
            url = f"http://{LOOPBACK}:{ports.health}{path}"
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status
        except _FOREIGN_ERRORS:
            return None

    def _tell(self, endpoint: str, worker_id: str, *, is_fit: bool, detail: str) -> None:
        self._dispatcher.tell(WorkerEvent(endpoint, worker_id, "ready" if is_fit else "unhealthy", detail))


def _describe(path: str, status: int | None) -> str:
    if status is None:
        return f"{path} was not answered"
    return f"{path} answered {status}" + (", as if it were starting" if status == _INITIALISING else "")
