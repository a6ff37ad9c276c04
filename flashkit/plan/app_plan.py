"""The plan of an app: each of its endpoints with the model that it loads, on the GPUs that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from flashkit.catalog import GPUS, usd_per_second
from flashkit.errors import ConfigurationError
from flashkit.plan.cost import CostPlan, Traffic, plan_cost, rates_of
from flashkit.plan.figures import Figure, count_of
from flashkit.plan.gpu_generations import models_of
from flashkit.plan.interruption import Verdict, judge_interruption
from flashkit.plan.model_plan import ModelFacts, ModelPlan, plan_model
from flashkit.plan.placing import PRICES_SOURCE, Demand, Misfit, Placement, Prices, Workload, dated_prices, place
from flashkit.spec import EndpointSpec

_EMBEDDING_TOKENS: Final = 256
"""Chosen: a text that an embedding worker gets, where its options do not say."""
_SECONDS_PER_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of an endpoint."""

    jobs_per_day: float
    seconds_per_job: float


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """One endpoint."""

    spec: EndpointSpec
    model: ModelPlan | None
    """Over all GPUs of the catalogue; None where it loads no model, or nothing is known of it."""
    as_written: Placement | Misfit | None
    """On the smallest of the GPUs that the endpoint names."""
    problem: str | None
    """Why there is no plan of its model."""
    may_be_interrupted: Verdict
    floor: Figure | None
    """US dollars an hour for its `workers.min`; None where no price is known."""
    cost: CostPlan | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind.value,
            "workers": {"min": self.spec.workers.min, "max": self.spec.workers.max},
            "model": None if self.model is None else self.model.to_dict(),
            "as_written": _placed_dict(self.as_written),
            "problem": self.problem,
            "interruptible": {"allowed": self.may_be_interrupted.is_allowed, "reason": self.may_be_interrupted.reason},
            "floor": None if self.floor is None else self.floor.to_dict(),
            "cost": None if self.cost is None else self.cost.to_dict(),
        }


def demand_of(spec: EndpointSpec, usual: Demand) -> Demand:
    """Return what the endpoint's own options ask for; the rest is as it is for all."""
    engine = spec.engine
    if engine is None:
        return usual
    if engine.type == "embedding":
        tokens = engine.options.get("max_length") or _EMBEDDING_TOKENS
        return replace(
            usual, workload=Workload.EMBEDDING, context_tokens=int(tokens), dtype=engine.options.get("dtype")
        )
    options: Mapping[str, Any] = engine.options.get("arguments", {})
    length = options.get("max_model_len")
    return replace(
        usual,
        context_tokens=length if isinstance(length, int) and length > 0 else usual.context_tokens,
        quantization=options.get("quantization") or usual.quantization,
        dtype=options.get("dtype") or usual.dtype,
        kv_dtype=options.get("kv_cache_dtype") or usual.kv_dtype,
        memory_utilization=float(options.get("gpu_memory_utilization") or usual.memory_utilization),
        max_num_seqs=options.get("max_num_seqs") or usual.max_num_seqs,
        max_num_batched_tokens=options.get("max_num_batched_tokens") or usual.max_num_batched_tokens,
        has_graphs=usual.has_graphs and not options.get("enforce_eager", False),
    )


def plan_endpoint(
    spec: EndpointSpec,
    facts: ModelFacts | None,
    demand: Demand,
    *,
    problem: str | None = None,
    load: Load | None = None,
    cold_start_seconds: float = 60.0,
    prices: Prices | None = None,
) -> EndpointPlan:
    """Return the plan of one endpoint.

    Args:
        spec: The endpoint.
        facts: The model that it loads, None where it loads none or nothing is known of it.
        demand: What is asked of every endpoint; its own options go first.
        problem: Why nothing is known of its model.
        load: Its jobs.
        cold_start_seconds: How long a worker takes to start.
        prices: What GPUs cost; those of the dated catalogue by default.
    """
    known = prices or dated_prices()
    model = as_written = None
    if facts is not None:
        try:
            model = plan_model(facts, demand_of(spec, demand), prices=known)
            as_written = _as_written(spec, model, known)
        except ConfigurationError as exc:
            problem = exc.report.message
    return EndpointPlan(
        spec,
        model,
        as_written,
        problem,
        judge_interruption(spec),
        _floor(spec),
        None if load is None else _cost(spec, load, cold_start_seconds),
    )


def _as_written(spec: EndpointSpec, model: ModelPlan, prices: Prices) -> Placement | Misfit | None:
    candidates = [GPUS[gpu] for gpu in models_of(spec.gpu)]
    if not candidates:
        return None
    smallest = min(candidates, key=lambda gpu: gpu.vram_gb)
    return place(model.shape, model.demand, smallest.type, spec.gpu_count, files=model.in_memory, prices=prices)


def _floor(spec: EndpointSpec) -> Figure | None:
    if spec.workers.min == 0:
        return Figure(0, "USD per hour", "workers.min is 0")
    gpus = models_of(spec.gpu)
    each = [usd_per_second(gpu, is_active=True) for gpu in gpus]
    known = [price for price in each if price is not None]
    if not known or len(known) != len(each):
        return None
    price = max(known) * spec.gpu_count * _SECONDS_PER_HOUR
    return Figure(
        spec.workers.min * price, "USD per hour",
        f"{count_of(spec.workers.min, 'worker')}, always there, x ${price:.3g} an hour, the dearest GPU that it names",
        PRICES_SOURCE,
    )  # fmt: skip


def _cost(spec: EndpointSpec, load: Load, cold_start_seconds: float) -> CostPlan | None:
    """Return what traffic costs on the first GPU that the endpoint names; None where no price is known."""
    if not spec.gpu or usd_per_second(spec.gpu[0]) is None:
        return None
    traffic = Traffic(
        jobs_per_day=load.jobs_per_day, seconds_per_job=load.seconds_per_job, concurrency=spec.concurrency,
        idle_timeout=spec.idle_timeout, cold_start_seconds=cold_start_seconds,
    )  # fmt: skip
    return plan_cost(traffic, rates_of(spec.gpu[0], spec.gpu_count))


def _placed_dict(placed: Placement | Misfit | None) -> dict[str, Any] | None:
    if placed is None:
        return None
    common = {"gpu": placed.gpu.value, "gpu_count": placed.gpu_count}
    if isinstance(placed, Misfit):
        return {**common, "fits": False, "reason": placed.reason}
    return {**common, "fits": True, **{name: figure.to_dict() for name, figure in placed.figures().items()}}
