"""What a worker needs of an engine, whichever model runs behind it.

An engine is one thing to a worker: something that answers HTTP-shaped requests (`open`), in pieces where the caller
wants a stream. What jobs look like, how streams are cut into posts and what handlers call is built on that once, in
`answering`. Engines live on the loop that serves the jobs: they are started there, warmed up there and asked there.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flashkit.errors import ConfigurationError, EngineError
from flashkit.settings import Settings
from flashkit.spec import EngineSpec
from flashkit.worker.phases import Phases


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request to an engine, as an HTTP server would get it."""

    path: str
    """Path below the server, `/v1/chat/completions` for example."""
    body: Any = None
    """JSON value; None for a request without a body."""
    method: str = "POST"
    id: str | None = None
    """The job's id, for logs."""


@dataclass(slots=True)
class EngineResponse:
    """An engine's answer. Whoever opened it must close it: that aborts what still runs and frees its memory."""

    status: int
    body: AsyncIterator[bytes]
    """The answer's bytes as they are made; an async generator, closed by `close()`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case names."""

    @property
    def is_stream(self) -> bool:
        """True for server-sent events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([piece async for piece in self.body])

    async def close(self) -> None:
        """Abort what still runs."""
        aclose = getattr(self.body, "aclose", None)
        if aclose is not None:
            await aclose()


class Engine(Protocol):
    """A loaded model."""

    def handle(self) -> Any:
        """Return what a handler gets as `engine` or `embed`."""

    async def warm_up(self) -> None:
        """Run one real inference of every path that the endpoint will use."""

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Answer a request; a refusal is an answer too, with OpenAI's status and body.

        Raises:
            EngineDied: There is no engine any more, or it stopped in the middle.
        """

    @property
    def room(self) -> int:
        """How many more jobs it could take now beside those that it has."""

    @property
    def progress(self) -> int:
        """Grows while the engine works on requests: steps or tokens so far."""

    @property
    def is_busy(self) -> bool:
        """True while it has requests: then `progress` must grow now and then."""

    async def check(self) -> None:
        """Return when the engine is well. Called now and then, and after the worker was frozen.

        Raises:
            EngineDied: It is not, and the worker must go.
        """

    async def close(self) -> None:
        """End the engine and everything it started; must also work when it is dead."""


_HOMES: Final[Mapping[str, tuple[str, str]]] = {
    "embedding": ("embedding.engine", "load_embedding"),
    "scripted": ("scripted", "load_scripted"),
    "vllm": ("vllm", "load_vllm"),
}
"""Engine by type: the module here, and its `async def load(spec, settings, phases) -> Engine`."""


async def load_engine(spec: EngineSpec, settings: Settings, phases: Phases) -> Engine:
    """Load an endpoint's engine on the current loop, ready but for its warm-up.

    Raises:
        ConfigurationError: Its weights or libraries are missing, or it cannot work on this machine.
        EngineError: It did not start.
    """
    if spec.type not in _HOMES:
        raise ConfigurationError(
            f"this worker knows no engine {spec.type!r}", hint=f"it knows {', '.join(_HOMES)}: update flashkit"
        )
    module, function = _HOMES[spec.type]
    load = getattr(importlib.import_module(f"flashkit.worker.engines.{module}"), function)
    engine: Engine = await load(spec, settings, phases)
    return engine


def read_refusal(status: int, body: Any) -> EngineError:
    """Return the error for an answer that is none: the engine's own message, status and body."""
    from flashkit.errors import EngineRefusal

    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return EngineRefusal(
        f"the engine refused the request with HTTP {status}: {message}", details={"status": status, "body": body}
    )
