"""FK40x: models that are there in time, stay the same, and fit the GPU with their KV cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from flashkit.checks.images import is_baked
from flashkit.checks.models import FROM_NAME, LoadedModel, model_of, possible_gpus, short_name, smallest_gpu
from flashkit.checks.project import Endpoint, Project
from flashkit.checks.rule import SHIPPED, Problem, Severity, endpoint_rule
from flashkit.plan.figures import GB, Figure
from flashkit.plan.gpu_generations import CAPABILITIES, NATIVE_FP4, NATIVE_FP8
from flashkit.plan.model_shape import ModelShape
from flashkit.plan.sizing import (
    kv_bytes,
    longest_context,
    parameters_in_name,
    sessions_that_fit,
    usable_bytes,
    volume_gb,
    weights_bytes,
    weights_bytes_of,
)

_LARGE: Final = 4 * GB
"""Chosen, for "a few GB": more than a minute of download at what was measured of image pulls."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_READ_ONLY_METHODS: Final = ("awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "gguf")
"""Quantisations that vLLM reads and does not make (docs.vllm.ai, features/quantization)."""
_FP8: Final = ("fp8", "fbgemm_fp8", "modelopt", "ptpc_fp8")
_FP4: Final = ("nvfp4", "modelopt_fp4")


@endpoint_rule(
    "FK401",
    "weights-near-workers",
    Severity.WARNING,
    what="Weights of more than a few GB are on a volume, in the image or in the platform's cache.",
    why="Otherwise each cold start downloads them, on a GPU that is paid meanwhile, and a hub that is down takes your "
    "endpoint with it.",
    fix='Write volume=NetworkVolume("models", size=...), or model_cache = true in flashkit.toml, or bring them into '
    "the image with `flashkit weights pull`.",
    environments=SHIPPED,
)
def weights_near_workers(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Large models of endpoints without a volume."""
    model = model_of(endpoint, project)
    if model is None or model.on_disk is None or model.weights.path or model.weights.s3:
        return
    if endpoint.spec.volumes or endpoint.has_model_cache:
        return
    if model.on_disk.value > _LARGE and not is_baked(model.weights, project):
        yield Problem(
            f"endpoint `{endpoint.name}` loads {model.weights.name}, {model.on_disk}, and has no volume for it",
            fix=f'Write volume=NetworkVolume("models", size={volume_gb(model.on_disk).value:.0f}), or model_cache = '
            "true in flashkit.toml, or bring them into the image with `flashkit weights pull`.",
        )


@endpoint_rule(
    "FK402",
    "weights-pinned",
    Severity.WARNING,
    what="Weights are pinned to a commit.",
    why="Without a revision each worker takes what the branch has on its day: two workers of one endpoint may answer "
    "differently, and a changed tokenizer or chat template breaks them without a deployment.",
    fix='Write Weights("organisation/name", revision="<40 hexadecimal digits>").',
    environments=SHIPPED,
)
def weights_pinned(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Weights without a revision, or with a branch."""
    del project
    weights = endpoint.spec.weights
    if weights is None or weights.path is not None or _COMMIT.fullmatch(weights.revision or ""):
        return
    said = f"the branch or tag {weights.revision!r}, which may move" if weights.revision else "no revision"
    yield Problem(
        f"endpoint `{endpoint.name}` takes {weights.name} with {said}",
        severity=Severity.NOTE if weights.revision else None,
    )


@endpoint_rule(
    "FK407",
    "model-fits-gpu",
    Severity.ERROR,
    what="The weights and the KV cache of one full session fit into the smallest GPU that the endpoint may get.",
    why="Otherwise the engine ends at start with an error about memory, after the weights were loaded and paid for. "
    "Sizing "
    "for the weights alone is the usual mistake: the KV cache of a long context is as large again.",
    fix="Quantise, lower max_model_len, raise gpu_count, or take a larger GPU.",
)
def model_fits_gpu(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Weights or one session's KV cache over the memory."""
    model, gpu = model_of(endpoint, project), smallest_gpu(endpoint)
    if model is None or model.in_memory is None or gpu is None:
        return
    count = endpoint.spec.gpu_count
    usable = usable_bytes(gpu.vram_gb, gpu_count=count, memory_utilization=model.memory_utilization)
    basis = f"; {FROM_NAME}" if model.is_from_name else ""
    if model.in_memory.value > usable.value:
        yield Problem(
            f"endpoint `{endpoint.name}` needs {model.in_memory} for the weights of {model.weights.name}, and "
            f"{short_name(gpu)} gives the engine {usable}{basis}",
            fix=_way_to_fit(model, usable),
        )
        return
    cache, shape = _full_session(model), model.shape
    if cache is not None and shape is not None and model.in_memory.value + cache.value > usable.value:
        room = Figure(usable.value - model.in_memory.value, "bytes", "what is left")
        longest = _longest(shape, room, model.option("kv_cache_dtype"))
        yield Problem(
            f"endpoint `{endpoint.name}` leaves {room.amount} for the KV cache on {short_name(gpu)}, "
            f"{usable.formula} less "
            f"{model.in_memory.amount} of weights, and one session of full length needs {cache}",
            fix=f"Write max_model_len={longest} or less, or quantise, or take a larger GPU.",
        )


@endpoint_rule(
    "FK408",
    "sessions-fit-gpu",
    Severity.WARNING,
    what="An engine takes no more requests at a time than its KV cache has room for.",
    why="Beyond that vLLM preempts: it throws the cache of a running request away and computes it anew later. "
    "Everybody "
    "gets slower, and first tokens come late.",
    fix="Lower max_num_seqs to 1.5 to 2 times the sessions that fit, or lower max_model_len.",
)
def sessions_fit_gpu(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """`max_num_seqs` far above what fits."""
    model, gpu = model_of(endpoint, project), smallest_gpu(endpoint)
    seats = model.option("max_num_seqs") if model else None
    cache = _full_session(model) if model else None
    if model is None or model.in_memory is None or gpu is None or cache is None or not seats:
        return
    fit = sessions_that_fit(
        model.in_memory, cache,
        vram_gb=gpu.vram_gb, gpu_count=endpoint.spec.gpu_count, memory_utilization=model.memory_utilization,
    )  # fmt: skip
    if fit.most.value >= 1 and seats > 2 * fit.planned.value:
        yield Problem(
            f"endpoint `{endpoint.name}` takes {seats} requests at a time, and {fit.most.amount} of full length fit on "
            f"{short_name(gpu)}, {fit.most.formula}; plan for {fit.planned}"
        )


@endpoint_rule(
    "FK409",
    "quantisation-fits-gpu",
    Severity.WARNING,
    what="The GPU can compute in the numbers that the weights are quantised to.",
    why="GPUs multiply fp8 natively from Ada and Hopper on, 4-bit floating point from Blackwell on. Older ones keep "
    "the weights small and unpack them to 16 bits for every product: the memory is saved, the speed is not there.",
    fix="Take an L40S, RTX 4090, H100 or newer for fp8, or awq or gptq weights for Ampere.",
)
def quantisation_fits_gpu(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """fp8 on Ampere, 4-bit floating point before Blackwell."""
    model = model_of(endpoint, project)
    method = (model.option("quantization") or model.quantization or "") if model else ""
    needed = NATIVE_FP8 if method in _FP8 else NATIVE_FP4 if method in _FP4 else None
    old = [gpu for gpu in possible_gpus(endpoint) if needed is not None and CAPABILITIES[gpu.type] < needed]
    if old and needed is not None:
        names = ", ".join(f"{short_name(gpu)} ({CAPABILITIES[gpu.type]})" for gpu in old)
        yield Problem(
            f"endpoint `{endpoint.name}` has {method} weights, which need compute capability {needed}, and may get "
            f"{names}"
        )


@endpoint_rule(
    "FK410",
    "quantisation-is-in-files",
    Severity.ERROR,
    what="Where an engine is told of a quantisation that it only reads, the weights have it.",
    why="vLLM makes fp8 and bitsandbytes weights while it loads, but it only reads awq, gptq, gguf and "
    "compressed-tensors. With plain weights it ends at start and says that a config file is missing.",
    fix="Name weights that are quantised already, such as organisation/name-AWQ, or write quantization='fp8'.",
)
def quantisation_is_in_files(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """`quantization=` that the weights do not have."""
    model = model_of(endpoint, project)
    asked = model.option("quantization") if model else None
    if model is None or asked not in _READ_ONLY_METHODS or model.quantization is not None:
        return
    is_known = model.shape is not None
    how = "their config.json has no quantization_config" if is_known else "their name does not say so"
    yield Problem(
        f"endpoint `{endpoint.name}` has quantization={asked!r}, and {model.weights.name} seems to be plain: {how}",
        severity=None if is_known else Severity.WARNING,
    )


def _full_session(model: LoadedModel) -> Figure | None:
    """Return the KV cache of one session of the longest length; None where the shape or the length is not known."""
    length = model.option("max_model_len") or (model.shape.max_tokens if model.shape else None)
    if model.shape is None or not isinstance(length, int) or length < 1:  # vLLM takes "auto" and -1 too
        return None
    return kv_bytes(model.shape, length, kv_dtype=model.option("kv_cache_dtype"))


def _longest(shape: ModelShape, room: Figure, kv_dtype: str | None) -> int:
    """Return the context that there is room for, in steps of a thousand tokens where it is that long."""
    tokens = longest_context(shape, room.value, kv_dtype=kv_dtype)
    return tokens // 1024 * 1024 or tokens


def _way_to_fit(model: LoadedModel, usable: Figure) -> str | None:
    """Return which quantisation would make the weights fit, None where none would."""
    parameters = parameters_in_name(model.weights.name)
    for method, words in (("fp8", "quantization='fp8'"), ("awq", "4-bit weights (awq or gptq)")):
        if model.shape is not None:
            smaller = weights_bytes(model.shape, quantization=method)
        elif parameters is not None:
            smaller = weights_bytes_of(parameters, quantization=method)
        else:
            return None
        if smaller.value < min(usable.value, model.in_memory.value if model.in_memory else 0):
            return f"Take {words}: {smaller}; or a larger GPU, or more of them with gpu_count."
    return "Take a larger GPU, or more of them with gpu_count: not even 4-bit weights would fit."
