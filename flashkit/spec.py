"""What an endpoint is: frozen values, checked when the app file is imported.

A spec describes; it starts nothing. Decorators build it, workers, the emulator, plans and deployment
read it, and it travels between processes as plain JSON (`to_dict`, `from_dict`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, Self

from flashkit import catalog
from flashkit.catalog import DataCenter, GpuPool, GpuType
from flashkit.errors import DefinitionError


class Kind(StrEnum):
    """The kinds of worker."""

    CPU = "cpu"
    GPU = "gpu"
    EMBEDDING = "embedding"
    ORCHESTRATOR = "orchestrator"


class ScalerType(StrEnum):
    """How the platform decides that it needs more workers."""

    QUEUE_DELAY = "QUEUE_DELAY"
    """A job waited longer than `scaler_value` seconds."""
    REQUEST_COUNT = "REQUEST_COUNT"
    """One worker for every `scaler_value` jobs, queued and running."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights by repository name, for example `Weights("Qwen/Qwen3-8B", revision="…")`."""

    name: str
    revision: str | None = None
    """A commit, tag or branch. A copy of another one is passed over; without one, any copy will do."""
    _: KW_ONLY
    allow: tuple[str, ...] = ()
    """Files to download, as patterns such as `*.json`; by default all but the same weights in other formats."""
    ignore: tuple[str, ...] = ()
    """Files to leave out, as patterns; goes before `allow`."""
    s3: str | None = None
    """`s3://bucket/prefix` below which they are as `organisation/name/`, instead of FLASHKIT_WEIGHTS_S3."""
    path: str | None = None
    """The folder that holds them. Nothing else is looked at."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _REPOSITORY.fullmatch(self.name) or ".." in self.name:
            raise DefinitionError(
                f"Weights({self.name!r}) is not a repository name", hint="write it as 'organisation/name'"
            )
        if self.revision is not None and (not _REVISION.fullmatch(str(self.revision)) or ".." in str(self.revision)):
            raise DefinitionError(
                f"Weights({self.name!r}, revision={self.revision!r}) is not a revision",
                hint="give a commit, a tag or a branch, or leave it out",
            )
        for option in ("allow", "ignore"):
            object.__setattr__(self, option, _patterns(self, option))
        if self.s3 is not None and not _S3_PLACE.fullmatch(str(self.s3)):
            raise DefinitionError(
                f"Weights({self.name!r}, s3={self.s3!r}) is not a place in S3", hint="write it as 's3://bucket/prefix'"
            )
        if self.path is not None and not str(self.path).strip():
            raise DefinitionError(f"Weights({self.name!r}, path={self.path!r}) is not a folder")


_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*")
_S3_PLACE = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[^\s]*)?")


def _patterns(weights: Weights, option: str) -> tuple[str, ...]:
    value = getattr(weights, option)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise DefinitionError(
            f"Weights({weights.name!r}, {option}={value!r}) are no patterns", hint=f'write {option}=("*.json",)'
        )
    return tuple(value)


@dataclass(frozen=True, slots=True)
class NetworkVolume:
    """A network volume that is mounted at /runpod-volume; `size` in GB."""

    name: str
    size: int = 100
    datacenter: DataCenter | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise DefinitionError("a NetworkVolume needs a name", hint='NetworkVolume("model-weights", size=50)')
        if self.size not in catalog.VOLUME_SIZE_GB:
            raise DefinitionError(
                f"NetworkVolume({self.name!r}, size={self.size!r}) cannot be made",
                hint=f"volumes have {catalog.VOLUME_SIZE_GB.low:g} to {catalog.VOLUME_SIZE_GB.high:g} GB",
            )
        if self.datacenter is not None:
            object.__setattr__(self, "datacenter", catalog.resolve_datacenter(self.datacenter))


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A model that a worker loads before its first job: `VLLM(...)`, `Embedding(...)` or `ScriptedLLM(...)`."""

    type: str
    """Which engine: `vllm`, `embedding` or `scripted`."""
    weights: Weights | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own options, as plain JSON values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build an engine from the JSON of `EndpointSpec.to_dict()`."""
        weights = data.get("weights")
        return cls(data["type"], Weights(**weights) if weights else None, data.get("options", {}))


@dataclass(frozen=True, slots=True)
class WorkerBounds:
    """Fewest and most workers that the platform keeps."""

    min: int = 0
    max: int = 3

    @classmethod
    def from_option(cls, workers: int | Sequence[int] | WorkerBounds) -> WorkerBounds:
        """Read `workers=3` (0 to 3) or `workers=(1, 10)`.

        Raises:
            DefinitionError: Not such numbers, min above max, or a max of 0.
        """
        if isinstance(workers, WorkerBounds):
            workers = (workers.min, workers.max)
        numbers = tuple(workers) if isinstance(workers, Sequence) else (0, workers)
        if len(numbers) != 2 or not all(_is_count(number) for number in numbers):  # noqa: PLR2004
            raise DefinitionError(
                f"workers={workers!r} is not a pair of whole numbers", hint="write workers=(min, max)"
            )
        bounds = cls(*numbers)
        if bounds.max < 1:
            raise DefinitionError(f"workers={workers!r} can never run a job", hint="max must be at least 1")
        if bounds.min > bounds.max:
            raise DefinitionError(f"workers={workers!r} has min above max", hint="write workers=(min, max)")
        return bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """One endpoint, complete and checked. Build it through the decorators."""

    name: str
    kind: Kind
    gpu: tuple[GpuType | GpuPool, ...] = ()
    """GPUs in order of preference; empty for CPU workers."""
    gpu_count: int = 1
    cpu: str | None = None
    """CPU instance, for example `cpu5c-4-8`."""
    min_cuda_version: str | None = None
    datacenters: tuple[DataCenter, ...] = ()
    """Where workers may run; empty means anywhere."""
    workers: WorkerBounds = WorkerBounds()
    idle_timeout: int = 5
    """Seconds without a job until a worker above the minimum is stopped."""
    execution_timeout_ms: int = 600_000
    """Milliseconds a job may run, from pick-up."""
    scaler_type: ScalerType = ScalerType.QUEUE_DELAY
    scaler_value: int = 4
    flashboot: bool = True
    concurrency: int = 1
    """Jobs that one worker runs at the same time."""
    volumes: tuple[NetworkVolume, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    engine: EngineSpec | None = None
    """The model that a worker loads before its first job."""
    load_balanced: bool = False
    """Requests go straight to HTTP servers in the workers; there is no queue and there are no jobs."""

    def __post_init__(self) -> None:
        for check in _CHECKS:
            check(self)
        object.__setattr__(self, "env", dict(self.env))  # later changes of the caller's own mapping are not ours

    @property
    def weights(self) -> Weights | None:
        """The weights of the endpoint's engine."""
        return self.engine.weights if self.engine else None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a spec from `to_dict()`'s JSON, checking it again."""
        values = dict(data)
        values["kind"] = Kind(values["kind"])
        values["gpu"] = catalog.resolve_gpus(values.get("gpu", ()))
        values["datacenters"] = tuple(catalog.resolve_datacenter(name) for name in values.get("datacenters", ()))
        values["workers"] = WorkerBounds(**values.get("workers", {}))
        values["scaler_type"] = ScalerType(values.get("scaler_type", ScalerType.QUEUE_DELAY))
        values["volumes"] = tuple(NetworkVolume(**volume) for volume in values.get("volumes", ()))
        values["engine"] = EngineSpec.from_dict(values["engine"]) if values.get("engine") else None
        return cls(**values)


