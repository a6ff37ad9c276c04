"""What a language model needs of a GPU's memory: its weights, its KV cache, and how many sessions fit beside them.

Pure arithmetic on a model's own `config.json`. Nothing is looked up in a table of models, because such tables are
copied with their mistakes: a well-known one gives Llama-2-70B 0.4 GB of KV cache for 4,096 tokens and 25 sessions on
an 80 GB card, while the formula printed beside it makes 1.34 GB, and the weights alone are 138 GB.

Not counted are activations, CUDA graphs and what the driver takes; `gpu_memory_utilization` leaves room for some of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flashkit.errors import ConfigurationError
from flashkit.plan.figures import GB, Figure

PLANNED_SHARE: Final = 0.8
"""The 80 % rule: plan for four fifths of the sessions that fit, as the rest is for bursts and longer answers."""
MEMORY_UTILIZATION: Final = 0.9
"""Chosen: the share of a GPU's memory that vLLM may use, where its option does not say. Releases have 0.9 or 0.92."""
BYTES_OF: Final[Mapping[str, int]] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_DTYPE_NAMES: Final[Mapping[str, str]] = {"half": "float16", "float": "float32"}
BITS_OF: Final[Mapping[str, float]] = {
    "fp8": 8, "int8": 8, "w8a8": 8, "fbgemm_fp8": 8, "modelopt": 8,
    # 4-bit numbers with a 16-bit scale and a 4-bit zero point for each group of 128.
    "awq": 4 + 20 / 128, "gptq": 4 + 20 / 128, "int4": 4 + 20 / 128, "w4a16": 4 + 20 / 128,
    "bitsandbytes": 4.5,  # a 32-bit scale for each 64
    "mxfp4": 4.25, "gpt_oss_mxfp4": 4.25,  # an 8-bit scale for each 32
    "nvfp4": 4.5, "modelopt_fp4": 4.5,  # an 8-bit scale for each 16
}  # fmt: skip
"""Bits of one quantised weight, its share of scales included."""
_PLAIN_FEED_FORWARD: Final = frozenset(
    {"bert", "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "mpnet", "mpt", "opt", "phi", "roberta",
     "starcoder2", "xlm-roberta"}
)  # fmt: skip
"""Model types whose feed-forward has two matrices; all others have a third one, the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory depends on, read from a model's `config.json`."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    body_parameters: int
    """Those of the layers, which quantisation makes smaller."""
    embedding_parameters: int
    """Those of the vocabulary, which stay in `dtype`."""
    dtype: str = "bfloat16"
    max_tokens: int | None = None
    """The longest context that the model was made for."""
    quantization: str | None = None
    """How the weights on disk are quantised already."""
    latent_dim: int | None = None
    """Width of the compressed KV entry of models with latent attention (MLA)."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.body_parameters + self.embedding_parameters


