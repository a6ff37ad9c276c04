"""A model's shape, read from its own `config.json`: what its memory and its speed depend on.

Nothing is looked up in a table of models. What families leave out of their configs (tied embeddings, the form of the
feed-forward) is told apart by `model_type`, as the `transformers` library does. Biases, position embeddings and the
encoders of models that see or hear are not counted; where the files are there, their own size is used instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashkit.errors import ConfigurationError

BYTES_OF: Final[Mapping[str, int]] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_DTYPE_NAMES: Final[Mapping[str, str]] = {"half": "float16", "float": "float32"}
ENCODERS: Final = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "new",
     "nomic_bert", "roberta", "xlm-roberta"}
)  # fmt: skip
"""Model types that read a text as a whole and keep nothing between requests: embedding models."""
_PLAIN_FEED_FORWARD: Final = frozenset(
    {"albert", "bert", "bloom", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "falcon", "gpt2",
     "gpt_bigcode", "gpt_neox", "gptj", "mpnet", "mpt", "opt", "phi", "roberta", "starcoder2", "xlm-roberta"}
)  # fmt: skip
"""Model types whose feed-forward has two matrices; all others have a third one, the gate."""
_TIED: Final = frozenset(
    {"bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text",
     "gpt2", "gpt_bigcode", "mpt", "opt", "starcoder2"}
) | ENCODERS  # fmt: skip
"""Model types that use the input's vocabulary for the output too where their config does not say."""
_EVERY_SO_MANY: Final[Mapping[str, int]] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Of so many layers one has full attention and the others a window, in configs from before `layer_types`."""
_ALL_SLIDE: Final = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})
"""Model types all of whose layers have the window of `sliding_window`."""
_WINDOWED: Final = ("sliding_attention", "chunked_attention")
_STATEFUL: Final = ("linear_attention", "mamba", "recurrent", "conv")
_STATE_NUMBER_BYTES: Final = 4
"""States of linear attention and Mamba are kept as 32-bit numbers: what vLLM's specs of Qwen3-Next and Mamba2 say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory depends on."""

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
    window: int | None = None
    """Tokens that layers with a sliding window look back."""
    window_layers: int = 0
    state_layers: int = 0
    """Layers that keep a state of constant size instead of a KV cache: linear attention, Mamba."""
    state_bytes: int = 0
    """Of one such layer."""
    active_parameters: int | None = None
    """Those of the body that one token meets, where it meets a few experts only."""
    hidden: int = 0
    inner: int = 0
    """Width of the feed-forward that one token meets."""
    vocabulary: int = 0
    is_encoder: bool = False
    """It reads a text as a whole and keeps nothing between requests."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.body_parameters + self.embedding_parameters

    @property
    def full_layers(self) -> int:
        """Layers that keep every token."""
        return self.layers - self.window_layers - self.state_layers


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes.

    Raises:
        ConfigurationError: A field that the arithmetic needs is missing or is not a number, or it is no such model.
    """
    text = config.get("text_config")
    facts = {**config, **text} if isinstance(text, Mapping) else dict(config)  # models that see have one inside
    if facts.get("is_encoder_decoder"):
        raise ConfigurationError(
            f"config.json has is_encoder_decoder=true (model_type {facts.get('model_type')!r}), which is not planned",
            hint="plans are for language models that answer token by token, and for embedding models",
        )
    layers = _number(facts, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _number(facts, "num_attention_heads", "n_head", "n_heads")
    hidden = _number(facts, "hidden_size", "n_embd", "d_model", "dim")
    kv_heads = _number(facts, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=heads)
    vocabulary = _number(facts, "vocab_size")
    body = _Body(facts, layers, heads, kv_heads, hidden)
    is_tied = facts.get("tie_word_embeddings", facts.get("model_type") in _TIED)
    window, window_layers = _windows(facts, layers)
    state_layers = _stateful_layers(facts, layers)
    return ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=body.head_dim,
        body_parameters=body.parameters(),
        active_parameters=body.parameters(_number(facts, "num_experts_per_tok", "top_k_experts", default=1)),
        embedding_parameters=vocabulary * hidden * (1 if is_tied else 2),
        dtype=_dtype(facts),
        max_tokens=_number(facts, "max_position_embeddings", "n_positions", "seq_length", default=0) or None,
        quantization=_quantization(facts.get("quantization_config")),
        latent_dim=_latent_dim(facts),
        window=window,
        window_layers=min(window_layers, layers - state_layers),
        state_layers=state_layers,
        state_bytes=_state_bytes(facts) if state_layers else 0,
        hidden=hidden,
        inner=body.inner,
        vocabulary=vocabulary,
        is_encoder=facts.get("model_type") in ENCODERS,
    )


def normal_dtype(dtype: str | None) -> str | None:
    """Return the full name of a type; None for `auto` and for what is not known."""
    name = _DTYPE_NAMES.get(dtype or "", dtype or "").removeprefix("torch.")
    return name if name in BYTES_OF else None


# ------------------------------------------------------------------ parameters


