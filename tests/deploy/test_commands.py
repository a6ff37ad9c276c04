"""The commands as people type them: real processes, a real management API, and no key in any output."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from flashkit.cli import run_command_line
from flashkit.emulator.management.service import PREFIX
from flashkit.emulator.server import Emulator
from tests.cli.conftest import FLASHKIT, Dev, clean_environment
from tests.deploy.openapi import check
from tests.deploy.proxy import RecordingProxy, once

KEY = "rpa_THEKEYOFTHEACCOUNT0123456789abcdefghij"
SECRET = "hf_TheTokenOfTheHub0123456789abcdefghijkl"
APP = """
from flashkit import Session, cpu_endpoint, orchestrator_endpoint

print("the app is imported")


@cpu_endpoint(name="notes", workers=(0, 4), execution_timeout_ms=30_000)
def find_notes(topic: str) -> list[str]:
    return [f"{topic} waits in a queue"]


@orchestrator_endpoint(name="agent", workers=(1, 3), cpu="cpu3c-2-4")
async def agent(session: Session, topic: str) -> list[str]:
    return await session.call(find_notes, topic, timeout=30)
"""
CONFIG = """
image = "registry.example/shop:1"
[endpoints.agent.env]
RUNPOD_API_KEY = "{{ RUNPOD_SECRET_worker-key }}"
FLASHKIT_STATE = "{{ RUNPOD_SECRET_redis }}"
"""


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


class Shop:
    """A project's folder, and everything that commands printed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder.parent / "home"
        self.home.mkdir()
        self.printed = ""
        (folder / "app.py").write_text(APP)
        self.env: dict[str, str] = {}

    def environment(self, **extra: str) -> dict[str, str]:
        return clean_environment(HOME=str(self.home), COLUMNS="200", **self.env, **extra)

    def start(self, *arguments: str, **extra: str) -> Done:
        done = subprocess.run(
            [*FLASHKIT, *arguments], cwd=self.folder, env=self.environment(**extra), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        self.printed += done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def call(self, *arguments: str, **extra: str) -> Done:
        """The same in this process, which saves the imports."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "stdin", io.StringIO())
            for name in os.environ.keys() - self.environment(**extra).keys():
                patch.delenv(name)
            for name, value in self.environment(**extra).items():
                patch.setenv(name, value)
            code = run_command_line(arguments)
        self.printed += out.getvalue() + err.getvalue()
        return Done(code, out.getvalue(), err.getvalue())

    async def run(self, *arguments: str, **extra: str) -> Done:
        return await asyncio.to_thread(self.call, *arguments, **extra)

    async def run_process(self, *arguments: str, **extra: str) -> Done:
        return await asyncio.to_thread(self.start, *arguments, **extra)

    def files(self) -> str:
        paths = [path for place in (self.folder, self.home) for path in place.rglob("*") if path.is_file()]
        return "".join(path.read_text(errors="replace") for path in paths)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "shop"
    folder.mkdir()
    return Shop(folder)


@pytest.fixture
async def runpod(tmp_path: Path, shop: Shop) -> AsyncIterator[RecordingProxy]:
    """What stands for Runpod: an account with a key, reached as api.runpod.io is."""
    async with (
        Emulator([], state_dir=tmp_path / "account", api_key=KEY) as emulator,
        RecordingProxy(emulator.url + PREFIX) as proxy,
    ):
        shop.env = {"RUNPOD_API_BASE_URL": proxy.url, "RUNPOD_API_KEY": KEY}
        (shop.folder / "flashkit.toml").write_text(CONFIG)
        yield proxy
        assert KEY not in shop.printed
        assert KEY not in (shop.folder / "flashkit.toml").read_text()


SECRETS = ("--secret", "worker-key=WORKER_KEY", "--secret", "redis=REDIS_URL")
VALUES = {
    "WORKER_KEY": "rpa_" + "w" * 8 + "ORKER0123456789abcdefghijkl",
    "REDIS_URL": "rediss://:sw0rdfish@db.example:6380",
}


async def test_an_app_from_its_first_deployment_to_its_end(shop: Shop, runpod: RecordingProxy):
    first = await shop.run_process("deploy", "--yes", "--no-check", "--note", "first", *SECRETS, **VALUES)
    assert first.code == 0, first.all
    assert "✓ stored secret redis" in first.out
    assert "✓ created endpoint agent" in first.out
    assert "deployment 1 is done" in first.out
    assert re.search(r"export FLASHKIT_ENDPOINTS='\{\"agent\":\"\w+\",\"notes\":\"\w+\"\}'", first.out)

    count = len(runpod.writes)
    again = await shop.run_process("deploy", "--yes", "--no-check")
    assert (again.code, len(runpod.writes)) == (0, count)
    assert "2 unchanged" in again.out

    (shop.folder / "app.py").write_text(APP.replace("workers=(0, 4)", "workers=(0, 9)"))
    changed = await shop.run("deploy", "--yes", "--no-check")
    assert "workers.max  4 → 9" in changed.out
    assert "1 to change, 1 unchanged" in changed.out

    status = await shop.run("status")
    assert re.search(r"notes +\w+ +cpu3c, 2 vCPUs +0 to 9 +none +2", status.out)
    data = json.loads((await shop.run("status", "--json")).out)
    assert [(item["name"], item["max"]) for item in data["endpoints"]] == [("agent", 3), ("notes", 9)]
    assert [item["number"] for item in data["deployments"]] == [1, 2]

    looked = await shop.run("rollback", "--plan")
    assert "workers.max  9 → 4" in looked.out
    back = await shop.run("rollback", "--yes")
    assert (back.code, "deployment 3 is done" in back.out) == (0, True)
    listed = await shop.run("rollback", "--list")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["1", "2", "3"]
    assert "first" in listed.out.splitlines()[0]
    assert len(json.loads((await shop.run("rollback", "--list", "--json")).out)) == 3

    gone = await shop.run_process("undeploy", "--yes")
    assert (gone.code, gone.out.count("✓ deleted endpoint")) == (0, 2)
    assert "nothing of shop is deployed to production" in (await shop.run("status")).out
    assert "nothing of shop is deployed" in (await shop.run("undeploy", "--yes")).out
    for exchange in runpod.exchanges:
        check(exchange)
    for value in VALUES.values():
        assert value not in shop.printed
        assert value not in shop.files()


async def test_a_plan_asks_nothing_changes_nothing_and_has_the_cost(shop: Shop, runpod: RecordingProxy):
    done = await shop.run("deploy", "--plan", "--no-check", *SECRETS, **VALUES)
    assert done.code == 0, done.all
    assert runpod.writes == []
    assert "+ endpoint notes  new" in done.out
    assert '{"notes":"(known after apply)"}' in done.out
    assert re.search(r"US\$ an hour +always +at most", done.out)
    assert re.search(r"agent +cpu3c-2-4 +unknown +unknown", done.out)
    assert "+ secret   redis" in done.out


async def test_a_plan_against_this_machine_needs_no_key(shop: Shop):
    done = await shop.run("deploy", "--plan", "--target", "local")
    assert done.code == 0, done.all
    assert "shop · production → this machine" in done.out
    assert not (shop.folder / ".flashkit" / "management.json").exists()


async def test_deploying_to_this_machine_is_the_same_code(shop: Shop):
    first = await shop.run("deploy", "--yes", "--target", "local")
    assert (first.code, "deployment 1 is done" in first.out) == (0, True)
    assert "2 unchanged" in (await shop.run("deploy", "--yes", "--target", "local")).out
    staging = await shop.run("deploy", "--yes", "--target", "local", "--env", "staging")
    assert "2 to make" in staging.out
    records = json.loads((shop.folder / ".flashkit" / "management.json").read_text())
    names = {item["releases"][0]["configuration"]["name"] for item in records["endpoints"].values()}
    assert names == {f"shop-{env}-{name}" for env in ("production", "staging") for name in ("notes", "agent")}


async def test_without_a_key_nothing_else_is_done(shop: Shop, runpod: RecordingProxy):
    del shop.env["RUNPOD_API_KEY"]
    for command in (["deploy"], ["status"], ["undeploy"], ["rollback"], ["logs", "--env", "production"]):
        done = await shop.run(*command)
        assert done.code == 2
        assert done.err.startswith("ConfigurationError: there is no Runpod API key\n  hint: set RUNPOD_API_KEY")
        assert "the app is imported" not in done.all
    assert runpod.exchanges == []


async def test_a_wrong_key_is_one_line_with_the_next_step(shop: Shop, runpod: RecordingProxy):
    shop.env["RUNPOD_API_KEY"] = "rpa_wrong"
    done = await shop.run("status")
    assert done.code == 2
    lines = done.err.splitlines()
    assert lines[0].endswith("does not accept the API key (401): the key is from RUNPOD_API_KEY")
    assert lines[1].startswith("  hint: set RUNPOD_API_KEY to a key of this account")
    assert "rpa_wrong" not in done.all


async def test_the_key_may_be_in_the_file_of_runpods_own_tools(shop: Shop, runpod: RecordingProxy):
    del shop.env["RUNPOD_API_KEY"]
    (shop.home / ".runpod").mkdir()
    (shop.home / ".runpod" / "config.toml").write_text(f'[default]\napi_key = "{KEY}"\n')
    done = await shop.run("status")
    assert done.code == 0, done.all
    assert runpod.exchanges[0].request_headers["Authorization"] == f"Bearer {KEY}"


async def test_what_stands_in_the_way_is_told_at_once(shop: Shop, runpod: RecordingProxy):
    (shop.folder / "flashkit.toml").write_text('[env]\nHF_TOKEN = "' + SECRET + '"\n')
    done = await shop.run("deploy", "--yes", "--no-check")
    assert done.code == 2
    assert done.out.count("✗") == 5
    for words in ("there is no image for notes", "HF_TOKEN of agent looks like a secret", "has no key to do it with"):
        assert words in done.out
    assert done.err.startswith("DeployImpossible: 5 things stand in the way")
    assert SECRET not in done.all
    assert runpod.writes == []


async def test_the_checks_of_production_come_first(shop: Shop, runpod: RecordingProxy):
    (shop.folder / "app.py").write_text(APP.replace('print("the', f'TOKEN = "{SECRET}"\nprint("the'))
    done = await shop.run("deploy", "--yes", *SECRETS, **VALUES)
    assert done.code == 2
    assert "flashkit check found errors" in done.err
    assert SECRET not in done.all
    assert runpod.writes == []


async def test_secrets_are_named_by_variables_never_written(shop: Shop, runpod: RecordingProxy):
    for words, message in (
        (f"hf={SECRET}-x", "not the value itself"),
        ("hf", "not the value itself"),
        ("hf=MISSING", "MISSING is not set"),
    ):
        done = await shop.run("deploy", "--plan", "--secret", words)
        assert (done.code, message in done.err) == (2, True)
        assert SECRET not in done.all


async def test_deletions_need_more_than_a_yes(shop: Shop, runpod: RecordingProxy):
    await shop.run("deploy", "--yes", "--no-check", *SECRETS, **VALUES)
    (shop.folder / "app.py").write_text(APP.replace('name="notes"', 'name="remarks"'))
    refused = await shop.run("deploy", "--yes", "--no-check")
    assert refused.code == 2
    assert "the plan deletes endpoint notes" in refused.err
    kept = await shop.run("deploy", "--yes", "--no-check", "--keep")
    assert (kept.code, "notes" in kept.out) == (0, True)
    pruned = await shop.run("deploy", "--yes", "--no-check", "--prune")
    assert "✓ deleted endpoint notes" in pruned.out


async def test_where_nobody_can_be_asked_a_yes_must_be_said(shop: Shop, runpod: RecordingProxy):
    done = await shop.run("deploy", "--no-check", *SECRETS, **VALUES)
    assert (done.code, "there is nobody to ask" in done.err) == (2, True)
    assert runpod.writes == []


async def test_a_person_is_asked_and_may_say_no(shop: Shop, runpod: RecordingProxy):
    def ask(answer: str) -> str:
        child = pexpect.spawn(
            FLASHKIT[0], [*FLASHKIT[1:], "deploy", "--no-check", *SECRETS], cwd=str(shop.folder),
            env=shop.environment(**VALUES, TERM="dumb"), encoding="utf-8", timeout=60, dimensions=(50, 200),
        )  # fmt: skip
        child.expect(r"Deploy to .*\? \[y/N\]:")
        child.sendline(answer)
        text = str(child.before) + str(child.read())
        child.close()
        shop.printed += text
        return f"{child.exitstatus} {text}"

    assert (await asyncio.to_thread(ask, "n")).startswith("130 ")
    assert runpod.writes == []
    assert "deployment 1 is done" in await asyncio.to_thread(ask, "y")


async def test_plan_and_outcome_can_be_had_as_json(shop: Shop, runpod: RecordingProxy):
    done = await shop.run("deploy", "--yes", "--no-check", "--json", *SECRETS, **VALUES)
    data = json.loads(done.out)
    assert [change["action"] for change in data["plan"]["changes"]] == ["create", "create"]
    assert data["outcome"]["endpoints"].keys() == {"notes", "agent"}
    assert data["outcome"]["deployment"]["number"] == 1
    planned = json.loads((await shop.run("deploy", "--plan", "--no-check", "--json")).out)
    assert planned["outcome"] is None
    (shop.folder / "flashkit.toml").write_text("")
    refused = await shop.run("deploy", "--plan", "--no-check", "--json")
    assert refused.code == 2
    assert len(json.loads(refused.out)["plan"]["problems"]) == 1


async def test_a_network_that_is_lost_half_way_names_what_was_made(shop: Shop, runpod: RecordingProxy):
    runpod.faults.append(once("POST", "/v2/serverless", "before", times=9))
    done = await shop.run("deploy", "--yes", "--no-check", *SECRETS, **VALUES)
    assert done.code == 1
    assert "✓ stored secret redis" in done.out
    assert "✗ could not create endpoint notes" in done.out
    assert "Done before: stored secret worker-key; stored secret redis." in done.err
    assert "Left: create endpoint agent." in done.err
    runpod.faults.clear()
    again = await shop.run("deploy", "--yes", "--no-check", *SECRETS, **VALUES)
    assert (again.code, "stored secret" in again.out) == (0, False)


@pytest.mark.parametrize(("words", "message"), [
    (["deploy", "--image", "hat=x"], "--image names an endpoint 'hat'"),
    (["deploy", "--target", "mars"], "--target 'mars' is no target"),
    (["deploy", "--target", "http://[x"], "is no address"),
    (["status", "--target", "http://runpod.example"], "the connection is not encrypted"),
    (["status", "--env", "Bad Name"], "cannot be an environment's name"),
    (["undeploy", "hat"], "hat is not deployed to production"),
    (["rollback"], "nothing of shop is deployed"),
    (["logs", "--env", "production", "--endpoint", "hat"], "there is no endpoint 'hat'"),
    (["logs", "--env", "production", "--job", "x"], "--job and --url go with flashkit dev"),
])  # fmt: skip
async def test_a_command_line_that_cannot_be_meant(shop: Shop, runpod: RecordingProxy, words: list[str], message: str):
    done = await shop.run(*words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


async def test_the_configuration_must_speak_of_endpoints_that_there_are(shop: Shop, runpod: RecordingProxy):
    (shop.folder / "flashkit.toml").write_text("[endpoints.hat]\ndisk = 20\n")
    done = await shop.run("deploy", "--plan")
    assert (done.code, "speaks of endpoint 'hat'" in done.err) == (2, True)


async def test_what_was_built_and_pushed_is_deployed(shop: Shop, runpod: RecordingProxy):
    from flashkit.images.record import BuiltImage, write_images

    (shop.folder / "flashkit.toml").write_text(CONFIG.replace('image = "registry.example/shop:1"', ""))
    pushed = BuiltImage(
        endpoints=("notes",), reference="me/shop:1", image_id="sha256:1", digest=f"me/shop@sha256:{'a' * 64}",
        platform="linux/amd64", size_bytes=1, built_at="2026-11-21T00:00:00Z", dockerfile="Dockerfile",
    )  # fmt: skip
    write_images(shop.folder, [pushed])
    done = await shop.run("deploy", "--plan", "--no-check", *SECRETS, **VALUES)
    assert "there is no image for agent" in done.out, "an image that was not pushed cannot be had from elsewhere"
    assert pushed.digest is not None
    assert f"image                  {pushed.digest}"[:80] in done.out or pushed.digest[:60] in done.out


async def test_a_plain_runpod_handler_is_deployed_with_the_variables_of_its_hub_file(shop: Shop):
    (shop.folder / "app.py").unlink()
    (shop.folder / "src").mkdir()
    (shop.folder / "Dockerfile").write_text("FROM scratch\n")
    (shop.folder / "src" / "handler.py").write_text(
        "import runpod\nrunpod.serverless.start({'handler': lambda job: 1})\n"
    )
    (shop.folder / ".runpod").mkdir()
    hub = {"config": {"env": [{"key": "MODEL_NAME", "input": {"default": "org/model"}}]}}
    (shop.folder / ".runpod" / "hub.json").write_text(json.dumps(hub))
    done = await shop.run("deploy", "--plan", "--target", "local")
    assert done.code == 0, done.all
    assert "+ endpoint handler  new" in done.out
    assert re.search(r"env.MODEL_NAME +org/model", done.out)


# ---------------------------------------------------------------------- with flashkit dev


@pytest.fixture
async def dev(shop: Shop) -> AsyncIterator[Dev]:
    def start() -> Dev:
        started = Dev(shop.folder, "app.py", "--headless")
        started.wait_for("agent")
        return started

    started = await asyncio.to_thread(start)
    async with asyncio.timeout(60):
        while not started.record.exists():
            await asyncio.sleep(0.05)
    yield started
    await asyncio.to_thread(started.stop)


async def test_deployed_ids_answer_jobs_of_the_running_app_and_its_workers_lines_are_logs(shop: Shop, dev: Dev):
    first = await shop.run("deploy", "--yes", "--target", "local", "--wait")
    assert first.code == 0, first.all
    ids = json.loads(re.search(r"FLASHKIT_ENDPOINTS='(.*)'", first.out)[1])  # type: ignore[index]
    answer = await shop.run_process("run", "notes", '{"topic": "A job"}', FLASHKIT_ENDPOINTS=json.dumps(ids))
    assert json.loads(answer.out) == ["A job waits in a queue"]
    by_url = await shop.run("status", "--target", dev.url, "--json")
    states = {item["name"]: item["workers"] for item in json.loads(by_url.out)["endpoints"]}
    assert sum(states["notes"].values()) == 1

    lines = await shop.run("logs", "--target", "local", "--endpoint", "agent")
    assert "Starting Serverless Worker" in lines.out
    data = await shop.run("logs", "--target", "local", "--json", "-n", "1")
    assert {json.loads(line)["endpoint"] for line in data.out.splitlines()} <= {"notes", "agent"}

    changed = await shop.run("deploy", "--yes", "--target", "local", "--image", "local/shop:2", "--wait")
    assert changed.code == 0, changed.all
    assert "agent: all workers have the new configuration" in changed.out
    await shop.run("undeploy", "--yes", "--target", "local")
    assert "no worker of these endpoints runs now" in (await shop.run("logs", "--target", "local")).err
