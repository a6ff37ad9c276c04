"""An emulator with agents and tools in processes of their own, and the log that these write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flashkit.client import Client
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from tests.apps.session_app import SHORT_MS

APPS = Path(__file__).parents[1] / "apps"


def session_endpoint(name: str, env: Mapping[str, str], *, workers: tuple[int, int] = (1, 2)) -> LocalEndpoint:
    """Return an endpoint of `tests/apps/session_app.py`."""
    is_tool = name == "tool"
    spec = EndpointSpec(
        name=name, kind=Kind.CPU if is_tool else Kind.ORCHESTRATOR, cpu="cpu3c-1-2", workers=WorkerBounds(*workers),
        idle_timeout=600, concurrency=8 if is_tool else 1,
        execution_timeout_ms=SHORT_MS if name.startswith("patient") else 600_000,
    )  # fmt: skip
    command = (sys.executable, "-m", "flashkit.worker", f"session_app.py:{name.replace('-', '_')}")
    return LocalEndpoint(spec=spec, command=command, cwd=APPS, env=env)


class Site:
    """A running platform."""

    def __init__(self, emulator: Emulator, client: Client, log: Path, endpoints: list[LocalEndpoint]) -> None:
        self.emulator = emulator
        self.client = client
        self.endpoints = endpoints
        self._log = log

    @property
    def base_url(self) -> str:
        """Where orchestrators of this process send their calls."""
        return f"{self.emulator.url}/v2"

    @staticmethod
    def changed(endpoint: LocalEndpoint) -> LocalEndpoint:
        """Return the endpoint as a new version of it, whose workers replace the running ones."""
        return replace(endpoint, env={**endpoint.env, "VERSION": "2"})

    def lines(self, word: str, key: str) -> list[list[str]]:
        """Return the lines of the log that begin with a word and name a key."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [words for line in lines if (words := line.split())[0] == word and key in words]

    async def logged(self, word: str, key: str, *, count: int = 1) -> list[list[str]]:
        """Return such lines once there are as many."""
        async with asyncio.timeout(20):
            while len(found := self.lines(word, key)) < count:
                await asyncio.sleep(0.01)
        return found
