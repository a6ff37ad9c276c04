"""Which worker a model gets, and why others cannot hold it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.catalog import GPUS, GpuType
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure
from flashkit.plan.model_plan import ModelFacts, ModelPlan, plan_model
from flashkit.plan.model_shape import read_shape
from flashkit.plan.placing import Demand, Misfit, Placement, Prices, Workload, dated_prices, place, splits
from tests.plan.configs import (
    DEEPSEEK_V3,
    GEMMA_3_12B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    MINI_LM,
    QWEN_2_5_0_5B,
    QWEN_3_8B,
    QWEN_3_NEXT,
)


def plan(config: dict[str, Any], /, **asked: Any) -> ModelPlan:
    options = {name: asked.pop(name) for name in ("gpus", "counts", "prices") if name in asked}
    files = asked.pop("files_bytes", None)
    return plan_model(ModelFacts("a model", config, files), Demand(**asked), **options)


def test_half_precision_weights_of_70_billion_parameters_fit_no_single_gpu_of_80_gb():
    """The case of the copied table: 25 sessions on one H100 with 80 GB, where the weights alone are 141 GB."""
    found = plan(LLAMA_3_70B)
    reasons = {(each.gpu, each.gpu_count): each.reason for each in found.misfits}
    assert "weights and overhead need 14" in reasons[GpuType.NVIDIA_H100_80GB_HBM3, 1]
    assert all(each.gpu_count > 1 or GPUS[each.gpu].vram_gb > 160 for each in found.placements)


def test_the_cheapest_worker_for_the_sessions_is_recommended_for_chat():
    found = plan(QWEN_3_8B, sessions=8)
    costs = [each.usd_per_hour.value for each in found.placements if each.usd_per_hour and each.gpu_count == 1]
    assert found.best.gpu_count == 1
    assert found.best.usd_per_hour.value == min(costs)
    assert found.best.planned.value >= 8


def test_several_gpus_are_recommended_only_where_they_save_enough():
    assert plan(QWEN_3_8B, sessions=8).best.gpu_count == 1
    two = next(each for each in plan(QWEN_3_8B, sessions=8).placements if each.gpu_count == 2)
    one = plan(QWEN_3_8B, sessions=8).best
    assert two.usd_per_hour.value < one.usd_per_hour.value < 1.1 * two.usd_per_hour.value


def test_a_first_token_in_time_is_worth_a_faster_gpu():
    slow, quick = plan(LLAMA_3_8B, sessions=1), plan(
        LLAMA_3_8B, sessions=1, workload=Workload.FIRST_TOKEN, first_token_seconds=0.2
    )  # fmt: skip
    assert quick.best.first_token.value <= 0.2 < slow.best.first_token.value
    in_time = [each for each in quick.placements if each.first_token.value <= 0.2 and each.usd_per_hour]
    assert quick.best.usd_per_hour.value == min(each.usd_per_hour.value for each in in_time)


def test_where_no_first_token_comes_in_time_the_quickest_is_recommended_and_said():
    found = plan(LLAMA_3_70B, workload=Workload.FIRST_TOKEN, first_token_seconds=0.001)
    assert found.best.first_token.value == min(each.first_token.value for each in found.placements)
    assert "no worker has a first token within 0.001 s: this is the quickest" in found.notes


def test_for_throughput_the_price_of_tokens_counts():
    found = plan(LLAMA_3_8B, workload=Workload.THROUGHPUT)
    prices = [each.usd_per_million_tokens.value for each in found.placements if each.usd_per_million_tokens]
    assert prices == sorted(prices)
    assert found.best.usd_per_million_tokens.value == prices[0]


def test_encoders_are_planned_for_embedding_without_a_cache():
    found = plan(MINI_LM, sessions=8)
    assert found.demand.workload is Workload.EMBEDDING
    assert found.demand.context_tokens == 512  # the model's own
    assert found.best.kv_cache.value == 0
    assert "max_num_seqs" not in found.figures()
    assert found.best.tokens_per_second.formula.startswith("16,384 tokens of a step")


def test_more_sessions_need_more_workers_and_seats_follow_what_each_gets():
    found = plan(QWEN_3_8B, sessions=1000, gpus=[GpuType.NVIDIA_A40], counts=[1])
    best = found.best
    assert best.workers.value == math.ceil(1000 / best.planned.value)
    each = math.ceil(1000 / best.workers.value)
    assert 1.5 * each <= found.seats.value <= 2 * each
    assert found.seats.value % 8 == 0
    assert best.usd_per_hour.value == pytest.approx(best.workers.value * 0.00034 * 3600)


def test_a_worker_without_a_price_comes_last():
    found = plan(QWEN_2_5_0_5B, gpus=[GpuType.NVIDIA_RTX_5090, GpuType.NVIDIA_B200], counts=[1])
    assert [each.gpu for each in found.placements] == [GpuType.NVIDIA_B200, GpuType.NVIDIA_RTX_5090]
    assert found.placements[1].usd_per_hour is None
    assert "usd_per_hour" not in found.placements[1].figures()


def test_heads_decide_how_many_gpus_can_share():
    assert splits(read_shape(QWEN_2_5_0_5B)) == (1, 2)  # 14 heads
    assert splits(read_shape(LLAMA_3_70B)) == (1, 2, 4, 8)
    assert splits(read_shape({**LLAMA_3_8B, "num_attention_heads": 9, "num_key_value_heads": 3})) == (1,)
    with pytest.raises(ConfigurationError, match="cannot be split over 4 GPUs: it has 14 heads and 2 KV heads"):
        plan(QWEN_2_5_0_5B, counts=[4])


def test_a_model_that_fits_no_gpu_is_refused_with_the_largest_and_what_to_do():
    with pytest.raises(ConfigurationError, match="on the largest, NVIDIA L4: weights and overhead need") as caught:
        plan(LLAMA_3_70B, gpus=[GpuType.NVIDIA_L4, GpuType.NVIDIA_RTX_A4000], counts=[1])
    assert "quantise it" in caught.value.report.hint
    with pytest.raises(ConfigurationError, match="one session of 131,072 tokens needs"):
        plan(QWEN_3_8B | {"max_position_embeddings": 131072}, context_tokens=131_072,
             gpus=[GpuType.NVIDIA_L4], counts=[1])  # fmt: skip


def test_a_context_that_is_longer_than_the_model_is_refused():
    with pytest.raises(ConfigurationError, match="was made for 40,960 tokens, and sessions of 50,000"):
        plan(QWEN_3_8B, context_tokens=50_000)


def test_a_quantisation_that_is_not_known_is_refused():
    with pytest.raises(ConfigurationError, match="quantization='torchao' is not known"):
        plan(QWEN_3_8B, quantization="torchao")


def test_quantisation_and_an_8_bit_cache_make_room():
    plain, small = plan(LLAMA_3_70B), plan(LLAMA_3_70B, quantization="awq", kv_dtype="fp8")
    assert small.best.usd_per_hour.value < plain.best.usd_per_hour.value
    assert small.kv_per_session.value == plain.kv_per_session.value / 2
    assert small.on_disk.value == plain.on_disk.value  # the files are as they are


def test_files_tell_the_size_better_than_the_config_and_32_bits_are_served_in_16():
    config = {**QWEN_2_5_0_5B, "torch_dtype": "float32"}
    found = plan(config, files_bytes=2_000_000_000)
    assert (found.on_disk.value, found.in_memory.value) == (2e9, 1e9)
    assert found.in_memory.formula == "size of the weights' files x 2 bytes of bfloat16 / 4 of float32"
    assert plan(config, files_bytes=2_000_000_000, dtype="float32").in_memory.value == 2e9
    assert found.kv_per_token.value == 2 * 24 * 2 * 64 * 2


def test_what_stands_out_is_noted():
    assert "40 of 48 layers keep 1,024 tokens only" in plan(GEMMA_3_12B).notes
    assert any("vLLM pads its pages" in note for note in plan(QWEN_3_NEXT).notes)
    assert any("each of the 8 GPUs keeps the whole KV cache" in note for note in plan(DEEPSEEK_V3).notes)
    old = plan(QWEN_3_8B, quantization="fp8", gpus=[GpuType.NVIDIA_A40], counts=[1])
    assert any("computes in 16 bits (compute capability 8.9 needed)" in note for note in old.notes)
    assert not any("files are not here" in note for note in plan(QWEN_3_8B, files_bytes=16_400_000_000).notes)
    eight = plan({**LLAMA_3_70B, "num_key_value_heads": 4}, counts=[8])
    assert "8 GPUs share 4 KV heads: some keep the same ones" in eight.notes


def test_the_smallest_slice_of_a_gpu_is_named():
    assert plan(QWEN_2_5_0_5B).slice.slice.name == "1g.10gb"
    assert plan(QWEN_3_8B).slice.slice.name == "1g.20gb"
    assert plan(LLAMA_3_70B).slice is None
    assert plan(MINI_LM).slice.slice.name == "1g.10gb"


def test_every_figure_says_how_it_was_computed():
    found = plan(LLAMA_3_8B, sessions=20)
    figures = {**found.figures(), **found.best.figures()}
    assert len(figures) > 12
    assert [name for name, figure in figures.items() if not figure.formula] == []
    for name in ("overhead", "room", "first_token", "tokens_per_second", "usd_per_hour"):
        assert figures[name].source, name


def test_other_prices_make_another_choice():
    dear = dict.fromkeys(GPUS, 1.0)
    found = plan(QWEN_3_8B, prices=Prices({**dear, GpuType.NVIDIA_B200: 0.0001}, "mine"))
    assert found.best.gpu is GpuType.NVIDIA_B200
    assert found.best.usd_per_hour.source == "mine"


@given(
    sessions=st.integers(1, 5000), context=st.sampled_from([512, 4096, 20_000]),
    gpu=st.sampled_from(list(GpuType)), count=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_a_placement_never_promises_more_than_there_is(sessions: int, context: int, gpu: GpuType, count: int):
    demand = Demand(sessions=sessions, context_tokens=context, dtype="bfloat16")
    placed = place(read_shape(QWEN_3_8B), demand, gpu, count, files=None, prices=dated_prices())
    if isinstance(placed, Misfit):
        return
    assert isinstance(placed, Placement)
    assert placed.most.value * placed.kv_cache.value <= placed.room.value
    assert 1 <= placed.planned.value <= placed.most.value
    assert placed.workers.value * placed.planned.value >= sessions
    longer = place(
        read_shape(QWEN_3_8B), replace(demand, context_tokens=context * 2), gpu, count, files=None,
        prices=dated_prices(),
    )  # fmt: skip
    assert isinstance(longer, Misfit) or longer.most.value <= placed.most.value


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(0.698, "of the time", ""), "70% of the time"),
        (Figure(1234.5, "USD per month", ""), "$1,234.50 per month"),
        (Figure(0.0146, "USD per job", ""), "$0.0146 per job"),
        (Figure(0.0000124, "USD", ""), "$0.0000124"),
        (Figure(1, "workers", ""), "1 worker"),
        (Figure(723.4, "jobs per day", ""), "723 jobs per day"),
        (Figure(0.5, "s", ""), "0.5 s"),
        (Figure(1, "s", ""), "1 s"),
    ],
)
def test_amounts_are_shown_as_people_write_them(figure: Figure, text: str):
    assert figure.amount == text
