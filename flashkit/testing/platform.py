"""A whole platform in a test: real workers in real processes behind a plain, synchronous face.

The emulator runs in a thread with an event loop of its own, so tests need not be async; everything here may be
called from any thread.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from flashkit.cli.apps import describe_apps
from flashkit.cli.dev_store import open_dev_store
from flashkit.cli.local_runs import watch_endpoints
from flashkit.cli.projects import USUAL_NAMES, find_app
from flashkit.client import Client, EndpointClient, JobHandle, JobState
from flashkit.emulator.events import Event, LogLine
from flashkit.emulator.faults import parse_faults
from flashkit.emulator.recorder import Filter
from flashkit.emulator.server import Emulator
from flashkit.errors import ConfigurationError, JobTimedOut
from flashkit.protocol import JobStatus
from flashkit.settings import Settings

T = TypeVar("T")

PATIENCE_SECONDS: Final = 60.0
"""How long a test waits for a job, unless it says otherwise."""
_WORKER_SETTINGS: Final = {"FLASHKIT_KEEP_JOURNALS": "1", "FLASHKIT_LEASE_SECONDS": "5"}
_EVENTS_KEPT: Final = 100_000
_LOG_LINES: Final = 1000
_POLL_SECONDS: Final = 0.02
_END: Final = object()


class LocalPlatform:
    """The platform of `flashkit dev` for some apps, from `with` until the end of the block.

    Args:
        apps: Files that define endpoints, or plain runpod handlers.
        sessions: URL of a store for sessions; by default a store of the platform's own.
        notes_runs: Write down which code was seen to work, for `flashkit check`, below the projects' folders.
        emulator_options: What `Emulator` takes besides, for example `faults`, `seed`, `defaults`.
    """

    def __init__(
        self, *apps: Path | str, sessions: str | None = None, notes_runs: bool = False, **emulator_options: Any
    ) -> None:
        self._apps = [Path(app).resolve() for app in apps]
        self._sessions = sessions
        self._options = emulator_options
        self._notes_runs = notes_runs
        self._notice_run: Callable[[Event], None] | None = None
        self._loop = LoopThread()
        self._stack = AsyncExitStack()
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start the platform and the workers that are always there.

        Raises:
            DefinitionError: An app does not import.
        """
        if missing := [app for app in self._apps if not app.is_file()]:
            raise ConfigurationError(f"there is no app {missing[0]}", hint="name the file that defines the endpoints")
        self._loop.start()
        try:
            self._loop.do(self._open())
        except BaseException:
            self._shut()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every worker, and the platform."""
        self._shut()

    @property
    def url(self) -> str:
        """Where the platform listens."""
        return self._backstage.emulator.url

    @property
    def environment(self) -> dict[str, str]:
        """What leads flashkit's client, the runpod client and subprocesses to this platform."""
        return {"RUNPOD_ENDPOINT_BASE_URL": f"{self.url}/v2", "RUNPOD_API_KEY": "local", "FLASHKIT_STATE": self._state}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Names of the endpoints."""
        return tuple(self._backstage.emulator.platform.specs)

    @property
    def events(self) -> list[Event]:
        """What happened so far: jobs, workers, log lines, faults."""
        with self._lock:
            return list(self._events)

    @property
    def clock(self) -> FakeClock:
        """The platform's time."""
        return FakeClock(self._backstage)

    @property
    def faults(self) -> Faults:
        """What is made to go wrong."""
        return Faults(self._backstage)

    def endpoint(self, name: str) -> PlatformEndpoint:
        """Return an endpoint by its name.

        Raises:
            ConfigurationError: There is none of this name.
        """
        if name not in self.endpoints:
            raise ConfigurationError(f"there is no endpoint {name!r}", hint=f"there are {', '.join(self.endpoints)}")
        return PlatformEndpoint(self._backstage, name)

    async def _open(self) -> None:
        stack = self._stack
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashkit-test-")))
        store = await stack.enter_async_context(open_dev_store(Path.cwd(), folder, named=self._sessions))
        self._state = store.url
        found = await describe_apps(self._apps, env={**_WORKER_SETTINGS, "FLASHKIT_STATE": store.url})
        self._notice_run = watch_endpoints(found) if self._notes_runs else None
        emulator = Emulator(
            [endpoint.local for endpoint in found],
            state_dir=folder,
            on_event=self._take_event,
            freeze_store=None if store.server_pid is None else store.freeze,
            **self._options,
        )
        await stack.enter_async_context(emulator)
        settings = Settings(base_url=f"{emulator.url}/v2", api_key=self._options.get("api_key"))
        client = await stack.enter_async_context(Client(settings))
        self._backstage = Backstage(self._loop, emulator, client)

    def _shut(self) -> None:
        try:
            self._loop.do(self._stack.aclose())
        finally:
            self._loop.stop()

    def _take_event(self, event: Event) -> None:
        if self._notice_run is not None:
            self._notice_run(event)
        with self._lock:
            self._events.append(event)
            if len(self._events) > _EVENTS_KEPT:
                del self._events[: _EVENTS_KEPT // 10]


@dataclass(frozen=True, slots=True)
class PlatformEndpoint:
    """One endpoint of a platform in a test."""

    _backstage: Backstage
    name: str

    def run(self, data: Any = None, **policy: Any) -> PlatformJob:
        """Submit a job; `policy` is what `EndpointClient.run` takes, such as `ttl_ms`."""
        handle = self._backstage.do(self._client.run({} if data is None else data, **policy))
        return PlatformJob(self._backstage, handle)

    def call(self, data: Any = None, *, timeout: float = PATIENCE_SECONDS) -> Any:
        """Run a job and return its output.

        Raises:
            JobError: It failed, was cancelled, or took too long.
        """
        return self.run(data).output(timeout=timeout)

    def stream(self, data: Any = None) -> Iterator[Any]:
        """Run a job and yield its partial outputs as they come."""
        parts = self._client.stream({} if data is None else data)
        try:
            while (part := self._backstage.do(_next(parts))) is not _END:
                yield part
        finally:
            self._backstage.do(parts.aclose())

    @property
    def workers(self) -> dict[str, str]:
        """States of the workers by id."""
        workers = self._backstage.call(self._backstage.emulator.platform.workers, self.name)
        return {worker.id: worker.state.value for worker in workers}

    @property
    def log(self) -> list[str]:
        """Lines that its workers printed, the latest ones at least."""
        recorder = self._backstage.emulator.recorder
        batch = self._backstage.call(
            lambda: recorder.latest(_LOG_LINES, wanted=Filter(types=frozenset({"log"}), endpoint=self.name))
        )
        return [entry.event.text for entry in batch.entries if isinstance(entry.event, LogLine)]

    def kill_workers(self) -> None:
        """Kill every worker as an accident would: jobs that they have are handed out again."""
        for worker_id in self.workers:
            self._backstage.call(self._backstage.emulator.kill_worker, worker_id)

    @property
    def _client(self) -> EndpointClient:
        return self._backstage.client.endpoint(self.name)


@dataclass(frozen=True, slots=True)
class PlatformJob:
    """One job of a platform in a test."""

    _backstage: Backstage
    _handle: JobHandle

    @property
    def id(self) -> str:
        """Its id."""
        return self._handle.id

    @property
    def state(self) -> JobState:
        """What the platform knows of it now."""
        return self._backstage.do(self._handle.status())

    def wait(self, *, timeout: float = PATIENCE_SECONDS) -> JobState:
        """Return its state once it has ended.

        Raises:
            JobTimedOut: It has not in time.
        """
        return self._backstage.do(self._handle.wait(timeout))

    def output(self, *, timeout: float = PATIENCE_SECONDS) -> Any:
        """Return its output once it has completed.

        Raises:
            JobError: It failed, was cancelled, or took too long.
        """
        return self.wait(timeout=timeout).result()

    def wait_until_taken(self, *, timeout: float = PATIENCE_SECONDS) -> JobState:
        """Return its state once a worker has it, or it has ended.

        Raises:
            JobTimedOut: It waits still.
        """
        end = time.monotonic() + timeout
        while (state := self.state).status is JobStatus.IN_QUEUE:
            if time.monotonic() > end:
                raise JobTimedOut(f"job {self.id} waits in the queue after {timeout:g} s", request_id=self.id)
            time.sleep(_POLL_SECONDS)
        return state

    def cancel(self) -> JobState:
        """Cancel it."""
        return self._backstage.do(self._handle.cancel())


@dataclass(frozen=True, slots=True)
class FakeClock:
    """The platform's time, which a test moves on: timeouts, times to live, idle times, retention follow it."""

    _backstage: Backstage

    def now(self) -> float:
        """Return its seconds."""
        return self._backstage.emulator.clock.now()

    def advance(self, seconds: float) -> None:
        """Move it on; everything that falls due on the way happens, in its order."""
        self._backstage.do(self._backstage.emulator.clock.advance(seconds))

    def set_speed(self, speed: float) -> None:
        """Make it run so many times as fast as real time."""
        self._backstage.call(self._backstage.emulator.clock.set_speed, speed)


@dataclass(frozen=True, slots=True)
class Faults:
    """Rules for what goes wrong; the same text as `flashkit dev --fault`."""

    _backstage: Backstage

    def set(self, *rules: str, seed: int = 0) -> None:
        """Replace the rules.

        Raises:
            InputError: A rule cannot be read, or is about a store of sessions that is not the platform's own.
        """
        faults = [fault for rule in rules for fault in parse_faults(rule)]
        self._backstage.call(lambda: self._backstage.emulator.faults.set(faults, seed=seed))

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self.set()


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flashkit platform", daemon=True)

    def start(self) -> None:
        """Let it run."""
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop and return what came of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Backstage:
    """What stands behind the synchronous face."""

    loop: LoopThread
    emulator: Emulator
    client: Client

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the platform's loop and return what came of it."""
        return self.loop.do(work)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that must be called in the platform's loop."""

        async def call() -> T:
            return function(*args)

        return self.loop.do(call())


async def _next(parts: AsyncIterator[Any]) -> Any:
    """Return the next part; a StopAsyncIteration would not get through a future."""
    return await anext(parts, _END)


def find_apps(names: Sequence[str], root: Path) -> list[Path]:
    """Return the app files that a project's settings name, or the one under a usual name.

    Raises:
        ConfigurationError: There is none.
    """
    if names:
        return [root / name for name in names]
    if found := find_app(root):
        return [found]
    raise ConfigurationError(
        f"there is no app in {root}: neither {', '.join(USUAL_NAMES)} nor one of them below src",
        hint="name the app in pyproject.toml: [tool.pytest.ini_options] flashkit_app",
    )
