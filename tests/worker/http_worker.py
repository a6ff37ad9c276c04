"""A load-balanced worker as a process of its own, for tests: started with a port, asked over HTTP, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp

from tests.ports import free_port

APPS = Path(__file__).parents[1] / "apps"


class HttpWorker:
    """One process of `python -m flashkit.worker http_app.py:NAME`."""

    def __init__(self, target: str, *, program: tuple[str, ...] = ("-m", "flashkit.worker"), **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = (sys.executable, *program, target)
        self._env = env
        self.output = ""

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=APPS,
            env={"PATH": os.environ["PATH"], "PORT": str(self.port), "PYTHONUNBUFFERED": "1", **self._env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.ensure_future(self._read())
        self.http = aiohttp.ClientSession(self.url)

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.output += line.decode()

    async def ping(self, url: str | None = None) -> int | None:
        """Return the status of /ping, None while nobody listens."""
        try:
            async with self.http.get(f"{url or self.url}/ping") as response:
                return response.status
        except aiohttp.ClientError:
            return None

    async def wait_for_ping(self, *statuses: int | None, seconds: float = 40.0, url: str | None = None) -> None:
        async with asyncio.timeout(seconds):
            while (status := await self.ping(url)) not in statuses:
                assert self.process.returncode is None, f"it ended: {self.output}"
                del status
                await asyncio.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, *, seconds: float = 30.0) -> int:
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await self._reading
        return code

    async def stop(self) -> None:
        await self.http.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


async def until(condition, *, seconds: float = 20.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
