"""The page about production: its server's configuration, its users and its commands, tried with real servers."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from flashkit.worker.sessions.embedded import ServerBinary
from flashkit.worker.sessions.records import Keyring
from flashkit.worker.sessions.store import open_store
from tests.cli.conftest import FLASHKIT, Dev, clean_environment
from tests.ports import free_port
from tests.sessions.servers import RedisServer, require_binary
from tests.sessions.test_cluster import Cluster
from tests.sessions.test_redis_tls import certificate  # noqa: F401 - a fixture

PAGE = (Path(__file__).parents[2] / "docs" / "production.md").read_text()
PASSWORD = "s3cret/word"
QUOTED = "s3cret%2Fword"
APP = """
from flashkit import Session, cpu_endpoint, orchestrator_endpoint


@orchestrator_endpoint(name="agent", workers=(0, 1), cpu="cpu3c-2-4")
async def agent(session: Session, topic: str) -> str:
    first = await session.step("upper", str.upper, topic)
    return await session.effect("send", str.lower, first, once=True)
"""


def titled(name: str) -> str:
    found = re.search(rf'```text title="{name}"\n(.*?)```', PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def command_with(text: str) -> str:
    return next(line for line in PAGE.splitlines() if line.startswith("flashkit ") and text in line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
async def tls_port(folder: Path, certificate: Path) -> AsyncIterator[int]:  # noqa: F811
    """A server with the page's configuration, at another port and with files of its own."""
    binary: ServerBinary = require_binary("redis")
    port = free_port()
    (folder / "users.acl").write_text(titled("users.acl").replace("CHANGE-ME", PASSWORD))
    conf = titled("redis.conf").replace("6380", str(port))
    for name, path in (("cert.pem", certificate / "cert.pem"), ("key.pem", certificate / "key.pem"),
                       ("ca.pem", certificate / "cert.pem"), ("users.acl", folder / "users.acl")):  # fmt: skip
        conf = conf.replace(f"/etc/redis/{name}", str(path))
    (folder / "redis.conf").write_text(f"{conf}bind 127.0.0.1\ndir {folder}\n")
    process = subprocess.Popen([str(binary.path), str(folder / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(20):
            while not await is_open(port):
                assert process.poll() is None, "the configuration on the page is refused"
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def filled(text: str, port: int, ca: Path) -> str:
    """A line of the page, for the server of this test."""
    text = text.replace("CHANGE-ME", QUOTED).replace("redis.example:6380", f"127.0.0.1:{port}")
    return text.replace("/etc/redis/ca.pem", str(ca))


async def test_the_server_of_the_page_is_one_that_sessions_trust(tls_port: int, certificate: Path):  # noqa: F811
    url = shlex.split(filled(command_with("--redis"), tls_port, certificate / "cert.pem"))[-1]
    store = open_store(url)
    try:
        report = await store.check(budget_s=20)
        assert report.warnings == ()
    finally:
        await store.close()


async def test_the_user_of_the_page_may_do_nothing_else(tls_port: int, certificate: Path):  # noqa: F811
    url = f"rediss://agents:{QUOTED}@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}/cert.pem"
    async with aioredis.from_url(url) as client:
        for words in (("FLUSHALL",), ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"), ("SET", "other", "1"),
                      ("KEYS", "*"), ("ACL", "LIST"), ("PUBLISH", "x", "y"), ("SHUTDOWN",)):  # fmt: skip
            with pytest.raises(aioredis.ResponseError, match=r"(?i)permissions"):
                await client.execute_command(*words)
    async with aioredis.from_url(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}/cert.pem") as nobody:
        with pytest.raises(aioredis.AuthenticationError):
            await nobody.ping()


def run_agent(folder: Path, dev_line: str, list_lines: list[str]) -> Iterator[str]:
    """Follow the page: start its `flashkit dev`, send a job, and list sessions."""
    dev = Dev(folder / "project", *shlex.split(dev_line)[2:], "--headless")
    try:
        dev.wait_for("agent")
        done = subprocess.run(
            [*FLASHKIT, "run", "agent", '{"topic": "Hello", "session_id": "ada"}', "--url", dev.url, "--json"],
            cwd=folder / "project", env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + dev.text
        yield done.stdout
    finally:
        dev.stop()
    for line in list_lines:
        script = f'flashkit() {{ {shlex.join(FLASHKIT)} "$@"; }}\n{line}'
        done = subprocess.run(
            ["bash", "-ec", script], cwd=folder / "project", env=clean_environment(),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield done.stdout
    assert PASSWORD not in dev.text
    assert QUOTED not in dev.text


async def test_an_agent_keeps_its_sessions_behind_tls(tls_port: int, folder: Path, certificate: Path):  # noqa: F811
    ca = certificate / "cert.pem"
    export = next(line for line in PAGE.splitlines() if line.startswith("export FLASHKIT_STATE="))
    listing = filled(f"{export}\nflashkit sessions list --json", tls_port, ca)
    answer, sessions = await asyncio.to_thread(
        lambda: list(run_agent(folder, filled(command_with("--redis"), tls_port, ca), [listing]))
    )
    assert json.loads(answer) == "hello"
    assert "ada" in sessions


async def test_an_agent_keeps_its_sessions_in_a_cluster(folder: Path):
    binary = require_binary("redis")
    users = folder / "users.acl"
    line = titled("users.acl").replace("CHANGE-ME", PASSWORD)
    line = line.replace("user default off", "user default on nopass ~* +@all")  # forms the Cluster
    users.write_text(line)
    async with AsyncExitStack() as stack:
        servers = []
        for number in range(2):
            options = {"cluster_enabled": "yes", "cluster_port": str(free_port()), "appendfsync": "always"}
            server = RedisServer(folder / f"node{number}", binary, aclfile=str(users), **options).start()
            stack.callback(server.kill)
            servers.append(server)
        cluster = Cluster(servers)
        await cluster.form()
        nodes = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        dev_line = command_with("redis+cluster").replace("CHANGE-ME", QUOTED)
        dev_line = dev_line.replace("redis1.example:6379,redis2.example:6379", nodes)
        assert nodes in dev_line
        (answer,) = await asyncio.to_thread(lambda: list(run_agent(folder, dev_line, [])))
        assert json.loads(answer) == "hello"


def test_the_key_that_the_page_makes_is_one():
    line = next(line for line in PAGE.splitlines() if line.startswith("python -c"))
    line = line.replace("python", sys.executable, 1)
    made = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, check=True).stdout
    assert len(Keyring.from_text(made.strip()).keys[1]) == 32


def test_every_form_of_the_address_on_the_page_can_be_read():
    rows = re.findall(r"\| `([a-z+]+://[^`]*)`", PAGE)
    assert len(rows) >= 3
    for row in rows:
        url = row.replace("…", "x")
        if "?ssl" not in url:
            asyncio.run(_close(url))


async def _close(url: str) -> None:
    await open_store(url).close()
