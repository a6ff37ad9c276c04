"""The platform as one ASGI application: each request goes to those who serve it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from starlette.types import Receive, Scope, Send

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import ForeignHost, deny, error_body, internal_error
from flashkit.emulator.connections import Reply
from flashkit.emulator.faults import FaultPlan
from flashkit.emulator.load_balancing.entry import LoadBalancing
from flashkit.emulator.routes import ClientRoutes
from flashkit.emulator.worker_wire import WorkerWire

_log = logging.getLogger(__name__)

_SPIN_GUARD_SECONDS: Final = 1.0
_FAILURE: Final = "flashkit.failure"


class Application:
    """Sends each request to those who serve it, and owns up to our own faults."""

    def __init__(
        self,
        wire: WorkerWire,
        routes: ClientRoutes,
        *,
        admission: Admission,
        load_balancing: LoadBalancing,
        faults: FaultPlan,
    ) -> None:
        self._wire = wire
        self._load_balancing = load_balancing
        self._routes = routes
        self._other_routes = routes.application()
        self._admission = admission
        self._faults = faults

    def at_once(self, scope: Scope, body: bytes) -> Reply | None:
        """Return the answer to a request of a worker's that can have it now; no rule of the faults may concern it."""
        if self._faults.is_active:
            return None
        try:
            self._admission.check_host(scope)
            return None if self._load_balancing.is_for_one(scope) else self._wire.at_once(scope, body)
        except ForeignHost:
            return None
        except Exception as exc:  # noqa: BLE001 - raised again where there is an answer for it
            scope[_FAILURE] = exc
            return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        try:
            _raise_failure(scope)
            self._admission.check_host(scope)
            if await self._load_balancing.serve(scope, receive, send):
                return
            if await self._wire.serve(scope, receive, send) or await self._routes.serve(scope, receive, send):
                return
            await self._other_routes(scope, receive, send)
        except ForeignHost as exc:
            await deny(scope, receive, send, 403, error_body(exc.report))
        except Exception:  # noqa: BLE001
            # The boundary of the process towards HTTP: whatever went wrong is logged with its traceback here.
            _log.exception("%s %s failed", scope.get("method", "WEBSOCKET"), scope["path"])
            await asyncio.sleep(_SPIN_GUARD_SECONDS)  # a worker would repeat the request at once
            with contextlib.suppress(RuntimeError):  # the response had begun already
                await deny(scope, receive, send, 500, error_body(internal_error()))


def _raise_failure(scope: Scope) -> None:
    """Raise what went wrong when the request was to be answered at once."""
    failure: Exception | None = scope.get(_FAILURE)
    if failure is not None:
        raise failure
