"""How fast a worker is at best: by its GPU's data sheet, and the shares of it that an engine reaches.

Three limits: the operations that tokens need, the memory that each step reads, and the least time that a step takes.
They rank workers; they are no promise, as prefills, preemption and the network come on top.
"""

from __future__ import annotations

from typing import Final

from flashkit.catalog import GpuType
from flashkit.plan.figures import Figure, count_of, format_bytes
from flashkit.plan.gpu_facts import BANDWIDTH_SHARE, COMPUTE_SHARE, SPEEDS, SPLIT_SHARE, STEP_SECONDS, split_share
from flashkit.plan.model_shape import ModelShape

SPEED_SOURCE: Final = "NVIDIA's data sheets, and the shares of them that flashkit chose (flashkit/plan/gpu_facts.py)"


def first_token_seconds(shape: ModelShape, prompt_tokens: int, gpu: GpuType, gpu_count: int) -> Figure:
    """Return how long a prompt is read before the first token comes, with nobody else on the worker."""
    seconds = max(STEP_SECONDS, prompt_tokens / _tokens_computed(shape, gpu, gpu_count))
    return Figure(
        seconds, "s",
        f"{prompt_tokens:,} tokens of prompt / ({_computed_words(shape, gpu, gpu_count)}), at least {STEP_SECONDS:g} s",
        SPEED_SOURCE,
    )  # fmt: skip


def tokens_written(
    shape: ModelShape, gpu: GpuType, gpu_count: int, *, sessions: float, weights_bytes: float, kv_bytes: float
) -> Figure:
    """Return the tokens a second of so many sessions together.

    Args:
        shape: The model.
        gpu: The GPU model.
        gpu_count: How many share the model.
        sessions: Each gets one token of a step.
        weights_bytes: On one GPU.
        kv_bytes: Of a whole session on one GPU; on average sessions are half as long.
    """
    read = weights_bytes * _share_met(shape, sessions) + sessions * kv_bytes / 2
    bandwidth = SPEEDS[gpu].gb_per_second * 1e9 * BANDWIDTH_SHARE * split_share(gpu_count)
    step = max(read / bandwidth, sessions / _tokens_computed(shape, gpu, gpu_count), STEP_SECONDS)
    return Figure(
        sessions / step, "tokens per second",
        f"{sessions:g} sessions / the longest of {format_bytes(read)} of weights and half-full KV cache on each GPU / "
        f"({SPEEDS[gpu].gb_per_second:g} GB/s x {BANDWIDTH_SHARE:g}{_split_words(gpu_count)}), {sessions:g} tokens / "
        f"({_computed_words(shape, gpu, gpu_count)}), and {STEP_SECONDS:g} s",
        SPEED_SOURCE,
    )  # fmt: skip


def tokens_read(shape: ModelShape, gpu: GpuType, gpu_count: int, *, batched_tokens: int) -> Figure:
    """Return the tokens a second that an embedding worker reads, in steps of so many."""
    step = max(batched_tokens / _tokens_computed(shape, gpu, gpu_count), STEP_SECONDS)
    return Figure(
        batched_tokens / step, "tokens per second",
        f"{batched_tokens:,} tokens of a step / the longer of {batched_tokens:,} tokens / "
        f"({_computed_words(shape, gpu, gpu_count)}) and {STEP_SECONDS:g} s", SPEED_SOURCE,
    )  # fmt: skip


def _active(shape: ModelShape) -> int:
    return shape.active_parameters or shape.body_parameters


def _share_met(shape: ModelShape, sessions: float) -> float:
    """Return the share of the weights that one step reads: of experts only those that its sessions meet."""
    return min(1.0, sessions * _active(shape) / shape.body_parameters)


def _tokens_computed(shape: ModelShape, gpu: GpuType, gpu_count: int) -> float:
    operations = SPEEDS[gpu].teraflops * 1e12 * COMPUTE_SHARE * gpu_count * split_share(gpu_count)
    return operations / (2 * _active(shape))


def _computed_words(shape: ModelShape, gpu: GpuType, gpu_count: int) -> str:
    gpus = count_of(gpu_count, "GPU") + _split_words(gpu_count)
    return (
        f"{SPEEDS[gpu].teraflops:g} TFLOPS x {COMPUTE_SHARE:g} x {gpus} / "
        f"2 / {_active(shape) / 1e9:.3g} billion parameters"
    )


def _split_words(gpu_count: int) -> str:
    return "" if gpu_count == 1 else f" x {split_share(gpu_count):.2g} ({SPLIT_SHARE:g} for each doubling)"
