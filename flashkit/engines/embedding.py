"""`Embedding(...)`: a sentence-embedding model for `@embedding_endpoint`."""

from __future__ import annotations

from typing import Any

from flashkit.spec import EngineSpec, Weights


def Embedding(weights: Weights, **options: Any) -> EngineSpec:  # noqa: N802 - reads as the engine it declares
    """Return an embedding engine."""
    return EngineSpec("embedding", weights, options)
