"""A real Prometheus with the configuration that flashkit brings: it scrapes the platform and loads the alerts."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from urllib.parse import urlsplit

import aiohttp
import pytest

from flashkit.cli import run_command_line
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from tests.ports import free_port

PATIENCE_SECONDS = 40.0


@pytest.fixture
def program():
    found = shutil.which("prometheus")
    if found is None:
        missing = "there is no prometheus: install Debian's package, as scripts/setup does"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)
    return found


async def ask(session, url):
    async with session.get(url) as answer:
        return (await answer.json())["data"]


async def until(condition):
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if found := await condition():
                return found
        except aiohttp.ClientError:
            pass  # it is not there yet
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.2)


async def test_prometheus_scrapes_the_platform_with_the_files_of_flashkit(program, tmp_path):
    spec = EndpointSpec(name="llm", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(0, 3))
    files, port = tmp_path / "observability", free_port()
    async with Emulator([LocalEndpoint(spec, ("false",), tmp_path)], state_dir=tmp_path / "state") as emulator:
        assert run_command_line(["metrics", str(files), "--target", urlsplit(emulator.url).netloc]) == 0
        (files / "prometheus.yml").write_text((files / "prometheus.yml").read_text().replace("5s", "1s"))
        prometheus = await asyncio.create_subprocess_exec(
            program, f"--config.file={files}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error", stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession() as session:
                query = f'http://127.0.0.1:{port}/api/v1/query?query=flashkit_workers_limit{{bound="max"}}'
                data = await until(lambda: _result(session, query))
                assert (data[0]["metric"]["endpoint"], data[0]["value"][1]) == ("llm", "3")
                rules = await ask(session, f"http://127.0.0.1:{port}/api/v1/rules")
                assert len(rules["groups"][0]["rules"]) == 10
                assert {rule["health"] for rule in rules["groups"][0]["rules"]} <= {"ok", "unknown"}
        finally:
            prometheus.terminate()
            await prometheus.wait()


async def _result(session, url):
    return (await ask(session, url))["result"]
