"""Flashkit workers under every verified runpod SDK, on a real emulator."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flashkit.client import Client
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from tests.conftest import StartEmulator

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "apps"
SDK_INTERPRETERS = {"1.12.0": sys.executable, "2.0.0rc2": str(ROOT / ".venv-sdks" / "2.0.0rc2" / "bin" / "python")}


@pytest.fixture(params=sorted(SDK_INTERPRETERS), ids=lambda version: f"runpod-{version}")
def interpreter(request: pytest.FixtureRequest) -> str:
    """A Python whose environment has one of the SDK releases."""
    python = SDK_INTERPRETERS[request.param]
    if not Path(python).exists():
        message = f"no environment with runpod {request.param}: run scripts/setup --sdks"
        if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail(message)
        pytest.skip(message)
    return python


def app_endpoint(python: str, name: str, *, workers: tuple[int, int] = (0, 1), concurrency: int = 1) -> LocalEndpoint:
    """Return the endpoint of `tests/apps/worker_app.py` with this attribute name."""
    spec = EndpointSpec(
        name=name.lower(), kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(*workers), idle_timeout=600,
        concurrency=concurrency,
    )  # fmt: skip
    return LocalEndpoint(spec=spec, command=(python, "-m", "flashkit.worker", f"worker_app.py:{name}"), cwd=APPS)


class Lab:
    """One emulator, a client for it, and everything that happened."""

    def __init__(self, start: StartEmulator) -> None:
        self._start = start
        self.events: list[Any] = []

    async def run(self, *endpoints: LocalEndpoint, **options: Any) -> Emulator:
        """Start the emulator and connect the client."""
        self.emulator = await self._start(*endpoints, on_event=self.events.append, **options)
        self.client = Client(Settings(base_url=f"{self.emulator.url}/v2"))
        return self.emulator

    def lines(self) -> list[tuple[str | None, str]]:
        """Return what workers printed, as (job id, text)."""
        return [(event.job_id, event.text) for event in self.events if hasattr(event, "text")]

    def moments(self, endpoint: str) -> list[str]:
        """Return what happened to the workers of an endpoint, in order."""
        return [event.what for event in self.events if hasattr(event, "what") and event.endpoint == endpoint]


@pytest.fixture
async def lab(start_emulator: StartEmulator) -> AsyncIterator[Lab]:
    """An emulator that is started by the test, and closed after it."""
    lab = Lab(start_emulator)
    yield lab
    await lab.client.close()