_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PLATFORM_VARIABLES = re.compile(r"RUNPOD_(WEBHOOK_.*|POD_ID|ENDPOINT_ID|AI_API_KEY|ENDPOINT_BASE_URL)")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_name(spec: EndpointSpec) -> None:
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        raise DefinitionError(
            f"name={spec.name!r} cannot be an endpoint's name",
            hint="use 1 to 63 lower-case letters, digits and dashes; it becomes part of URLs",
        )


def _check_compute(spec: EndpointSpec) -> None:
    if spec.kind is Kind.CPU and not spec.cpu:
        raise DefinitionError(f"endpoint {spec.name!r} names no CPU instance", hint="write cpu='cpu5c-2-4'")
    if spec.kind in (Kind.GPU, Kind.EMBEDDING) and not spec.gpu:
        raise DefinitionError(
            f"endpoint {spec.name!r} pins no GPU", hint="write gpu='A100' or gpu=['L40S', 'A100'], preferred first"
        )
    if spec.kind is Kind.ORCHESTRATOR and bool(spec.gpu) == bool(spec.cpu):
        raise DefinitionError(
            f"endpoint {spec.name!r} needs either gpu= or cpu=", hint="an orchestrator without a model runs on a CPU"
        )


def _check_counts(spec: EndpointSpec) -> None:
    for option, value in (
        ("gpu_count", spec.gpu_count),
        ("scaler_value", spec.scaler_value),
        ("concurrency", spec.concurrency),
    ):
        if not _is_count(value) or value < 1:
            raise DefinitionError(f"{option}={value!r} of endpoint {spec.name!r} is not a whole number of at least 1")


