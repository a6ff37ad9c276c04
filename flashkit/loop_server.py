"""uvicorn inside our event loop: the local platform's server, and that of workers with routes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

_BACKLOG: Final = 2048
_KEEP_ALIVE_SECONDS: Final = 120
"""Longer than clients, and the platform as a worker's, keep idle connections: no request meets one that is closing."""


class LoopServer(uvicorn.Server):
    """uvicorn on a socket of ours, leaving signals to whoever runs the loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket, **options: Any) -> None:
        """Serve an application; `options` are uvicorn's, besides those that are the same for all of ours."""
        super().__init__(
            uvicorn.Config(
                app,
                ws="websockets-sansio",
                lifespan="off",
                log_config=None,
                log_level="warning",  # below it are addresses of WebSockets, whose queries may hold credentials
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
                **options,
            )
        )
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers of the process alone."""
        yield

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._serving = asyncio.ensure_future(self.serve(sockets=[self._listener]))
        while not self.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        OSError: The port is taken or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and answers would be late by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Lets who starts again have its port back while old connections time out.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)  # noqa: FBT003
    return listener
