"""Worker processes: started, listened to, asked to finish, killed, and never left behind.

Each worker leads a process group of its own. Its end is the end of that process, whatever pings still say;
what it started and left in the group is then killed as well. Its group is also on the list of the reaper
(`reaper.py`), which kills it should this process die without a word. Standard output and error share one
pipe that is read in small steps, so a worker that prints without end slows itself down, not us.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from flashkit.emulator.events import LogLine
from flashkit.emulator.process_sockets import local_ports
from flashkit.emulator.reports import REPORTS_PATH
from flashkit.errors import InputError
from flashkit.protocol import WORKER_ENVIRONMENT, worker_urls
from flashkit.settings import LOOPBACK
from flashkit.spec import EndpointSpec

_log = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 50
LINE_LIMIT_BYTES: Final = 64 * 1024
CANNOT_START: Final = 127
"""Exit code reported for a command that does not exist, as a shell would."""

_READ_BYTES: Final = 16 * 1024
_TAIL_LINE_CHARACTERS: Final = 2_000
_LAST_WORDS_SECONDS: Final = 1.0
"""How long a dead worker's pipe is still read: a process that left its group may hold it open for ever."""
_KEPT_VARIABLES: Final = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_OWN_PREFIX: Final = ("FLASHKIT_", "OTEL_")
_NOT_FOR_WORKERS: Final = frozenset({"FLASHKIT_ENDPOINTS"})
"""Maps names to ids of the real platform; here the names are the ids."""


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """An endpoint and the command that runs one of its workers."""

    spec: EndpointSpec
    command: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    """For people: what it does."""
    example: Any = None
    """For people: an input that its handler takes."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of its handler's input, where that is known."""
    can_freeze: bool = True
    """False where signals do not reach the worker itself, as in a container."""


@dataclass(frozen=True, slots=True)
class HttpPorts:
    """Where a load-balanced worker listens on this machine."""

    requests: int
    health: int

    @classmethod
    def free(cls, env: Mapping[str, str]) -> HttpPorts:
        """Return free ports: one for both, or two where the endpoint's environment wants its health apart."""
        with contextlib.ExitStack() as stack:
            first, second = (
                stack.enter_context(socket.create_server((LOOPBACK, 0))).getsockname()[1] for _ in range(2)
            )
        is_apart = env.get("PORT_HEALTH", "80") != env.get("PORT", "80")
        return cls(first, second if is_apart else first)

    @property
    def variables(self) -> dict[str, str]:
        """What tells the worker."""
        return {"PORT": str(self.requests), "PORT_HEALTH": str(self.health), "FLASHKIT_HTTP_HOST": LOOPBACK}


