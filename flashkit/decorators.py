"""The four decorators. They describe: everything is checked here and nothing is started.

Used as a decorator, the result of a call makes a queue-based endpoint; with `.get("/path")` and the like it
becomes a load-balanced one (`http_endpoint`).

All options are keyword-only. A value that cannot work is refused when the app file is imported, and an
option that does not exist is refused with the nearest name, because a misspelt `idle_timeuot=` that is
silently ignored costs money.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Final, Never, ParamSpec, Protocol, TypeVar, overload

from flashkit import catalog
from flashkit.catalog import DataCenter, GpuPool, GpuType
from flashkit.endpoint import Endpoint, EngineEndpoint
from flashkit.engines import Embedding
from flashkit.engines.requests import answer_request
from flashkit.engines.vllm import default_concurrency, fit_to_gpus
from flashkit.errors import DefinitionError
from flashkit.handler import Definition, define
from flashkit.http_endpoint import HttpEndpoint
from flashkit.http_routes import HttpDefinition
from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds

P = ParamSpec("P")
R = TypeVar("R")
First = TypeVar("First")

GpuOption = str | GpuType | GpuPool | Sequence[str | GpuType | GpuPool]
WorkersOption = int | tuple[int, int]
DataCenterOption = str | DataCenter | Sequence[str | DataCenter] | None
VolumeOption = NetworkVolume | Sequence[NetworkVolume] | None


class EndpointDecorator(HttpEndpoint):
    """Turns a function or class into an endpoint with the same parameters, or becomes an endpoint by its routes.

    The first overload that fits is meant; that a class could be called like a function is no conflict.
    """

    def __init__(self, make_endpoint: Callable[[Any], Endpoint[..., Any, ..., Any]], place: str, http: _Http) -> None:
        super().__init__(http.define)
        self._make_endpoint = make_endpoint
        self._place = place

    @overload
    def __call__(self, target: Callable[P, AsyncIterator[R]], /) -> Endpoint[P, AsyncIterator[R], P, list[R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, Iterator[R]], /) -> Endpoint[P, Iterator[R], P, list[R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Endpoint[P, Coroutine[Any, Any, R], P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: type[R], /) -> Endpoint[..., R, ..., Any]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> Endpoint[P, R, P, R]: ...
    def __call__(self, target: Any, /) -> Any:
        """Return the queue-based endpoint that handles jobs with this function or class."""
        try:
            endpoint = self._make_endpoint(target)
            self._note_queue_endpoint(endpoint.name)
        except DefinitionError as exc:
            raise _at(exc, self._place) from None
        return endpoint


class SessionDecorator(Protocol):
    """Turns a function whose first parameter is the session into an endpoint without it."""

    @overload
    def __call__(
        self, target: Callable[Concatenate[First, P], AsyncIterator[R]], /
    ) -> Endpoint[Concatenate[First, P], AsyncIterator[R], P, list[R]]: ...
    @overload
    def __call__(
        self, target: Callable[Concatenate[First, P], Coroutine[Any, Any, R]], /
    ) -> Endpoint[Concatenate[First, P], Coroutine[Any, Any, R], P, R]: ...


def cpu_endpoint(
    *,
    name: str | None = None,
    cpu: str = "cpu3c-2-4",
    workers: WorkersOption = (0, 3),
    idle_timeout: int = 5,
    execution_timeout_ms: int | None = None,
    concurrency: int | None = None,
    datacenter: DataCenterOption = None,
    volume: VolumeOption = None,
    env: Mapping[str, str] | None = None,
    scaler_type: str | None = None,
    scaler_value: int = 4,
    flashboot: bool = True,
    **unknown: Never,
) -> EndpointDecorator:
    """Make a stateless CPU tool of a function or class, or a web API by `.get("/path")` and the like.

    Sync functions run in threads, so they never block the worker's loop.

    Args:
        name: Name in URLs; by default the function's name with dashes.
        cpu: Instance as family, vCPUs and GB: `cpu5c-4-8` has 4 vCPUs and 8 GB.
        workers: (min, max), or only max.
        idle_timeout: Seconds without a job or request until a worker above min stops.
        execution_timeout_ms: Milliseconds one job may run, 600,000 by default; one request, 330,000 at most.
        concurrency: Jobs that one worker runs at the same time, 1 by default; requests, 32.
        datacenter: Where workers may run; anywhere by default.
        volume: Network volume or volumes, mounted at /runpod-volume.
        env: Environment variables of the worker.
        scaler_type: `QUEUE_DELAY`, the default, or `REQUEST_COUNT`, the only one without a queue.
        scaler_value: Seconds a job may wait, or jobs or requests per worker.
        flashboot: Let the platform keep a warmed-up worker's state for fast restarts.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> @cpu_endpoint(name="word-count", cpu="cpu5c-4-8", workers=(0, 10))
        ... def count_words(text: str) -> int:
        ...     return len(text.split())
        >>> count_words("calling it just calls it")
        5
    """
    options = dict(locals())
    return _decorator(Kind.CPU, options)


@overload
def gpu_endpoint(*, engine: EngineSpec, **options: Any) -> EngineEndpoint: ...
@overload
def gpu_endpoint(
    *,
    gpu: GpuOption = (),
    engine: None = None,
    name: str | None = None,
    gpu_count: int = 1,
    workers: WorkersOption = (0, 3),
    idle_timeout: int = 5,
    execution_timeout_ms: int | None = None,
    concurrency: int | None = None,
    datacenter: DataCenterOption = None,
    volume: VolumeOption = None,
    env: Mapping[str, str] | None = None,
    min_cuda_version: str | None = None,
    scaler_type: str | None = None,
    scaler_value: int = 4,
    flashboot: bool = True,
    **unknown: Never,
) -> EndpointDecorator: ...
def gpu_endpoint(
    *,
    gpu: GpuOption = (),
    engine: EngineSpec | None = None,
    name: str | None = None,
    gpu_count: int = 1,
    workers: WorkersOption = (0, 3),
    idle_timeout: int = 5,
    execution_timeout_ms: int | None = None,
    concurrency: int | None = None,
    datacenter: DataCenterOption = None,
    volume: VolumeOption = None,
    env: Mapping[str, str] | None = None,
    min_cuda_version: str | None = None,
    scaler_type: str | None = None,
    scaler_value: int = 4,
    flashboot: bool = True,
    **unknown: Never,
) -> EndpointDecorator | EngineEndpoint:
    """Make a GPU endpoint of a function or class, or a web API by `.get("/path")` and the like.

    A class is built once per worker. It may have `setup()`, `warmup()` and `teardown()`; the method named `run`
    (or the only public one) handles jobs.

    With an engine, the endpoint is complete without a function: it answers OpenAI requests, chats and prompts. A
    handler that is decorated gets the loaded engine as its parameter `engine`.

    Args:
        gpu: GPU types or pools in order of preference; enum members, device names or fragments ("A100").
        engine: A model to load before the first job: `VLLM(Weights("org/name"))`.
        name: Name in URLs; by default the function's or class's name with dashes.
        gpu_count: GPUs per worker.
        workers: (min, max), or only max.
        idle_timeout: Seconds without a job or request until a worker above min stops.
        execution_timeout_ms: Milliseconds one job may run, 600,000 by default; one request, 330,000 at most.
        concurrency: Jobs that one worker runs at the same time, 1 by default; requests, 32; with an engine as many
            as it has memory for, 64 or the engine's `max_num_seqs` at most.
        datacenter: Where workers may run; anywhere by default.
        volume: Network volume or volumes, mounted at /runpod-volume.
        env: Environment variables of the worker.
        min_cuda_version: Oldest CUDA version of a host, for example "12.8".
        scaler_type: `QUEUE_DELAY`, the default, or `REQUEST_COUNT`, the only one without a queue.
        scaler_value: Seconds a job may wait, or jobs or requests per worker.
        flashboot: Let the platform keep a warmed-up worker's state for fast restarts.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> @gpu_endpoint(name="shout", gpu=GpuType.NVIDIA_A100_80GB_PCIe, workers=(1, 10))
        ... class Shouter:
        ...     def setup(self) -> None:
        ...         self.suffix = "!"
        ...     def run(self, text: str) -> str:
        ...         return text.upper() + self.suffix
        >>> Shouter.spec.gpu
        (<GpuType.NVIDIA_A100_80GB_PCIe: 'NVIDIA A100 80GB PCIe'>,)
    """
    options = dict(locals())
    return _decorator(Kind.GPU, options) if engine is None else _engine_endpoint(Kind.GPU, options)


def embedding_endpoint(
    *,
    weights: Weights | None = None,
    engine: EngineSpec | None = None,
    gpu: GpuOption = (),
    name: str | None = None,
    workers: WorkersOption = (0, 3),
    idle_timeout: int = 5,
    execution_timeout_ms: int = 600_000,
    concurrency: int | None = None,
    datacenter: DataCenterOption = None,
    volume: VolumeOption = None,
    env: Mapping[str, str] | None = None,
    min_cuda_version: str | None = None,
    scaler_type: str = ScalerType.QUEUE_DELAY,
    scaler_value: int = 4,
    flashboot: bool = True,
    **unknown: Never,
) -> EngineEndpoint:
    """Make an embedding endpoint: the handler's parameter `embed` is the loaded model.

    `await embed(texts)` gives a float32 array of shape (texts, dimensions) with rows of length 1. Texts of jobs that
    run at the same time share batches. Without a handler the endpoint answers OpenAI's embedding requests.

    Args:
        weights: The sentence-embedding model.
        engine: `Embedding(weights, ...)` instead, where the model needs options.
        gpu: GPU types or pools in order of preference.
        name: Name in URLs; by default the function's name with dashes.
        workers: (min, max), or only max.
        idle_timeout: Seconds without a job until a worker above min stops.
        execution_timeout_ms: Milliseconds one job may run.
        concurrency: Jobs that one worker runs at the same time, 64 by default.
        datacenter: Where workers may run; anywhere by default.
        volume: Network volume or volumes, mounted at /runpod-volume.
        env: Environment variables of the worker.
        min_cuda_version: Oldest CUDA version of a host, for example "12.8".
        scaler_type: `QUEUE_DELAY` or `REQUEST_COUNT`.
        scaler_value: Seconds a job may wait, or jobs per worker.
        flashboot: Let the platform keep a warmed-up worker's state for fast restarts.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> @embedding_endpoint(name="vectors", gpu="RTX 4090", weights=Weights("org/model"))
        ... async def vectors(texts: list[str], embed) -> list[list[float]]:
        ...     return (await embed(texts)).tolist()
        >>> vectors
        <embedding endpoint 'vectors' (texts: list[str])>
    """
    options = dict(locals())
    return _engine_endpoint(Kind.EMBEDDING, options)


def orchestrator_endpoint(
    *,
    name: str | None = None,
    gpu: GpuOption = (),
    cpu: str | None = None,
    gpu_count: int = 1,
    workers: WorkersOption = (1, 3),
    idle_timeout: int = 300,
    execution_timeout_ms: int = 600_000,
    concurrency: int = 1,
    datacenter: DataCenterOption = None,
    volume: VolumeOption = None,
    env: Mapping[str, str] | None = None,
    min_cuda_version: str | None = None,
    scaler_type: str = ScalerType.QUEUE_DELAY,
    scaler_value: int = 4,
    flashboot: bool = True,
    **unknown: Never,
) -> SessionDecorator:
    """Make a stateful agent of an async function whose first parameter is the `session`.

    What runs through `session.step()` and `session.call()` is journalled: when the job is retried on
    another worker, completed steps are not run again.

    Args:
        name: Name in URLs; by default the function's name with dashes.
        gpu: GPU types or pools, for an orchestrator that runs a model itself.
        cpu: CPU instance, for one that does not (`cpu5c-2-4` when neither is given).
        gpu_count: GPUs per worker.
        workers: (min, max), or only max.
        idle_timeout: Seconds without a job until a worker above min stops.
        execution_timeout_ms: Milliseconds one job may run.
        concurrency: Sessions that one worker runs at the same time.
        datacenter: Where workers may run; anywhere by default.
        volume: Network volume or volumes, mounted at /runpod-volume.
        env: Environment variables of the worker.
        min_cuda_version: Oldest CUDA version of a host, for example "12.8".
        scaler_type: `QUEUE_DELAY` or `REQUEST_COUNT`.
        scaler_value: Seconds a job may wait, or jobs per worker.
        flashboot: Let the platform keep a warmed-up worker's state for fast restarts.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> @orchestrator_endpoint(name="agent", gpu="A100", workers=(3, 20), idle_timeout=1800)
        ... async def agent(session: Session, question: str) -> str:
        ...     return await session.step("answer", str.upper, question)
        >>> agent.spec.workers
        WorkerBounds(min=3, max=20)
    """
    options = dict(locals())
    if not gpu and cpu is None:
        options["cpu"] = "cpu5c-2-4"
    return _decorator(Kind.ORCHESTRATOR, options)  # type: ignore[return-value]  # the protocol states the types


def _decorator(kind: Kind, options: dict[str, Any]) -> EndpointDecorator:
    place = _caller()
    values = _checked_values(kind, options, place)

    def make_endpoint(target: Any) -> Endpoint[..., Any, ..., Any]:
        definition = _define(kind, values, target)
        _require_session(definition.spec, definition.function)
        return Endpoint(definition)

    return EndpointDecorator(make_endpoint, place, _Http(kind, values, place))


def _engine_endpoint(kind: Kind, options: dict[str, Any]) -> EngineEndpoint:
    place = _caller()
    values = _checked_values(kind, options, place)

    def make_endpoint(target: Any) -> Endpoint[..., Any, ..., Any]:
        try:
            return Endpoint(_define(kind, values, target))
        except DefinitionError as exc:
            raise _at(exc, place) from None

    try:
        # Without a name it can only be used as a decorator; `engine` is then what it is called meanwhile.
        definition = replace(_define(kind, {**values, "name": values["name"] or "engine"}, answer_request), where=place)
    except DefinitionError as exc:
        raise _at(exc, place) from None
    return EngineEndpoint(definition, make_endpoint)


def _define(kind: Kind, values: Mapping[str, Any], target: Any) -> Definition:
    named = {**values, "name": values["name"] or _default_name(target)}
    return define(target, EndpointSpec(kind=kind, **named))


def _checked_values(kind: Kind, options: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        _refuse_unknown(kind, options.pop("unknown"), options)
        return _spec_values(options)
    except DefinitionError as exc:
        raise _at(exc, place) from None


@dataclass(frozen=True, slots=True)
class _Http:
    """What the options mean for an endpoint without a queue."""

    kind: Kind
    values: Mapping[str, Any]
    place: str

    def define(self) -> HttpDefinition:
        """Return the definition of a load-balanced endpoint without routes yet."""
        if not self.values["name"]:
            raise DefinitionError(
                "an endpoint with routes needs a name of its own",
                hint=f'{self.kind}_endpoint(name="api", ...)',
                where=self.place,
            )
        try:
            spec = EndpointSpec(kind=self.kind, load_balanced=True, **{**_HTTP_DEFAULTS, **self.values})
        except DefinitionError as exc:
            raise _at(exc, self.place) from None
        return HttpDefinition(spec, self.place)


_HTTP_DEFAULTS: Final[Mapping[str, Any]] = {
    "execution_timeout_ms": catalog.LOAD_BALANCED_TIMEOUT_MS,
    "concurrency": catalog.LOAD_BALANCED_CONCURRENCY,
    "scaler_type": ScalerType.REQUEST_COUNT,
}


def _refuse_unknown(kind: Kind, unknown: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for option in unknown:
        near = catalog.nearest_names(option, known, limit=1)
        raise DefinitionError(
            f"@{kind}_endpoint has no option {option!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"options: {', '.join(sorted(known))}",
        )


def _spec_values(options: dict[str, Any]) -> dict[str, Any]:
    """Resolve names and short forms into the values of an `EndpointSpec`; what was not given is left out."""
    short_forms = ("gpu", "datacenter", "volume", "scaler_type")
    values = {key: value for key, value in options.items() if key not in short_forms}
    for option in ("execution_timeout_ms", "concurrency"):
        if values[option] is None:
            del values[option]
    values["gpu"] = catalog.resolve_gpus(_as_tuple(options.get("gpu") or ()))
    values["datacenters"] = tuple(map(catalog.resolve_datacenter, _as_tuple(options["datacenter"] or ())))
    values["volumes"] = _as_tuple(options["volume"] or ())
    values["workers"] = WorkerBounds.from_option(options["workers"])
    values["env"] = options["env"] or {}
    if (weights := values.pop("weights", None)) is not None:
        values["engine"] = _embedding_of(weights, options["engine"])
    if isinstance(engine := values.get("engine"), EngineSpec):
        values.setdefault("concurrency", default_concurrency(engine))
        values["engine"] = fit_to_gpus(engine, values.get("gpu_count", 1))
    if options.get("cpu") is not None:
        values["cpu"] = catalog.resolve_cpu(options["cpu"])
    if options.get("min_cuda_version") is not None:
        values["min_cuda_version"] = catalog.resolve_cuda(options["min_cuda_version"])
    if options["scaler_type"] is not None:
        values["scaler_type"] = _scaler_type(options["scaler_type"])
    return values


def _embedding_of(weights: Any, engine: EngineSpec | None) -> EngineSpec:
    if engine is not None:
        raise DefinitionError(
            "weights= and engine= both name a model", hint="write engine=Embedding(weights, ...) alone"
        )
    if not isinstance(weights, Weights):
        raise DefinitionError(
            f"weights={weights!r} has the wrong type", hint='write weights=Weights("organisation/name")'
        )
    return Embedding(weights)


def _scaler_type(option: str) -> ScalerType:
    try:
        return ScalerType(option)
    except ValueError:
        raise DefinitionError(
            f"scaler_type={option!r} is not known", hint=f"valid names: {', '.join(ScalerType)}"
        ) from None


def _as_tuple(option: Any) -> tuple[Any, ...]:
    return tuple(option) if isinstance(option, list | tuple) else (option,)


def _default_name(target: Any) -> str:
    return str(getattr(target, "__name__", "endpoint")).strip("_").replace("_", "-").lower()


def _require_session(spec: EndpointSpec, function: Callable[..., Any]) -> None:
    if spec.kind is not Kind.ORCHESTRATOR:
        return
    user_function = inspect.unwrap(function)
    is_async = inspect.iscoroutinefunction(user_function) or inspect.isasyncgenfunction(user_function)
    if not is_async or "session" not in inspect.signature(function).parameters:
        raise DefinitionError(
            f"orchestrator {spec.name!r} must be an async function with a parameter named `session`",
            hint="async def agent(session: Session, question: str) -> str: ...",
        )


def _caller() -> str:
    """Return `file.py:12` of the decorator call in the user's code."""
    package = str(Path(__file__).parent) + os.sep
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller without building a whole stack
    while frame.f_back and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _at(error: DefinitionError, place: str) -> DefinitionError:
    report = error.report
    return DefinitionError(report.message, hint=report.hint, where=report.where or place, details=report.details)
