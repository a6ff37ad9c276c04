"""Servers for benchmarks and chaos runs: started in a folder of their own, on loopback, gone with this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_START_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1


class MissingServer(Exception):
    """This machine has no such server program."""


class Server:
    """A server process; `start` again after `kill` finds the data that the last one left."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Return once the server accepts connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call that takes no lock
                **self.user_options(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.005)

    def answers(self) -> bool:
        raise NotImplementedError

    def user_options(self) -> dict[str, int]:
        return {}

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server without a word of warning, by default."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


class RedisServer(Server):
    """A Redis with an append-only file, as sessions need it."""

    def __init__(self, folder: Path, *, fsync: str = "everysec") -> None:
        super().__init__(find_program("redis-server", "valkey-server"), folder)
        self.fsync = fsync

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "auto-aof-rewrite-percentage": 0,  # a rewrite in one contender's time would be unfair
        }
        return [self.program, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False


class PostgresServer(Server):
    """A new Postgres cluster; the program refuses to run as root, so root starts it as nobody."""

    def __init__(self, folder: Path) -> None:
        self._bin = _find_postgres()
        super().__init__(str(self._bin / "postgres"), folder)

    @property
    def url(self) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        if not (self.folder / "data").exists():
            self.folder.mkdir(parents=True)
            self.folder.chmod(0o755)
            (self.folder / "data").mkdir(mode=0o700)
            if options := self.user_options():
                os.chown(self.folder / "data", options["user"], options["group"])
            initdb = [str(self._bin / "initdb"), "-D", str(self.folder / "data"), "-U", "bench", "-A", "trust", "-N"]
            subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user_options())
        super().start()

    def command(self) -> list[str]:
        # A commit need not wait for the disk: that is what an append-only file synced every second is worth.
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "synchronous_commit": "off",
        }
        words = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        return [self.program, "-D", str(self.folder / "data"), *words]

    def answers(self) -> bool:
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def user_options(self) -> dict[str, int]:
        if os.getuid() != 0:
            return {}
        import pwd

        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid}

    def __exit__(self, *exc_info: object) -> None:
        self.kill(signal.SIGINT)  # it ends its children too


def find_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed. Raises `MissingServer`."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise MissingServer(f"there is no {' or '.join(names)} on the PATH; scripts/setup --peers installs what is missing")


def _find_postgres() -> Path:
    """Return the folder of the newest Postgres; Debian has its programs beside the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    return Path(find_program("initdb")).resolve().parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