class OnExit(Protocol):
    """What is called when a worker's process has ended."""

    def __call__(self, endpoint: str, worker_id: str, *, exit_code: int, log_tail: Sequence[str]) -> None:
        """Take note of the exit code (negative: a signal's number) and the last lines."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process, from the wish for it to its end."""

    local: LocalEndpoint
    worker_id: str
    ports: HttpPorts | None = None
    process: asyncio.subprocess.Process | None = None
    temp: Path | None = None
    """Its folder for temporary files: as on Runpod empty at first, seen by no other worker, and gone with this one."""
    wanted_signal: signal.Signals | None = None
    """A signal that was sent before there was a process to get it."""
    is_frozen: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))

    @property
    def endpoint(self) -> str:
        """Name of the worker's endpoint."""
        return self.local.spec.name

    def terminate(self) -> None:
        """Send SIGTERM to the worker alone: what it started is its own business while it lives.

        One that is stopped would not hear it, and has nothing to finish.
        """
        if self.is_frozen:
            self.kill()
            return
        if self.process is None:
            self.wanted_signal = self.wanted_signal or signal.SIGTERM
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the worker and everything in its group."""
        if self.process is None:
            self.wanted_signal = signal.SIGKILL
            return
        self._signal_group(signal.SIGKILL)

    def freeze(self) -> Collection[int]:
        """Stop the worker and everything in its group where they stand, and return the ports they talk from."""
        self.is_frozen = True
        self._signal_group(signal.SIGSTOP)
        return () if self.process is None else local_ports(self.process.pid)

    def thaw(self) -> None:
        """Let the worker and everything in its group go on."""
        self.is_frozen = False
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def send_wanted_signal(self) -> None:
        """Deliver what was asked for before the process existed."""
        if self.wanted_signal is signal.SIGKILL:
            self.kill()
        elif self.wanted_signal is not None:
            self.terminate()


class Supervisor:
    """Runs the worker processes of one emulator."""

    def __init__(
        self,
        *,
        base_url: str,
        state_dir: Path,
        environ: Mapping[str, str],
        api_key: str | None,
        token: str | None = None,
        more_env: Mapping[str, str] | None = None,
        on_log: Callable[[LogLine], None],
        on_exit: OnExit,
        fails_to_start: Callable[[str, str], bool] = lambda endpoint, worker_id: False,
    ) -> None:
        self.endpoints: dict[str, LocalEndpoint] = {}
        self._base_url = base_url
        self._state_dir = state_dir
        self._environ = environ
        self._credentials = {**({} if api_key is None else {"RUNPOD_API_KEY": api_key}), **(more_env or {})}
        self._token = token
        self._on_log = on_log
        self._on_exit = on_exit
        self._fails_to_start = fails_to_start
        self._reaper = ReaperProcess()
        self._temp = Path()
        """Where workers have their folders for temporary files."""
        self._numbers = itertools.count(1)
        self._workers: dict[str, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def open(self) -> None:
        """Start the reaper; before that no worker may run."""
        # Short, as a socket's path has room for a hundred characters.
        self._temp = Path(tempfile.mkdtemp(prefix="fk-"))
        await self._reaper.start(self._temp)

    def start(self, endpoint: str, worker_id: str) -> None:
        """Start a worker; `on_exit` follows in every case, also when there is nothing to start."""
        if self._is_closing:
            return
        local = self.endpoints[endpoint]
        worker = _Worker(local, worker_id)
        self._workers[worker_id] = worker
        task = asyncio.get_running_loop().create_task(self._run(worker), name=f"worker {worker_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def http_ports(self, worker_id: str) -> HttpPorts | None:
        """Return where a load-balanced worker listens, None for any other and for one that does not run."""
        worker = self._workers.get(worker_id)
        return None if worker is None else worker.ports

    def terminate(self, worker_id: str) -> None:
        """Ask one worker to finish and exit."""
        if worker := self._workers.get(worker_id):
            worker.terminate()

    def kill(self, worker_id: str) -> None:
        """End one worker and its group at once."""
        if worker := self._workers.get(worker_id):
            worker.kill()

    def freeze(self, worker_id: str) -> Collection[int]:
        """Stop one worker and its group where they stand, and return the local ports of their sockets."""
        worker = self._workers.get(worker_id)
        return () if worker is None else worker.freeze()

    def check_freezable(self, worker_id: str) -> None:
        """Refuse to freeze a worker that signals do not reach.

        Raises:
            InputError: It runs in a container.
        """
        worker = self._workers.get(worker_id)
        if worker is not None and not worker.local.can_freeze:
            raise InputError(
                f"worker {worker_id!r} runs in a container, which cannot be frozen here",
                hint="leave --image out to try what freezing does",
            )

    def thaw(self, worker_id: str) -> None:
        """Let one worker and its group go on."""
        if worker := self._workers.get(worker_id):
            worker.thaw()

    def note(self, worker_id: str, text: str) -> None:
        """Write a line of the platform's own into a worker's log."""
        if worker := self._workers.get(worker_id):
            self._take_line(worker, text.encode())

    def terminate_all(self) -> None:
        """Ask every worker to finish, and start no others."""
        self._is_closing = True
        for worker in self._workers.values():
            worker.terminate()

    async def close(self, *, grace_seconds: float) -> None:
        """Give the workers this long to exit, then kill what is left."""
        self.terminate_all()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_seconds)
        finally:
            for worker in self._workers.values():
                worker.kill()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._reaper.close()

    async def _run(self, worker: _Worker) -> None:
        exit_code = CANNOT_START
        try:
            if self._fails_to_start(worker.endpoint, worker.worker_id):
                self._take_line(worker, b"the worker did not start (injected fault)")
                exit_code = 1
            else:
                exit_code = await self._run_process(worker)
        except (OSError, ValueError) as exc:  # a value that no program can be given is a ValueError
            self._take_line(worker, f"the worker could not be started: {exc}".encode())
        except Exception:  # noqa: BLE001
            # The boundary of a process: whatever went wrong here, the worker is over, and its log is to say so.
            _log.exception("worker %s could not be run", worker.worker_id)
            self._take_line(worker, b"the worker could not be run: the platform's log has the traceback")
        finally:  # in every case: nobody else finds out that a worker will never come
            del self._workers[worker.worker_id]
            self._on_exit(worker.endpoint, worker.worker_id, exit_code=exit_code, log_tail=tuple(worker.tail))
            if worker.temp is not None:
                await asyncio.to_thread(shutil.rmtree, worker.temp, ignore_errors=True)

    async def _run_process(self, worker: _Worker) -> int:
        read_end, write_end = os.pipe()
        try:
            process = await self._spawn(worker, output=write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        worker.process = process
        reading = asyncio.ensure_future(self._read_output(worker, read_end))
        try:
            self._reaper.add(process.pid)
            worker.send_wanted_signal()
            exit_code = await process.wait()
        finally:
            worker.kill()
            self._reaper.remove(process.pid)
        await _finish_or_cancel(reading, _LAST_WORDS_SECONDS)
        return exit_code

    async def _spawn(self, worker: _Worker, *, output: int) -> asyncio.subprocess.Process:
        local = worker.local
        home = self._state_dir / "homes" / worker.endpoint
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        worker.temp = self._temp / str(next(self._numbers))
        worker.temp.mkdir(mode=0o700)
        urls = worker_urls(self._base_url, worker.endpoint, worker.worker_id, token=self._token)
        urls["FLASHKIT_METRICS_URL"] = reports_url(self._base_url, self._token)
        if local.spec.load_balanced:
            worker.ports = HttpPorts.free({**local.spec.env, **local.env})
        ports = {} if worker.ports is None else worker.ports.variables
        return await asyncio.create_subprocess_exec(
            *local.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=local.cwd,
            env=worker_environment(
                local,
                {**urls, **ports, **self._credentials},
                home=home.resolve(),
                temp=worker.temp,
                environ=self._environ,
            ),
            start_new_session=True,
        )

    async def _read_output(self, worker: _Worker, read_end: int) -> None:
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        pipe = os.fdopen(read_end, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        splitter = LineSplitter()
        try:
            while chunk := await reader.read(_READ_BYTES):
                for line in splitter.feed(chunk):
                    self._take_line(worker, line)
                await asyncio.sleep(0)  # `read` does not yield while its buffer has something
            for line in splitter.rest():
                self._take_line(worker, line)
        finally:
            transport.close()

    def _take_line(self, worker: _Worker, line: bytes) -> None:
        event = parse_line(worker.endpoint, worker.worker_id, line)
        worker.tail.append(event.text[:_TAIL_LINE_CHARACTERS])
        self._on_log(event)


async def _finish_or_cancel(task: asyncio.Future[None], seconds: float) -> None:
    await asyncio.wait([task], timeout=seconds)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def reports_url(base_url: str, token: str | None) -> str:
    """Return where a worker reports its metrics, with the platform's token where there is one."""
    return f"{base_url}{REPORTS_PATH}" + ("" if token is None else f"?token={token}")


