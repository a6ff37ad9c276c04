"""Fixtures for all tests: endpoints with real worker processes, and emulators to run them."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from tests.ports import free_port

HANDLERS = Path(__file__).parent / "handlers"

MakeEndpoint = Callable[..., LocalEndpoint]
StartEmulator = Callable[..., Awaitable[Emulator]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the conformance suite run on Runpod itself."""
    parser.addoption("--runpod-endpoints", default="", help="three endpoint ids for tests/conformance, with commas")


def pytest_configure() -> None:
    """Let programs under test hear of SIGINT: what a shell starts with `&` ignores it, and so does all it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def leaks_are_found_where_they_arise() -> Iterator[None]:
    """Collect what a module left unclosed at its end: later, an innocent test would be told."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def worker_environ() -> dict[str, str]:
    """What workers under test get of this process's environment."""
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}


@pytest.fixture(scope="session")
def make_endpoint() -> MakeEndpoint:
    """Build an endpoint whose workers run a file of `tests/handlers`."""

    def make(name: str, handler: str, *arguments: str, workers: tuple[int, int] = (0, 1), **options: Any):
        options = {"idle_timeout": 600, **options}
        return LocalEndpoint(
            spec=EndpointSpec(name=name, kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(*workers), **options),
            command=(sys.executable, str(HANDLERS / f"{handler}.py"), *arguments),
            cwd=HANDLERS,
        )

    return make


@pytest.fixture
async def start_emulator(tmp_path: Path, worker_environ: dict[str, str]) -> AsyncIterator[StartEmulator]:
    """Start emulators that stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(*endpoints: LocalEndpoint, **options: Any) -> Emulator:
            folder = tmp_path / f"state-{len(list(tmp_path.iterdir()))}"
            options = {"defaults": PlatformDefaults(), "environ": worker_environ, **options}
            return await stack.enter_async_context(Emulator(endpoints, state_dir=folder, **options))

        yield start


@pytest.fixture
def unused_tcp_port() -> int:
    """The port of a server that is not there; pytest-asyncio's own may be taken by anybody's connection."""
    return free_port()
