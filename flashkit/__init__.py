"""flashkit: AI agents on Runpod Serverless.

Decorate functions and classes to make workers, run the whole platform on your own machine with
`flashkit dev`, and ship the same code. Importing the package loads nothing else: names are resolved
on first use, so neither pydantic nor runpod is imported until a worker needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashkit.catalog import DataCenter, GpuPool, GpuType
    from flashkit.client import Client, JobHandle
    from flashkit.decorators import cpu_endpoint, embedding_endpoint, gpu_endpoint, orchestrator_endpoint
    from flashkit.endpoint import Endpoint, EngineEndpoint
    from flashkit.engines import VLLM, Embedding, ScriptedLLM
    from flashkit.errors import (
        ConfigurationError,
        DefinitionError,
        EngineDied,
        EngineError,
        EngineRefusal,
        ErrorReport,
        FlashkitError,
        HandlerError,
        InputError,
        JobCancelled,
        JobError,
        JobFailed,
        JobNotFound,
        JobTimedOut,
        OutputError,
        PlatformError,
        SessionError,
        StepError,
    )
    from flashkit.settings import Settings
    from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds
    from flashkit.worker.engines.embedding.embed import Embed, Embedded
    from flashkit.worker.engines.llm import LLM
    from flashkit.worker.job import JobContext, current_job
    from flashkit.worker.main import serve
    from flashkit.worker.sessions import Session, effect_key

__version__ = "0.1.0"

_HOMES = {
    "catalog": ("DataCenter", "GpuPool", "GpuType"),
    "client": ("Client", "JobHandle"),
    "decorators": ("cpu_endpoint", "embedding_endpoint", "gpu_endpoint", "orchestrator_endpoint"),
    "endpoint": ("Endpoint", "EngineEndpoint"),
    "engines": ("VLLM", "Embedding", "ScriptedLLM"),
    "errors": (
        "ConfigurationError", "DefinitionError", "EngineDied", "EngineError", "EngineRefusal", "ErrorReport",
        "FlashkitError", "HandlerError", "InputError", "JobCancelled", "JobError", "JobFailed", "JobNotFound",
        "JobTimedOut", "OutputError", "PlatformError", "SessionError", "StepError",
    ),
    "settings": ("Settings",),
    "spec": ("EndpointSpec", "EngineSpec", "Kind", "NetworkVolume", "ScalerType", "Weights", "WorkerBounds"),
    "worker.engines.embedding.embed": ("Embed", "Embedded"),
    "worker.engines.llm": ("LLM",),
    "worker.job": ("JobContext", "current_job"),
    "worker.main": ("serve",),
    "worker.sessions": ("Session", "effect_key"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in plain order, VLLM among the rest
    "Client",
    "ConfigurationError",
    "DataCenter",
    "DefinitionError",
    "Embed",
    "Embedded",
    "Embedding",
    "Endpoint",
    "EndpointSpec",
    "EngineDied",
    "EngineEndpoint",
    "EngineError",
    "EngineRefusal",
    "EngineSpec",
    "ErrorReport",
    "FlashkitError",
    "GpuPool",
    "GpuType",
    "HandlerError",
    "InputError",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobTimedOut",
    "Kind",
    "LLM",
    "NetworkVolume",
    "OutputError",
    "PlatformError",
    "ScalerType",
    "ScriptedLLM",
    "Session",
    "SessionError",
    "Settings",
    "StepError",
    "VLLM",
    "Weights",
    "WorkerBounds",
    "__version__",
    "cpu_endpoint",
    "current_job",
    "effect_key",
    "embedding_endpoint",
    "gpu_endpoint",
    "orchestrator_endpoint",
    "serve",
]


if not TYPE_CHECKING:  # type checkers would believe that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'flashkit' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"flashkit.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
