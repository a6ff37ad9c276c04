"""vLLM's command line from a declaration: the same for `vllm serve` and for the engine in the worker."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from flashkit.engines.vllm import VllmOptions
from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.machine import free_memory, has_bfloat16
from flashkit.worker.weights.folders import WEIGHT_SUFFIXES, walk

log = logging.getLogger(__name__)

_QUANTIZED: Final = {"quantization_config", "compression_config"}
"""What the `config.json` of quantized weights has."""
_LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be; vLLM takes 16 by itself."""
_DEFAULT_LORA_RANK: Final = 16
_CPU_KV_BYTES: Final = (256 << 20, 4 << 30)
"""Least and most memory for the KV cache on a CPU; in between, an eighth of what is free."""


def serve_arguments(options: VllmOptions, model: Path, adapters: Mapping[str, Path], *, is_cpu: bool) -> list[str]:
    """Return the command line of a server for this model.

    Args:
        options: What was declared.
        model: The folder of the weights.
        adapters: Folders of the LoRA adapters by name.
        is_cpu: True for vLLM's CPU build, which gets defaults that a laptop can bear.

    Raises:
        ConfigurationError: An adapter is none.
    """
    arguments = {"use_tqdm_on_load": False, **options.arguments}  # a bar that redraws itself is noise in a log
    if is_cpu:
        arguments = {**cpu_defaults(model, arguments), **arguments}
    if adapters:
        arguments.setdefault("max_loras", min(len(adapters), _LORA_RANKS[0]))
        arguments.setdefault("max_lora_rank", _rank_for(adapters))
    modules = [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]
    return [
        f"--model={model}",
        *("--served-model-name", *options.served_model_name),
        *(("--lora-modules", *modules) if modules else ()),
        *render_arguments(arguments),
    ]


def render_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Return options by name as vLLM's command line has them."""
    from flashkit.vllm_options import OPTIONS

    return [text for name, value in arguments.items() for text in _render(name, value, OPTIONS.get(name, "str"))]


def resolve_files(options: VllmOptions, weights: Weights | None, settings: Settings) -> tuple[Path, dict[str, Path]]:
    """Return the folder of the weights, and those of the adapters by name.

    Raises:
        ConfigurationError: Some of them are not to be had.
    """
    from flashkit.worker.weights import read_ahead, resolve_weights

    if weights is None:
        raise ConfigurationError("a vLLM engine needs weights", hint='VLLM(Weights("organisation/name"))')
    model = resolve_weights(weights, settings)
    read_ahead(model)
    adapters = {
        name: resolve_weights(module, settings) if isinstance(module, Weights) else Path(module)
        for name, module in options.lora_modules.items()
    }
    return model, adapters


def cpu_defaults(model: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a machine without a GPU: little memory, and a start without compiling anything.

    On x86 vLLM computes in half precision by itself, whatever the weights are stored in. A processor without
    instructions for it gets float32 where that fits, and a KV cache of twice the bytes, which is as many tokens.
    """
    free = free_memory()
    least, most = _CPU_KV_BYTES
    cache_bytes = max(least, min(most, free // 8))
    defaults = {"enforce_eager": True, "kv_cache_memory_bytes": cache_bytes, "max_model_len": "auto"}
    whole_bytes = None if "dtype" in given or has_bfloat16() is not False else _bytes_in_float32(model, given)
    if whole_bytes is None:
        return defaults
    whole_cache_bytes = min(most, 2 * cache_bytes)
    if "kv_cache_memory_bytes" in given or whole_bytes + whole_cache_bytes > free // 2:
        log.info(
            "this processor has no instructions for bfloat16: dtype='float32' would be several times quicker, and take"
            " %.1f GB for the weights and twice the KV cache", whole_bytes / 1e9,
        )  # fmt: skip
        return defaults
    log.info("the model is computed in float32: this processor has no instructions for bfloat16")
    return {**defaults, "dtype": "float32", "kv_cache_memory_bytes": whole_cache_bytes}


def _bytes_in_float32(model: Path, given: Mapping[str, Any]) -> int | None:
    """Return the size of a model's weights in float32; None where they are quantized, or cannot be read."""
    try:
        facts = json.loads((model / "config.json").read_text())
        stored_bytes = sum(path.stat().st_size for path in walk(model) if path.name.endswith(WEIGHT_SUFFIXES))
    except (OSError, ValueError):  # vLLM says what is wrong with it
        return None
    if not stored_bytes or not isinstance(facts, dict) or "quantization" in given or _QUANTIZED & facts.keys():
        return None
    return stored_bytes * (1 if facts.get("dtype", facts.get("torch_dtype")) == "float32" else 2)


def _render(name: str, value: Any, kind: str) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    if kind == "switch":
        yield flag if value else "--no-" + flag[2:]
    elif kind == "flag":
        if value:
            yield flag
    elif kind in ("list", "integers"):
        yield flag
        yield from map(str, value if isinstance(value, list) else [value])
    elif kind == "repeated":
        yield from (f"{flag}={each}" for each in value)
    else:
        yield f"{flag}={value if isinstance(value, str) else json.dumps(value)}"


def _rank_for(adapters: Mapping[str, Path]) -> int:
    """Return the least rank that vLLM can be set to and all adapters fit into."""
    rank = max(_read_rank(name, folder) for name, folder in adapters.items())
    fitting = [each for each in _LORA_RANKS if each >= max(rank, _DEFAULT_LORA_RANK)]
    if not fitting:
        raise ConfigurationError(
            f"a LoRA adapter of rank {rank} is larger than vLLM can take", hint=f"the largest is {_LORA_RANKS[-1]}"
        )
    return fitting[0]


def _read_rank(name: str, folder: Path) -> int:
    file = folder / "adapter_config.json"
    try:
        return int(json.loads(file.read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(
            f"the LoRA adapter {name!r} cannot be read: {file} ({type(exc).__name__}: {exc})",
            hint="lora_modules names a folder with adapter_config.json and its weights",
        ) from exc
