"""The plan of one model: what it needs, where it fits, and what to write into its endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flashkit.catalog import GPUS, GpuType
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure
from flashkit.plan.gpu_generations import CAPABILITIES, NATIVE_FP4, NATIVE_FP8
from flashkit.plan.model_shape import BYTES_OF, ModelShape, read_shape
from flashkit.plan.placing import (
    Demand,
    Misfit,
    Placement,
    Prices,
    Workload,
    dated_prices,
    place_everywhere,
    recommended_seats,
    require_fit,
    served_dtype,
    splits,
)
from flashkit.plan.sizing import bits_of, kv_bytes, kv_bytes_per_token, volume_gb, weights_bytes
from flashkit.plan.slices import SlicePlan, plan_slice

_FP8 = ("fp8", "fbgemm_fp8", "modelopt")
_FP4 = ("nvfp4", "modelopt_fp4")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model before it is planned."""

    name: str
    config: Mapping[str, Any]
    files_bytes: int | None = None
    """Size of its weights' files; None where they are not here."""
    place: str = "config.json"
    """Where the config was found, in words."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What a model needs, and the workers that it fits, best first."""

    name: str
    place: str
    shape: ModelShape
    demand: Demand
    on_disk: Figure
    in_memory: Figure
    kv_per_token: Figure
    kv_per_session: Figure
    volume: Figure
    placements: tuple[Placement, ...]
    misfits: tuple[Misfit, ...]
    slice: SlicePlan | None
    notes: tuple[str, ...]

    @property
    def best(self) -> Placement:
        """The recommended worker."""
        return self.placements[0]

    @property
    def seats(self) -> Figure:
        """`max_num_seqs` for the recommended worker."""
        return recommended_seats(self.best, self.demand.sessions)

    @property
    def shortlist(self) -> tuple[Placement, ...]:
        """The best number of each GPU, in order."""
        seen: dict[GpuType, Placement] = {}
        for each in self.placements:
            seen.setdefault(each.gpu, each)
        return tuple(seen.values())

    def figures(self) -> dict[str, Figure]:
        """Return the model's own figures by name."""
        files = {"on_disk": self.on_disk, "in_memory": self.in_memory, "volume": self.volume}
        if self.shape.is_encoder:
            return files
        cache = {"kv_per_token": self.kv_per_token, "kv_per_session": self.kv_per_session}
        return {**files, **cache, "max_num_seqs": self.seats}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.name,
            "config_from": self.place,
            "parameters": self.shape.parameters,
            "active_parameters": (self.shape.active_parameters or self.shape.body_parameters),
            "context_tokens": self.demand.context_tokens,
            "sessions": self.demand.sessions,
            "workload": self.demand.workload.value,
            **{name: figure.to_dict() for name, figure in self.figures().items()},
            "best": self.best.name,
            "placements": [
                {"gpu": each.gpu.value, "gpu_count": each.gpu_count,
                 **{name: figure.to_dict() for name, figure in each.figures().items()}}
                for each in self.placements
            ],
            "misfits": [
                {"gpu": each.gpu.value, "gpu_count": each.gpu_count, "reason": each.reason} for each in self.misfits
            ],
            "mig_slice": None if self.slice is None else {
                "profile": self.slice.slice.name, "sessions": self.slice.sessions.to_dict(),
            },
            "tensor_parallel_degrees": splits(self.shape),
            "notes": list(self.notes),
        }  # fmt: skip


def plan_model(
    facts: ModelFacts,
    demand: Demand,
    *,
    gpus: Iterable[GpuType] = tuple(GPUS),
    counts: Iterable[int] | None = None,
    prices: Prices | None = None,
) -> ModelPlan:
    """Return the plan of a model.

    Args:
        facts: The model.
        demand: What it is planned for.
        gpus: GPUs that may be used.
        counts: Numbers of them in a worker; every degree that the heads can be split into by default.
        prices: What they cost; those of the dated catalogue by default.

    Raises:
        ConfigurationError: The config lacks a field, the context is longer than the model, or it fits nowhere.
    """
    try:
        shape = read_shape(facts.config)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{facts.name}: {exc.report.message}", hint=exc.report.hint) from exc
    demand = _settled(shape, demand, facts.name)
    on_disk = _on_disk(shape, facts)
    in_memory = _in_memory(shape, demand, facts)
    placements, misfits = place_everywhere(
        shape, demand, gpus=gpus, counts=_possible(shape, counts, facts.name), files=in_memory,
        prices=prices or dated_prices(),
    )  # fmt: skip
    require_fit(placements, misfits, facts.name)
    kv_dtype = demand.kv_dtype or demand.dtype
    nothing = Figure(0, "bytes", "an encoder keeps nothing between requests")
    return ModelPlan(
        name=facts.name,
        place=facts.place,
        shape=shape,
        demand=demand,
        on_disk=on_disk,
        in_memory=in_memory,
        kv_per_token=nothing if shape.is_encoder else kv_bytes_per_token(shape, kv_dtype=kv_dtype),
        kv_per_session=nothing if shape.is_encoder else kv_bytes(shape, demand.context_tokens, kv_dtype=kv_dtype),
        volume=volume_gb(on_disk),
        placements=tuple(placements),
        misfits=tuple(misfits),
        slice=plan_slice(shape, demand, in_memory),
        notes=tuple(_notes(shape, demand, placements[0], facts)),
    )


