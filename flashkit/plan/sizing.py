"""What a language model needs of a GPU's memory: its weights, its KV cache, and how many sessions fit beside them.

Pure arithmetic on a model's own `config.json`. Nothing is looked up in a table of models, because such tables are
copied with their mistakes: a well-known one gives Llama-2-70B 0.4 GB of KV cache for 4,096 tokens and 25 sessions on
an 80 GB card, while the formula printed beside it makes 1.34 GB, and the weights alone are 138 GB.

Activations, CUDA graphs and what the driver takes are in `overhead`; figures here leave them out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flashkit.catalog import VOLUME_SIZE_GB
from flashkit.plan.figures import GB, Figure, format_bytes
from flashkit.plan.model_shape import BYTES_OF, ModelShape, normal_dtype

PLANNED_SHARE: Final = 0.8
"""The 80 % rule: plan for four fifths of the sessions that fit, as the rest is for bursts and longer answers."""
MEMORY_UTILIZATION: Final = 0.9
"""Chosen: the share of a GPU's memory that vLLM may use, where its option does not say. Releases have 0.9 or 0.92."""
BITS_OF: Final[Mapping[str, float]] = {
    "fp8": 8, "int8": 8, "w8a8": 8, "fbgemm_fp8": 8, "modelopt": 8,
    # 4-bit numbers with a 16-bit scale and a 4-bit zero point for each group of 128.
    "awq": 4 + 20 / 128, "gptq": 4 + 20 / 128, "int4": 4 + 20 / 128, "w4a16": 4 + 20 / 128,
    "bitsandbytes": 4.5,  # a 32-bit scale for each 64
    "mxfp4": 4.25, "gpt_oss_mxfp4": 4.25,  # an 8-bit scale for each 32
    "nvfp4": 4.5, "modelopt_fp4": 4.5,  # an 8-bit scale for each 16
}  # fmt: skip
"""Bits of one quantised weight, its share of scales included."""
BLOCK_TOKENS: Final = 16
"""A session's KV cache grows by blocks of so many tokens: vLLM's default on GPUs."""
_ABOUT_AS_MANY: Final = 1.5
VOLUME_HEADROOM: Final = 1.2
"""Chosen: a volume is planned a fifth larger than the weights, for a second small model and unfinished downloads."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """How many sessions of one length fit beside the weights."""

    room: Figure
    """Memory that is left for the KV cache; below 0 where the weights alone do not fit."""
    most: Figure
    planned: Figure
    """By the 80 % rule."""


def weights_bytes(shape: ModelShape, *, quantization: str | None = None, dtype: str | None = None) -> Figure:
    """Return the size of the weights, as they are on disk or quantised in another way."""
    method = quantization or shape.quantization
    wide = BYTES_OF[normal_dtype(dtype) or shape.dtype]
    bits = bits_of(method) if method else None
    if bits is None:
        return Figure(shape.parameters * wide, "bytes", f"{_billions(shape.parameters)} parameters x {wide} bytes")
    size = shape.body_parameters * bits / 8 + shape.embedding_parameters * wide
    return Figure(
        math.ceil(size), "bytes",
        f"{_billions(shape.body_parameters)} parameters x {bits:.3g} bits of {method} / 8 + "
        f"{_billions(shape.embedding_parameters)} of the vocabulary x {wide} bytes",
    )  # fmt: skip


def weights_bytes_of(parameters: float, *, quantization: str | None = None, dtype: str | None = None) -> Figure:
    """Return about the size of weights of which only the number of parameters is known."""
    bits = bits_of(quantization) if quantization else None
    wide = BYTES_OF[normal_dtype(dtype) or "bfloat16"]
    if bits is None:
        return Figure(parameters * wide, "bytes", f"{_billions(parameters)} parameters x {wide} bytes")
    return Figure(
        math.ceil(parameters * bits / 8), "bytes",
        f"{_billions(parameters)} parameters x {bits:.3g} bits of {quantization} / 8",
    )  # fmt: skip


def kv_bytes_per_token(shape: ModelShape, *, kv_dtype: str | None = None, gpu_count: int = 1) -> Figure:
    """Return what one more token keeps in the KV cache of a session that is longer than any sliding window.

    Args:
        shape: The model.
        kv_dtype: vLLM's `kv_cache_dtype`; the model's own type by default.
        gpu_count: GPUs that share the model; the figure is that of one of them.
    """
    layer = _layer(shape, kv_dtype, gpu_count)
    layers = _of_all(shape.full_layers, shape.layers, "layers")
    each = f"2 x {layers} x {layer.words}" if shape.latent_dim is None else f"{layers} x {layer.words}"
    return Figure(shape.full_layers * layer.bytes, "bytes per token", each)


def kv_bytes(
    shape: ModelShape,
    tokens: int,
    *,
    kv_dtype: str | None = None,
    gpu_count: int = 1,
    batched_tokens: int = 0,
    block_tokens: int = 1,
) -> Figure:
    """Return the KV cache of one session with so many tokens, its prompt and answer together.

    Args:
        shape: The model.
        tokens: Length of the session.
        kv_dtype: vLLM's `kv_cache_dtype`; the model's own type by default.
        gpu_count: GPUs that share the model; the figure is that of one of them.
        batched_tokens: Tokens of steps that are under way: layers with a window keep them too.
        block_tokens: The cache grows by so many tokens; of a model with windows its layers are grouped then too, and
            the last group of each kind is filled up, as vLLM does.
    """
    layer = _layer(shape, kv_dtype, gpu_count)
    full_layers, window_layers = _grouped(shape) if block_tokens > 1 else (shape.full_layers, shape.window_layers)
    kept, per_token = _rounded_up(tokens, block_tokens), full_layers * layer.bytes
    value = per_token * kept
    formula = f"{per_token:,.0f} bytes per token x {kept:,} tokens" if full_layers else ""
    if shape.window is not None:
        seen = min(tokens, max(shape.window, shape.window - 1 + batched_tokens))
        blocks = _rounded_up(seen, block_tokens) + (block_tokens if block_tokens > 1 else 0)  # it may begin within one
        value += window_layers * layer.bytes * blocks
        formula += f"{' + ' * bool(formula)}{window_layers} layers x {layer.bytes:,.0f} bytes x {blocks:,} tokens"
        formula += f" of a window of {shape.window:,}"
    if shape.state_layers:
        value += shape.state_layers * shape.state_bytes / gpu_count
        formula += f"{' + ' * bool(formula)}{shape.state_layers} layers x {format_bytes(shape.state_bytes)} of state"
    return Figure(value, "bytes", formula)


def longest_context(shape: ModelShape, room_bytes: float, *, kv_dtype: str | None = None) -> int:
    """Return the tokens of the longest session that fits into so many bytes of KV cache."""
    longest = shape.max_tokens or 1 << 24
    if kv_bytes(shape, longest, kv_dtype=kv_dtype).value <= room_bytes:
        return longest
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        if kv_bytes(shape, middle, kv_dtype=kv_dtype).value <= room_bytes:
            low = middle
        else:
            high = middle
    return low


def sessions_that_fit(
    weights: Figure,
    kv_cache: Figure,
    *,
    vram_gb: float,
    gpu_count: int = 1,
    memory_utilization: float = MEMORY_UTILIZATION,
) -> Sessions:
    """Return how many sessions fit on a worker, and how many to plan for.

    Args:
        weights: All of them; tensor parallelism spreads them over the GPUs.
        kv_cache: Of one session.
        vram_gb: Memory of one GPU.
        gpu_count: GPUs of a worker.
        memory_utilization: The share of it that the engine may use.
    """
    usable = usable_bytes(vram_gb, gpu_count=gpu_count, memory_utilization=memory_utilization)
    room = Figure(usable.value - weights.value, "bytes", f"{usable.formula} - {weights.amount} of weights")
    count = max(0, math.floor(room.value / kv_cache.value))
    most = Figure(count, "sessions", f"({room.formula}) / {kv_cache.amount} each, rounded down")
    planned = Figure(
        math.floor(PLANNED_SHARE * count), "sessions", f"{PLANNED_SHARE:.0%} of {count}, rounded down"
    )  # the 80 % rule
    return Sessions(room, most, planned)


def usable_bytes(vram_gb: float, *, gpu_count: int = 1, memory_utilization: float = MEMORY_UTILIZATION) -> Figure:
    """Return the memory that an engine may use on a worker."""
    cards = f"{gpu_count} x " if gpu_count > 1 else ""
    return Figure(
        vram_gb * GB * gpu_count * memory_utilization, "bytes",
        f"{cards}{vram_gb:g} GB x {memory_utilization:g} gpu_memory_utilization",
    )  # fmt: skip


def volume_gb(weights: Figure) -> Figure:
    """Return the size of a network volume for these weights: in steps of 10 GB, of 50 GB above 100."""
    size = weights.value * VOLUME_HEADROOM / GB
    step = 10 if size <= 100 else 50  # noqa: PLR2004 - a round number
    rounded = max(VOLUME_SIZE_GB.low, math.ceil(size / step) * step)
    return Figure(rounded, "GB", f"{weights.amount} x {VOLUME_HEADROOM:g}, in steps of {step} GB")


def seats_for(sessions: int) -> range:
    """Return the `max_num_seqs` to choose from for so many expected sessions: 1.5 to 2 times as many."""
    return range(math.ceil(1.5 * sessions), 2 * sessions + 1)


# ------------------------------------------------------------------ names


_SIZE_IN_NAME: Final = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)
_METHOD_IN_NAME: Final = (
    ("nvfp4", r"nvfp4"), ("mxfp4", r"mxfp4"), ("awq", r"awq"), ("gptq", r"gptq"), ("w4a16", r"w4a16"),
    ("bitsandbytes", r"bnb|bitsandbytes"), ("fp8", r"fp8"), ("w8a8", r"w8a8"),
    ("int4", r"int4|4[-_]?bit"), ("int8", r"int8|8[-_]?bit"),
)  # fmt: skip


def parameters_in_name(name: str) -> float | None:
    """Return how many parameters a model's name says it has: 8e9 for `Qwen/Qwen3-8B`; None where it says nothing.

    Experts are multiplied, `8x7B` counts as 56 billion: such models share some layers, so it is a little too much.
    """
    found = _SIZE_IN_NAME.search(name)
    if found is None:
        return None
    scale = 1e9 if found[3].upper() == "B" else 1e6
    return float(found[2]) * scale * int(found[1] or 1)


def quantization_in_name(name: str) -> str | None:
    """Return the quantisation that a model's name tells of: `awq` for `Qwen/Qwen3-8B-AWQ`."""
    repository = name.rpartition("/")[2]
    return next((method for method, text in _METHOD_IN_NAME if re.search(text, repository, re.IGNORECASE)), None)


