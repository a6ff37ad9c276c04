"""`flashkit dev`: its command line, checked before anything heavy is imported or started."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from flashkit.cli import PORT_TAKEN
from flashkit.errors import ConfigurationError
from flashkit.settings import DEV_FILE

LOG_LEVELS = ("debug", "info", "warning", "error")
_USUAL_NAMES = ("app.py", "main.py", "handler.py", "src/app.py", "src/handler.py")


class PortTaken(ConfigurationError):
    """Another process listens on the port."""

    code = PORT_TAKEN


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The command line of `flashkit dev`, checked."""

    apps: tuple[Path, ...]
    host: str
    port: int
    is_reloading: bool
    log_level: str
    state_url: str | None
    """The store for sessions that was asked for."""
    folder: Path
    """The project's folder: state and dev.json go below it."""

    @property
    def state_dir(self) -> Path:
        """Where homes of workers, sessions and dev.json are."""
        return self.folder / DEV_FILE.parent

    @property
    def watched_folders(self) -> tuple[Path, ...]:
        """Folders of the apps, each once; none without reloading."""
        return tuple(dict.fromkeys(app.parent for app in self.apps)) if self.is_reloading else ()


@click.command("dev")
@click.argument("apps", nargs=-1, metavar="[APP.py]...", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--port", default=8484, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--no-reload", is_flag=True, help="Do not watch files; exit 3 when the app does not import.")
@click.option(
    "--redis",
    "state_url",
    metavar="URL",
    help="Keep sessions there: redis://HOST:PORT/0, rediss://…, unix:///SOCKET or sqlite:///FILE.",
)
@click.option(
    "--log-level", default="warning", show_default=True, type=click.Choice(LOG_LEVELS),
    help="Least serious log lines of the runpod SDK; what your code prints is always shown.",
)  # fmt: skip
def command(
    apps: tuple[Path, ...], *, port: int, host: str, no_reload: bool, state_url: str | None, log_level: str
) -> int:
    """Run the endpoints of an app on this machine: queue, scaling, real worker processes, Runpod's HTTP API.

    APP.py defines endpoints with flashkit's decorators, or is a plain runpod handler file that calls
    runpod.serverless.start. Without APP.py, app.py, main.py or handler.py is taken. Sessions are kept below
    .flashkit, by a Redis or Valkey of its own where one is installed, unless --redis or FLASHKIT_STATE
    names another store.
    """
    options = DevOptions(
        apps=tuple(app.resolve() for app in apps or [find_app(Path.cwd())]),
        host=host,
        port=port,
        is_reloading=not no_reload,
        log_level=log_level,
        state_url=state_url,
        folder=Path.cwd(),
    )
    check_address(host, port)
    from flashkit.cli.serving import serve

    with asyncio.Runner(loop_factory=quick_loop()) as runner:
        return runner.run(serve(options))


def quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where uvloop is installed, else None for asyncio's own loop."""
    try:
        from uvloop import new_event_loop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    return factory


def find_app(folder: Path) -> Path:
    """Return the app file that the folder has under one of the usual names.

    Raises:
        click.UsageError: There is none.
    """
    for name in _USUAL_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise click.UsageError(f"there is no app.py here; name your app's file: flashkit dev APP.py (in {folder})")


def check_address(host: str, port: int) -> None:
    """Refuse a port that cannot be had, before anything else is started.

    Raises:
        PortTaken: Somebody listens there.
        ConfigurationError: This machine has no such address, or does not allow the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise address_error(exc, host, port) from exc


def address_error(exc: OSError, host: str, port: int) -> ConfigurationError:
    """Return what it means that the address could not be bound."""
    if exc.errno == errno.EADDRINUSE:
        return PortTaken(
            f"port {port} on {host} is in use, perhaps by another flashkit dev",
            hint=f"pass another one with --port {port + 1}, or stop the process that has it",
        )
    reason = exc.strerror or str(exc)
    return ConfigurationError(f"cannot listen on {host} port {port}: {reason}", hint="change --host or --port")
