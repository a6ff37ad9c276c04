"""The process of a load-balanced worker: it listens first, sets up meanwhile, and leaves in an orderly way.

It listens on `PORT`, and answers `/ping` there or on `PORT_HEALTH`. SIGTERM and SIGINT make it leave: `/ping` is not
200 any more, running requests finish, WebSockets are closed (1012), teardown runs. SIGINT after that ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from flashkit.errors import ConfigurationError, SetupError
from flashkit.http_routes import HttpDefinition
from flashkit.settings import Settings

try:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from flashkit.loop_server import LoopServer, listen
    from flashkit.worker.http.application import HttpApplication
except ModuleNotFoundError as exc:
    raise ConfigurationError(
        f"a load-balanced worker needs the module {exc.name!r}", hint="pip install 'flashkit-serverless[http]'"
    ) from exc

log = logging.getLogger(__name__)

EXIT_FAILED: Final = 1


def serve_http(definition: HttpDefinition, settings: Settings) -> int:
    """Serve until a signal says stop; return the exit code.

    Raises:
        ConfigurationError: The port is none, or cannot be had.
        DefinitionError: A route cannot work.
    """
    return asyncio.run(_Worker(definition, settings).run())


class _Worker:
    def __init__(self, definition: HttpDefinition, settings: Settings) -> None:
        self._definition = definition
        self._settings = settings

    async def run(self) -> int:
        application = HttpApplication(self._definition, self._settings)
        leaving = _listen_to_signals()
        exit_code = 0
        async with _running_servers(application, self._settings):
            try:
                await _unless(leaving, application.start())
            except SetupError as exc:
                log.error("%s", exc.report.render(), exc_info=exc.__cause__)  # noqa: TRY400 - the cause's traceback
                exit_code = EXIT_FAILED
            else:
                await leaving.wait()
            await application.drain()
        await application.stop()
        if application.has_stuck_threads:
            log.warning("a handler is still running in a thread: ending the process without it")
            logging.shutdown()
            sys.stdout.flush()
            os._exit(exit_code)
        return exit_code


def _listen_to_signals() -> asyncio.Event:
    """Return the event that the first signal sets.

    A platform may send SIGTERM again and again; a person's second Ctrl-C ends the process as it would any other.
    """
    loop = asyncio.get_running_loop()
    leaving = asyncio.Event()

    def leave() -> None:
        leaving.set()
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    return leaving


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run the work until it ends, or cancel it when the event is set."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    else:
        task.cancel()


@contextlib.asynccontextmanager
async def _running_servers(application: HttpApplication, settings: Settings) -> AsyncIterator[None]:
    ports = settings.listen_ports()
    apps: dict[int, ASGIApp] = {ports.health: _OnlyPing(application)}
    apps[ports.requests] = application
    servers = [LoopServer(app, _listen(settings.http_host, port)) for port, app in apps.items()]
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.stop()


class _OnlyPing:
    """What PORT_HEALTH serves: nothing but /ping, whatever the path."""

    def __init__(self, application: HttpApplication) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application.ping(scope, receive, send)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as exc:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {exc.strerror or exc}",
            hint="set PORT to a port that is free and that you may use",
        ) from exc
