"""Where a model fits: every GPU of the catalogue and every tensor-parallel degree, with the sessions that it carries.

One placement is one kind of worker. Costs are those of a fleet of such workers for the sessions that are expected at
the same time, at flex prices of the dated catalogue or of the platform's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flashkit.catalog import GPUS, READ_ON, GpuType, usd_per_second
from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure, count_of, format_bytes
from flashkit.plan.gpu_facts import GIB, seen_gib
from flashkit.plan.model_shape import BYTES_OF, ModelShape, normal_dtype
from flashkit.plan.overhead import STEPS_UNDER_WAY, Batching, default_batching, overhead_bytes
from flashkit.plan.sizing import (
    BLOCK_TOKENS,
    MEMORY_UTILIZATION,
    PLANNED_SHARE,
    kv_bytes,
    seats_for,
    weights_bytes,
)
from flashkit.plan.speed import first_token_seconds, tokens_read, tokens_written

GPU_COUNTS: Final = (1, 2, 4, 8)
"""Tensor-parallel degrees: GPUs of one host that share a model."""
PRICES_SOURCE: Final = f"docs.runpod.io/serverless/pricing by way of flashkit's catalogue, read on {READ_ON}"
_SECONDS_PER_HOUR: Final = 3600
_TOKENS: Final = 1_000_000
SPLIT_DISLIKE: Final = 1.1
"""Chosen: a worker with twice the GPUs must be a tenth cheaper to be recommended."""
_EMBEDDING_BATCHING: Final = Batching(16_384, 1)
"""What flashkit's own embedding engine takes in one step on a GPU (worker/engines/embedding/model.py)."""


