"""What vLLM takes of a GPU beside weights and KV cache: activations, CUDA graphs, and what PyTorch does not see.

Calibrated on the account that vLLM gives of itself at start ("Actual usage is ... GiB for weight, ... for peak
activation, ... for non-torch memory, ... for CUDAGraph memory"; before that "model weights take ..."). The logs are
public ones; `tests/plan/vllm_logs.py` has them with their sources, and the room for the KV cache that comes out of
this arithmetic is within 5 % of what vLLM found on each.

The form of the activations follows from what the profiling run does: one step of `max_num_batched_tokens` through a
layer, whose feed-forward and residuals are alive together, and the output's numbers for `max_num_seqs` requests, in
16 and in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flashkit.catalog import GpuType
from flashkit.plan.figures import Figure
from flashkit.plan.gpu_facts import GIB, seen_gib
from flashkit.plan.model_shape import ModelShape

SOURCE: Final = "fitted to start-up logs of vLLM 0.6 to 0.27, within 5 % of each (docs: how-to/plan)"
_INNER_COPIES: Final = 3
"""Gate and up projection, and their product."""
_HIDDEN_COPIES: Final = 5
"""Residual, input and output of the layer, and norms in 32 bits."""
_ACTIVATION_BYTES: Final = 2
_LOGIT_BYTES: Final = 2 + 4
_OUTSIDE_TORCH_GIB: Final = 0.26
"""CUDA's own, with one GPU: 0.26 in two logs of 2026."""
_OUTSIDE_TORCH_OF_SEVERAL_GIB: Final = 1.0
"""With several GPUs NCCL's buffers come to it: 0.95 in a log of 2026-08 with 4."""
_GRAPHS_GIB: Final = 0.4
"""CUDA graphs: 0.11 to 0.53 in logs of models up to 75 GiB; counted since vLLM 0.21."""
STEPS_UNDER_WAY: Final = 2
"""While one step runs vLLM 0.32 prepares the next one (asynchronous scheduling): layers with a window keep both."""
_LARGE_GIB: Final = 70
_LARGEST_GIB: Final = 160


@dataclass(frozen=True, slots=True)
class Batching:
    """How much one step of the engine takes in."""

    batched_tokens: int
    """`max_num_batched_tokens`."""
    sequences: int
    """`max_num_seqs`."""


def default_batching(gpu: GpuType) -> Batching:
    """Return what vLLM 0.32's server takes where nothing is asked for (vllm/engine/arg_utils.py)."""
    memory = seen_gib(gpu)
    if memory >= _LARGEST_GIB:
        return Batching(16_384, 1024)
    if memory >= _LARGE_GIB and "A100" not in gpu.value:
        return Batching(8192, 1024)
    return Batching(2048, 256)


def activation_bytes(shape: ModelShape, batching: Batching, *, gpu_count: int = 1) -> Figure:
    """Return the most that one step needs on one GPU beside weights and KV cache."""
    inner = shape.inner / gpu_count
    step = (
        batching.batched_tokens * (_INNER_COPIES * inner + _HIDDEN_COPIES * shape.hidden) * _ACTIVATION_BYTES
    )  # the feed-forward is split, the residuals are not
    logits = 0 if shape.is_encoder else batching.sequences * shape.vocabulary * _LOGIT_BYTES
    formula = (
        f"{batching.batched_tokens:,} batched tokens x ({_INNER_COPIES} x {inner:,.0f} inner + "
        f"{_HIDDEN_COPIES} x {shape.hidden:,} hidden) x {_ACTIVATION_BYTES} bytes"
    )
    if logits:
        formula += f" + {batching.sequences:,} sequences x {shape.vocabulary:,} vocabulary x {_LOGIT_BYTES} bytes"
    return Figure(step + logits, "bytes", formula, SOURCE)


def overhead_bytes(shape: ModelShape, batching: Batching, *, gpu_count: int = 1, has_graphs: bool = True) -> Figure:
    """Return all that is taken on one GPU beside weights and KV cache."""
    activations = activation_bytes(shape, batching, gpu_count=gpu_count)
    outside = _OUTSIDE_TORCH_GIB if gpu_count == 1 else _OUTSIDE_TORCH_OF_SEVERAL_GIB
    graphs = _GRAPHS_GIB if has_graphs else 0.0
    return Figure(
        activations.value + (outside + graphs) * GIB, "bytes",
        f"{activations.amount} of activations ({activations.formula}) + {outside:g} GiB outside PyTorch + "
        f"{graphs:g} GiB of CUDA graphs",
        SOURCE,
    )  # fmt: skip
