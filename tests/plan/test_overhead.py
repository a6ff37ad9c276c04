"""The account of a GPU's memory, against what vLLM said of itself in public logs."""

from __future__ import annotations

import pytest

from flashkit.catalog import GPUS, GpuType
from flashkit.plan.gpu_facts import GIB, SPEEDS, seen_gib
from flashkit.plan.model_shape import read_shape
from flashkit.plan.overhead import Batching, activation_bytes, default_batching, overhead_bytes
from flashkit.plan.sizing import kv_bytes_per_token
from tests.plan.configs import LLAMA_3_8B, MINI_LM
from tests.plan.vllm_logs import CACHE_LOGS, START_LOGS, CacheLog, StartLog


@pytest.mark.parametrize("log", START_LOGS, ids=lambda log: log.source)
def test_the_room_for_the_kv_cache_is_what_vllm_found_within_5_percent(log: StartLog):
    overhead = overhead_bytes(read_shape(log.config), log.batching, gpu_count=log.gpu_count)
    room = log.gpu_gib * log.utilization - log.weights_gib - overhead.value / GIB
    if log.is_tight:  # an error of this size is 5 % of the memory of the card, and a large share of what is left
        assert 0 <= log.room_gib - room < 1.0
    else:
        assert room == pytest.approx(log.room_gib, rel=0.05)


@pytest.mark.parametrize("log", CACHE_LOGS, ids=lambda log: log.source)
def test_as_many_tokens_fit_as_vllm_found(log: CacheLog):
    each = kv_bytes_per_token(read_shape(log.config), gpu_count=log.gpu_count)
    assert log.room_gib * GIB / each.value == pytest.approx(log.tokens, rel=0.02)


def test_the_parts_of_the_overhead_are_in_its_formula():
    shape = read_shape(LLAMA_3_8B)
    figure = activation_bytes(shape, Batching(2048, 256))
    assert figure.value == 2048 * (3 * 14336 + 5 * 4096) * 2 + 256 * 128256 * 6
    assert figure.formula == (
        "2,048 batched tokens x (3 x 14,336 inner + 5 x 4,096 hidden) x 2 bytes + 256 sequences x 128,256 vocabulary x "
        "6 bytes"
    )
    assert "logs of vLLM" in figure.source
    without = overhead_bytes(shape, Batching(2048, 256), has_graphs=False)
    assert overhead_bytes(shape, Batching(2048, 256)).value - without.value == pytest.approx(0.4 * GIB)


def test_a_model_without_an_output_needs_no_room_for_its_numbers():
    assert "vocabulary" not in activation_bytes(read_shape(MINI_LM), Batching(16384, 256)).formula


@pytest.mark.parametrize(
    ("gpu", "batching"),
    [
        (GpuType.NVIDIA_L4, Batching(2048, 256)),
        (GpuType.NVIDIA_A100_80GB_PCIe, Batching(2048, 256)),  # vLLM names it an exception
        (GpuType.NVIDIA_H100_80GB_HBM3, Batching(8192, 1024)),
        (GpuType.NVIDIA_B200, Batching(16384, 1024)),
    ],
)
def test_batches_are_vllms_own_defaults(gpu: GpuType, batching: Batching):
    assert default_batching(gpu) == batching


def test_every_gpu_has_its_facts():
    assert set(SPEEDS) == set(GPUS)
    for gpu, facts in GPUS.items():
        assert 0.9 * facts.vram_gb < seen_gib(gpu) * 1.0 <= facts.vram_gb, gpu
