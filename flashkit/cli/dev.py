"""`flashkit dev`: its command line, checked before anything heavy is imported or started."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.cli import PORT_TAKEN
from flashkit.cli.splitting import CommandWithTail
from flashkit.errors import ConfigurationError
from flashkit.settings import DEV_FILE

if TYPE_CHECKING:
    from flashkit.cli.containers import ContainerChoice
    from flashkit.cli.emulation import Emulation
    from flashkit.cli.errands import Errand

USUAL_PORT = 8484
LOG_LEVELS = ("debug", "info", "warning", "error")


class PortTaken(ConfigurationError):
    """Another process listens on the port."""

    code = PORT_TAKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """The command line of `flashkit dev`, checked."""

    apps: tuple[Path, ...]
    host: str
    port: int
    is_reloading: bool
    has_keys: bool
    is_json: bool
    log_level: str
    state_url: str | None
    """The store for sessions that was asked for."""
    folder: Path
    """The project's folder: state and dev.json go below it."""
    emulation: Emulation
    containers: ContainerChoice
    """Endpoints whose workers are containers."""
    errand: Errand | None = None
    """What to do instead of waiting for people."""
    cold_start_budget: float | None = None
    """Seconds that a start may take during the errand."""
    seed_folder: Path | None = None
    export_folder: Path | None = None
    record_file: Path | None = None
    replay_file: Path | None = None

    @property
    def state_dir(self) -> Path:
        """Where homes of workers, sessions and dev.json are."""
        return self.folder / DEV_FILE.parent


@click.command("dev", cls=CommandWithTail)
@click.argument("apps", nargs=-1, metavar="[APP]...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), show_default=f"{USUAL_PORT}; any free one with --once, --ci and tests",
    help="Port; 0 takes a free one.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--no-reload", is_flag=True, help="Do not watch files; exit 3 when the app does not import.")
@click.option("--headless", is_flag=True, help="For machines without a person: watch no files, read no keys.")
@click.option("--json", "is_json", is_flag=True, help="Write what happens as JSON, an object on each line.")
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
@click.option("--once", is_flag=True, help="Send one job, from --input or test_input.json, print its output, stop.")
@click.option("--input", "input_text", metavar="JSON", help="The job's input, for --once.")
@click.option("--endpoint", metavar="NAME", help="The endpoint for --once and --runpod-tests, where there are several.")
@click.option("--ci", "is_ci", is_flag=True, help="Run COMMAND, which follows --, stop, and exit with its code.")
@click.option("--runpod-tests", is_flag=True, help="Run the jobs of .runpod/tests.json, say which failed, stop.")
@click.option(
    "--cold-start-budget", type=click.FloatRange(min=0), metavar="SECONDS",
    help="With --once, --ci and --runpod-tests: exit 7 when a worker took longer to start.",
)  # fmt: skip
@click.option(
    "--cold-start", "cold_starts", multiple=True, metavar="[NAME=]SECONDS",
    help="What a worker's start takes besides that of its process.",
)  # fmt: skip
@click.option(
    "--capacity", "capacities", multiple=True, metavar="[NAME=]WORKERS",
    help="Workers that there are machines for; others are throttled.",
)  # fmt: skip
@click.option(
    "--image", "images", multiple=True, is_flag=False, flag_value="", metavar="[[NAME=]IMAGE]",
    help="Run workers in containers: of this image, or of those that `flashkit build` made. Reloads nothing.",
)  # fmt: skip
@click.option("--flashboot", is_flag=True, help="Freeze idle workers instead of stopping them, where specs allow it.")
@click.option("--speed", default="1x", show_default=True, help="How fast the platform's clock goes: 60x.")
@click.option(
    "--fault", "faults", multiple=True, metavar="RULE",
    help="Make something go wrong: embed:error=0.1,latency=200ms±50ms; error: results are refused, and sent again.",
)  # fmt: skip
@click.option(
    "--random-seed", type=int, metavar="N", help="Meet the same faults, and give jobs the same ids, each time."
)
@click.option("--rate-limits", is_flag=True, help="Refuse clients that send more than Runpod takes.")
@click.option(
    "--seed", "seed_folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Send the jobs that an earlier run exported.",
)  # fmt: skip
@click.option(
    "--export-on-exit", "export_folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Write the jobs with inputs and outputs there at the end.",
)  # fmt: skip
@click.option(
    "--record", "record_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write every submitted job with its time there, for --replay.",
)  # fmt: skip
@click.option(
    "--replay", "replay_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Send the jobs of a recording, at the times they had; --speed holds for them too.",
)  # fmt: skip
def command(apps: tuple[Path, ...], **given: Any) -> int:
    """Run the endpoints of an app on this machine: queue, scaling, real worker processes, Runpod's HTTP API.

    APP is a file that defines endpoints with flashkit's decorators, a plain runpod handler file that calls
    runpod.serverless.start, or a project's folder with app.py, main.py, handler.py or rp_handler.py, also below
    src. Without APP, the current folder is taken. Sessions are kept below .flashkit, by a Redis or Valkey of its
    own where one is installed, unless --redis or FLASHKIT_STATE names another store.

    In a terminal, ? shows the keys that are commands.
    """
    is_for_people = not given["is_json"] and _errands_of(given) == []
    if is_for_people:
        from flashkit import __version__

        click.echo(f"flashkit {__version__}")  # what follows takes a moment to import
    options = read_options(apps, given)
    check_address(options.host, options.port)
    from flashkit.cli.serving import serve

    with asyncio.Runner(loop_factory=quick_loop()) as runner:
        return runner.run(serve(options))


