"""Jobs without a platform: `endpoint.local()` and unit tests run handlers here as a worker would."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any
from weakref import WeakKeyDictionary

from flashkit.errors import FlashkitError, HandlerError
from flashkit.handler import Definition, parse_json
from flashkit.settings import Settings
from flashkit.worker.runtime import Runtime

_runtimes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Task[Runtime]]] = WeakKeyDictionary()


async def run_here(definition: Definition, data: Any) -> Any:
    """Run one job of an endpoint in this process and return its JSON output.

    The endpoint is set up once per event loop, so a model is loaded once.

    Raises:
        SetupError: It could not be set up.
        HandlerError: The handler failed; `report` says how.
    """
    runtime = await _ready_runtime(definition)
    job = {"id": f"local-{uuid.uuid4()}", "input": data}
    outcome = await asyncio.create_task(runtime.run(job, emit=_ignore))
    if outcome.error is not None:
        raise _error_class(outcome.error.type).from_report(outcome.error)
    return parse_json(outcome.output or b"null")


async def _ready_runtime(definition: Definition) -> Runtime:
    """Return the endpoint's runtime on this loop; calls at the same time wait for one set-up."""
    runtimes = _runtimes.setdefault(asyncio.get_running_loop(), {})
    task = runtimes.get(id(definition))
    if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
        task = runtimes[id(definition)] = asyncio.create_task(_start(definition))
    return await asyncio.shield(task)


async def _start(definition: Definition) -> Runtime:
    runtime = Runtime(definition, Settings.from_environment())
    await runtime.start()
    return runtime


async def _ignore(chunk: bytes) -> None:
    """Drop partial outputs: the final output holds them all."""


def _error_class(name: str) -> type[FlashkitError]:
    """Return flashkit's own exception class of that name; HandlerError for the user's exceptions."""
    pending: list[type[FlashkitError]] = [FlashkitError]
    while pending:
        cls = pending.pop()
        if cls.__name__ == name:
            return cls
        pending.extend(cls.__subclasses__())
    return HandlerError
