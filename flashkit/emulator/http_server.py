"""uvicorn in the emulator's event loop, on a socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from functools import partial
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from flashkit.emulator.connections import AtOnce, BreakableProtocol
from flashkit.errors import ConfigurationError
from flashkit.protocol import REQUEST_BODY_LIMIT_BYTES

_KEEP_ALIVE_SECONDS: Final = 120
"""Longer than clients keep idle connections, so that theirs is the side that closes them."""
_BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """uvicorn inside our event loop, on our socket, leaving signals to whoever runs the loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, at_once: AtOnce) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(BreakableProtocol, at_once=at_once),  # type: ignore[arg-type]
                ws="websockets-sansio",
                ws_max_size=REQUEST_BODY_LIMIT_BYTES,
                lifespan="off",
                log_config=None,
                log_level="warning",  # below it are addresses of WebSockets, whose queries may hold credentials
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
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
        ConfigurationError: The port is taken or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and answers would be late by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Lets a restarted emulator have its port back while old connections time out.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(host, port, exc) from exc
    listener.setblocking(False)  # noqa: FBT003
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL for clients on this machine, also where the server listens on every address."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0":  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _cannot_listen(host: str, port: int, exc: OSError) -> ConfigurationError:
    if exc.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {port} on {host} is in use", hint="choose another with --port, or 0 for any free one"
        )
    if exc.errno == errno.EACCES:
        return ConfigurationError(f"port {port} needs more rights", hint="choose one above 1023 with --port")
    return ConfigurationError(f"cannot listen on {host}: {exc.strerror}", hint="check --host")
