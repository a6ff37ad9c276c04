"""`VLLM(...)`: a language model served by vLLM inside the worker."""

from __future__ import annotations

from typing import Any

from flashkit.spec import EngineSpec, Weights


def VLLM(weights: Weights, **options: Any) -> EngineSpec:  # noqa: N802 - reads as the engine it declares
    """Return a vLLM engine."""
    return EngineSpec("vllm", weights, options)
