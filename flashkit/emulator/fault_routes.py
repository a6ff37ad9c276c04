"""`/_/faults`: which faults there are, and their change while the platform runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import json_response
from flashkit.emulator.bodies import decode_json, read_body
from flashkit.emulator.fault_injection import FaultInjector
from flashkit.emulator.faults import read_fault_settings
from flashkit.errors import InputError

_BODY_LIMIT_BYTES = 64 * 1024


def fault_routes(injector: FaultInjector, admission: Admission) -> list[Route]:
    """Return the routes: GET shows the rules, PUT replaces them or switches them off, DELETE takes them away."""

    async def show(request: Request) -> Response:
        admission.check(request)
        return json_response(injector.plan.describe())

    async def replace(request: Request) -> Response:
        admission.check(request)
        admission.check_same_origin(request)
        data = decode_json(await read_body(request.receive, limit_bytes=_BODY_LIMIT_BYTES))
        if not isinstance(data, dict):
            raise InputError("the body is not a JSON object", hint='send {"faults": ["embed:error=0.1"]}')
        settings = read_fault_settings(data)
        if settings.faults is not None:
            injector.set(settings.faults, seed=settings.seed)
        elif settings.seed is not None:
            injector.plan.seed = settings.seed
        if settings.is_enabled is not None:
            injector.plan.is_enabled = settings.is_enabled
        return json_response(injector.plan.describe())

    async def remove(request: Request) -> Response:
        admission.check(request)
        admission.check_same_origin(request)
        injector.set(())
        return json_response(injector.plan.describe())

    return [
        Route("/_/faults", show, methods=["GET"]),
        Route("/_/faults", replace, methods=["PUT"]),
        Route("/_/faults", remove, methods=["DELETE"]),
    ]