def _check_timeouts(spec: EndpointSpec) -> None:
    for option, value, allowed, unit in (
        ("idle_timeout", spec.idle_timeout, catalog.IDLE_TIMEOUT_SECONDS, "seconds"),
        ("execution_timeout_ms", spec.execution_timeout_ms, catalog.EXECUTION_TIMEOUT_MS, "milliseconds"),
    ):
        if not _is_count(value) or value not in allowed:
            raise DefinitionError(
                f"{option}={value!r} of endpoint {spec.name!r} is out of range",
                hint=f"the platform accepts {allowed.low:,.0f} to {allowed.high:,.0f} {unit}",
            )


def _check_types(spec: EndpointSpec) -> None:
    for option, value, allowed, example in (
        ("env", spec.env, Mapping, 'env={"LOG_LEVEL": "debug"}'),
        ("engine", spec.engine, EngineSpec | None, 'engine=VLLM(Weights("organisation/name"))'),
        *(("volume", volume, NetworkVolume, 'volume=NetworkVolume("models", size=50)') for volume in spec.volumes),
    ):
        if not isinstance(value, allowed):
            raise DefinitionError(
                f"{option}={value!r} of endpoint {spec.name!r} has the wrong type", hint=f"write {example}"
            )


def _check_env(spec: EndpointSpec) -> None:
    for key, value in spec.env.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise DefinitionError(f"env[{key!r}] of endpoint {spec.name!r} is not a string", hint="write str(value)")
        if _PLATFORM_VARIABLES.fullmatch(key):
            raise DefinitionError(f"env[{key!r}] of endpoint {spec.name!r} belongs to the platform", hint="remove it")


def _check_volumes(spec: EndpointSpec) -> None:
    for volume in spec.volumes:
        if spec.datacenters and volume.datacenter and volume.datacenter not in spec.datacenters:
            raise DefinitionError(
                f"volume {volume.name!r} is in {volume.datacenter}, but endpoint {spec.name!r} runs in "
                f"{', '.join(spec.datacenters)}",
                hint="a volume is reachable in its own data centre only: make the two agree",
            )


def _check_engine(spec: EndpointSpec) -> None:
    if spec.kind is Kind.EMBEDDING and (spec.engine is None or spec.engine.type != "embedding"):
        raise DefinitionError(
            f"embedding endpoint {spec.name!r} has no embedding model",
            hint='write weights=Weights("organisation/name") or engine=Embedding(Weights("organisation/name"))',
        )
    if spec.engine is not None and spec.load_balanced:
        raise DefinitionError(
            f"load-balanced endpoint {spec.name!r} cannot have an engine: engines answer jobs from a queue",
            hint="leave the routes out: the engine's OpenAI routes are below /openai/v1 of the endpoint",
        )


def _check_load_balancing(spec: EndpointSpec) -> None:
    if not spec.load_balanced:
        return
    if spec.kind not in (Kind.CPU, Kind.GPU):
        raise DefinitionError(
            f"{spec.kind} endpoint {spec.name!r} cannot be load-balanced: it works on jobs from a queue",
            hint="make the HTTP routes of a cpu_endpoint or gpu_endpoint, and call this one from there",
        )
    if spec.scaler_type is not ScalerType.REQUEST_COUNT:
        raise DefinitionError(
            f"scaler_type={spec.scaler_type.value!r} of load-balanced endpoint {spec.name!r} needs a queue, "
            "and it has none",
            hint="leave scaler_type out: workers follow the number of requests, scaler_value for each",
        )
    if spec.execution_timeout_ms > catalog.LOAD_BALANCED_TIMEOUT_MS:
        raise DefinitionError(
            f"execution_timeout_ms={spec.execution_timeout_ms!r} of load-balanced endpoint {spec.name!r} is out of "
            "range",
            hint=f"the platform ends a request after {catalog.LOAD_BALANCED_TIMEOUT_MS:,} milliseconds; longer work "
            "belongs into a queue: decorate a function with @cpu_endpoint or @gpu_endpoint",
        )


_CHECKS = (
    _check_name, _check_compute, _check_counts, _check_timeouts, _check_types, _check_env, _check_volumes,
    _check_engine, _check_load_balancing,
)  # fmt: skip
