"""Who downloads to a shelf: a lease in a file, which outlives nobody.

`flock` does not do: network file systems grant it to every caller or forget it, and the lock file of a worker that
was killed would block the others for ever. A lease is a small file that its holder rewrites every two seconds. Who
sees the same bytes in it for twenty seconds of its own clock takes it over, so no clocks are compared.

A lease saves work and decides nothing: a worker that was frozen may wake up and believe that it still holds one.
What keeps a shelf whole is that each holder has a staging folder of its own, and publishes it by a rename
(`shelves`). docs/decisions/0009 has the reasons.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

log = logging.getLogger("flashkit.weights")

BEAT_SECONDS: Final = 2.0
DEAD_SECONDS: Final = 20.0
"""Ten beats: a network file system may hold a write back for some seconds."""
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a lease is renewed, and when its holder is dead."""

    beat_seconds: float = BEAT_SECONDS
    dead_seconds: float = DEAD_SECONDS
    poll_seconds: float = _POLL_SECONDS


class Lease:
    """One holder's claim on a lease file; a context manager that is entered when `acquire` has said yes.

    Args:
        file: The lease's file.
        state: Facts that others see while they wait; called at every beat.
        pace: How often it is renewed.
    """

    def __init__(self, file: Path, state: Callable[[], dict[str, Any]] = dict, pace: Pace = Pace()) -> None:
        self.token = secrets.token_hex(8)
        self._file = file
        self._state = state
        self._pace = pace
        self._is_over = threading.Event()
        self._is_lost = threading.Event()
        self._beating: threading.Thread | None = None
        self._beat = 0

    @property
    def is_lost(self) -> bool:
        """True when somebody else has taken the lease over."""
        return self._is_lost.is_set()

    def was_taken(self) -> bool:
        """Look whether somebody else has it by now, without waiting for the next beat."""
        if not self._is_mine():
            self._is_lost.set()
        return self.is_lost

    def try_acquire(self) -> bool:
        """Take the lease if it is free."""
        try:
            with self._file.open("xb", buffering=0) as file:
                file.write(self._text())
        except FileExistsError:
            return False
        return True

    def take_over(self, seen: bytes) -> bool:
        """Take the lease from a holder that is dead, if nothing has changed since its file was read.

        A rename gives it to one taker alone. Who finds other bytes than it had seen has taken a living holder's
        lease, and gives it back.
        """
        taken = self._file.with_name(f"{self._file.name}.{self.token}")
        try:
            self._file.rename(taken)
        except FileNotFoundError:
            return False
        if read_lease(taken) != seen:
            with contextlib.suppress(OSError):
                os.link(taken, self._file)  # fails where a third one has made a new lease: its holder will notice
            taken.unlink(missing_ok=True)
            return False
        taken.unlink(missing_ok=True)
        return self.try_acquire()

    def __enter__(self) -> Self:
        self._beating = threading.Thread(target=self._keep_beating, name="weights-lease", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._is_over.set()
        if self._beating:
            self._beating.join()
        if not self.is_lost and self._is_mine():
            self._file.unlink(missing_ok=True)

    def _keep_beating(self) -> None:
        while not self._is_over.wait(self._pace.beat_seconds):
            try:
                if not self._renew():
                    self._is_lost.set()
                    return
            except OSError as exc:  # a full disk or a network that is away: the download will say so
                log.warning("the lease %s cannot be renewed: %s", self._file, exc.strerror)

    def _renew(self) -> bool:
        # Opened anew each time: network file systems show others what was written when the file is closed.
        try:
            with self._file.open("rb+", buffering=0) as file:
                if _token_of(file.read()) != self.token:
                    return False
                self._beat += 1
                text = self._text()
                file.seek(0)
                file.write(text)
                file.truncate(len(text))
        except FileNotFoundError:
            return False
        return True

    def _is_mine(self) -> bool:
        return _token_of(read_lease(self._file) or b"") == self.token

    def _text(self) -> bytes:
        facts = {"token": self.token, "beat": self._beat, "host": _host(), "pid": os.getpid(), **self._state()}
        return json.dumps(facts).encode()


@dataclass(slots=True)
class Watch:
    """What a waiting worker has seen of a lease, and since when."""

    pace: Pace
    clock: Callable[[], float] = time.monotonic
    seen: bytes | None = None
    since: float = 0.0

    def look(self, file: Path) -> bytes | None:
        """Return the bytes of a lease whose holder is dead; None while it lives, or when there is none."""
        content = read_lease(file)
        if content is None or content != self.seen:
            self.seen, self.since = content, self.clock()
        if content is None:
            return None
        is_silent = self.clock() - self.since >= self.pace.dead_seconds
        return content if is_silent or holder_is_gone(content) else None


def read_lease(file: Path) -> bytes | None:
    """Return the bytes of a lease, None where there is none."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def holder_facts(content: bytes) -> dict[str, Any]:
    """Return what the holder says of itself; empty while it writes."""
    try:
        facts = json.loads(content)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def holder_is_gone(content: bytes) -> bool:
    """Say whether the holder ran on this machine and has ended; nothing is known of those of other machines."""
    facts = holder_facts(content)
    if facts.get("host") != _host() or not isinstance(facts.get("pid"), int):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _token_of(content: bytes) -> str | None:
    token = holder_facts(content).get("token")
    return token if isinstance(token, str) else None


def _host() -> str:
    """Return what tells this machine, and this container on it, from others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