@dataclass(frozen=True, slots=True)
class Sessions:
    """How many sessions of one length fit beside the weights."""

    room: Figure
    """Memory that is left for the KV cache; below 0 where the weights alone do not fit."""
    most: Figure
    planned: Figure
    """By the 80 % rule."""


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes.

    Raises:
        ConfigurationError: A field that the arithmetic needs is missing or is not a number.
    """
    text = config.get("text_config")
    facts = {**config, **text} if isinstance(text, Mapping) else dict(config)  # models that see have one inside
    layers = _number(facts, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _number(facts, "num_attention_heads", "n_head", "n_heads")
    hidden = _number(facts, "hidden_size", "n_embd", "d_model")
    kv_heads = _number(facts, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=heads)
    head_dim = _number(facts, "head_dim", default=hidden // heads)
    vocabulary = _number(facts, "vocab_size") * hidden
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    return ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        body_parameters=layers * (attention + _feed_forward(facts, hidden) + 2 * hidden) + hidden,
        embedding_parameters=vocabulary * (1 if facts.get("tie_word_embeddings", False) else 2),
        dtype=_dtype(facts),
        max_tokens=_number(facts, "max_position_embeddings", "n_positions", "seq_length", default=0) or None,
        quantization=_quantization(facts.get("quantization_config")),
        latent_dim=_latent_dim(facts),
    )


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


def kv_bytes_per_token(shape: ModelShape, *, kv_dtype: str | None = None) -> Figure:
    """Return what one token keeps in the KV cache, on all GPUs of a worker together.

    Args:
        shape: The model.
        kv_dtype: vLLM's `kv_cache_dtype`; the model's own type by default.
    """
    size = _kv_width(kv_dtype, shape.dtype)
    if shape.latent_dim is not None:
        value = shape.layers * shape.latent_dim * size
        return Figure(value, "bytes per token", f"{shape.layers} layers x {shape.latent_dim} latent x {size} bytes")
    return Figure(
        2 * shape.layers * shape.kv_heads * shape.head_dim * size, "bytes per token",
        f"2 x {shape.layers} layers x {shape.kv_heads} KV heads x {shape.head_dim} head dim x {size} bytes",
    )  # fmt: skip


def kv_bytes(shape: ModelShape, tokens: int, *, kv_dtype: str | None = None) -> Figure:
    """Return the KV cache of one session with so many tokens, its prompt and answer together."""
    each = kv_bytes_per_token(shape, kv_dtype=kv_dtype)
    return Figure(each.value * tokens, "bytes", f"{each.value:,.0f} bytes per token x {tokens:,} tokens")


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


def normal_dtype(dtype: str | None) -> str | None:
    """Return the full name of a type; None for `auto` and for what is not known."""
    name = _DTYPE_NAMES.get(dtype or "", dtype or "").removeprefix("torch.")
    return name if name in BYTES_OF else None


def bits_of(method: str) -> float | None:
    """Return the bits of one weight of a quantisation method; None for a method that is not known."""
    return BITS_OF.get(method) or BITS_OF.get(method.removesuffix("_marlin"))


# ------------------------------------------------------------------ reading the config


def _number(facts: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = facts.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value is not None:
            raise ConfigurationError(
                f"{name}={value!r} in config.json is not a number of at least 1",
                hint="download the model's config anew",
            )
    if default is None:
        raise ConfigurationError(
            f"config.json has no {names[0]}, so the model's memory cannot be computed",
            hint="use the config.json of a language model",
        )
    return default


def _feed_forward(facts: Mapping[str, Any], hidden: int) -> int:
    inner = _number(facts, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    matrices = 2 if facts.get("model_type") in _PLAIN_FEED_FORWARD else 3
    experts = _number(facts, "num_local_experts", "num_experts", "n_routed_experts", default=1)
    if experts == 1:
        return matrices * hidden * inner
    width = _number(facts, "moe_intermediate_size", default=inner)
    return experts * (matrices * hidden * width + hidden)  # and a row of the router for each


def _latent_dim(facts: Mapping[str, Any]) -> int | None:
    if facts.get("kv_lora_rank") is None:
        return None
    return _number(facts, "kv_lora_rank") + _number(facts, "qk_rope_head_dim", default=0)


def _dtype(facts: Mapping[str, Any]) -> str:
    return normal_dtype(facts.get("dtype") or facts.get("torch_dtype")) or "bfloat16"


def _quantization(config: Any) -> str | None:
    if not isinstance(config, Mapping):
        return None
    method = str(config.get("quant_method") or "")
    if method == "compressed-tensors":
        return {4: "w4a16", 8: "w8a8"}.get(_compressed_bits(config))
    if method == "bitsandbytes":
        return "int8" if config.get("load_in_8bit") else method
    if method in ("awq", "gptq") and config.get("bits") == 8:  # noqa: PLR2004 - of 4 or 8
        return "int8"
    return method or None


def _compressed_bits(config: Mapping[str, Any]) -> int:
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            return int(weights["num_bits"])
    return 0


def _kv_width(kv_dtype: str | None, dtype: str) -> int:
    if kv_dtype and kv_dtype.startswith(("fp8", "int8")):
        return 1
    return BYTES_OF[normal_dtype(kv_dtype) or dtype]


def _billions(count: float) -> str:
    return f"{count / 1e9:.4g} billion" if count >= 1e9 else f"{count / 1e6:.4g} million"  # noqa: PLR2004
