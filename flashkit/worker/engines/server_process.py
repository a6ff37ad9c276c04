"""A model server as a child process of the worker: started, waited for, its last words kept, ended with the worker."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypedDict

from flashkit.errors import EngineDied, EngineError
from flashkit.settings import LOOPBACK

log = logging.getLogger(__name__)

START_SECONDS: Final = 1200.0
"""How long a server may take until it is ready; the platform gives up on a worker sooner, unless it is told not to."""
_POLL_SECONDS: Final = 0.2
_CLOSE_SECONDS: Final = 5.0
_LINES_KEPT: Final = 30
_LINES_SHOWN: Final = 10
_LINE_BYTES: Final = 64 * 1024
_GUARD: Final = Path(__file__).with_name("guard.py")


class _Words(TypedDict):
    hint: str
    details: dict[str, Any]


def find_free_port() -> int:
    """Return a port of this machine's that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


class ServerProcess:
    """A server that runs."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._reading = asyncio.create_task(self._read_log())
        self._is_closed = False

    @classmethod
    async def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str]) -> ServerProcess:
        """Start it.

        Args:
            name: For messages.
            command: Its command line.
            environment: All of its environment.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_GUARD), *command),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_BYTES,
            start_new_session=True,  # signals for the worker's group are not for it: it ends with its pipe
        )
        return cls(name, process)

    @property
    def has_ended(self) -> bool:
        """True when it does not run any more."""
        return self._process.returncode is not None

    async def ends_within(self, seconds: float) -> bool:
        """Return True as soon as it has ended, False when it still runs after that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self.has_ended

    async def wait_until(self, is_ready: Callable[[], Awaitable[bool]], *, budget_seconds: float | None = None) -> None:
        """Return when it is ready.

        Raises:
            EngineError: It ended, or took too long; its last words are in the message.
        """
        budget = START_SECONDS if budget_seconds is None else budget_seconds
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + budget
        while not await is_ready():
            if self.has_ended:
                await asyncio.wait([self._reading])
                raise EngineError(f"{self._how_it_ended()} before it was ready", **self._last_words())
            if loop.time() > give_up_at:
                raise EngineError(f"{self._name} was not ready within {budget:g} s", **self._last_words())
            await asyncio.sleep(_POLL_SECONDS)

    def death(self) -> EngineDied:
        """Return the error for requests to a server that has ended."""
        words = self._last_words()
        return EngineDied(self._how_it_ended(), hint=words["hint"], details={"retryable": True, **words["details"]})

    async def close(self) -> None:
        """End it and what it started."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._process.wait()
                await self._reading
        except TimeoutError:
            log.warning("%s does not end; its guard goes on killing it", self._name)
            self._reading.cancel()

    def _how_it_ended(self) -> str:
        return f"{self._name} ended with code {self._process.returncode}"

    def _last_words(self) -> _Words:
        shown = list(self._lines)[-_LINES_SHOWN:]
        hint = f"it said last:\n{chr(10).join(shown)}" if shown else "it wrote nothing to its log"
        return {"hint": hint, "details": {"log": list(self._lines)}}

    async def _read_log(self) -> None:
        """Pass its output on to the worker's log."""
        stream = self._process.stdout
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:  # longer than anybody reads; what follows it is the next line
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            log.info("%s", text)
