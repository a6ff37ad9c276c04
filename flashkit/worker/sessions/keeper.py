"""Stops a server of our own when the last process that uses it is gone, however that one ended.

A program of its own, which `embedded` starts: `python keeper.py FOLDER SOCKET SERVER [OPTION]...`. It needs
nothing but the standard library. Users hold a shared lock on FOLDER/users.lock, which the system takes back
from a process that is killed; the keeper waits for the exclusive one, and holds it until the server has
stopped, so that no new user finds a server on its way out. On Linux the server does not outlive its keeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

USERS: Final = "users.lock"
PID: Final = "server.pid"
_STOP_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
"""Loaded here, as a new process must not load anything before it runs its program."""


class ServerEnded(Exception):
    """The server ended by itself."""


def keep(folder: Path, socket: Path, lock: int, command: list[str]) -> int:
    """Run the server until nobody uses it, and return its exit code.

    Args:
        folder: Where the locks are.
        socket: What the server leaves behind.
        lock: Open file whose lock says that the server runs; it is let go when keeper and server are gone.
        command: The server's command line.
    """
    signal.signal(signal.SIGTERM, _leave)
    with (folder / USERS).open("a") as users:
        server = subprocess.Popen(  # noqa: S603 - the user's own server
            command,
            pass_fds=(lock,),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
        )
        try:
            (folder / PID).write_text(f"{server.pid}\n")
            signal.signal(signal.SIGCHLD, lambda _number, _frame: _note_end(server))
            with contextlib.suppress(ServerEnded):
                if server.poll() is None:
                    fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _stop(server)
            for left in (socket, folder / PID):
                left.unlink(missing_ok=True)
    return server.returncode


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _note_end(server: subprocess.Popen[bytes]) -> None:
    """Stop waiting if the server has ended: the signal also comes when somebody freezes it or lets it go on.

    Not by `poll`, whose lock the code that was interrupted may hold.
    """
    with contextlib.suppress(ChildProcessError):  # it is known already
        pid, status = os.waitpid(server.pid, os.WNOHANG)
        if pid:
            server.returncode = os.waitstatus_to_exitcode(status)
            raise ServerEnded


def _die_with_parent() -> None:
    """Ask Linux to kill the server when its keeper ends; runs in the child.

    Killed rather than told to end: a next start must not find one that answers for a last moment. What was
    acknowledged is with the system already.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
