"""Slices of a GPU (MIG): the smallest one that holds a model, for GPUs of one's own.

Runpod's serverless workers get whole GPUs: no source names slices. Profiles and their memory are those of the A100 and
H100 with 80 GB (docs.nvidia.com/datacenter/tesla/mig-user-guide, as known on 2026-11-21, not read again by a program).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from flashkit.plan.figures import Figure, format_bytes
from flashkit.plan.gpu_facts import GIB
from flashkit.plan.model_shape import ModelShape
from flashkit.plan.overhead import STEPS_UNDER_WAY, Batching, overhead_bytes
from flashkit.plan.placing import Demand
from flashkit.plan.sizing import BLOCK_TOKENS, kv_bytes

MIG_SOURCE: Final = "NVIDIA's MIG user guide, A100 and H100 with 80 GB"
_BATCHING: Final = Batching(2048, 256)


@dataclass(frozen=True, slots=True)
class Slice:
    """One profile of MIG."""

    name: str
    gib: float
    per_gpu: int
    """Of one GPU so many can be made."""


SLICES: Final = (
    Slice("1g.10gb", 9.5, 7), Slice("1g.20gb", 19.5, 4), Slice("3g.40gb", 39.5, 2), Slice("7g.80gb", 79.25, 1),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """The smallest slice for a model."""

    slice: Slice
    sessions: Figure
    """That one slice carries."""


def plan_slice(shape: ModelShape, demand: Demand, weights: Figure) -> SlicePlan | None:
    """Return the smallest slice that carries a session of the model; None where none does."""
    batching = Batching(
        demand.max_num_batched_tokens or _BATCHING.batched_tokens, demand.max_num_seqs or _BATCHING.sequences
    )
    overhead = overhead_bytes(shape, batching, has_graphs=demand.has_graphs)
    for each in SLICES:
        room = each.gib * GIB * demand.memory_utilization - weights.value - overhead.value
        cache = kv_bytes(
            shape, demand.context_tokens,
            kv_dtype=demand.kv_dtype or demand.dtype, batched_tokens=STEPS_UNDER_WAY * batching.batched_tokens,
            block_tokens=BLOCK_TOKENS,
        ).value  # fmt: skip
        count = math.floor(room / cache) if cache and not shape.is_encoder else int(room > 0)
        if room > 0 and count >= 1:
            formula = f"({each.gib:g} GiB x {demand.memory_utilization:g} - {weights.amount} - {overhead.amount})"
            formula += f" / {format_bytes(cache)} each" if not shape.is_encoder else " is above 0"
            return SlicePlan(each, Figure(count, "sessions", formula, MIG_SOURCE))
    return None
