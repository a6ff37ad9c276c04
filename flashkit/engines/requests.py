"""The handler of an endpoint that is nothing but an engine: requests in the shapes that engines understand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "embedding": {"input": ["Why is the sky blue?"]},
    "scripted": {"prompt": "Say hello.", "max_tokens": 16},
    "vllm": {"prompt": "Say hello.", "max_tokens": 16},
}
"""An input for each engine that its endpoint answers."""


async def answer_request(**request: Any) -> AsyncIterator[Any]:
    """Answer an OpenAI request, a route and body, or a prompt; see the guide to engines.

    It stands for the engine in the endpoint's definition: the worker hands such jobs to the engine itself.
    """
    raise NotImplementedError(f"a worker's engine answers this request: {sorted(request)}")
    yield
