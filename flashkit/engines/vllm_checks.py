"""Whether vLLM can do what a `VLLM(...)` asks for: names, types and values of its options, without importing it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any, Final, TypeGuard

from flashkit.catalog import nearest_names
from flashkit.errors import DefinitionError


def is_whole(value: object) -> TypeGuard[int]:
    """Say whether it is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Say whether it is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: object) -> TypeGuard[str]:
    """Say whether it is text."""
    return isinstance(value, str)


def _is_list_of(value: object, is_one: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(is_one, value))


def checked_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's options as JSON has them, without those that are None.

    Raises:
        DefinitionError: An option does not exist or cannot work.
    """
    arguments = {name: plain_value(name, value) for name, value in options.items() if value is not None}
    for check in (_check_names, _check_kinds, _check_choices, _check_ranges, _check_together):
        check(arguments)
    return arguments


_BELONG_ELSEWHERE: Final[Mapping[str, str]] = {
    "model": "the model is the first argument: VLLM(Weights(...))",
    "revision": 'the revision belongs to the weights: Weights("organisation/name", revision=...)',
    "download_dir": "weights are found and downloaded before vLLM starts: see FLASHKIT_WEIGHTS_DIR",
    "hf_token": "a token would be stored with the endpoint: set HF_TOKEN in the worker's environment",
    "api_key": "the platform checks keys; the engine listens to nobody but its worker",
}
_OF_A_SERVER: Final = frozenset(
    {
        "allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins", "api_server_count", "config",
        "data_parallel_address", "data_parallel_external_lb", "data_parallel_hybrid_lb",
        "data_parallel_multi_port_external_lb", "data_parallel_rank", "data_parallel_rpc_port",
        "data_parallel_size_local", "data_parallel_start_rank", "data_parallel_supervisor_port",
        "disable_access_log_for_endpoints", "disable_uvicorn_access_log", "dp_supervisor_probe_failure_threshold",
        "dp_supervisor_probe_interval_s", "dp_supervisor_probe_timeout_s", "enable_ssl_refresh", "grpc", "grpc_port",
        "h11_max_header_count", "h11_max_incomplete_event_size", "headless", "host", "master_addr", "master_port",
        "nnodes", "node_rank", "port", "root_path", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_ciphers",
        "ssl_keyfile", "uds", "uvicorn_log_level",
    }
)  # fmt: skip
"""Options of vLLM's HTTP server and of engines over several machines: a worker has neither."""
_OUR_OWN: Final = (
    "mode", "base_url", "api_key_env", "served_model_name", "expected_sessions", "lora_modules", "warmup",
    "warmup_seconds",
)  # fmt: skip


def known_options() -> tuple[str, ...]:
    """Return the names that `VLLM(...)` accepts, vLLM's own and ours."""
    from flashkit.vllm_options import OPTIONS

    return tuple(sorted({*OPTIONS, *_OUR_OWN} - _OF_A_SERVER - set(_BELONG_ELSEWHERE)))


def _check_names(arguments: Mapping[str, Any]) -> None:
    known = known_options()
    for name in arguments:
        if name in _BELONG_ELSEWHERE:
            raise DefinitionError(f"VLLM(..., {name}=...) is not an option here", hint=_BELONG_ELSEWHERE[name])
        if name in _OF_A_SERVER:
            raise DefinitionError(
                f"VLLM(..., {name}=...) is of vLLM's own server or of several machines, and a worker has neither",
                hint="leave it out: requests come from the platform's queue",
            )
        if name not in known:
            near = nearest_names(name, known)
            raise DefinitionError(
                f"VLLM has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"near it: {', '.join(near)}" if near else "vLLM's options go by their names with underscores",
            )


