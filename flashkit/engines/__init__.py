"""Engines as an app declares them: `VLLM(...)`, `Embedding(...)`, `ScriptedLLM(...)`.

A declaration checks its options and gives a frozen `EngineSpec`; nothing is loaded. What runs in the worker is in
`flashkit.worker.engines`, one module an engine.
"""

from __future__ import annotations

from flashkit.engines.embedding import Embedding
from flashkit.engines.scripted import ScriptedLLM
from flashkit.engines.vllm import VLLM

__all__ = ["VLLM", "Embedding", "ScriptedLLM"]
