"""Runs a server that must not outlive the worker which started it, however that one ends.

A program of its own: `python guard.py COMMAND...`, with a pipe as its standard input whose other end the worker alone
holds. When the pipe closes, `kill -9` of the worker included, the server and whatever it started are told to
end, and killed when they do not. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Final

GRACE_SECONDS: Final = 3.0
"""How long a server may take to end after it was told to."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
"""Loaded here, as a new process must not load anything before it runs its program."""


def guard(command: list[str]) -> int:
    """Run a command until it ends or the pipe closes, and return its exit code as a shell would."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its pipe, and with nothing else
    server = subprocess.Popen(  # noqa: S603 - the worker's own server
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_begin if sys.platform == "linux" else _listen_to_signals,  # noqa: PLW1509 - two system calls
    )
    threading.Thread(target=_end_with_pipe, args=[server], daemon=True).start()
    code = server.wait()
    _signal(server, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _end_with_pipe(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        continue
    _signal(server, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_SECONDS)
    _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    """Signal the server's whole process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


def _begin() -> None:
    _listen_to_signals()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should somebody kill the guard


def _listen_to_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # ignored ones are inherited


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
