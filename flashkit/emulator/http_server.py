"""The platform's HTTP server, and where it listens."""

from __future__ import annotations

import errno
import socket
from functools import partial

from starlette.types import ASGIApp

from flashkit import loop_server
from flashkit.emulator.connections import AtOnce, BreakableProtocol
from flashkit.errors import ConfigurationError
from flashkit.protocol import REQUEST_BODY_LIMIT_BYTES


def make_server(app: ASGIApp, listener: socket.socket, *, at_once: AtOnce) -> loop_server.LoopServer:
    """Return a server whose connections can be broken, and which lets `at_once` try each request first."""
    return loop_server.LoopServer(
        app,
        listener,
        http=partial(BreakableProtocol, at_once=at_once),
        ws_max_size=REQUEST_BODY_LIMIT_BYTES,
        date_header=False,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        ConfigurationError: The port is taken or the address is not of this machine.
    """
    try:
        return loop_server.listen(host, port)
    except OSError as exc:
        raise _cannot_listen(host, port, exc) from exc


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
