"""What is known of the model that an endpoint loads: from its files where they are on this machine, else from its name.

An estimate that rests on a name says so in its formula. Rules that need more than a size look at `shape`, which is
there only with a `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.catalog import GPUS, Gpu
from flashkit.checks.project import Endpoint, Project
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure
from flashkit.plan.gpu_generations import models_of
from flashkit.plan.model_shape import ModelShape, read_shape
from flashkit.plan.sizing import (
    MEMORY_UTILIZATION,
    parameters_in_name,
    quantization_in_name,
    weights_bytes,
    weights_bytes_of,
)
from flashkit.spec import Weights

LANGUAGE_MODEL: Final = "vllm"
FROM_NAME: Final = "a size by the name of the weights"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model of one endpoint."""

    weights: Weights
    on_disk: Figure | None
    """Size of the files; None where nothing tells it."""
    in_memory: Figure | None
    """Size of the weights on the GPU, quantised as the options say."""
    shape: ModelShape | None = None
    quantization: str | None = None
    """Of the files: by their config, else by their name."""
    is_from_name: bool = False
    """True where the sizes rest on the model's name."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own options; empty for other engines."""

    @property
    def memory_utilization(self) -> float:
        """The share of the GPU's memory that the engine may use."""
        return float(self.option("gpu_memory_utilization") or MEMORY_UTILIZATION)

    def option(self, name: str) -> Any:
        """Return an option of vLLM's, None where it is not given."""
        return self.arguments.get(name)


def model_of(endpoint: Endpoint, project: Project) -> LoadedModel | None:
    """Return the model that the endpoint's engine loads; None where there is none, or another server has it."""
    engine = endpoint.spec.engine
    if engine is None or engine.weights is None or engine.options.get("mode") == "remote":
        return None
    arguments = engine.options.get("arguments", {}) if engine.type == LANGUAGE_MODEL else {}
    asked, dtype = arguments.get("quantization"), arguments.get("dtype")
    local = project.models.get(engine.weights.name)
    shape = _shape(local.config) if local else None
    if shape is not None:
        files = local.weights_bytes if local else 0
        disk = Figure(files, "bytes", f"the files beside {local.file}") if local and files else weights_bytes(shape)
        memory = weights_bytes(shape, quantization=asked, dtype=dtype)
        return LoadedModel(engine.weights, disk, memory, shape, shape.quantization, arguments=arguments)
    return _by_name(engine.weights, asked, dtype, arguments)


def possible_gpus(endpoint: Endpoint) -> list[Gpu]:
    """Return the models that a worker of this endpoint may get, in order of preference."""
    return [GPUS[gpu] for gpu in models_of(endpoint.spec.gpu)]


def smallest_gpu(endpoint: Endpoint) -> Gpu | None:
    """Return the one with the least memory among them."""
    return min(possible_gpus(endpoint), key=lambda gpu: gpu.vram_gb, default=None)


def short_name(gpu: Gpu) -> str:
    """Return a GPU's name as people say it."""
    return gpu.type.value.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _by_name(weights: Weights, asked: str | None, dtype: str | None, arguments: Mapping[str, Any]) -> LoadedModel:
    parameters, method = parameters_in_name(weights.name), quantization_in_name(weights.name)
    if parameters is None:
        return LoadedModel(weights, None, None, quantization=method, arguments=arguments)
    disk = weights_bytes_of(parameters, quantization=method)
    memory = weights_bytes_of(parameters, quantization=asked or method, dtype=dtype)
    return LoadedModel(weights, disk, memory, quantization=method, is_from_name=True, arguments=arguments)


def _shape(config: Mapping[str, Any]) -> ModelShape | None:
    try:
        return read_shape(config)
    except ConfigurationError:  # an embedding model of a form of its own, say
        return None
