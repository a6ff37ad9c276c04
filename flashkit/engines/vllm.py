"""`VLLM(...)`: a language model served by vLLM inside the worker.

Every option of vLLM is accepted by its own Python name (`max_model_len=8192` is `--max-model-len 8192`). Names, types
and values are checked here against a table of vLLM's options, so an app file needs no vLLM to be imported, and what
cannot work is refused before a worker is paid for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from flashkit.catalog import ENGINE_CONCURRENCY, nearest_names
from flashkit.engines.vllm_checks import checked_arguments, is_number, is_text, is_whole, plain_value
from flashkit.errors import DefinitionError
from flashkit.spec import EngineSpec, Weights

Mode = Literal["in_process", "serve", "remote"]
WARMUP_PATHS: Final = ("completion", "chat", "stream", "logprobs", "structured", "tools", "embedding")
"""What a warm-up can run by name; by default all that the model can do."""
DEFAULT_WARMUP_SECONDS: Final = 120.0
_MAKE_SESSIONS_FIT: Final = 8
"""Batches of a multiple of this size are what vLLM captures CUDA graphs for."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """The options of a `VLLM(...)`, as they travel in `EngineSpec.options`."""

    mode: Mode = "in_process"
    """`remote` where a `base_url` stands in for the engine."""
    base_url: str | None = None
    api_key_env: str | None = None
    """Environment variable with the key of the server at `base_url`."""
    served_model_name: tuple[str, ...] = ()
    """Names that requests may give the model; the first one is the model's own."""
    warmup: tuple[str | Mapping[str, Any], ...] | None = None
    """Names of `WARMUP_PATHS` and inputs of jobs; None for every path that fits."""
    warmup_seconds: float = DEFAULT_WARMUP_SECONDS
    lora_modules: Mapping[str, Weights | str] = field(default_factory=dict)
    """Adapters by the name that requests ask for: weights, or a folder."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own options by name."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> VllmOptions:
        """Read the options of an `EngineSpec`."""
        values = dict(options)
        values["served_model_name"] = tuple(values.get("served_model_name", ()))
        if values.get("warmup") is not None:
            values["warmup"] = tuple(values["warmup"])
        values["lora_modules"] = {
            name: module if isinstance(module, str) else Weights(**module)
            for name, module in values.get("lora_modules", {}).items()
        }
        return cls(**values)


def VLLM(  # noqa: N802 - reads as the engine it declares
    weights: Weights,
    *,
    mode: Literal["in_process", "serve"] = "in_process",
    base_url: str | None = None,
    api_key_env: str | None = None,
    served_model_name: str | Sequence[str] | None = None,
    expected_sessions: int | None = None,
    lora_modules: Mapping[str, Weights | str] | None = None,
    warmup: Sequence[str | Mapping[str, Any]] | None = None,
    warmup_seconds: float = DEFAULT_WARMUP_SECONDS,
    **options: Any,
) -> EngineSpec:
    """Return a vLLM engine: continuous batching, and every OpenAI route, in the worker's own process.

    Args:
        weights: The model.
        mode: `serve` starts `vllm serve` beside the worker and passes requests on; it works with any vLLM release.
        base_url: An OpenAI-compatible server that stands in for the engine, on a machine that cannot run vLLM.
        api_key_env: Environment variable with that server's key; the key itself belongs into no app file.
        served_model_name: Names that requests may give the model, the weights' name by default.
        expected_sessions: Conversations that one worker holds at a time: vLLM then runs 1.5 to 2 times as many
            requests side by side, where `max_num_seqs` does not say how many.
        lora_modules: LoRA adapters by the model name that requests ask for: weights, or a folder in the image.
        warmup: What to run before the first job: some of `completion`, `chat`, `stream`, `logprobs`, `structured`,
            `tools`, `embedding`, and inputs of jobs; everything that the model can do by default, nothing with `[]`.
        warmup_seconds: What does not fit into this time is left out, with a warning.
        options: vLLM's own options by name: `max_model_len`, `quantization`, `enable_prefix_caching`,
            `tool_call_parser`, `speculative_config`, …

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> engine = VLLM(Weights("Qwen/Qwen3-8B-AWQ"), max_model_len=8192, quantization="awq", expected_sessions=20)
        >>> engine.options["arguments"]
        {'max_model_len': 8192, 'quantization': 'awq', 'max_num_seqs': 32}
    """
    if not isinstance(weights, Weights):
        raise DefinitionError(f"VLLM({weights!r}) has no weights", hint='write VLLM(Weights("organisation/name"))')
    arguments = checked_arguments(options)
    names = _names(served_model_name, weights)
    adapters = _adapters(lora_modules, names, arguments)
    if expected_sessions is not None:
        arguments.setdefault("max_num_seqs", _seats(expected_sessions))
    if "tool_call_parser" in arguments:
        arguments.setdefault("enable_auto_tool_choice", True)
    checked = VllmOptions(
        mode=_mode(mode, base_url),
        base_url=base_url.rstrip("/") if base_url else None,
        api_key_env=_key_variable(api_key_env, base_url),
        served_model_name=names,
        warmup=_warmup(warmup),
        warmup_seconds=_warmup_seconds(warmup_seconds),
        lora_modules=adapters,
        arguments=arguments,
    )
    return EngineSpec("vllm", weights, checked.to_json())


def fit_to_gpus(engine: EngineSpec, gpu_count: int) -> EngineSpec:
    """Return a vLLM engine that is spread over the endpoint's GPUs; any other engine as it is.

    Raises:
        DefinitionError: It asks for more or fewer GPUs than a worker has.
    """
    if engine.type != "vllm" or engine.options.get("mode") == "remote" or not is_whole(gpu_count) or gpu_count < 1:
        return engine  # a number of GPUs that is none is refused where the endpoint is checked
    arguments = dict(engine.options["arguments"])
    others = math.prod(arguments.get(name, 1) for name in ("pipeline_parallel_size", "data_parallel_size"))
    wanted = arguments.get("tensor_parallel_size", max(1, gpu_count // others)) * others
    if wanted != gpu_count:
        asked = ", ".join(f"{name}={arguments[name]}" for name in _PARALLEL if name in arguments)
        raise DefinitionError(
            f"VLLM(..., {asked}) uses {wanted} GPUs, but gpu_count={gpu_count} gives a worker another number",
            hint=f"write gpu_count={wanted}, or leave tensor_parallel_size out: it follows gpu_count",
        )
    if gpu_count > others:
        arguments["tensor_parallel_size"] = gpu_count // others
    return dataclasses.replace(engine, options={**engine.options, "arguments": arguments})


def default_concurrency(engine: EngineSpec) -> int:
    """Return how many jobs a worker with this engine runs at a time, where the endpoint does not say."""
    seats = engine.options.get("arguments", {}).get("max_num_seqs") if engine.type == "vllm" else None
    return seats if is_whole(seats) else ENGINE_CONCURRENCY


_PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def _names(given: str | Sequence[str] | None, weights: Weights) -> tuple[str, ...]:
    names = (weights.name,) if given is None else (given,) if isinstance(given, str) else tuple(given)
    if not names or not all(is_text(name) and name for name in names):
        raise DefinitionError(
            f"VLLM(..., served_model_name={given!r}) is not a name", hint="give a text, or a list of texts"
        )
    return names


def _adapters(
    given: Mapping[str, Weights | str] | None, names: Sequence[str], arguments: dict[str, Any]
) -> dict[str, Weights | str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DefinitionError(
            f"VLLM(..., lora_modules={given!r}) is not a mapping", hint='write {"name": Weights("organisation/name")}'
        )
    adapters: dict[str, Weights | str] = {}
    for name, module in given.items():
        if not is_text(name) or not name or name in names:
            raise DefinitionError(
                f"VLLM(..., lora_modules={{{name!r}: ...}}) cannot have that name",
                hint=f"give it one that requests can tell from the model's: {', '.join(names)}",
            )
        if not isinstance(module, Weights | str | PathLike):
            raise DefinitionError(
                f"VLLM(..., lora_modules={{{name!r}: {module!r}}}) is not an adapter",
                hint='give Weights("organisation/name"), or the path of a folder',
            )
        adapters[name] = module if isinstance(module, Weights) else str(fspath(module))
    if adapters and arguments.setdefault("enable_lora", True) is False:
        raise DefinitionError(
            "VLLM(..., enable_lora=False) cannot have lora_modules",
            hint="leave enable_lora out: the modules switch it on",
        )
    return adapters


def _seats(sessions: Any) -> int:
    """Return how many requests run side by side for so many sessions: 1.5 to 2 times as many."""
    if not is_whole(sessions) or sessions < 1:
        raise DefinitionError(f"VLLM(..., expected_sessions={sessions!r}) is not a whole number of at least 1")
    least = math.ceil(1.5 * sessions)
    even = math.ceil(least / _MAKE_SESSIONS_FIT) * _MAKE_SESSIONS_FIT
    return even if even <= 2 * sessions else least


def _mode(mode: Any, base_url: Any) -> Mode:
    if mode not in ("in_process", "serve"):
        raise DefinitionError(f"VLLM(..., mode={mode!r}) is not a mode", hint="it is 'in_process' or 'serve'")
    if base_url is None:
        return cast("Mode", mode)
    parts = urlsplit(base_url) if isinstance(base_url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise DefinitionError(
            f"VLLM(..., base_url={base_url!r}) is not an address", hint="write it as 'http://127.0.0.1:8000/v1'"
        )
    if mode == "serve":
        raise DefinitionError(
            f"VLLM(..., mode='serve', base_url={base_url!r}) asks for two servers",
            hint="leave mode out: with a base_url no vLLM is started",
        )
    return "remote"


def _key_variable(name: Any, base_url: str | None) -> str | None:
    if name is None:
        return None
    if not is_text(name) or not name.isidentifier() or not name.isupper():
        raise DefinitionError(
            "VLLM(..., api_key_env=...) is not the name of an environment variable",  # it may be the key: not shown
            hint="name a variable, FLASHKIT_LLM_KEY for example, and set it where the worker runs",
        )
    if base_url is None:
        raise DefinitionError(
            f"VLLM(..., api_key_env={name!r}) has no server that asks for a key",
            hint="add its base_url, or leave it out",
        )
    return name


def _warmup(given: Any) -> tuple[str | Mapping[str, Any], ...] | None:
    if given is None:
        return None
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise DefinitionError(
            f"VLLM(..., warmup={given!r}) is not a list", hint='write warmup=["chat", {"prompt": "Hello"}]'
        )
    for each in given:
        if isinstance(each, Mapping) and each:
            plain_value("warmup", each)
        elif each not in WARMUP_PATHS:
            near = nearest_names(str(each), WARMUP_PATHS, limit=1)
            raise DefinitionError(
                f"VLLM(..., warmup=[{each!r}]) is nothing to run" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"name some of {', '.join(WARMUP_PATHS)}, or give the input of a job",
            )
    return tuple(given)


def _warmup_seconds(seconds: Any) -> float:
    if not is_number(seconds) or not 0 < seconds < math.inf:
        raise DefinitionError(
            f"VLLM(..., warmup_seconds={seconds!r}) is not a time", hint="give seconds above 0; warmup=[] runs nothing"
        )
    return float(seconds)