def worker_environment(
    local: LocalEndpoint, platform: Mapping[str, str], *, home: Path, temp: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of a worker: what it needs, and nothing of the developer's account.

    Args:
        local: The endpoint, whose own variables go before those of the developer's shell.
        platform: What leads the worker to this platform; nothing goes before it.
        home: An empty folder, as the SDK prefers the account key that it finds at home.
        temp: For temporary files.
        environ: The developer's shell.
    """
    kept = {name: environ[name] for name in _KEPT_VARIABLES if name in environ}
    own = {
        name: value for name, value in environ.items() if name.startswith(_OWN_PREFIX) and name not in _NOT_FOR_WORKERS
    }
    return {
        **kept,
        **own,
        **WORKER_ENVIRONMENT,
        "RUNPOD_LOG_LEVEL": "INFO",
        "FLASHKIT_TRACEBACKS": "1",
        "HOME": str(home),
        "TMPDIR": str(temp),
        "TORCHINDUCTOR_CACHE_DIR": str(home / ".cache" / "torchinductor"),  # compiling takes minutes, and is for all
        **local.spec.env,
        **local.env,
        **platform,
    }


class LineSplitter:
    """Cuts a stream of bytes into lines of bounded length; the rest of a longer line is dropped."""

    def __init__(self, *, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that this chunk completes."""
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            self._keep(line)
            yield self._take()
        self._keep(rest)

    def rest(self) -> Iterator[bytes]:
        """Yield the last line when it has no end."""
        if self._pending:
            yield self._take()

    def _keep(self, piece: bytes) -> None:
        self._pending += piece[: max(0, self._limit_bytes - len(self._pending))]

    def _take(self) -> bytes:
        line = bytes(self._pending)
        self._pending.clear()
        return line


def parse_line(endpoint: str, worker_id: str, line: bytes) -> LogLine:
    """Return the event for one line: the runpod SDK's JSON log lines are taken apart, others kept."""
    if line.startswith(b'{"requestId"'):
        with contextlib.suppress(orjson.JSONDecodeError):
            record = orjson.loads(line)
            return LogLine(
                endpoint, worker_id, record["requestId"], str(record.get("level")), str(record.get("message"))
            )
    # A progress bar redraws its line with carriage returns: its last state is the line.
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
    return LogLine(endpoint, worker_id, None, None, text)


class ReaperProcess:
    """The child that outlives us just long enough to kill our workers and to remove their temporary files."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._pipe = -1

    async def start(self, folder: Path) -> None:
        """Start it; the pipe's write end stays in this process alone, as no child inherits it.

        Args:
            folder: To be removed in the end.
        """
        read_end, self._pipe = os.pipe()
        script = Path(__file__).with_name("reaper.py")
        try:
            # -I keeps this folder, which has a platform.py, off the script's import path.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(script), str(folder), stdin=read_end, start_new_session=True
            )
        finally:
            os.close(read_end)

    def add(self, group: int) -> None:
        """Have this group killed when we are gone."""
        self._write(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Take a group off the list: its number may soon belong to somebody else."""
        self._write(f"-{group}\n")

    def _write(self, line: str) -> None:
        try:
            os.write(self._pipe, line.encode())
        except BrokenPipeError:
            _log.warning("the reaper is gone: workers may outlive this process should it be killed")

    async def close(self) -> None:
        """End it; everything it was told about must have ended before."""
        if self._process is not None:
            os.close(self._pipe)
            await self._process.wait()
