"""Shapes of real models: parameters, attention of all kinds, and configs that say too little."""

from __future__ import annotations

from typing import Any

import pytest

from flashkit.errors import ConfigurationError
from flashkit.plan.model_shape import read_shape
from flashkit.plan.sizing import kv_bytes, kv_bytes_per_token, longest_context, volume_gb, weights_bytes
from tests.plan.configs import (
    DEEPSEEK_V3,
    GEMMA_3_12B,
    GPT_OSS_20B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    MINI_LM,
    MISTRAL_7B_V0_1,
    NEMOTRON_H,
    QWEN_2_5_0_5B,
    QWEN_3_8B,
    QWEN_3_235B,
    QWEN_3_NEXT,
)


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        # What the models' own cards say.
        (LLAMA_3_8B, 8.03, 8.03),
        (LLAMA_3_70B, 70.6, 70.6),
        (QWEN_3_8B, 8.2, 8.2),
        (QWEN_3_235B, 235, 22),
        (QWEN_2_5_0_5B, 0.49, 0.49),
        (DEEPSEEK_V3, 671, 37),
        (GPT_OSS_20B, 20.9, 3.6),
        (GEMMA_3_12B, 11.8, 11.8),
        (QWEN_3_NEXT, 80, 3),
        (MINI_LM, 0.0226, 0.0226),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_parameters_are_what_the_models_card_says(config: dict[str, Any], billions: float, active: float):
    shape = read_shape(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    met = (shape.active_parameters or 0) + shape.embedding_parameters
    assert met / 1e9 == pytest.approx(active, rel=0.3 if active < billions else 0.03)


def test_latent_attention_is_kept_whole_on_every_gpu():
    shape = read_shape(DEEPSEEK_V3)
    assert kv_bytes_per_token(shape).value == kv_bytes_per_token(shape, gpu_count=8).value == 61 * 576 * 2


def test_kv_heads_are_split_and_then_repeated():
    shape = read_shape(QWEN_3_235B)
    each = [kv_bytes_per_token(shape, gpu_count=count).value for count in (1, 2, 4, 8)]
    assert each == [192_512, 96_256, 48_128, 48_128]
    assert "1 KV heads" in kv_bytes_per_token(shape, gpu_count=8).formula


@pytest.mark.parametrize(
    ("config", "windowed", "window"),
    [
        (GEMMA_3_12B, 40, 1024),  # 5 of 6
        (GPT_OSS_20B, 12, 128),  # by layer_types
        (MISTRAL_7B_V0_1, 32, 4096),  # all
        (QWEN_3_8B, 0, None),
        (QWEN_2_5_0_5B, 0, None),  # has a window and does not use it
        ({**QWEN_2_5_0_5B, "use_sliding_window": True, "max_window_layers": 20}, 4, 32768),
        ({**LLAMA_3_8B, "sliding_window": 4096}, 0, None),  # Llama has none, whatever its config says
        ({**LLAMA_3_8B, "attention_chunk_size": 8192, "layer_types": ["chunked_attention"] * 24 +
          ["full_attention"] * 8}, 24, 8192),
    ],
)  # fmt: skip
def test_layers_with_a_window_are_known(config: dict[str, Any], windowed: int, window: int | None):
    shape = read_shape(config)
    assert (shape.window_layers, shape.window) == (windowed, window)


def test_a_window_keeps_no_more_than_it_sees():
    shape = read_shape(GEMMA_3_12B)
    layer = 2 * 8 * 256 * 2
    short, long = kv_bytes(shape, 512), kv_bytes(shape, 32_768)
    assert short.value == 48 * layer * 512
    assert long.value == 8 * layer * 32_768 + 40 * layer * 1024
    assert long.formula == (
        "65,536 bytes per token x 32,768 tokens + 40 layers x 8,192 bytes x 1,024 tokens of a window of 1,024"
    )
    assert "8 of 48 layers" in kv_bytes_per_token(shape).formula


def test_steps_that_are_under_way_are_kept_too_and_blocks_are_whole():
    shape = read_shape(GEMMA_3_12B)
    layer = 2 * 8 * 256 * 2
    figure = kv_bytes(shape, 10_000, batched_tokens=2048, block_tokens=16)
    assert figure.value == 8 * layer * 10_000 + 40 * layer * (3072 + 16)  # 1024 - 1 + 2048, whole blocks and one more


@pytest.mark.parametrize(
    ("full", "windowed", "kept"),
    [(8, 40, (8, 40)), (10, 52, (10, 60)), (13, 12, (13, 13)), (2, 5, (2, 6)), (5, 2, (6, 2))],
)
def test_layers_are_filled_up_to_groups_of_one_size_as_vllm_does(full: int, windowed: int, kept: tuple[int, int]):
    kinds = ["full_attention"] * full + ["sliding_attention"] * windowed
    shape = read_shape({**GEMMA_3_12B, "num_hidden_layers": full + windowed, "layer_types": kinds})
    layer = 2 * 8 * 256 * 2
    assert kv_bytes(shape, 16_000, block_tokens=16).value == layer * (kept[0] * 16_000 + kept[1] * 1040)
    assert kv_bytes(shape, 16_000).value == layer * (full * 16_000 + windowed * 1024)


def test_a_model_that_only_slides_keeps_the_same_for_any_length():
    shape = read_shape(MISTRAL_7B_V0_1)
    assert kv_bytes_per_token(shape).value == 0
    assert kv_bytes(shape, 8192).value == kv_bytes(shape, 32_768).value == 32 * 4096 * 4096
    assert kv_bytes(shape, 8192).formula == "32 layers x 4,096 bytes x 4,096 tokens of a window of 4,096"


def test_states_are_of_constant_size():
    shape = read_shape(QWEN_3_NEXT)
    assert (shape.full_layers, shape.state_layers) == (12, 36)
    assert shape.state_bytes == 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    grown = kv_bytes(shape, 2000).value - kv_bytes(shape, 1000).value
    assert grown == 1000 * 12 * 2 * 2 * 256 * 2
    assert "36 layers x 2.15 MB of state" in kv_bytes(shape, 1000).formula


def test_mamba_layers_are_told_from_a_pattern():
    shape = read_shape(NEMOTRON_H)
    assert (shape.full_layers, shape.state_layers) == (1, 5)
    assert shape.state_bytes == 128 * 64 * 128 * 4


@pytest.mark.parametrize("config", [LLAMA_3_8B, GEMMA_3_12B, MISTRAL_7B_V0_1, DEEPSEEK_V3, QWEN_3_NEXT])
def test_the_longest_context_is_the_last_one_that_fits(config: dict[str, Any]):
    shape = read_shape(config)
    room = kv_bytes(shape, 1000).value
    longest = longest_context(shape, room)
    assert kv_bytes(shape, longest).value <= room
    assert longest == shape.max_tokens or kv_bytes(shape, longest + 1).value > room
    assert longest_context(shape, 1e15) == shape.max_tokens


def test_an_fp4_cache_is_smaller_than_an_fp8_one():
    shape = read_shape(LLAMA_3_8B)
    sizes = [kv_bytes_per_token(shape, kv_dtype=kind).value for kind in ("auto", "fp8", "nvfp4")]
    assert sizes == [131_072, 65_536, 131_072 * 4.5 / 16]


def test_a_volume_for_140_gb_of_weights_has_200():
    assert volume_gb(weights_bytes(read_shape(LLAMA_3_70B))).value == 200
    assert volume_gb(weights_bytes(read_shape(QWEN_3_8B))).value == 20
    assert volume_gb(weights_bytes(read_shape(MINI_LM))).value == 10  # the smallest there is
    assert volume_gb(weights_bytes(read_shape(LLAMA_3_70B))).formula == "141 GB x 1.2, in steps of 50 GB"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "config.json has no num_hidden_layers"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "is_encoder_decoder=true .model_type 't5'"),
        ({**DEEPSEEK_V3, "kv_lora_rank": "wide"}, "kv_lora_rank='wide'"),
        ({**LLAMA_3_8B, "vocab_size": None}, "config.json has no vocab_size"),
    ],
)
def test_a_config_that_says_too_little_is_refused_with_the_field(config: dict[str, Any], told: str):
    with pytest.raises(ConfigurationError, match=told):
        read_shape(config)