class _Body:
    """Counts the parameters of the layers."""

    def __init__(self, facts: Mapping[str, Any], layers: int, heads: int, kv_heads: int, hidden: int) -> None:
        self._facts, self._layers, self._hidden = facts, layers, hidden
        self._heads, self._kv_heads = heads, kv_heads
        self.head_dim = _number(facts, "head_dim", default=hidden // heads)
        self._experts = _number(facts, "num_local_experts", "num_experts", "n_routed_experts", default=1)
        self._matrices = 2 if facts.get("model_type") in _PLAIN_FEED_FORWARD else 3
        self._dense = _number(facts, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim", default=4 * hidden)
        self._width = _number(facts, "moe_intermediate_size", default=self._dense)
        self._shared = self._shared_width()

    @property
    def inner(self) -> int:
        """Width of the feed-forward that one token meets."""
        if self._experts == 1:
            return self._dense
        return self._width * _number(self._facts, "num_experts_per_tok", default=1) + self._shared

    def parameters(self, experts: int | None = None) -> int:
        """Return those of all layers; with so many experts of each only."""
        dense_layers = self._dense_layers()
        plain = self._matrices * self._hidden * self._dense
        total = dense_layers * plain + (self._layers - dense_layers) * self._mixture(experts)
        stateful = _stateful_layers(self._facts, self._layers)
        total += (self._layers - stateful) * self._attention() + stateful * self._linear_attention()
        return total + self._layers * 2 * self._hidden + self._hidden

    def _mixture(self, experts: int | None) -> int:
        kept = self._experts if experts is None else min(experts, self._experts)
        each = self._matrices * self._hidden * self._width
        router = self._experts * self._hidden  # a row for each
        return kept * each + router + self._matrices * self._hidden * self._shared

    def _shared_width(self) -> int:
        if count := _number(self._facts, "n_shared_experts", default=0):
            return count * self._width
        return _number(self._facts, "shared_expert_intermediate_size", default=0)

    def _dense_layers(self) -> int:
        if self._experts == 1:
            return self._layers
        first = _number(self._facts, "first_k_dense_replace", default=0)
        step = _number(self._facts, "interleave_moe_layer_step", "decoder_sparse_step", default=1)
        return min(self._layers, first) + (self._layers - self._layers // step)

    def _attention(self) -> int:
        hidden, heads = self._hidden, self._heads
        if _latent_dim(self._facts) is None:
            gate = heads if self._facts.get("attn_output_gate") else 0
            return hidden * self.head_dim * (2 * heads + 2 * self._kv_heads + gate)
        rope = _number(self._facts, "qk_rope_head_dim", default=0)
        plain = _number(self._facts, "qk_nope_head_dim", default=self.head_dim)
        value = _number(self._facts, "v_head_dim", default=self.head_dim)
        rank, narrow = _number(self._facts, "kv_lora_rank"), _number(self._facts, "q_lora_rank", default=0)
        width = heads * (plain + rope)
        queries = narrow * (hidden + width) if narrow else hidden * width
        return queries + hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * hidden

    def _linear_attention(self) -> int:
        keys, values = _linear_widths(self._facts)
        return self._hidden * (2 * keys + 3 * values)


def _linear_widths(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return the widths of all keys and all values of a layer with linear attention; 0 where they are not told."""
    keys = _number(facts, "linear_num_key_heads", default=0) * _number(facts, "linear_key_head_dim", default=0)
    values = _number(facts, "linear_num_value_heads", default=0) * _number(facts, "linear_value_head_dim", default=0)
    return keys, values


# ------------------------------------------------------------------ attention


def _latent_dim(facts: Mapping[str, Any]) -> int | None:
    if facts.get("kv_lora_rank") is None:
        return None
    return _number(facts, "kv_lora_rank") + _number(facts, "qk_rope_head_dim", default=0)


def _layer_types(facts: Mapping[str, Any]) -> list[str]:
    kinds = facts.get("layer_types") or facts.get("layers_block_type")
    if isinstance(kinds, Sequence) and not isinstance(kinds, str):
        return [str(kind) for kind in kinds]
    if isinstance(pattern := facts.get("hybrid_override_pattern"), str):  # Nemotron-H: M a state, * attention, - none
        return ["mamba" if letter in "M-E" else "full_attention" for letter in pattern]
    if step := facts.get("full_attention_interval"):  # Qwen3-Next, where it names no types
        layers = _number(facts, "num_hidden_layers")
        return ["full_attention" if (n + 1) % step == 0 else "linear_attention" for n in range(layers)]
    return []


def _windows(facts: Mapping[str, Any], layers: int) -> tuple[int | None, int]:
    """Return the window and how many layers have it."""
    window = facts.get("sliding_window") or facts.get("attention_chunk_size")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        return None, 0
    if facts.get("use_sliding_window") is False:
        return None, 0
    count = _windowed_layers(facts, layers)
    return (window, count) if count else (None, 0)


def _windowed_layers(facts: Mapping[str, Any], layers: int) -> int:
    if kinds := _layer_types(facts):
        return sum(kind in _WINDOWED for kind in kinds)
    every = facts.get("sliding_window_pattern") or _EVERY_SO_MANY.get(str(facts.get("model_type")))
    if isinstance(every, int) and every > 0:
        return layers - layers // every
    if facts.get("use_sliding_window"):  # Qwen: the layers from this one on
        return max(0, layers - _number(facts, "max_window_layers", default=0))
    return layers if facts.get("model_type") in _ALL_SLIDE else 0


def _stateful_layers(facts: Mapping[str, Any], layers: int) -> int:
    return min(layers, sum(kind in _STATEFUL for kind in _layer_types(facts)))


def _state_bytes(facts: Mapping[str, Any]) -> int:
    keys, values = _linear_widths(facts)
    if values:
        state = values * _number(facts, "linear_key_head_dim")
        recent = (2 * keys + values) * (_number(facts, "linear_conv_kernel_dim", default=4) - 1)
        return state * _STATE_NUMBER_BYTES + recent * BYTES_OF[_dtype(facts)]
    heads = _number(facts, "mamba_num_heads", "mamba_n_heads", default=0)
    width = heads * _number(facts, "mamba_head_dim", "mamba_d_head", default=0)
    return width * _number(facts, "ssm_state_size", "mamba_d_state", default=0) * _STATE_NUMBER_BYTES


# ------------------------------------------------------------------ reading


def _number(facts: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = facts.get(name)
        if value == 0 and default == 0 and not isinstance(value, bool):
            return 0
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
