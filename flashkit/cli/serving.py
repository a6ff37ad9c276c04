"""What runs behind `flashkit dev`: the emulator, the reloading, the keys, errands, and an orderly end.

While it runs, `.flashkit/dev.json` in the project's folder tells clients where it is, unless it runs an errand beside
another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

from flashkit.cli import EXIT_OVER_BUDGET, exit_code_for
from flashkit.cli.advising import advise_for_ever
from flashkit.cli.console import Output, Screen, make_console
from flashkit.cli.dev import DevOptions
from flashkit.cli.dev_record import kept_record
from flashkit.cli.dev_sessions import resume_for_ever
from flashkit.cli.dev_store import DevStore, open_dev_store
from flashkit.cli.dev_traces import open_dev_traces
from flashkit.cli.errands import Errand, Place, RunHubTests, run_errand
from flashkit.cli.hub import read_hub_tests
from flashkit.cli.job_files import export_jobs, read_jobs, send_jobs
from flashkit.cli.json_lines import JsonLines
from flashkit.cli.key_commands import KeyCommands, sdk_log_level
from flashkit.cli.keys import Keyboard, obey_keys, open_keyboard
from flashkit.cli.local_runs import RUNS_FILE, LocalRuns
from flashkit.cli.projects import project_folder
from flashkit.cli.reloading import Apps, LoadedApp
from flashkit.cli.starts import StartWatch
from flashkit.cli.watching import FileKind, SourceWatch, kind_of
from flashkit.emulator.events import Event
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.emulator.traffic import Submission, read_traffic, replay
from flashkit.errors import ConfigurationError, DefinitionError
from flashkit.settings import DEFAULT_WEIGHTS_CACHE, DEV_FILE, find_dev_server, read_hub_cache

T = TypeVar("T")

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

    output: Output
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    killing: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        """Take one more wish to stop."""
        if self.stopping.is_set():
            self.killing.set()
        else:
            grace = f"{SHUTDOWN_GRACE_SECONDS:g} s"
            self.output.say(f"stopping: running jobs have {grace} to finish; Ctrl-C again kills them")
            self.stopping.set()


async def serve(options: DevOptions) -> int:
    """Run the platform until it is told to stop or its errand is done, and return the exit code."""
    output = make_output(options)
    with listen_to_signals(output) as signals:
        try:
            code = await DevServer(options, output).run(signals)
        except DefinitionError as exc:
            make_output(options, to_stderr=True).show_problem(exc.report)
            return exit_code_for(exc)
        is_killed = signals.killing.is_set()
        if options.errand is None:
            output.say("killed" if is_killed else "stopped")
    return EXIT_KILLED if is_killed else code


def make_output(options: DevOptions, *, to_stderr: bool = False) -> Output:
    """Return where to say what happens: standard output belongs to the errand, where there is one."""
    console = make_console(stderr=to_stderr or options.errand is not None)
    if options.is_json:
        return JsonLines(log_level=options.log_level, stream=console.file)
    return Screen(log_level=options.log_level, console=console)


@contextlib.contextmanager
def listen_to_signals(output: Output) -> Iterator[Signals]:
    """Turn the signals that end a process into wishes, for as long as the block lasts."""
    loop = asyncio.get_running_loop()
    signals = Signals(output)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # started by nohup, it outlives the terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, signals.take)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class DevServer:
    """The emulator with the user's apps in it, and everything around it."""

    def __init__(self, options: DevOptions, output: Output) -> None:
        self._options = options
        self._output = output
        self._env: dict[str, str] = {}
        """What workers get; shared with the endpoints, so that a changed log level reaches new workers."""
        self._apps = Apps(options.apps, env=self._env)
        self._before_banner: list[Event] = []
        self._listeners: list[Callable[[Event], object]] = [self._before_banner.append]
        self._keyboard: Keyboard | None = None

    async def run(self, signals: Signals) -> int:
        """Serve until the signals say stop or the errand is done, and return the exit code.

        Raises:
            DefinitionError: An app does not import, and files are not watched.
            InputError: An option of the emulator cannot be carried out.
            ConfigurationError: The port cannot be had, or sessions cannot be kept where they should.
            StoreUnavailable: Nothing answers there.
        """
        options = self._options
        seeds = read_jobs(options.seed_folder) if options.seed_folder else []
        recording = list(read_traffic(options.replay_file)) if options.replay_file else []
        folders = tuple(dict.fromkeys(app.folder for app in self._apps.all)) if options.is_reloading else ()
        async with (
            SourceWatch(folders) as watch,
            open_dev_store(options.folder, options.state_dir, named=options.state_url) as store,
        ):
            self._env.update(worker_env(options, store, os.environ))
            self._listeners.append(LocalRuns(options.folder / RUNS_FILE, self._apps.code_of).notice)
            await run_unless(signals.stopping, self._load_all())
            if signals.stopping.is_set():
                return 0 if options.errand is None else EXIT_KILLED
            async with (
                self._open_emulator(store, signals) as emulator,
                self._recorded(emulator, store),
                self._open_keyboard(),
            ):
                self._show_banner(emulator, store)
                self._show_events()
                send_jobs(emulator, seeds)
                async with (
                    beside(self._replay(recording, emulator)),
                    beside(resume_for_ever(emulator.url, store, self._output.say)),
                    beside(advise_for_ever(emulator.adviser.current, self._output.say)),
                ):
                    if options.errand is None:
                        await self._attend(emulator, watch, signals)
                        return 0
                    code = await run_unless(signals.stopping, self._run_errand(options.errand, emulator, store))
                    return EXIT_KILLED if code is None else code

    @contextlib.asynccontextmanager
    async def _open_emulator(self, store: DevStore, signals: Signals) -> AsyncIterator[Emulator]:
        options = self._options
        names = [endpoint.name for endpoint in self._apps.endpoints]
        if not self._apps.problems:
            options.emulation.check(names)
        emulator = Emulator(
            await asyncio.to_thread(options.containers.endpoints, self._apps.endpoints),
            host=options.host,
            port=options.port,
            state_dir=options.state_dir,
            on_event=self._notice,
            shutdown_grace=SHUTDOWN_GRACE_SECONDS,
            freeze_store=None if store.server_pid is None else store.freeze,
            traces=open_dev_traces(options.folder, options.state_dir, os.environ, self._output.say),
            record_to=options.record_file,
            **options.emulation.emulator_options(),
        )
        emulator.problems.update(self._apps.problems)
        self._starts = StartWatch(emulator.clock.now)
        self._listeners.append(self._starts.notice)
        await emulator.__aenter__()
        try:
            yield emulator
        finally:
            try:
                if options.export_folder is not None:
                    count = export_jobs(emulator, options.export_folder)
                    self._output.say(f"exported {count} jobs to {options.export_folder}")
            finally:
                # Its end gives jobs time to finish; cancelled, it kills every worker at once.
                await run_unless(signals.killing, emulator.__aexit__(None, None, None))

    async def _replay(self, recording: Sequence[Submission], emulator: Emulator) -> None:
        """Send the jobs of a recording at their times."""
        if not recording:
            return

        async def submit(submission: Submission, request: JobRequest) -> None:
            emulator.submit(submission.endpoint, request, sync=submission.sync)

        outcome = await replay(recording, submit, sleep=emulator.clock.sleep)
        left_out = f", {outcome.left_out} left out" if outcome.left_out else ""
        self._output.say(f"replayed the recording: {outcome.submitted} jobs sent{left_out}")
        for problem in outcome.refused:
            self._output.say(problem, style="red")

    @contextlib.asynccontextmanager
    async def _open_keyboard(self) -> AsyncIterator[None]:
        if not self._options.has_keys:
            yield
            return
        with open_keyboard() as self._keyboard:
            yield

    def _show_events(self) -> None:
        """Show what happened while the platform started, and whatever happens from now on."""
        for event in self._before_banner:
            self._output.show_event(event)
        self._listeners[0] = self._output.show_event
        self._before_banner.clear()

    def _notice(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    @contextlib.asynccontextmanager
    async def _recorded(self, emulator: Emulator, store: DevStore) -> AsyncIterator[None]:
        options = self._options
        if options.errand is not None and find_dev_server(options.folder) is not None:
            yield  # its clients find it in their environment, those of the other server by its record
            return
        with running_record(options.folder / DEV_FILE, emulator.url, store):
            yield

    async def _load_all(self) -> None:
        options = self._options
        if isinstance(options.errand, RunHubTests):
            self._env.update(read_hub_tests(project_folder(options.apps[0])).env)
        for app in self._apps.all:
            try:
                await self._apps.load(app)
            except DefinitionError as exc:
                if not options.is_reloading:
                    raise
                self._output.show_problem(exc.report)

    async def _run_errand(self, errand: Errand, emulator: Emulator, store: DevStore) -> int:
        endpoints = self._apps.endpoints
        await self._starts.wait_until_ready([endpoint.spec for endpoint in endpoints])
        code = await run_errand(errand, Place(emulator.url, endpoints, self._options.apps, store))
        return code or self._check_cold_starts()

    def _check_cold_starts(self) -> int:
        budget = self._options.cold_start_budget
        slow = [] if budget is None else self._starts.over(budget)
        for start in slow:
            self._output.say(
                f"worker {start.worker_id} of {start.endpoint!r} took {start.seconds:.1f} s to start, "
                f"over the budget of {budget:g} s",
                style="red",
            )
        return EXIT_OVER_BUDGET if slow else 0

    def _show_banner(self, emulator: Emulator, store: DevStore) -> None:
        options = self._options
        if options.errand is not None and isinstance(self._output, Screen):
            self._output.know(self._apps.endpoints)
            self._output.say(f"platform at {emulator.url}")
            return
        self._output.show_banner(
            self._apps.endpoints,
            url=emulator.url,
            state_dir=options.state_dir.relative_to(options.folder),
            sessions=store.description,
            is_reloading=options.is_reloading,
            emulated=[*options.emulation.words(), *options.containers.words()],
            has_keys=self._keyboard is not None,
        )
        for warning in store.warnings:
            self._output.say(f"sessions: {warning}", style="yellow")
        if options.host not in _LOOPBACK:
            self._output.say(f"{options.host} may be reached by other machines: they can run your jobs", style="yellow")
        for name in self._apps.problems:
            self._output.say(f"{name} has no endpoint running; it is read again when it changes", style="yellow")

    async def _attend(self, emulator: Emulator, watch: SourceWatch, signals: Signals) -> None:
        """Do what a person wants, until they want it to stop."""
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(self._reload_for_ever(emulator, watch))]
            if self._keyboard is not None:
                working.append(tasks.create_task(self._obey_keys(emulator, self._keyboard, signals)))
            await signals.stopping.wait()
            for task in working:
                task.cancel()

    async def _obey_keys(self, emulator: Emulator, keyboard: Keyboard, signals: Signals) -> None:
        commands = KeyCommands(emulator, self._output, keyboard=keyboard, stop=signals.take, worker_env=self._env)
        self._listeners.append(commands.notice)
        await obey_keys(
            keyboard,
            commands.all(),
            say=self._output.say,
            complain=lambda text: self._output.say(text, style="red"),
        )

    async def _reload_for_ever(self, emulator: Emulator, watch: SourceWatch) -> None:
        while self._options.is_reloading:
            try:
                saved = await watch.changed()
            except (OSError, RuntimeError) as exc:  # too many watches, or a file system without them
                self._output.say(f"files cannot be watched, so nothing is reloaded: {exc}", style="red")
                return
            await self._reload(emulator, saved)

    async def _reload(self, emulator: Emulator, saved: Sequence[Path]) -> None:
        kinds = {(app, path): kind_of(path, below=app.folder) for app in self._apps.all for path in saved}
        image_files = dict.fromkeys(path.name for (_, path), kind in kinds.items() if kind is FileKind.IMAGE)
        if image_files:
            self._output.say(
                f"changed {', '.join(image_files)}: nothing restarted; it takes effect here once it is installed, "
                "and on Runpod with the next image",
                style="yellow",
            )
        for app in self._apps.all:
            if code := [path for path in saved if kinds[app, path] in (FileKind.CODE, FileKind.SETTINGS)]:
                await self._reload_app(app, code, emulator)

    async def _reload_app(self, app: LoadedApp, saved: Sequence[Path], emulator: Emulator) -> None:
        event = await self._apps.reload(app, saved, emulator)
        emulator.problems.clear()
        emulator.problems.update(self._apps.problems)
        if event.error is not None:
            self._output.show_problem(event.error)
        if isinstance(self._output, Screen):
            self._output.know(app.endpoints)
        emulator.dispatcher.tell(event)


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have the work done for as long as the block lasts; what it raised meanwhile is raised at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def run_unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Run the work until it ends and return what it does, or cancel it when the event is set; errors are raised."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        task.cancel()
    await asyncio.wait({task})
    return None if task.cancelled() else task.result()


