"""`ScriptedLLM(...)`: a language model with answers that a test wrote down."""

from __future__ import annotations

from typing import Any

from flashkit.spec import EngineSpec


def ScriptedLLM(**options: Any) -> EngineSpec:  # noqa: N802 - reads as the engine it declares
    """Return an engine that answers from a script, through the same routes as vLLM."""
    return EngineSpec("scripted", None, options)