def _settled(shape: ModelShape, demand: Demand, name: str) -> Demand:
    """Return the demand with what the model decides: its type, and embedding for encoders."""
    longest = shape.max_tokens
    context = demand.context_tokens
    if longest is not None and context > longest:
        if not shape.is_encoder:
            raise ConfigurationError(
                f"{name} was made for {longest:,} tokens, and sessions of {context:,} are asked for",
                hint=f"--context {longest}, or a model with a longer context",
            )
        context = longest
    if demand.quantization is not None and bits_of(demand.quantization) is None:
        raise ConfigurationError(
            f"quantization={demand.quantization!r} is not known to the planner", hint="try fp8, awq, gptq or nvfp4"
        )
    workload = Workload.EMBEDDING if shape.is_encoder else demand.workload
    dtype = served_dtype(shape, demand.dtype)
    return replace(demand, context_tokens=context, dtype=dtype, workload=workload)


def _on_disk(shape: ModelShape, facts: ModelFacts) -> Figure:
    if facts.files_bytes is not None:
        return Figure(facts.files_bytes, "bytes", "size of the weights' files", facts.place)
    return weights_bytes(shape)


def _in_memory(shape: ModelShape, demand: Demand, facts: ModelFacts) -> Figure:
    """Return the weights as they are served: the files' own size where they are served as they are."""
    if facts.files_bytes is None or demand.quantization not in (None, shape.quantization):
        return weights_bytes(shape, quantization=demand.quantization, dtype=demand.dtype)
    if shape.quantization is not None or demand.dtype in (None, shape.dtype):
        return Figure(facts.files_bytes, "bytes", "size of the weights' files", facts.place)
    wide, stored = BYTES_OF[demand.dtype], BYTES_OF[shape.dtype]
    return Figure(
        facts.files_bytes * wide / stored, "bytes",
        f"size of the weights' files x {wide} bytes of {demand.dtype} / {stored} of {shape.dtype}", facts.place,
    )  # fmt: skip


def _possible(shape: ModelShape, counts: Iterable[int] | None, name: str) -> tuple[int, ...]:
    possible = splits(shape)
    if counts is None:
        return possible
    wanted = tuple(counts)
    if bad := [count for count in wanted if count not in possible]:
        raise ConfigurationError(
            f"{name} cannot be split over {bad[0]} GPUs: it has {shape.heads} heads and {shape.kv_heads} KV heads",
            hint=f"--gpu-count {', '.join(map(str, possible))}",
        )
    return wanted


def _notes(shape: ModelShape, demand: Demand, best: Placement, facts: ModelFacts) -> Iterable[str]:
    method = demand.quantization or shape.quantization or ""
    needed = NATIVE_FP8 if method in _FP8 else NATIVE_FP4 if method in _FP4 else None
    if needed is not None and CAPABILITIES[best.gpu] < needed:
        yield f"{best.name} keeps {method} weights small but computes in 16 bits (compute capability {needed} needed)"
    if facts.files_bytes is None:
        yield "the files are not here: their size is computed, without biases and without encoders of images or sound"
    if shape.window_layers:
        yield f"{shape.window_layers} of {shape.layers} layers keep {shape.window:,} tokens only"
    if shape.state_layers:
        yield f"{shape.state_layers} of {shape.layers} layers keep a state; vLLM pads its pages, so fewer sessions fit"
    if shape.latent_dim is not None and best.gpu_count > 1:
        yield f"latent attention: each of the {best.gpu_count} GPUs keeps the whole KV cache"
    if best.gpu_count > shape.kv_heads and shape.latent_dim is None:
        yield f"{best.gpu_count} GPUs share {shape.kv_heads} KV heads: some keep the same ones"
    if demand.workload is Workload.FIRST_TOKEN and best.first_token.value > demand.first_token_seconds:
        yield f"no worker has a first token within {demand.first_token_seconds:g} s: this is the quickest"