@contextlib.contextmanager
def running_record(file: Path, url: str, store: DevStore) -> Iterator[None]:
    """Keep the file in which clients find this server's URL and store, for as long as it runs.

    Raises:
        ConfigurationError: It cannot be written.
    """
    facts = {"url": url, "port": urlsplit(url).port, "dashboard": f"{url}/", "pid": os.getpid()}
    record = orjson.dumps({**facts, "state": store.url, "namespace": store.namespace})
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / ".gitignore").write_text("*\n")
            stack.enter_context(kept_record(file, record))
        except OSError as exc:
            raise ConfigurationError(
                f"{file} cannot be written: {exc.strerror}; clients would not find this platform",
                hint="make room on the disk, or the folder writable",
            ) from exc
        yield


def worker_env(options: DevOptions, store: DevStore, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return what workers get on top of the developer's shell, `environ`: one place for sessions, one for weights."""
    known = {**_WORKER_DEFAULTS, "FLASHKIT_WEIGHTS_CACHE": str(DEFAULT_WEIGHTS_CACHE.expanduser())}
    defaults = {name: value for name, value in known.items() if name not in environ}
    # Workers have a home of their own, and would download models there anew at every start.
    defaults["HF_HUB_CACHE"] = str(read_hub_cache(environ).expanduser())
    return {**defaults, "FLASHKIT_STATE": store.url, "RUNPOD_LOG_LEVEL": sdk_log_level(options.log_level)}
