"""What runs behind `flashkit dev`: the emulator, the reloading, and an orderly end.

While it runs, `.flashkit/dev.json` in the project's folder tells clients where it is. A saved .py file
restarts the workers of the apps in its folder; an app that stops importing keeps its last good workers,
or none, until it is fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from flashkit.cli import exit_code_for
from flashkit.cli.apps import AppEndpoint, check_names, describe_app
from flashkit.cli.console import Screen, make_console
from flashkit.cli.dev import DevOptions
from flashkit.cli.dev_record import kept_record
from flashkit.cli.dev_sessions import resume_for_ever
from flashkit.cli.dev_store import DevStore, open_dev_store
from flashkit.cli.watching import SourceWatch
from flashkit.emulator.server import Emulator
from flashkit.errors import DefinitionError
from flashkit.settings import DEV_FILE

SHUTDOWN_GRACE_SECONDS = 10.0
"""How long jobs may go on after the first Ctrl-C."""
EXIT_KILLED = 130
"""The shell's code for a process that Ctrl-C ended."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WORKER_DEFAULTS = {"FLASHKIT_KEEP_JOURNALS": "1", "FLASHKIT_LEASE_SECONDS": "5"}
"""What suits one machine and a person who watches, unless the developer's shell says otherwise."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What Ctrl-C asks for: the first time to stop, the second time to kill."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    killing: asyncio.Event = field(default_factory=asyncio.Event)


async def serve(options: DevOptions) -> int:
    """Run the platform until it is told to stop, and return the exit code."""
    screen = Screen(log_level=options.log_level)
    with listen_to_signals(screen) as signals:
        try:
            await DevServer(options, screen).run(signals)
        except DefinitionError as exc:
            Screen(log_level=options.log_level, console=make_console(stderr=True)).show_problem(exc.report)
            return exit_code_for(exc)
        is_killed = signals.killing.is_set()
        screen.say("killed" if is_killed else "stopped")
    return EXIT_KILLED if is_killed else 0


@contextlib.contextmanager
def listen_to_signals(screen: Screen) -> Iterator[Signals]:
    """Turn the signals that end a process into wishes, for as long as the block lasts."""
    loop = asyncio.get_running_loop()
    signals = Signals()

    def take() -> None:
        if signals.stopping.is_set():
            signals.killing.set()
        else:
            grace = f"{SHUTDOWN_GRACE_SECONDS:g} s"
            screen.say(f"stopping: running jobs have {grace} to finish; Ctrl-C again kills them")
            signals.stopping.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # started by nohup, it outlives the terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, take)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class DevServer:
    """The emulator with the user's apps in it, and what reloading needs to remember."""

    def __init__(self, options: DevOptions, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._env: Mapping[str, str] = {}
        self._found: dict[Path, list[AppEndpoint]] = {app: [] for app in options.apps}

    @property
    def _endpoints(self) -> list[AppEndpoint]:
        return [endpoint for endpoints in self._found.values() for endpoint in endpoints]

    async def run(self, signals: Signals) -> None:
        """Serve until the signals say stop.

        Raises:
            DefinitionError: An app does not import, and files are not watched.
            ConfigurationError: The port cannot be had, or sessions cannot be kept where they should.
            StoreUnavailable: Nothing answers there.
        """
        options = self._options
        async with (
            SourceWatch(options.watched_folders) as watch,
            open_dev_store(options.folder, options.state_dir, named=options.state_url) as store,
        ):
            self._env = worker_env(options, store, os.environ)
            await run_unless(signals.stopping, self._describe_all())
            if signals.stopping.is_set():
                return
            async with self._open_emulator(signals) as emulator:
                with running_record(options.folder / DEV_FILE, emulator.url, store):
                    self._show_banner(emulator, store)
                    await run_unless(signals.stopping, self._work_for_ever(emulator, watch, store))

    @contextlib.asynccontextmanager
    async def _open_emulator(self, signals: Signals) -> AsyncIterator[Emulator]:
        emulator = self._make_emulator()
        await emulator.__aenter__()
        try:
            yield emulator
        finally:
            # Its end gives jobs time to finish; cancelled, it kills every worker at once.
            await run_unless(signals.killing, emulator.__aexit__(None, None, None))

    def _make_emulator(self) -> Emulator:
        options = self._options
        return Emulator(
            [endpoint.local for endpoint in self._endpoints],
            host=options.host,
            port=options.port,
            state_dir=options.state_dir,
            on_event=self._screen.show_event,
            shutdown_grace=SHUTDOWN_GRACE_SECONDS,
        )

    async def _describe_all(self) -> None:
        for app in self._options.apps:
            try:
                await self._describe(app)
            except DefinitionError as exc:
                if not self._options.is_reloading:
                    raise
                self._screen.show_problem(exc.report)

    async def _describe(self, app: Path) -> None:
        found = await describe_app(app, env=self._env)
        others = [endpoint for path, endpoints in self._found.items() if path != app for endpoint in endpoints]
        check_names([*others, *found])
        self._found[app] = found

    def _show_banner(self, emulator: Emulator, store: DevStore) -> None:
        options = self._options
        self._screen.show_banner(
            self._endpoints,
            url=emulator.url,
            state_dir=options.state_dir.relative_to(options.folder),
            sessions=store.description,
            is_reloading=options.is_reloading,
        )
        for warning in store.warnings:
            self._screen.say(f"sessions: {warning}", style="yellow")
        if options.host not in _LOOPBACK:
            self._screen.say(f"{options.host} may be reached by other machines: they can run your jobs", style="yellow")
        for app in (app for app, endpoints in self._found.items() if not endpoints):
            self._screen.say(f"{app.name} has no endpoint running; it is read again when it changes", style="yellow")

    async def _work_for_ever(self, emulator: Emulator, watch: SourceWatch, store: DevStore) -> None:
        await asyncio.gather(
            self._reload_for_ever(emulator, watch), resume_for_ever(emulator.url, store, self._screen.say)
        )

    async def _reload_for_ever(self, emulator: Emulator, watch: SourceWatch) -> None:
        while self._options.is_reloading:
            try:
                changed = await watch.changed()
            except (OSError, RuntimeError) as exc:  # too many watches, or a file system without them
                self._screen.say(f"files cannot be watched, so nothing is reloaded: {exc}", style="red")
                break
            for app in self._options.apps:
                if any(path.is_relative_to(app.parent) for path in changed):
                    await self._reload(emulator, app, changed)
        await asyncio.Event().wait()  # until it is cancelled

    async def _reload(self, emulator: Emulator, app: Path, changed: Sequence[Path]) -> None:
        before = {endpoint.name for endpoint in self._found[app]}
        names = ", ".join(path.name for path in changed)
        try:
            await self._describe(app)
        except DefinitionError as exc:
            self._screen.show_problem(exc.report)
            kept = f"the last good code of {app.name} keeps running" if before else f"{app.name} is not running"
            self._screen.say(f"{names} changed, but {app.name} does not import: {kept}", style="red")
            return
        after = {endpoint.name for endpoint in self._found[app]}
        await emulator.replace([endpoint.local for endpoint in self._found[app]], removed=before - after)
        self._screen.say(f"{names} changed: {describe_reload(before, after)}", style="bold")


def describe_reload(before: set[str], after: set[str]) -> str:
    """Return what a reload did, in words."""
    parts = (
        ("restarting", before & after),
        ("added", after - before),
        ("removed", before - after),
    )
    return "; ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)


async def run_unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run the work until it ends, or cancel it when the event is set; its errors are raised."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


@contextlib.contextmanager
def running_record(file: Path, url: str, store: DevStore) -> Iterator[None]:
    """Keep the file in which clients find this server's URL and store, for as long as it runs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / ".gitignore").write_text("*\n")
    record = orjson.dumps({"url": url, "pid": os.getpid(), "state": store.url, "namespace": store.namespace})
    with kept_record(file, record):
        yield


def worker_env(options: DevOptions, store: DevStore, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return what workers get on top of the developer's shell, `environ`: above all one place for sessions."""
    level = {"warning": "WARN"}.get(options.log_level, options.log_level.upper())
    defaults = {name: value for name, value in _WORKER_DEFAULTS.items() if name not in environ}
    return {**defaults, "FLASHKIT_STATE": store.url, "RUNPOD_LOG_LEVEL": level}
