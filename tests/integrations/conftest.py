"""A plain redis-server for the tests of a module, and the choice between skipping and failing without one."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis


@pytest.fixture(scope="session")
def require():
    """Skip the test where something is missing, or fail it where everything has to be there."""

    def check(is_there, what):
        if not is_there and os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail(f"{what} is missing")
        if not is_there:
            pytest.skip(f"{what} is missing")

    return check


class Server:
    """A redis-server of its own on a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(folder)],
            stdout=subprocess.DEVNULL,
        )
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server does not come up"
            time.sleep(0.02)

    def stop(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return self.client.ping()
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="module")
def server(require):
    """A plain Redis without modules."""
    require(shutil.which("redis-server"), "redis-server")
    with tempfile.TemporaryDirectory(prefix="fk-") as folder:  # a socket's path must be short
        running = Server(Path(folder))
        yield running
        running.stop()


@pytest.fixture
def url(server):
    """Its URL; nothing is left of other tests."""
    server.client.flushall()
    return server.url
