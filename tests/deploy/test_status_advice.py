"""`flashkit status` says what the platform's figures advise, and does not fail where there are none."""

from __future__ import annotations

from pathlib import Path

from flashkit.cli.console import make_console
from flashkit.cli.deploy_target import Target
from flashkit.cli.deploy_text import status_text
from flashkit.cli.status_advice import read_advice
from flashkit.deploy.actual import Deployed
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.credentials import AccountKey
from flashkit.deploy.record import Record
from flashkit.deploy.status import AppStatus, EndpointStatus
from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.management.service import PREFIX
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

KEY = AccountKey("rpa_secret", "test")


def status_of(*endpoints):
    return AppStatus(config=DeployConfig("shop", "production"), endpoints=endpoints, record=Record(None))


def deployed(name, url, *, workers=(0, 2)):
    fields = {"workers.min": workers[0], "workers.max": workers[1]}
    found = Deployed(
        id="abc", name=name, deployed_name=f"shop-{name}", marker="", fields=fields, env={}, urls={"runSync": url}
    )
    return EndpointStatus(deployed=found, version=1, workers={}, stale=0)


def endpoint(name="llm", workers=(0, 2)):
    spec = EndpointSpec(name=name, kind=Kind.CPU, cpu="cpu5c-4-8", workers=WorkerBounds(*workers))
    return LocalEndpoint(spec, command=("false",), cwd=Path())


async def test_a_full_house_on_the_platform_is_told_from_its_health(tmp_path):
    async with Emulator([endpoint(workers=(0, 1))], state_dir=tmp_path, api_key=KEY.value, capacity=0) as emulator:
        for number in range(30):
            emulator.submit("llm", JobRequest(input=number))
        item = deployed("llm", f"{emulator.url}/v2/llm/runsync", workers=(0, 1))
        [advice] = await read_advice(status_of(item), Target("https://api.example", KEY, is_local=False))
        assert (advice.topic, advice.endpoint) == ("no_machines", "llm")
        with (console := make_console()).capture() as captured:
            console.print(status_text(status_of(item), "here", [advice]))
        assert "advice  llm: 30 jobs wait" in " ".join(captured.get().split("\n"))


async def test_the_local_platform_is_asked_for_its_own_advice(tmp_path):
    async with Emulator([endpoint(), endpoint("other")], state_dir=tmp_path, capacity=0) as emulator:
        began = 1_000.0
        clock = iter(began + second for second in range(10_000))
        emulator.adviser._clock = lambda: began + 90
        emulator.metrics._clock = lambda: next(clock)
        for worker_id in ("a", "b"):
            emulator.dispatcher.tell(WorkerEvent("llm", worker_id, "ready"))
        for _ in range(90):
            emulator.submit("llm", JobRequest(input=1))
            emulator.metrics.sample()
        target = Target(emulator.url + PREFIX, None, is_local=True)
        [advice] = await read_advice(status_of(deployed("llm", "")), target)
        assert advice.endpoint == "llm"
        assert await read_advice(status_of(deployed("stranger", "")), target) == []


async def test_a_platform_that_does_not_answer_gives_no_advice(tmp_path):
    nowhere = "http://127.0.0.1:9/v2/llm/runsync"
    for target, url in (
        (Target("http://127.0.0.1:9" + PREFIX, None, is_local=True), ""),
        (Target("https://api.example", KEY, is_local=False), nowhere),
    ):
        assert await read_advice(status_of(deployed("llm", url)), target) == []


async def test_the_key_is_not_sent_over_an_open_connection_or_to_no_address():
    target = Target("https://api.example", KEY, is_local=False)
    for url in ("", "http://runpod.example/v2/llm/runsync"):
        assert await read_advice(status_of(deployed("llm", url)), target) == []
