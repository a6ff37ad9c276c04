"""vLLM in the worker's own process: its engine on the loop that serves the jobs, its routes without a socket.

Jobs come from a queue, so vLLM's HTTP server is left out; its FastAPI application, with every route that the model
has, is asked directly (`asgi`). The model runs in processes of vLLM's (`vllm_processes`).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from flashkit.engines.vllm import VllmOptions
from flashkit.errors import EngineDied, EngineError
from flashkit.settings import Settings
from flashkit.spec import EngineSpec
from flashkit.worker.engines import vllm_processes as processes
from flashkit.worker.engines.asgi import open_app
from flashkit.worker.engines.engine import Engine, EngineRequest, EngineResponse
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS
from flashkit.worker.engines.vllm_arguments import resolve_files, serve_arguments
from flashkit.worker.engines.vllm_capacity import Capacity, Limits
from flashkit.worker.engines.vllm_releases import EntryPoints, find_release, installed_version, is_cpu_build
from flashkit.worker.engines.vllm_routes import DirectRoutes
from flashkit.worker.engines.vllm_start import (
    SHUTDOWN_SECONDS,
    describe_failure,
    import_vllm,
    parse_arguments,
    start_engine,
)
from flashkit.worker.engines.warming import warm_up
from flashkit.worker.phases import Phases

if TYPE_CHECKING:
    from flashkit.worker.engines.llm import LLM

log = logging.getLogger(__name__)

CHUNK_SECONDS: Final = (0.1, 0.25)
"""How often a streamed answer gets a chunk where the model is faster than that, with few streams and with many; the
first token comes at once. Posts of a stream that is under way are not more frequent (`coalescing.Pace`)."""
CHUNKS_PER_SECOND: Final = 80
"""Of all streams together, above which each gets fewer: one costs worker and platform 0.2 to 0.5 ms of CPU."""
MOST_IN_CHUNK: Final = 32
_GENERATING: Final = frozenset({CHAT, COMPLETIONS})
_SERVER_ERROR: Final = 500
_KILLED: Final = -9


def chunk_seconds(streams: float) -> float:
    """Return how often each of so many streams gets a chunk."""
    shortest, longest = CHUNK_SECONDS
    return min(longest, max(shortest, streams / CHUNKS_PER_SECOND))


async def load_vllm(spec: EngineSpec, settings: Settings, phases: Phases) -> Engine:
    """Return the engine that a `VLLM(...)` declares: in this process, beside it, or a server that stands in for it.

    Raises:
        ConfigurationError: vLLM or the weights are missing, or do not fit together or to this machine.
        EngineError: vLLM did not start.
    """
    options = VllmOptions.from_json(spec.options)
    if options.mode != "in_process":
        from flashkit.worker.engines import proxy

        load = proxy.load_remote if options.mode == "remote" else proxy.load_served
        return await load(spec, settings, phases)
    with processes.kept_logging():
        engine = await _load(spec, options, settings, phases)
    log.info("%s", engine.describe())
    return engine


async def _load(spec: EngineSpec, options: VllmOptions, settings: Settings, phases: Phases) -> VllmEngine:
    version = installed_version() or ""
    release = find_release(version or None)
    is_cpu = is_cpu_build()
    processes.be_quiet(is_cpu=is_cpu)
    nursery = processes.CpuNursery() if is_cpu else None
    if nursery is not None:
        nursery.start()
    import_parts = partial(import_vllm, release.entry_points)
    find_files = partial(resolve_files, options, spec.weights, settings)
    entry_points, (model, adapters) = await asyncio.gather(
        asyncio.to_thread(_measured, phases, "import vllm", import_parts),
        asyncio.to_thread(_measured, phases, "weights", find_files),
    )
    line = serve_arguments(options, model, adapters, is_cpu=is_cpu)
    arguments = parse_arguments(entry_points, line, version)
    capacity = Capacity()
    with phases.measure("engine"):
        llm = await start_engine(arguments, capacity, nursery)
        return await _build(_Parts(llm, entry_points, arguments, version), capacity, options)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a vLLM is made of."""

    llm: Any
    """vLLM's `AsyncLLM`."""
    entry_points: EntryPoints
    arguments: Any
    """vLLM's own namespace of parsed arguments."""
    version: str