_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "switch": ("True or False", lambda value: isinstance(value, bool)),
    "flag": ("True or False", lambda value: isinstance(value, bool)),
    "int": ("a whole number", is_whole),
    "float": ("a number", is_number),
    "size": ("a whole number, or text such as '32k' or 'auto'", lambda value: is_whole(value) or is_text(value)),
    "str": ("text", lambda value: is_text(value) or is_whole(value)),
    "json": ("an object of JSON values", lambda value: isinstance(value, dict | list | str)),
    "list": ("a list of texts", lambda value: is_text(value) or _is_list_of(value, is_text)),
    "repeated": ("a list of texts", lambda value: _is_list_of(value, is_text)),
    "integers": ("a list of whole numbers", lambda value: _is_list_of(value, is_whole)),
}


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    from flashkit.vllm_options import OPTIONS

    for name, value in arguments.items():
        what, fits = _KINDS[OPTIONS[name]]
        if not fits(value):
            raise DefinitionError(f"VLLM(..., {name}={value!r}) has the wrong type", hint=f"it takes {what}")


def _check_choices(arguments: Mapping[str, Any]) -> None:
    from flashkit import vllm_options as table

    closed = {
        **table.CHOICES,
        "quantization": table.QUANTIZATIONS,
        "tool_call_parser": () if "tool_parser_plugin" in arguments else table.TOOL_PARSERS,
        "reasoning_parser": () if "reasoning_parser_plugin" in arguments else table.REASONING_PARSERS,
    }
    for name, value in arguments.items():
        allowed = closed.get(name, ())
        wrong = [each for each in (value if isinstance(value, list) else [value]) if allowed and each not in allowed]
        if wrong:
            near = nearest_names(str(wrong[0]), map(str, allowed))
            raise DefinitionError(
                f"VLLM(..., {name}={value!r}) is not one of vLLM's" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"it may be {', '.join(map(str, allowed))}",
            )


_AT_LEAST: Final[Mapping[str, int]] = {
    "block_size": 1, "cpu_offload_gb": 0, "data_parallel_size": 1, "kv_cache_memory_bytes": 1, "max_loras": 1,
    "max_cpu_loras": 1, "max_logprobs": -1, "max_num_batched_tokens": 1, "max_num_seqs": 1,
    "num_gpu_blocks_override": 1, "pipeline_parallel_size": 1, "seed": 0, "stream_interval": 1,
    "tensor_parallel_size": 1,
}  # fmt: skip


def _check_ranges(arguments: Mapping[str, Any]) -> None:
    for name, least in _AT_LEAST.items():
        value = arguments.get(name)
        if is_number(value) and value < least:
            raise DefinitionError(f"VLLM(..., {name}={value!r}) cannot work", hint=f"it is at least {least}")
    share = arguments.get("gpu_memory_utilization")
    if is_number(share) and not 0 < share <= 1:
        raise DefinitionError(
            f"VLLM(..., gpu_memory_utilization={share!r}) is not a share of the GPU's memory",
            hint="give a number above 0 and up to 1; vLLM takes 0.9 by itself",
        )
    length = arguments.get("max_model_len")
    if is_number(length) and length < 1 and length != -1:
        raise DefinitionError(
            f"VLLM(..., max_model_len={length!r}) leaves no room for a token",
            hint="give at least 1, or 'auto' for as many as fit into memory",
        )


def _check_together(arguments: Mapping[str, Any]) -> None:
    if arguments.get("enable_auto_tool_choice") and "tool_call_parser" not in arguments:
        raise DefinitionError(
            "VLLM(..., enable_auto_tool_choice=True) needs to know how the model writes tool calls",
            hint="add tool_call_parser='hermes', or the one that the model's card names",
        )
    length, batch = arguments.get("max_model_len"), arguments.get("max_num_batched_tokens")
    chunked = arguments.get("enable_chunked_prefill", True)
    if not chunked and isinstance(length, int) and isinstance(batch, int) and batch < length:
        raise DefinitionError(
            f"VLLM(..., max_num_batched_tokens={batch}) is below max_model_len={length} without chunked prefill",
            hint="raise it to max_model_len, or leave enable_chunked_prefill on",
        )


def plain_value(name: str, value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        DefinitionError: JSON has no such value.
    """
    try:
        return json.loads(json.dumps(value, default=_path_text, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise DefinitionError(
            f"VLLM(..., {name}={value!r}) is not a JSON value: {exc}", hint="give text, numbers, lists or objects"
        ) from exc


def _path_text(value: object) -> str | list[Any]:
    if isinstance(value, PathLike):
        return str(fspath(value))
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
