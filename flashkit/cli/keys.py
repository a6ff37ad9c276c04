"""Single keys as commands, while `flashkit dev` runs in a terminal.

The terminal is switched to give each key at once, and back at the end; Ctrl-C stays what it is. Where standard
input is no terminal, or the process runs in the background of one, there are no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from flashkit.errors import FlashkitError

_READ_BYTES = 1024
_ENTER = ("\r", "\n")
_ERASE = ("\x7f", "\b")
_ESCAPE = "\x1b"


class Keyboard:
    """The keys that are pressed while its block lasts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pressed: asyncio.Queue[str] = asyncio.Queue()

    async def key(self) -> str:
        """Wait for the next key."""
        return await self._pressed.get()

    async def line(self, prompt: str) -> str | None:
        """Ask for a line; None when Escape is pressed."""
        typed = ""
        _write(prompt)
        while (key := await self.key()) not in _ENTER:
            if key == _ESCAPE:
                _write("\n")
                return None
            if key in _ERASE:
                _write("\b \b" if typed else "")
                typed = typed[:-1]
            elif key.isprintable():
                _write(key)
                typed += key
        _write("\n")
        return typed.strip()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(self._descriptor)
        text = data.decode(errors="ignore")
        # Arrows and the like come as several characters that begin with Escape: they are no commands.
        for key in text if len(text) == 1 or _ESCAPE not in text else ():
            self._pressed.put_nowait(key)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Take keys one by one, without showing them, until the block ends."""
        before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor, termios.TCSANOW)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._descriptor)
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._descriptor, termios.TCSANOW, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def open_keyboard() -> Iterator[Keyboard | None]:
    """Open the terminal's keyboard for the block, if there is one that is ours."""
    descriptor = _terminal()
    if descriptor is None:
        yield None
        return
    keyboard = Keyboard(descriptor)
    with keyboard.opened():
        yield keyboard


def _terminal() -> int | None:
    """Return the descriptor of standard input where it is a terminal that this process may read."""
    try:
        descriptor = sys.stdin.fileno()
        # Changing a terminal from the background would stop the process.
        is_ours = os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return None
    return descriptor if is_ours else None


@dataclass(frozen=True, slots=True)
class KeyCommand:
    """What a key does."""

    words: str
    run: Callable[[], Awaitable[None]]


async def obey_keys(
    keyboard: Keyboard,
    commands: Mapping[str, KeyCommand],
    *,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> None:
    """Run the commands of the keys that are pressed, for ever; one that fails says why."""
    while True:
        key = await keyboard.key()
        if key == "?":
            say("  ".join(f"{name} {command.words}" for name, command in commands.items()))
        elif command := commands.get(key.lower()):
            try:
                await command.run()
            except FlashkitError as exc:
                complain(exc.report.render())
