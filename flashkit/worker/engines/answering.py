"""From jobs to an engine's requests and back: input shapes, streams, deadlines, and what handlers call.

Accepted inputs of an endpoint that is its engine:

- `{"openai_route": "/v1/…", "openai_input": {…}}`, what the platform makes of a request below `/openai/v1`;
- `{"route": "/v1/…", "method": "POST", "body": {…}}`, any route of the engine;
- `{"messages": [...], ...}` or `{"prompt": "...", ...}`: a chat or a completion, the rest as OpenAI's parameters.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from flashkit.worker.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job's answer is: one JSON text, or pieces of JSON text as they come."""

    whole: bytes | None = None
    pieces: AsyncGenerator[bytes, None] | None = None
    """Closing it aborts the request."""


async def answer_job(engine: Engine, data: Any, *, job_id: str, deadline: float | None = None) -> Answer:
    """Return an engine's answer to a job's input.

    Args:
        engine: The loaded engine.
        data: The job's input.
        job_id: For logs.
        deadline: Time of the loop at which the request is aborted and what there is of an answer returned.

    Raises:
        InputError: The input has none of the accepted shapes.
        EngineRefusal: The engine refused it.
        EngineDied: The engine died meanwhile.
    """
    raise NotImplementedError
