"""What each key does while `flashkit dev` runs."""

from __future__ import annotations

import asyncio
import os
import sys
import webbrowser
from collections.abc import Callable, Iterable, MutableMapping

from flashkit.cli.console import Output
from flashkit.cli.dev import LOG_LEVELS
from flashkit.cli.emulation import read_duration
from flashkit.cli.keys import Keyboard, KeyCommand
from flashkit.emulator.events import Event, JobEvent
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.errors import JobNotFound
from flashkit.protocol import JobStatus

_USUAL_ADVANCE = "1m"


class KeyCommands:
    """The commands of one `flashkit dev`.

    Args:
        emulator: What they work on.
        output: Where they say what they did.
        keyboard: Asked where a command needs a value.
        stop: Ends the server.
        worker_env: What workers that start get on top of their environment; the log level is changed in it.
    """

    def __init__(
        self,
        emulator: Emulator,
        output: Output,
        *,
        keyboard: Keyboard,
        stop: Callable[[], None],
        worker_env: MutableMapping[str, str],
    ) -> None:
        self._emulator = emulator
        self._output = output
        self._keyboard = keyboard
        self._stop = stop
        self._worker_env = worker_env
        self._last: JobEvent | None = None

    def all(self) -> dict[str, KeyCommand]:
        """Return the commands by key."""
        return {
            "r": KeyCommand("restart", self._restart),
            "c": KeyCommand("cold start", self._cool),
            "o": KeyCommand("open the dashboard", self._open),
            "l": KeyCommand("log level", self._change_log_level),
            "f": KeyCommand("faults on or off", self._toggle_faults),
            "p": KeyCommand("replay the last request", self._replay),
            "t": KeyCommand("move the clock on", self._advance),
            "x": KeyCommand("clear", self._clear),
            "q": KeyCommand("quit", self._quit),
        }

    def notice(self, event: Event) -> None:
        """Remember the last request."""
        if isinstance(event, JobEvent) and event.status is JobStatus.IN_QUEUE and not event.attempt:
            self._last = event

    @property
    def _names(self) -> Iterable[str]:
        return list(self._emulator.platform.specs)

    async def _restart(self) -> None:
        for name in self._names:
            self._emulator.restart(name)
        self._output.say(f"restarted {', '.join(self._names)}: running jobs finish on the old workers", style="bold")

    async def _cool(self) -> None:
        killed = sum(self._emulator.cool(name) for name in self._names)
        self._output.say(f"killed {killed} workers: the next job of each endpoint meets a cold start", style="bold")

    async def _open(self) -> None:
        url = f"{self._emulator.url}/"
        is_open = _has_display() and await asyncio.to_thread(webbrowser.open, url)
        self._output.say(f"opened {url}" if is_open else f"there is no display here; the dashboard is at {url}")

    async def _change_log_level(self) -> None:
        levels = list(LOG_LEVELS)
        level = levels[(levels.index(self._output.log_level) + 1) % len(levels)]
        self._output.log_level = level
        self._worker_env["RUNPOD_LOG_LEVEL"] = sdk_log_level(level)
        self._output.say(f"log level {level}, for the SDK in workers that start from now on (r restarts them)")

    async def _toggle_faults(self) -> None:
        plan = self._emulator.faults.plan
        if not plan.faults:
            self._output.say("there are no faults; start with --fault RULE, or PUT them to /_/faults")
            return
        plan.is_enabled = not plan.is_enabled
        rules = ", ".join(str(fault) for fault in plan.faults)
        self._output.say(f"faults {'on' if plan.is_enabled else 'off'}: {rules}", style="yellow")

    async def _replay(self) -> None:
        last = self._last
        if last is None:
            self._output.say("there was no request to replay")
            return
        try:
            job = self._emulator.dispatcher.apply(self._emulator.platform.job, last.endpoint, last.job_id)
        except JobNotFound:
            self._output.say(f"job {last.job_id} is not kept any more: use flashkit replay, or send it again")
            return
        again = self._emulator.submit(last.endpoint, JobRequest(job.input))
        self._output.say(f"replayed {last.job_id} as {again.id}")

    async def _advance(self) -> None:
        text = await self._keyboard.line(f"move the clock on by (10s, 5m, 2h; Enter: {_USUAL_ADVANCE}): ")
        if text is not None:
            await self._emulator.clock.advance(read_duration(text or _USUAL_ADVANCE))

    async def _clear(self) -> None:
        self._output.clear()

    async def _quit(self) -> None:
        self._stop()


def sdk_log_level(level: str) -> str:
    """Return the SDK's name of a log level."""
    return {"warning": "WARN"}.get(level, level.upper())


def _has_display() -> bool:
    is_told = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return is_told or sys.platform in ("darwin", "win32")
