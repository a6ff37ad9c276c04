"""Which worker gets a request to a load-balanced endpoint, and what waits while there is none.

A worker is in rotation when its last `/ping` was 200. The one with the fewest requests gets the next one, and of
several the one that was used last, so that the others' idle time runs on. Chosen, as the platform documents no
number: a worker has room for as many requests as the endpoint's `concurrency`; more wait, in order. An open
WebSocket counts as load for the scaler and takes no room.

Documented is the header `X-Runpod-Worker-Id`: an id prefers that worker, `strict ID` waits for it or fails, and
`strict-resume ID` also brings it back when it is kept frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from flashkit.emulator.dispatch import Bells, Dispatcher
from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.platform import Worker
from flashkit.errors import InputError
from flashkit.protocol import PlatformDefaults

NO_WORKERS_STATUS: Final = 400
"""Documented: nobody had room for the request in time."""
GONE_STATUS: Final = 404
"""Documented: the worker that a request is pinned to is gone."""
CANNOT_START_STATUS: Final = 502
"""Undocumented: the HTTP status for a request that waits while several workers in a row did not start."""
STOPPING_STATUS: Final = 503
_REMEMBERED_EXITS: Final = 1_000


class Refused(Exception):
    """The platform, not a worker, answers a request."""

    def __init__(self, status: int, error: str, **facts: Any) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, **{name: value for name, value in facts.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Affinity:
    """The worker that a request asks for."""

    worker_id: str = ""
    is_strict: bool = False
    resumes: bool = False

    @classmethod
    def from_header(cls, value: str) -> Self:
        """Read the header `X-Runpod-Worker-Id` of a request."""
        mode, _, worker_id = value.strip().rpartition(" ")
        if mode in ("strict", "strict-resume"):
            return cls(worker_id, is_strict=True, resumes=mode == "strict-resume")
        return cls(value.strip())


@dataclass(slots=True, eq=False)
class BalancedRequest:
    """One request, as far as the choice of its worker goes."""

    id: str
    endpoint: str
    affinity: Affinity = field(default_factory=Affinity)
    is_socket: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    request: BalancedRequest
    worker: asyncio.Future[str]


class Balancer:
    """Hands requests to workers."""

    def __init__(self, dispatcher: Dispatcher, defaults: PlatformDefaults) -> None:
        self._dispatcher = dispatcher
        self._defaults = defaults
        self._fit: set[str] = set()
        """Workers whose last ping was 200."""
        self._running: Counter[str] = Counter()
        """Requests by worker, without WebSockets."""
        self._last_used: dict[str, int] = {}
        self._uses = 0
        self._waiting: dict[str, list[_Waiting]] = {}
        self._exits: dict[str, str] = {}
        """How workers' processes ended lately."""
        self._exit_bells = Bells()
        self._is_closing = False

    @contextlib.asynccontextmanager
    async def worker_for(self, request: BalancedRequest) -> AsyncIterator[str]:
        """Wait for a worker, and have it until the block ends.

        Raises:
            Refused: None came in time, the wanted one is gone, or none can start.
        """
        worker_id = await self._acquire(request)
        try:
            yield worker_id
        finally:
            self._release(request, worker_id)

    def note_fit(self, endpoint: str, worker_id: str) -> None:
        """Take a worker into rotation."""
        self._dispatcher.worker_ready(endpoint, worker_id)
        if worker_id not in self._fit:
            self._fit.add(worker_id)
            self._hand_out(endpoint)

    def note_unfit(self, worker_id: str) -> None:
        """Take a worker out of rotation; what it has goes on."""
        self._fit.discard(worker_id)

    def is_fit(self, worker_id: str) -> bool:
        """True while the worker is in rotation."""
        return worker_id in self._fit

    def notice(self, event: WorkerEvent) -> None:
        """Learn from an event that a worker is not there (any more)."""
        if event.what in ("frozen", "draining", "reclaimed", "killed", "exited"):
            self.note_unfit(event.worker_id)
        if event.what == "exited":
            self._last_used.pop(event.worker_id, None)
            self._exits[event.worker_id] = event.detail
            self._exit_bells.ring(event.worker_id)
            while len(self._exits) > _REMEMBERED_EXITS:
                del self._exits[next(iter(self._exits))]

    async def exit_of(self, worker_id: str, *, seconds: float) -> str | None:
        """Return how the worker's process ended, waiting this long for it; None for one that lives."""
        if worker_id not in self._exits:
            bell = self._exit_bells.listen(worker_id)
            await asyncio.wait({bell}, timeout=seconds)
            self._exit_bells.forget(worker_id, bell)
        return self._exits.get(worker_id)

    def look_again(self, endpoint: str) -> None:
        """Tell those that wait what the end of a worker, or of the endpoint, means for them."""
        if endpoint not in self._dispatcher.platform.specs:
            self._refuse_waiting(endpoint, Refused(GONE_STATUS, f"endpoint {endpoint!r} was removed"))
        elif self._dispatcher.platform.has_given_up(endpoint):
            hint = "its log says why: flashkit logs shows it"
            self._refuse_waiting(endpoint, Refused(CANNOT_START_STATUS, "the workers do not start", hint=hint))
        else:
            self._hand_out(endpoint)

    def close(self) -> None:
        """Let nobody wait any more."""
        self._is_closing = True
        for endpoint in list(self._waiting):
            self._refuse_waiting(endpoint, Refused(STOPPING_STATUS, "the local platform is shutting down"))

    async def _acquire(self, request: BalancedRequest) -> str:
        if self._is_closing:
            raise Refused(STOPPING_STATUS, "the local platform is shutting down")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(request.endpoint, []).append(waiting)
        self._hand_out(request.endpoint)
        if waiting.worker.done():
            return waiting.worker.result()
        return await self._wait(waiting)

    async def _wait(self, waiting: _Waiting) -> str:
        request, clock = waiting.request, self._dispatcher.clock
        limit = self._defaults.affinity_wait if request.affinity.is_strict else self._defaults.request_wait
        late = (
            Refused(NO_WORKERS_STATUS, "timed out waiting for worker", worker=request.affinity.worker_id)
            if request.affinity.is_strict
            else Refused(NO_WORKERS_STATUS, "no workers available", hint="raise the maximum of workers")
        )
        timer = clock.call_at(clock.now() + limit, lambda: _fail(waiting.worker, late))
        platform = self._dispatcher.platform
        self._dispatcher.apply(platform.request_waits, request.endpoint, request.id)
        try:
            return await waiting.worker
        except asyncio.CancelledError:
            if waiting.worker.done() and not waiting.worker.cancelled() and waiting.worker.exception() is None:
                self._release(request, waiting.worker.result())  # it was given in the moment of the cancellation
            raise
        finally:
            timer.cancel()
            self._drop(waiting)
            self._dispatcher.apply(platform.request_leaves, request.endpoint, request.id)

    def _hand_out(self, endpoint: str) -> None:
        """Give workers to those that wait, the first ones first."""
        is_full = False
        for waiting in list(self._waiting.get(endpoint, ())):
            if waiting.worker.done() or (is_full and not waiting.request.affinity.worker_id):
                continue
            try:
                worker_id = self._choose(waiting.request)
            except Refused as exc:
                self._drop(waiting)
                _fail(waiting.worker, exc)
                continue
            if worker_id is None:
                is_full = is_full or not waiting.request.affinity.is_strict
            elif self._begin(waiting.request, worker_id):
                self._drop(waiting)
                waiting.worker.set_result(worker_id)

    def _choose(self, request: BalancedRequest) -> str | None:
        """Return the worker for this request, None while it has to wait.

        Raises:
            Refused: The only worker that it takes is gone.
        """
        workers = self._dispatcher.platform.workers(request.endpoint)
        free = [worker for worker in workers if self._has_room(worker, request)]
        wanted = request.affinity.worker_id
        preferred = next((worker for worker in free if worker.id == wanted), None)
        if preferred is not None:
            return preferred.id
        if request.affinity.is_strict:
            self._check_wanted(request, next((worker for worker in workers if worker.id == wanted), None))
            return None
        if not free:
            return None
        return min(free, key=lambda worker: (self._running[worker.id], -self._last_used.get(worker.id, 0))).id

    def _check_wanted(self, request: BalancedRequest, worker: Worker | None) -> None:
        is_here = worker is not None and not worker.is_leaving and worker.failed_check is None
        if worker is None or not is_here or (worker.is_frozen and not request.affinity.resumes):
            raise Refused(GONE_STATUS, "affinity_worker_gone", worker=request.affinity.worker_id)
        if worker.is_frozen:
            with contextlib.suppress(InputError):  # no machine for it now: the request waits
                self._dispatcher.apply(self._dispatcher.platform.thaw_worker, worker.id)

    def _has_room(self, worker: Worker, request: BalancedRequest) -> bool:
        if worker.id not in self._fit or not worker.can_take_jobs:
            return False
        room = self._dispatcher.platform.specs[request.endpoint].concurrency
        return request.is_socket or self._running[worker.id] < room

    def _begin(self, request: BalancedRequest, worker_id: str) -> bool:
        platform = self._dispatcher.platform
        # Counted first: what follows from it may hand out the next request.
        self._running[worker_id] += not request.is_socket
        if not self._dispatcher.apply(platform.request_begins, request.endpoint, worker_id, request.id):
            self._running[worker_id] -= not request.is_socket
            return False
        self._uses += 1
        self._last_used[worker_id] = self._uses
        return True

    def _release(self, request: BalancedRequest, worker_id: str) -> None:
        self._running[worker_id] -= not request.is_socket
        if not self._running[worker_id]:
            del self._running[worker_id]
        self._dispatcher.apply(self._dispatcher.platform.request_ends, request.endpoint, worker_id, request.id)
        if request.endpoint in self._dispatcher.platform.specs:
            self._hand_out(request.endpoint)

    def _drop(self, waiting: _Waiting) -> None:
        endpoint = waiting.request.endpoint
        if waiting in (queue := self._waiting.get(endpoint, [])):
            queue.remove(waiting)
            if not queue:
                del self._waiting[endpoint]

    def _refuse_waiting(self, endpoint: str, refusal: Refused) -> None:
        for waiting in self._waiting.pop(endpoint, []):
            _fail(waiting.worker, refusal)


def _fail(future: asyncio.Future[str], refusal: Refused) -> None:
    if not future.done():
        future.set_exception(refusal)
