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
from flashkit.worker.engines.processor import has_bfloat16

log = logging.getLogger(__name__)

_LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be; vLLM takes 16 by itself."""
_DEFAULT_LORA_RANK: Final = 16
_CPU_KV_BYTES: Final = (256 << 20, 4 << 30)
"""Least and most memory for the KV cache on a CPU; in between, an eighth of what is free."""
_HALVES: Final = ("bfloat16", "float16")


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
    """Return options for a machine without a GPU: little memory, and a start without compiling anything."""
    import psutil  # comes with vLLM

    free = psutil.virtual_memory().available
    least, most = _CPU_KV_BYTES
    defaults: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": max(least, min(most, free // 8)),
        "max_model_len": "auto",
    }
    if "dtype" not in given and "quantization" not in given and _is_quicker_whole(model, free):
        defaults["dtype"] = "float32"
    return defaults


def _is_quicker_whole(model: Path, free_bytes: int) -> bool:
    """Return True when the weights are stored in half precision, which this processor is slow with, and would fit."""
    if has_bfloat16() is not False:
        return False
    try:
        facts = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return False  # vLLM says what is wrong with it
    if not isinstance(facts, dict) or "quantization_config" in facts:
        return False
    stored = facts.get("dtype", facts.get("torch_dtype"))
    whole_bytes = 2 * sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if stored not in _HALVES or whole_bytes > free_bytes // 2:
        return False
    log.info("the model is computed in float32: this processor has no instructions for %s", stored)
    return True


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