def bits_of(method: str) -> float | None:
    """Return the bits of one weight of a quantisation method; None for a method that is not known."""
    return BITS_OF.get(method) or BITS_OF.get(method.removesuffix("_marlin"))


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a token keeps in one layer, on one GPU."""

    bytes: float
    words: str


def _layer(shape: ModelShape, kv_dtype: str | None, gpu_count: int) -> _Layer:
    size = _kv_width(kv_dtype, shape.dtype)
    if shape.latent_dim is not None:  # every GPU keeps all of it
        return _Layer(shape.latent_dim * size, f"{shape.latent_dim} latent x {size:g} bytes")
    heads = math.ceil(shape.kv_heads / gpu_count)  # with more GPUs than heads some keep the same ones
    return _Layer(
        2 * heads * shape.head_dim * size, f"{heads} KV heads x {shape.head_dim} head dim x {size:g} bytes"
    )  # fmt: skip


def _grouped(shape: ModelShape) -> tuple[int, int]:
    """Return the layers with full attention and with a window, as vLLM pads them to groups of one size.

    Groups are as large as the smaller kind, or as the larger one where both are about as many
    (vllm/v1/core/kv_cache_utils.py, 0.32).
    """
    full, windowed = shape.full_layers, shape.window_layers
    if not full or not windowed:
        return full, windowed
    least, most = min(full, windowed), max(full, windowed)
    size = most if most < _ABOUT_AS_MANY * least else least
    return _rounded_up(full, size), _rounded_up(windowed, size)


def _of_all(count: int, total: int, what: str) -> str:
    return f"{count} {what}" if count == total else f"{count} of {total} {what}"


def _rounded_up(tokens: int, block: int) -> int:
    return math.ceil(tokens / block) * block


def _kv_width(kv_dtype: str | None, dtype: str) -> float:
    if kv_dtype and kv_dtype.startswith(("fp8", "int8")):
        return 1
    if kv_dtype and kv_dtype.startswith("nvfp4"):
        return BITS_OF["nvfp4"] / 8
    return BYTES_OF[normal_dtype(kv_dtype) or dtype]


def _billions(count: float) -> str:
    return f"{count / 1e9:.4g} billion" if count >= 1e9 else f"{count / 1e6:.4g} million"  # noqa: PLR2004
