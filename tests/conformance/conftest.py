"""Where the conformance suite runs: on the local platform with each SDK release, or on Runpod itself.

    pytest tests/conformance
    RUNPOD_API_KEY=… pytest tests/conformance --runpod-endpoints actions-id,parts-id,aggregating-id

The second form needs three endpoints on Runpod with the files of `handlers/`, the last of them with AGGREGATE=1 in
its environment and all with at most one worker. What only the local platform can be asked is skipped there.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.protocol import PlatformDefaults
from flashkit.settings import RUNPOD_API_URL
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

ROOT = Path(__file__).parents[2]
HANDLERS = Path(__file__).parent / "handlers"
RELEASES = ("1.10.1", "1.11.0", "1.12.0", "2.0.0rc2")
"""Releases of the runpod SDK that the local platform must serve; 1.12.0 is the one that flashkit installs."""
OWN_RELEASE = "1.12.0"


@dataclass
class World:
    """A platform with the suite's three endpoints, and an HTTP session that reaches it."""

    base_url: str
    api_key: str
    http: aiohttp.ClientSession
    python: str
    actions: str = "actions"
    parts: str = "parts"
    aggregating: str = "aggregating"
    emulator: Emulator | None = None

    @property
    def patience(self) -> float:
        """Seconds for which a job may take: on the real platform, a machine has to be found first."""
        return 60.0 if self.emulator else 300.0

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """Return status and JSON of an answer."""
        async with self.http.request(method, f"{self.base_url}/{path}", json=body, **options) as answer:
            text = await answer.read()
            return answer.status, await answer.json(content_type=None) if text else None

    async def run(self, job_input: Any, *, endpoint: str | None = None, **fields: Any) -> str:
        """Submit a job and return its id."""
        status, body = await self.ask("POST", f"{endpoint or self.actions}/run", {"input": job_input, **fields})
        assert status == 200, body
        return str(body["id"])

    async def state(self, job_id: str, *, endpoint: str | None = None) -> dict[str, Any]:
        """Return what `/status` says."""
        status, body = await self.ask("GET", f"{endpoint or self.actions}/status/{job_id}")
        assert status == 200, body
        return dict(body)

    async def wait_for(self, job_id: str, *statuses: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return the job's state once it has one of these statuses."""
        end = time.monotonic() + self.patience
        while (state := await self.state(job_id, endpoint=endpoint))["status"] not in statuses:
            assert time.monotonic() < end, state
            await asyncio.sleep(0.05 if self.emulator else 1.0)
        return state

    async def finish(self, job_input: Any, *, endpoint: str | None = None, **fields: Any) -> dict[str, Any]:
        """Run a job and return its last state."""
        job_id = await self.run(job_input, endpoint=endpoint, **fields)
        return await self.wait_for(job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", endpoint=endpoint)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test once for every SDK release, or once on Runpod."""
    if "world" in metafunc.fixturenames:
        on_runpod = metafunc.config.getoption("--runpod-endpoints")
        releases = ["runpod"] if on_runpod else list(RELEASES)
        metafunc.parametrize("world", releases, indirect=True, scope="module", ids=lambda name: f"sdk-{name}")


@pytest.fixture(scope="module")
async def world(request: pytest.FixtureRequest, tmp_path_factory: Any, worker_environ: Any) -> AsyncIterator[World]:
    """Give the platform: an emulator whose workers have one SDK release, or Runpod."""
    names = request.config.getoption("--runpod-endpoints")
    if names:
        api_key = os.environ.get("RUNPOD_API_KEY") or pytest.skip("RUNPOD_API_KEY is not set")
        actions, parts, aggregating = names.split(",")
        async with session(api_key) as http:
            yield World(RUNPOD_API_URL, api_key, http, sys.executable, actions, parts, aggregating)
        return
    python = interpreter(request.param)
    endpoints = [
        endpoint(python, "actions", "actions"),
        endpoint(python, "parts", "parts"),
        endpoint(python, "aggregating", "parts", AGGREGATE="1"),
    ]
    folder = tmp_path_factory.mktemp("state")
    emulator = Emulator(
        endpoints,
        state_dir=folder,
        environ=worker_environ,
        api_key="local-key",
        shutdown_grace=3.0,
        defaults=PlatformDefaults(poll_hold=3.0),
    )
    async with emulator, session("local-key") as http:
        yield World(f"{emulator.url}/v2", "local-key", http, python, emulator=emulator)


def session(api_key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {api_key}"})


def interpreter(release: str) -> str:
    """Return a Python that has this release of the SDK."""
    if release == OWN_RELEASE:
        return sys.executable
    python = ROOT / ".venv-sdks" / release / "bin" / "python"
    if not python.exists():
        message = f"no environment with runpod {release}: run scripts/setup --sdks"
        if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail(message)
        pytest.skip(message)
    return str(python)


def endpoint(python: str, name: str, handler: str, **env: str) -> LocalEndpoint:
    spec = EndpointSpec(
        name=name, kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(0, 1), idle_timeout=600, env=env
    )
    return LocalEndpoint(spec=spec, command=(python, str(HANDLERS / f"{handler}.py")), cwd=HANDLERS)
