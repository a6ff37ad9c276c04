"""Real servers for the tests, which they can kill, freeze and start again, and a proxy that loses replies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Final

import pytest

from flashkit.worker.sessions.embedded import ServerBinary, find_server
from tests.ports import free_port

FAKETIME_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


def require_binary(name: str) -> ServerBinary:
    """Return a server's program; without it skip, or fail where everything must be there."""
    if name == "redis":
        found = shutil.which("redis-server")
        binary = ServerBinary(Path(found), "PATH") if found else None
    else:
        binary = find_server({"PATH": ""})
    if binary is None:
        raise _missing(f"no {name} server is installed; scripts/setup does that")
    return binary


def require_faketime() -> Path:
    """Return the library that gives a program another clock; without it skip, or fail as above."""
    name = "faketime/libfaketimeMT.so.1"
    found = [path for folder in FAKETIME_FOLDERS for path in (Path(folder) / name, *Path(folder).glob(f"*/{name}"))]
    library = next((path for path in found if path.exists()), None)
    if library is None:
        raise _missing("libfaketime is not installed; scripts/setup does that on Debian")
    return library


def _missing(message: str) -> BaseException:
    if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
        return pytest.fail.Exception(message)
    return pytest.skip.Exception(message)


class FakeClock:
    """The clock of a program that is started with `environ`; it may jump and drift while that runs."""

    def __init__(self, library: Path, file: Path) -> None:
        self.file = file
        self.set()
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # jumps of a real clock leave the monotonic one alone
        }

    def set(self, *, hours: float = 0, rate: float = 1) -> None:
        """Show the true time so many hours off, and run that many times as fast from now on."""
        text = f"{hours * 3600:+.0f} x{rate}\n"
        temporary = self.file.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.file)  # the program reads it at any time


class RedisServer:
    """A server with an append-only file on a loopback port; `options` are lines of its configuration."""

    def __init__(self, folder: Path, binary: ServerBinary, *, environ: Mapping[str, str] | None = None, **options: str):
        self.folder = folder
        self.environ = dict(environ or {})
        self.port = free_port()
        self.binary = binary
        self.options = {
            "port": str(self.port), "bind": "127.0.0.1", "dir": str(folder), "appendonly": "yes", "save": "",
            "enable-debug-command": "local",
        } | {name.replace("_", "-"): value for name, value in options.items()}  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [word for name, value in self.options.items() for word in (f"--{name}", *value.split(" "))]
        self.process = subprocess.Popen(
            [str(self.binary.path), *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, env=self.environ,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()  # a frozen one dies too, without a last word
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Proxy:
    """A TCP proxy before a server; `mode` says what it does to the traffic from now on."""

    def __init__(self, port: int):
        self.target = port
        self.port = 0
        self.mode = "pass"
        self.replies_lost = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        while self._writers:
            self.reset()
            await asyncio.sleep(0.01)

    def reset(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.transport.abort()
            return
        pair = {writer}
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            pair.add(there_writer)
            self._writers.add(there_writer)
            ways = (self._requests(reader, there_writer), self._replies(there_reader, writer))
            await asyncio.wait([asyncio.create_task(_until_cut(way)) for way in ways])
        for one in pair:
            one.transport.abort()
        self._writers -= pair

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.mode == "swallow":
                continue
            writer.write(data)
        writer.close()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.mode == "lose replies":
                self.replies_lost += 1
                self.mode = "pass"
                writer.transport.abort()
                return
            if self.mode == "hold replies":
                self.replies_lost += 1
                continue
            if self.mode == "delay":
                await asyncio.sleep(0.1)
            if self.mode == "one byte at a time":
                for byte in data:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0)
                continue
            writer.write(data)
        writer.close()


async def _until_cut(way: Coroutine[None, None, None]) -> None:
    with contextlib.suppress(OSError):
        await way
