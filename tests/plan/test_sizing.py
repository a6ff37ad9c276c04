"""Sizes of models, computed: the published figures, and the checkpoints that are here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.catalog import GPUS, GpuPool, GpuType
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure, format_bytes
from flashkit.plan.gpu_generations import CAPABILITIES, NATIVE_FP8, Capability, models_of
from flashkit.plan.model_shape import read_shape
from flashkit.plan.sizing import (
    BITS_OF,
    kv_bytes,
    kv_bytes_per_token,
    parameters_in_name,
    quantization_in_name,
    seats_for,
    sessions_that_fit,
    usable_bytes,
    weights_bytes,
    weights_bytes_of,
)

MODELS = Path(__file__).parents[2] / ".flashkit" / "models"
LLAMA_2_70B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}  # fmt: skip


def changed(**fields: Any) -> dict[str, Any]:
    """Return the config of Llama-2-70B with other fields; None takes one out."""
    return {name: value for name, value in {**LLAMA_2_70B, **fields}.items() if value is not None}


def test_the_kv_cache_of_llama_2_70b_is_what_its_formula_says_and_not_what_a_copied_table_says():
    """A widely copied table has 0.4 GB for 4,096 tokens beside this formula, and 25 sessions on one 80 GB card."""
    shape = read_shape(LLAMA_2_70B)
    each = kv_bytes_per_token(shape)
    assert each.value == 327_680
    assert each.formula == "2 x 80 layers x 8 KV heads x 128 head dim x 2 bytes"
    session = kv_bytes(shape, 4096)
    assert session.value == 1_342_177_280
    assert session.amount == "1.34 GB"
    assert sessions_that_fit(weights_bytes(shape), session, vram_gb=80).most.value == 0


def test_half_precision_weights_of_70_billion_parameters_are_140_gb():
    assert weights_bytes_of(70e9).value == 140e9
    exact = weights_bytes(read_shape(LLAMA_2_70B))
    assert exact.value == pytest.approx(137.95e9, rel=1e-3)  # the model has 68.98 billion
    assert "68.98 billion parameters x 2 bytes" in exact.formula


def test_four_bits_halve_the_weights_again_and_more():
    shape = read_shape(LLAMA_2_70B)
    sizes = [weights_bytes(shape, quantization=method).value for method in (None, "fp8", "awq")]
    assert sizes[1] < 0.51 * sizes[0]
    assert sizes[2] < 0.54 * sizes[1]


def test_sessions_fit_beside_quantised_weights_and_four_fifths_of_them_are_planned():
    shape = read_shape(LLAMA_2_70B)
    weights = weights_bytes(shape, quantization="awq")
    fit = sessions_that_fit(weights, kv_bytes(shape, 4096), vram_gb=80)
    assert fit.most.value == int((72e9 - weights.value) // 1_342_177_280) == 26
    assert fit.planned.value == 20
    assert str(fit.planned) == "20 sessions (80% of 26, rounded down)"
    assert list(seats_for(20)) == list(range(30, 41))


def test_weights_and_cache_are_spread_over_the_gpus_of_a_worker():
    shape = read_shape(LLAMA_2_70B)
    fit = sessions_that_fit(weights_bytes(shape), kv_bytes(shape, 4096), vram_gb=80, gpu_count=2)
    assert usable_bytes(80, gpu_count=2).formula == "2 x 80 GB x 0.9 gpu_memory_utilization"
    assert fit.room.value == pytest.approx(144e9 - 137.95e9, rel=1e-2)
    assert fit.most.value == 4


def test_the_cache_shrinks_with_its_own_type_and_with_fewer_kv_heads():
    plain = kv_bytes_per_token(read_shape(changed(num_key_value_heads=None)))
    assert plain.value == 8 * 327_680  # every head has its own
    assert kv_bytes_per_token(read_shape(LLAMA_2_70B), kv_dtype="fp8_e4m3").value == 163_840
    assert kv_bytes_per_token(read_shape(LLAMA_2_70B), kv_dtype="auto").value == 327_680
    assert kv_bytes_per_token(read_shape(LLAMA_2_70B), kv_dtype="bfloat16").value == 327_680


def test_latent_attention_keeps_one_narrow_entry_for_all_heads():
    shape = read_shape(changed(kv_lora_rank=512, qk_rope_head_dim=64, num_hidden_layers=61))
    figure = kv_bytes_per_token(shape)
    assert figure.value == 61 * 576 * 2
    assert figure.formula == "61 layers x 576 latent x 2 bytes"


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_2_70B, 68_976_648_192),
        # GPT-2: two matrices in the feed-forward, tied embeddings, names of its own; biases and positions not counted.
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
          "n_positions": 1024, "tie_word_embeddings": True}, 123_551_232),
        # Mixtral 8x7B: eight experts, of which each has a row of the router.
        ({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "vocab_size": 32000},
         46_702_792_704),
    ],
)  # fmt: skip
def test_parameters_are_counted_from_the_shape(config: dict[str, Any], parameters: int):
    assert read_shape(config).parameters == parameters


@pytest.mark.skipif(
    not MODELS.is_dir() and not os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"), reason="scripts/fetch_models was not run"
)
def test_a_real_checkpoint_has_the_size_that_is_computed():
    folder = MODELS / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    shape = read_shape(json.loads((folder / "config.json").read_text()))
    size = (folder / "model.safetensors").stat().st_size
    assert shape.parameters == 134_515_008
    assert weights_bytes(shape).value == pytest.approx(size, rel=1e-3)  # the file has a header too
    assert kv_bytes_per_token(shape).value == 2 * 30 * 3 * 64 * 2


def test_the_language_model_inside_a_model_that_sees_is_what_counts():
    shape = read_shape({"model_type": "llava", "text_config": LLAMA_2_70B, "vision_config": {"hidden_size": 1024}})
    assert shape.layers == 80
    assert shape.parameters == 68_976_648_192


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, "w4a16"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, "w8a8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_weights_that_are_quantised_already_are_known_as_such(quantization: Any, method: str | None):
    shape = read_shape(changed(quantization_config=quantization))
    assert shape.quantization == method
    plain = weights_bytes(read_shape(LLAMA_2_70B)).value
    assert (weights_bytes(shape).value < 0.6 * plain) == (method is not None)


def test_an_unknown_quantisation_counts_as_none():
    shape = read_shape(LLAMA_2_70B)
    assert weights_bytes(shape, quantization="torchao").value == weights_bytes(shape).value
    assert weights_bytes_of(1e9, quantization="torchao").value == 2e9


def test_another_type_makes_plain_weights_larger():
    shape = read_shape(LLAMA_2_70B)
    assert weights_bytes(shape, dtype="float32").value == 2 * weights_bytes(shape).value
    assert weights_bytes(shape, dtype="auto").value == weights_bytes(shape).value
    assert weights_bytes_of(1e9, dtype="float").value == 4e9


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_hidden_layers", None, "config.json has no num_hidden_layers"),
        ("hidden_size", None, "config.json has no hidden_size"),
        ("num_attention_heads", 0, "num_attention_heads=0"),
        ("vocab_size", "many", "vocab_size='many'"),
        ("num_key_value_heads", -1, "num_key_value_heads=-1"),
        ("intermediate_size", True, "intermediate_size=True"),
        ("kv_lora_rank", 0, "kv_lora_rank=0"),
    ],
)
def test_a_config_without_the_needed_fields_is_refused_with_the_field(field: str, value: Any, told: str):
    with pytest.raises(ConfigurationError, match=told):
        read_shape(changed(**{field: value}))


@pytest.mark.parametrize(
    ("name", "parameters", "method"),
    [
        ("Qwen/Qwen3-8B", 8e9, None),
        ("Qwen/Qwen3-8B-AWQ", 8e9, "awq"),
        ("Qwen/Qwen3-30B-A3B-FP8", 30e9, "fp8"),
        ("meta-llama/Llama-2-70b-chat-hf", 70e9, None),
        ("TheBloke/Llama-2-7B-GPTQ", 7e9, "gptq"),
        ("unsloth/llama-3.1-8b-bnb-4bit", 8e9, "bitsandbytes"),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9, None),
        ("HuggingFaceTB/SmolLM2-1.7B", 1.7e9, None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6, None),
        ("RedHatAI/Qwen3-8B-quantized.w4a16", 8e9, "w4a16"),
        ("nvidia/Llama-3.3-70B-Instruct-NVFP4", 70e9, "nvfp4"),
        ("sentence-transformers/all-MiniLM-L6-v2", None, None),
        ("openai-community/gpt2", None, None),
        ("microsoft/phi-4", None, None),
    ],
)
def test_names_tell_sizes_and_quantisations(name: str, parameters: float | None, method: str | None):
    assert parameters_in_name(name) == parameters
    assert quantization_in_name(name) == method


@given(
    layers=st.integers(1, 200), heads=st.integers(1, 128), ratio=st.integers(1, 16), tokens=st.integers(1, 1_000_000),
    worker=st.tuples(st.integers(8, 200), st.integers(1, 8)),
)  # fmt: skip
def test_more_of_anything_never_fits_more_sessions(
    layers: int, heads: int, ratio: int, tokens: int, worker: tuple[int, int]
):
    vram, count = worker
    config = changed(num_hidden_layers=layers, num_attention_heads=heads * ratio, num_key_value_heads=heads)
    shape = read_shape({**config, "head_dim": 64})
    fit = sessions_that_fit(weights_bytes(shape), kv_bytes(shape, tokens), vram_gb=vram, gpu_count=count)
    more = sessions_that_fit(weights_bytes(shape), kv_bytes(shape, tokens + 1), vram_gb=vram, gpu_count=count)
    assert 0 <= fit.planned.value <= fit.most.value
    assert more.most.value <= fit.most.value
    assert fit.most.value * kv_bytes(shape, tokens).value <= max(0.0, fit.room.value)


def test_figures_are_shown_with_three_digits_and_their_formula():
    assert [format_bytes(size) for size in (12, 1_234, 999e6, 1.344e9, 138.2e9, 2e12)] == [
        "12 bytes", "1.23 kB", "999 MB", "1.34 GB", "138 GB", "2 TB",
    ]  # fmt: skip
    assert str(Figure(327_680, "bytes per token", "2 x 80")) == "328 kB per token (2 x 80)"
    assert Figure(-66e9, "bytes", "").amount == "-66 GB"


def test_every_gpu_has_a_generation_and_pools_are_written_out():
    assert set(CAPABILITIES) == set(GpuType) == set(GPUS)
    assert CAPABILITIES[GpuType.NVIDIA_A100_80GB_PCIe] < NATIVE_FP8 <= CAPABILITIES[GpuType.NVIDIA_L4]
    assert Capability(9, 0) < Capability(10, 0)
    assert models_of((GpuPool.AMPERE_80, GpuType.NVIDIA_A100_SXM4_80GB, GpuType.NVIDIA_L4)) == (
        GpuType.NVIDIA_A100_80GB_PCIe, GpuType.NVIDIA_A100_SXM4_80GB, GpuType.NVIDIA_L4,
    )  # fmt: skip


def test_every_quantisation_is_smaller_than_half_precision():
    assert all(4 <= bits <= 8 for bits in BITS_OF.values())
