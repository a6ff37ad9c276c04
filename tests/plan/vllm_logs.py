"""What vLLM said of its own memory when it started, in logs that people made public.

`room_gib` is "Available KV cache memory", or what older releases call "the rest of the memory reserved for KV Cache".
Configs are those of the models' repositories; where a log does not tell an option it is vLLM's default on that GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashkit.plan.overhead import Batching
from tests.plan.configs import (
    GPT_OSS_20B,
    LLAMA_2_7B,
    LLAMA_3_8B,
    QWEN_2_5_0_5B,
    QWEN_2_5_1_5B,
    QWEN_3_235B,
)


@dataclass(frozen=True)
class StartLog:
    """One start."""

    source: str
    config: dict[str, Any]
    gpu_gib: float
    utilization: float
    weights_gib: float
    room_gib: float
    batching: Batching
    gpu_count: int = 1
    is_tight: bool = False
    """So little is left that a small error is a large share of it."""


START_LOGS = (
    StartLog("vllm-project/vllm#10511, 2024-12: Meta-Llama-3-8B on one GPU of 79.22 GiB",
             LLAMA_3_8B, 79.22, 0.9, 14.96, 53.29, Batching(8192, 256)),
    StartLog("vllm-project/vllm#10511, 2024-12: the same on two",
             LLAMA_3_8B, 79.22, 0.9, 7.48, 58.97, Batching(8192, 256), gpu_count=2),
    StartLog("a book's example of vLLM's log: an 8B Llama on 79.14 GiB",
             LLAMA_3_8B, 79.14, 0.9, 14.99, 54.93, Batching(8192, 256)),
    StartLog("kubernetes-sigs/gateway-api-inference-extension#550, 2025-03: Llama-2-7B, max_num_seqs 2048",
             LLAMA_2_7B, 79.19, 0.9, 12.55, 56.18, Batching(8192, 2048)),
    StartLog("Qwen2.5-Math-1.5B on an L40S, 2025-03", QWEN_2_5_1_5B, 44.39, 0.85, 2.88, 33.37, Batching(8192, 256)),
    StartLog("myoceane.fr, 2026-04: gpt-oss-20b on an A100, vLLM 0.19",
             GPT_OSS_20B, 79.25, 0.65, 13.72, 36.56, Batching(2048, 256)),
    StartLog("Qwen2.5-0.5B on 24 GB, 2026-08", QWEN_2_5_0_5B, 23.99, 0.85, 0.93, 18.65, Batching(2048, 256)),
    StartLog("Llama-3.1-8B on an A100, 2026-10, vLLM 0.27 or later",
             LLAMA_3_8B, 79.25, 0.92, 15.0, 56.21, Batching(8192, 256)),
    StartLog("an 8B Llama on 22.07 GiB, 2025-03, 4.6 GiB left",
             LLAMA_3_8B, 22.07, 0.9, 14.99, 4.60, Batching(2048, 256), is_tight=True),
    StartLog("Qwen2.5-1.5B on half a T4, 2025-05, a step of 32,768 tokens, 2.36 GiB left",
             QWEN_2_5_1_5B, 14.56, 0.5, 2.89, 2.36, Batching(32768, 256), is_tight=True),
)  # fmt: skip


@dataclass(frozen=True)
class CacheLog:
    """How many tokens vLLM found room for."""

    source: str
    config: dict[str, Any]
    room_gib: float
    tokens: int
    gpu_count: int = 1


CACHE_LOGS = (
    CacheLog("Llama-3.1-8B, 2026-10: 3.51 sessions of 131,072 tokens", LLAMA_3_8B, 56.21, 460_496),
    CacheLog("Qwen2.5-0.5B, 2026-08", QWEN_2_5_0_5B, 18.65, 1_629_520),
    CacheLog("Qwen3-235B-A22B-FP8 over 4 GPUs, 2025-09: 7.27 sessions of 32,768", QWEN_3_235B, 10.65, 238_208, 4),
    CacheLog("vllm-project/vllm#21348, 2025-07: Qwen3-235B-A22B-FP8 over 4 H100", QWEN_3_235B, 8.11, 178_880, 4),
)