def read_options(apps: tuple[Path, ...], given: dict[str, Any]) -> DevOptions:
    """Return the checked options.

    Raises:
        click.UsageError: They contradict each other, or there is no app.
    """
    from flashkit.cli.containers import ContainerChoice
    from flashkit.cli.emulation import Emulation
    from flashkit.cli.projects import project_folder

    if given["images"] and given["flashboot"]:
        raise click.UsageError("--flashboot freezes processes, and cannot freeze the containers of --image")
    errand = _read_errand(given)
    if given["cold_start_budget"] is not None and errand is None:
        raise click.UsageError("--cold-start-budget goes with --once, --ci or --runpod-tests")
    usual_port = USUAL_PORT if errand is None else 0
    is_attended = errand is None and not given["headless"]
    files = tuple(locate_app(app).resolve() for app in apps or [Path.cwd()])
    return DevOptions(
        apps=files,
        host=given["host"],
        port=usual_port if given["port"] is None else given["port"],
        is_reloading=is_attended and not given["no_reload"] and not given["images"],
        has_keys=is_attended and not given["is_json"],
        is_json=given["is_json"],
        log_level=given["log_level"],
        state_url=given["state_url"],
        folder=Path.cwd(),
        emulation=Emulation(
            cold_starts=given["cold_starts"],
            capacities=given["capacities"],
            faults=given["faults"],
            speed=given["speed"],
            random_seed=given["random_seed"],
            has_flashboot=given["flashboot"],
            has_rate_limits=given["rate_limits"],
        ),
        containers=ContainerChoice(given["images"], tuple(dict.fromkeys(map(project_folder, files)))),
        errand=errand,
        cold_start_budget=given["cold_start_budget"],
        seed_folder=given["seed_folder"],
        export_folder=given["export_folder"],
        record_file=given["record_file"],
        replay_file=given["replay_file"],
    )


def _errands_of(given: dict[str, Any]) -> list[str]:
    return [
        name
        for name, is_asked in (
            ("--once", given["once"]),
            ("--ci", given["is_ci"]),
            ("--runpod-tests", given["runpod_tests"]),
        )
        if is_asked
    ]


def _read_errand(given: dict[str, Any]) -> Errand | None:
    errands = _errands_of(given)
    if len(errands) > 1:
        raise click.UsageError(f"{' and '.join(errands)} exclude each other")
    tail: tuple[str, ...] = given["tail"]
    if bool(tail) != given["is_ci"]:
        raise click.UsageError("--ci and a command after -- go together: flashkit dev --ci -- pytest")
    if given["input_text"] is not None and not given["once"]:
        raise click.UsageError("--input goes with --once")
    if not errands:
        return None
    from flashkit.cli.errands import RunCommand, RunHubTests, RunOnce

    if given["once"]:
        return RunOnce(given["input_text"], given["endpoint"], given["is_json"])
    return RunCommand(tail) if given["is_ci"] else RunHubTests(given["endpoint"])


def quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where uvloop is installed, else None for asyncio's own loop."""
    try:
        from uvloop import new_event_loop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    return factory


def locate_app(path: Path) -> Path:
    """Return the app file: the path itself, or what the folder has under one of the usual names.

    Raises:
        click.UsageError: The folder has none.
    """
    from flashkit.cli.projects import USUAL_NAMES, find_app

    if not path.is_dir():
        return path
    found = find_app(path)
    if found is None:
        raise click.UsageError(
            f"there is no app in {path}: neither {', '.join(USUAL_NAMES)} nor one of them below src; "
            "name your app's file: flashkit dev APP.py"
        )
    return found


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
