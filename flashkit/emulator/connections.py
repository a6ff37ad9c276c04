"""The server's HTTP connections: uvicorn's own, which requests can also break without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ABORT: Final = "flashkit.abort"


class BreakableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; each request carries the means to break its connection."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        scope: Any = self.scope
        scope[_ABORT] = self.transport.abort


async def break_connection(scope: Scope) -> None:
    """Close the request's connection at once: its sender gets no answer, and sees a reset or an end."""
    abort: Callable[[], None] | None = scope.get(_ABORT)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # lets the server see that the connection is gone before the request ends