class Workload(StrEnum):
    """What a worker is chosen for."""

    CHAT = "chat"
    """The lowest price of the sessions that are expected."""
    FIRST_TOKEN = "first-token"  # noqa: S105 - tokens of text
    """The lowest price of those whose first token comes in time."""
    THROUGHPUT = "throughput"
    """The lowest price of a million tokens."""
    EMBEDDING = "embedding"
    """The lowest price of a million tokens that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a model is planned for."""

    context_tokens: int = 4096
    """Of one session, its prompt and answer together."""
    prompt_tokens: int | None = None
    """Read before the first token; three quarters of the session by default."""
    sessions: int = 8
    """At the same time, on all workers together."""
    workload: Workload = Workload.CHAT
    first_token_seconds: float = 1.0
    """In time, for `Workload.FIRST_TOKEN`."""
    quantization: str | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    memory_utilization: float = MEMORY_UTILIZATION
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    has_graphs: bool = True

    @property
    def prompt(self) -> int:
        """Tokens that are read before the first one is written."""
        return self.prompt_tokens or max(1, self.context_tokens * 3 // 4)


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on one kind of worker."""

    gpu: GpuType
    gpu_count: int
    weights: Figure
    """On one GPU."""
    overhead: Figure
    """On one GPU."""
    kv_cache: Figure
    """Of one session, on one GPU."""
    room: Figure
    """For the KV cache, on one GPU."""
    most: Figure
    planned: Figure
    """By the 80 % rule."""
    workers: Figure
    """For the sessions that are expected."""
    first_token: Figure
    """Seconds, at best."""
    tokens_per_second: Figure
    """Of all sessions that are expected on one worker, at best."""
    usd_per_hour: Figure | None
    """Of all workers; None where no price is known."""
    usd_per_million_tokens: Figure | None

    @property
    def name(self) -> str:
        """The worker as people say it: `2x A100 80GB PCIe`."""
        count = f"{self.gpu_count}x " if self.gpu_count > 1 else ""
        return count + self.gpu.value.removeprefix("NVIDIA ").removeprefix("GeForce ")

    def figures(self) -> dict[str, Figure]:
        """Return all figures by name."""
        named = {
            "weights": self.weights, "overhead": self.overhead, "kv_cache": self.kv_cache, "room": self.room,
            "most": self.most, "planned": self.planned, "workers": self.workers, "first_token": self.first_token,
            "tokens_per_second": self.tokens_per_second, "usd_per_hour": self.usd_per_hour,
            "usd_per_million_tokens": self.usd_per_million_tokens,
        }  # fmt: skip
        return {name: figure for name, figure in named.items() if figure is not None}


@dataclass(frozen=True, slots=True)
class Misfit:
    """A worker that cannot hold the model, and why."""

    gpu: GpuType
    gpu_count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Prices:
    """Flex prices in US dollars a second and GPU."""

    flex: Mapping[GpuType, float] = field(default_factory=dict)
    source: str = PRICES_SOURCE

    def of(self, gpu: GpuType) -> float | None:
        """Return the price of one GPU; None where no source gives one."""
        return self.flex.get(gpu)


def dated_prices() -> Prices:
    """Return the prices of flashkit's own catalogue."""
    prices = {gpu: usd_per_second(gpu) for gpu in GPUS}
    return Prices({gpu: price for gpu, price in prices.items() if price is not None})


def splits(shape: ModelShape) -> tuple[int, ...]:
    """Return the tensor-parallel degrees that the model's heads can be split into."""
    return tuple(
        count for count in GPU_COUNTS
        if shape.heads % count == 0 and (shape.latent_dim or shape.kv_heads % count == 0 or count % shape.kv_heads == 0)
    )  # fmt: skip


def place(
    shape: ModelShape, demand: Demand, gpu: GpuType, gpu_count: int, *, files: Figure | None, prices: Prices
) -> Placement | Misfit:
    """Return what a worker with these GPUs carries of a model.

    Args:
        shape: The model.
        demand: What it is planned for.
        gpu: The GPU model.
        gpu_count: GPUs that share the model.
        files: Size of its weights as they are served, where it is known better than from the shape.
        prices: What a GPU costs.
    """
    whole = files or weights_bytes(shape, quantization=demand.quantization, dtype=demand.dtype)
    weights = Figure(
        whole.value / gpu_count, "bytes", whole.formula if gpu_count == 1 else f"({whole.formula}) / {gpu_count} GPUs",
        whole.source,
    )  # fmt: skip
    usual = _EMBEDDING_BATCHING if shape.is_encoder else default_batching(gpu)
    batching = Batching(demand.max_num_batched_tokens or usual.batched_tokens, demand.max_num_seqs or usual.sequences)
    overhead = overhead_bytes(shape, batching, gpu_count=gpu_count, has_graphs=demand.has_graphs)
    usable = seen_gib(gpu) * GIB * demand.memory_utilization
    room = Figure(
        usable - weights.value - overhead.value, "bytes",
        f"{seen_gib(gpu):g} GiB x {demand.memory_utilization:g} - {weights.amount} of weights - "
        f"{overhead.amount} of overhead",
        "memory as PyTorch shows it (flashkit/plan/gpu_facts.py)",
    )  # fmt: skip
    if weights.value + overhead.value > usable:
        need = format_bytes(weights.value + overhead.value)
        return Misfit(gpu, gpu_count, f"weights and overhead need {need} of {format_bytes(usable)} on each GPU")
    kv_cache = _kv_cache(shape, demand, batching, gpu_count)
    most = _most(shape, demand, batching, room, kv_cache)
    if most.value < 1:
        return Misfit(
            gpu, gpu_count,
            f"one session of {demand.context_tokens:,} tokens needs {kv_cache.amount} of KV cache, and "
            f"{room.amount} are left",
        )  # fmt: skip
    return _priced(shape, demand, _Fit(gpu, gpu_count, batching, weights, overhead, kv_cache, room, most), prices)


def place_everywhere(
    shape: ModelShape,
    demand: Demand,
    *,
    gpus: Iterable[GpuType] = tuple(GPUS),
    counts: Iterable[int] | None = None,
    files: Figure | None = None,
    prices: Prices,
) -> tuple[list[Placement], list[Misfit]]:
    """Return the placements, best first for the workload, and the workers that cannot hold the model.

    Of each GPU the fewest are taken that carry a session, and every larger number that carries more for the money.
    """
    fitting: list[Placement] = []
    misfits: list[Misfit] = []
    for gpu in gpus:
        for count in counts or splits(shape):
            placed = place(shape, demand, gpu, count, files=files, prices=prices)
            if isinstance(placed, Misfit):
                misfits.append(placed)
            else:
                fitting.append(placed)
    return sorted(fitting, key=lambda each: _rank(each, demand)), misfits


def require_fit(placements: list[Placement], misfits: list[Misfit], name: str) -> None:
    """Refuse a model that fits nowhere.

    Raises:
        ConfigurationError: There is no placement; the message has the nearest one.
    """
    if placements:
        return
    largest = max(misfits, key=lambda each: seen_gib(each.gpu) * each.gpu_count)
    shown = f"{largest.gpu_count}x {largest.gpu.value}" if largest.gpu_count > 1 else largest.gpu.value
    raise ConfigurationError(
        f"{name} fits no GPU that may be used; on the largest, {shown}: {largest.reason}",
        hint="quantise it (--quantization fp8 or awq), shorten --context, use --kv-dtype fp8, or allow larger GPUs",
        details={"misfits": [f"{each.gpu_count}x {each.gpu.value}: {each.reason}" for each in misfits]},
    )


# ------------------------------------------------------------------ one placement


@dataclass(frozen=True, slots=True)
class _Fit:
    gpu: GpuType
    gpu_count: int
    batching: Batching
    weights: Figure
    overhead: Figure
    kv_cache: Figure
    room: Figure
    most: Figure


def _kv_cache(shape: ModelShape, demand: Demand, batching: Batching, gpu_count: int) -> Figure:
    if shape.is_encoder:
        return Figure(0, "bytes", "an encoder keeps nothing between requests")
    return kv_bytes(
        shape, demand.context_tokens,
        kv_dtype=demand.kv_dtype or demand.dtype, gpu_count=gpu_count,
        batched_tokens=STEPS_UNDER_WAY * batching.batched_tokens, block_tokens=BLOCK_TOKENS,
    )  # fmt: skip


def _most(shape: ModelShape, demand: Demand, batching: Batching, room: Figure, kv_cache: Figure) -> Figure:
    if shape.is_encoder:
        count = max(1, batching.batched_tokens // demand.context_tokens)
        formula = f"{batching.batched_tokens:,} tokens of one step / {demand.context_tokens:,} of a text"
        return Figure(count, "sessions", formula)
    count = math.floor(room.value / kv_cache.value)
    return Figure(count, "sessions", f"{room.amount} of room / {kv_cache.amount} each, rounded down")


def _priced(shape: ModelShape, demand: Demand, fit: _Fit, prices: Prices) -> Placement:
    count = fit.most.value
    planned = Figure(
        max(1, math.floor(PLANNED_SHARE * count)), "sessions",
        f"{PLANNED_SHARE:.0%} of {count:g}, rounded down" if count > 1 else "the only one that fits",
    )  # fmt: skip
    workers = Figure(
        math.ceil(demand.sessions / planned.value), "workers",
        f"{demand.sessions:,} sessions / {planned.value:g} planned on each, rounded up",
    )  # fmt: skip
    first = first_token_seconds(shape, demand.prompt, fit.gpu, fit.gpu_count)
    speed = _speed(shape, demand, fit, min(planned.value, math.ceil(demand.sessions / workers.value)))
    price = prices.of(fit.gpu)
    hourly = per_million = None
    if price is not None:
        each, gpus = price * fit.gpu_count * _SECONDS_PER_HOUR, count_of(fit.gpu_count, "GPU")
        hourly = Figure(
            workers.value * each, "USD per hour",
            f"{count_of(workers.value, 'worker')} x {gpus} x ${price:.5f} a second x 3600", prices.source,
        )  # fmt: skip
        per_million = Figure(
            each / _SECONDS_PER_HOUR / speed.value * _TOKENS, "USD per million tokens",
            f"{gpus} x ${price:.5f} a second / {speed.value:,.0f} tokens a second x 1,000,000",
            prices.source,
        )  # fmt: skip
    return Placement(
        fit.gpu, fit.gpu_count, fit.weights, fit.overhead, fit.kv_cache, fit.room, fit.most, planned, workers, first,
        speed, hourly, per_million,
    )  # fmt: skip


def _speed(shape: ModelShape, demand: Demand, fit: _Fit, sessions: float) -> Figure:
    """Return what a worker writes with so many sessions, or an embedding worker reads."""
    if shape.is_encoder or demand.workload is Workload.EMBEDDING:
        return tokens_read(shape, fit.gpu, fit.gpu_count, batched_tokens=fit.batching.batched_tokens)
    return tokens_written(
        shape, fit.gpu, fit.gpu_count,
        sessions=sessions, weights_bytes=fit.weights.value, kv_bytes=fit.kv_cache.value,
    )  # fmt: skip


def _rank(placement: Placement, demand: Demand) -> tuple[float, float, float]:
    """Return what placements are sorted by: those without a price come last."""
    cost = placement.usd_per_hour.value if placement.usd_per_hour else math.inf
    if demand.workload is Workload.FIRST_TOKEN:
        late = placement.first_token.value if placement.first_token.value > demand.first_token_seconds else 0.0
        return (late, cost, placement.workers.value)
    if demand.workload in (Workload.THROUGHPUT, Workload.EMBEDDING):
        tokens = placement.usd_per_million_tokens.value if placement.usd_per_million_tokens else math.inf
        return (tokens, cost, placement.workers.value)
    # Several GPUs of one host are harder to get than one: each doubling must save more than this.
    dislike = SPLIT_DISLIKE ** math.log2(placement.gpu_count)
    return (cost * dislike, placement.first_token.value, placement.workers.value)


def served_dtype(shape: ModelShape, asked: str | None) -> str:
    """Return the type that an engine computes in: 32-bit weights are served in 16 bits where nothing is asked for."""
    wanted = normal_dtype(asked)
    if wanted is not None:
        return wanted
    return "bfloat16" if BYTES_OF[shape.dtype] > BYTES_OF["bfloat16"] else shape.dtype


def recommended_seats(placement: Placement, sessions: int) -> Figure:
    """Return `max_num_seqs` for a worker: 1.5 to 2 times its expected sessions, a multiple of 8 where there is one.

    Args:
        placement: The worker.
        sessions: Expected of all workers together.
    """
    expected = math.ceil(sessions / placement.workers.value)
    words = f"{expected} sessions expected on each worker"
    choice = seats_for(expected)
    even = [seats for seats in choice if seats % 8 == 0]
    seats = even[0] if even else choice[0]
    return Figure(
        seats, "requests", f"1.5 to 2 x {words} ({choice[0]} to {choice[-1]}), a multiple of 8 where there is one: the "
        "sizes that vLLM captures graphs for",
    )  # fmt: skip
