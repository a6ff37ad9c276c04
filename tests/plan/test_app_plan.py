"""Plans of endpoints: their own options and GPUs, what they cost, and what may be taken away from them."""

from __future__ import annotations

from typing import Any

import pytest

from flashkit import VLLM, Embedding, Weights
from flashkit.catalog import GpuType
from flashkit.plan.app_plan import Load, demand_of, plan_endpoint
from flashkit.plan.interruption import judge_interruption
from flashkit.plan.model_plan import ModelFacts
from flashkit.plan.placing import Demand, Misfit, Placement, Workload
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds
from tests.plan.configs import LLAMA_3_70B, MINI_LM, QWEN_3_8B

NAME = Weights("organisation/name")


def gpu_endpoint(*gpus: GpuType, **options: Any) -> EndpointSpec:
    return EndpointSpec(name="llm", kind=Kind.GPU, gpu=gpus or (GpuType.NVIDIA_A40,), **options)


def test_the_options_of_vllm_go_before_what_was_asked_for():
    engine = VLLM(NAME, max_model_len=8192, quantization="fp8", kv_cache_dtype="fp8", gpu_memory_utilization=0.8,
                  max_num_seqs=64, enforce_eager=True)  # fmt: skip
    demand = demand_of(gpu_endpoint(engine=engine), Demand(context_tokens=1000, sessions=30))
    assert (demand.context_tokens, demand.quantization, demand.kv_dtype) == (8192, "fp8", "fp8")
    assert (demand.memory_utilization, demand.max_num_seqs, demand.has_graphs) == (0.8, 64, False)
    assert demand.sessions == 30
    assert demand_of(gpu_endpoint(engine=VLLM(NAME)), Demand(context_tokens=1000)).context_tokens == 1000


def test_an_embedding_endpoint_is_planned_for_its_texts():
    spec = EndpointSpec(
        name="vectors", kind=Kind.EMBEDDING, gpu=(GpuType.NVIDIA_L4,), engine=Embedding(NAME, max_length=128)
    )
    demand = demand_of(spec, Demand())
    assert (demand.workload, demand.context_tokens) == (Workload.EMBEDDING, 128)
    plan = plan_endpoint(spec, ModelFacts("a model", MINI_LM), Demand())
    assert isinstance(plan.as_written, Placement)


def test_the_model_is_placed_on_the_smallest_gpu_that_the_endpoint_names():
    spec = gpu_endpoint(GpuType.NVIDIA_A100_80GB_PCIe, GpuType.NVIDIA_A40, engine=VLLM(NAME))
    plan = plan_endpoint(spec, ModelFacts("a model", QWEN_3_8B), Demand())
    assert plan.as_written.gpu is GpuType.NVIDIA_A40
    assert plan.to_dict()["as_written"]["fits"] is True


def test_a_model_that_does_not_fit_as_written_is_told_with_the_reason():
    plan = plan_endpoint(gpu_endpoint(engine=VLLM(NAME)), ModelFacts("a model", LLAMA_3_70B), Demand())
    assert isinstance(plan.as_written, Misfit)
    assert plan.to_dict()["as_written"]["reason"].startswith("weights and overhead need 14")
    assert plan.model.best.gpu_count > 1


def test_a_model_that_cannot_be_planned_does_not_stop_the_others():
    plan = plan_endpoint(gpu_endpoint(engine=VLLM(NAME)), ModelFacts("a model", {}), Demand())
    assert plan.model is None
    assert plan.problem == "a model: config.json has no num_hidden_layers, so the model's memory cannot be computed"


def test_workers_that_are_always_there_have_their_price():
    spec = gpu_endpoint(workers=WorkerBounds(2, 5), gpu_count=2)
    assert plan_endpoint(spec, None, Demand()).floor.value == pytest.approx(2 * 2 * 0.00024 * 3600)
    assert plan_endpoint(gpu_endpoint(), None, Demand()).floor.value == 0
    dear = gpu_endpoint(GpuType.NVIDIA_RTX_5090, workers=WorkerBounds(1, 1))
    assert plan_endpoint(dear, None, Demand()).floor is None


def test_traffic_is_costed_with_the_endpoints_own_timeout():
    plan = plan_endpoint(gpu_endpoint(idle_timeout=60), None, Demand(), load=Load(2000, 4))
    assert plan.cost.traffic.idle_timeout == 60
    assert plan.to_dict()["cost"]["cheapest"] in ("flex", "active", "pod")
    cpu = EndpointSpec(name="tool", kind=Kind.CPU, cpu="cpu5c-2-4")
    assert plan_endpoint(cpu, None, Demand(), load=Load(2000, 4)).cost is None  # no price is known


def test_only_checkpointed_endpoints_may_be_interrupted():
    orchestrator = EndpointSpec(name="agent", kind=Kind.ORCHESTRATOR, cpu="cpu5c-2-4")
    assert judge_interruption(orchestrator).is_allowed
    refused = judge_interruption(gpu_endpoint())
    assert not refused.is_allowed
    assert "start again from its first line" in refused.reason
    http = EndpointSpec(
        name="api", kind=Kind.CPU, cpu="cpu5c-2-4", load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT,
        execution_timeout_ms=60_000,
    )  # fmt: skip
    assert "break off" in judge_interruption(http).reason