async def _build(parts: _Parts, capacity: Capacity, options: VllmOptions) -> VllmEngine:
    """Build vLLM's application on its engine."""
    llm = parts.llm
    try:
        capacity.set_limits(Limits.of(llm.vllm_config))
        tasks = await llm.get_supported_tasks()
        app = parts.entry_points.build_app(parts.arguments, tasks, llm.model_config)
        await parts.entry_points.init_app_state(llm, app.state, parts.arguments, tasks)
    except BaseException as exc:
        await asyncio.to_thread(llm.shutdown, SHUTDOWN_SECONDS)
        raise describe_failure(exc) from exc
    app.state.server = _NoServer()
    processes.settle_environment()
    gc.collect()
    gc.freeze()  # as vLLM's server does: what has been loaded is never garbage, and need not be looked at
    return VllmEngine(parts, app, capacity, options, tasks)


class VllmEngine:
    """A vLLM that runs."""

    def __init__(self, parts: _Parts, app: Any, capacity: Capacity, options: VllmOptions, tasks: Sequence[str]) -> None:
        self.llm = parts.llm
        """vLLM's `AsyncLLM`."""
        self.version = parts.version
        self.app = app
        """vLLM's FastAPI application."""
        self.capacity = capacity
        self._routes = DirectRoutes(app)
        self._options = options
        self._tasks = tasks
        self._numbers = itertools.count(1)
        self._processes = _processes_of(parts.llm)
        self._is_closed = False

    def describe(self) -> str:
        """Return what was started, in a line for the log."""
        config, limits = self.llm.vllm_config, Limits.of(self.llm.vllm_config)
        return (
            f"vLLM {self.version} serves {self._options.served_model_name[0]} as "
            f"{str(config.model_config.dtype).removeprefix('torch.')} on {config.device_config.device_type}: "
            f"{limits.max_model_len:,} tokens a request, {limits.kv_tokens:,} in the KV cache, "
            f"{limits.seats} requests side by side"
        )

    def handle(self) -> LLM:
        """Return what handlers get."""
        from flashkit.worker.engines.llm import LLM

        return LLM(self)

    async def warm_up(self) -> None:
        """Run one real inference of every path that the endpoint will use.

        Raises:
            EngineError: One failed; the message says which.
        """
        await warm_up(self, self._options, self._tasks)

    @property
    def room(self) -> int:
        """How many more jobs it could take now, by its seats and its free KV blocks."""
        return self.capacity.room

    @property
    def progress(self) -> int:
        """Steps of the model so far."""
        return self.capacity.steps

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV cache that is in use."""
        return self.capacity.kv_usage

    @property
    def request_count(self) -> int:
        """Requests that it has."""
        return self.capacity.running

    @property
    def is_busy(self) -> bool:
        """True while it has requests."""
        return self.capacity.running > 0

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request by vLLM's own application.

        Raises:
            EngineDied: vLLM's processes are dead, or died meanwhile.
            EngineError: vLLM failed without answering.
        """
        self._raise_if_dead()
        # vLLM names its own request after this, so that logs and `finish` know the job by it.
        name = f"{request.id or 'request'}-{next(self._numbers)}"
        self.capacity.enter()
        try:
            response = await self._ask(self._paced(request), {"x-request-id": name})
            if response.status >= _SERVER_ERROR and self.llm.errored:
                await response.close()
                self._raise_if_dead()
        except BaseException as exc:
            self.capacity.leave()
            if isinstance(exc, EngineError) and not isinstance(exc, EngineDied):
                self._raise_if_dead()
            raise
        return EngineResponse(response.status, _Body(self, response), response.headers)

    async def _ask(self, request: EngineRequest, headers: dict[str, str]) -> EngineResponse:
        return await self._routes.open(request, headers) or await open_app(self.app, request, headers=headers)

    def _paced(self, request: EngineRequest) -> EngineRequest:
        """Return a request for a stream with as many tokens in a chunk as a fast model makes between two chunks.

        Making an event of a token costs vLLM more than a small model's token does, and whoever reads a stream over the
        platform gets many tokens at a time anyway.
        """
        body, tokens = request.body, self.capacity.tokens_in(chunk_seconds(self.capacity.streams), most=MOST_IN_CHUNK)
        is_stream = isinstance(body, dict) and body.get("stream") is True and request.path in _GENERATING
        if not is_stream or tokens == 1 or "stream_interval" in {*body, *self._options.arguments}:
            return request
        return replace(request, body={**body, "stream_interval": tokens})

    async def finish(self, request_id: str | None) -> None:
        """Let a job's requests end with what they have so far: their `finish_reason` is `abort`."""
        states = self.llm.output_processor.request_states
        names = [name for name in states if f"-{request_id}-" in name]
        if names:
            await self.llm.abort(names, internal=True)

    async def check(self) -> None:
        """Return when vLLM's processes live.

        Raises:
            EngineDied: They do not.
        """
        self._raise_if_dead()

    async def close(self) -> None:
        """End vLLM and every process it started."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self.llm.errored:
            await self.llm.abort(list(self.llm.output_processor.request_states), internal=True)
        handler = self.llm.output_handler
        if handler is not None:  # it would take the end of the processes for a failure, and say so with a traceback
            handler.cancel()
            await asyncio.wait([handler])
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self.llm.shutdown(SHUTDOWN_SECONDS)
        processes.kill(self._processes, grace_seconds=SHUTDOWN_SECONDS / 2)

    def _raise_if_dead(self) -> None:
        if not self.llm.errored:
            return
        raise EngineDied(
            f"vLLM is dead{_why(self.llm)}",
            hint="the worker is replaced; send the request again",
            details={"retryable": True},
        )


class _Body(AsyncIterator[bytes]):
    """A response's body that ends with `EngineDied`, and not with what vLLM then writes into it, when vLLM dies."""

    def __init__(self, engine: VllmEngine, response: EngineResponse) -> None:
        self._engine = engine
        self._response = response
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._response.body)
        except StopAsyncIteration:
            self._end()
            raise
        except EngineError:
            self._engine._raise_if_dead()  # noqa: SLF001 - one story in two classes
            raise
        if self._engine.llm.errored:
            self._engine._raise_if_dead()  # noqa: SLF001
        return piece

    async def aclose(self) -> None:
        """Abort what still runs."""
        try:
            await self._response.close()
        finally:
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._engine.capacity.leave()


class _NoServer:
    """In place of the HTTP server that vLLM asks to exit when its engine is dead; the watchdog sees that anyway."""

    should_exit = False


def _measured(phases: Phases, name: str, function: Any) -> Any:
    with phases.measure(name):
        return function()


def _processes_of(llm: Any) -> list[Any]:
    """Return the processes that vLLM runs the model in."""
    import psutil

    manager = llm.engine_core.resources.engine_manager
    found = []
    for process in getattr(manager, "processes", ()):
        with suppress(psutil.NoSuchProcess):  # it died just now: the first request, or the watchdog, will say so
            core = psutil.Process(process.pid)
            found += [core, *core.children(recursive=True)]
    return found


def _why(llm: Any) -> str:
    """Return how vLLM's process ended, where that is known."""
    manager = llm.engine_core.resources.engine_manager
    codes = {process.name: process.exitcode for process in getattr(manager, "processes", ()) if process.exitcode}
    for name, code in codes.items():
        reason = " (SIGKILL: often because memory ran out)" if code == _KILLED else ""
        return f": its process {name} ended with exit code {code}{reason}"
    return ""
