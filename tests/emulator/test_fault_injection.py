"""Faults that really strike: real workers, real connections, and jobs that come through all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flashkit.emulator.events import FaultEvent, WorkerEvent
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.errors import ErrorReport, InputError
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

APPS = Path(__file__).parents[1] / "apps"
FAST = PlatformDefaults(respawn_delay=0.05, failed_starts=4)


def flashkit_endpoint(name: str = "behave") -> LocalEndpoint:
    spec = EndpointSpec(
        name=name, kind=Kind.CPU, cpu="cpu3c-2-4", workers=WorkerBounds(0, 1), idle_timeout=600, concurrency=4
    )
    command = (sys.executable, "-m", "flashkit.worker", f"worker_app.py:{name}")
    return LocalEndpoint(spec=spec, command=command, cwd=APPS)


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, worker_environ, events):
    folder = tmp_path_factory.mktemp("state")
    async with Emulator(
        [flashkit_endpoint()], state_dir=folder, environ=worker_environ, on_event=events, defaults=FAST
    ) as emulator:
        yield emulator


@pytest.fixture
def runsync(emulator, http):
    async def send(data, *, fault=None):
        headers = {"X-Flashkit-Fault": fault} if fault else {}
        url = f"{emulator.url}/v2/behave/runsync?wait=60000"
        return await http("POST", url, json={"input": data}, headers=headers)

    return send


@pytest.fixture
def set_faults(emulator, http):
    async def put(*faults, **more):
        answer = await http("PUT", f"{emulator.url}/_/faults", json={"faults": list(faults), **more})
        assert answer.status == 200, answer.body
        return answer.body

    return put


@pytest.fixture(autouse=True)
async def no_faults_left(emulator):
    yield
    emulator.faults.set(())


def struck(events, kind, job_id=None):
    return [
        event
        for event in events.all
        if isinstance(event, FaultEvent) and event.kind == kind and job_id in (None, event.job_id)
    ]


async def test_a_killed_worker_s_job_is_handed_out_again(emulator, runsync, events):
    answer = await runsync({"what": "sleep", "n": 0}, fault="kill=1@0s-1s")
    assert answer.body["status"] in ("COMPLETED", "FAILED")
    job_id = answer.body["id"]
    assert struck(events, "kill", job_id)
    assert "SIGKILL" in {event.detail for event in events.of_workers("behave") if event.what == "exited"}


async def test_a_job_whose_workers_always_run_out_of_memory_fails_and_says_so(runsync):
    answer = await runsync({"what": "sleep", "n": 5}, fault="oom=1")
    assert answer.body["status"] == "FAILED"
    report = ErrorReport.from_job_error(answer.body["error"])
    assert report.code == "worker_died"
    assert any("out of memory" in line for line in report.details["log_tail"])


async def test_a_result_that_meets_an_error_is_sent_again(runsync, set_faults, events, emulator):
    await set_faults("error=0.6", seed=3)
    answers = [(await runsync({"what": "echo", "n": n})).body for n in range(8)]
    assert struck(events, "error")
    assert {answer["status"] for answer in answers} == {"COMPLETED"}


async def test_broken_connections_lose_no_job(runsync, set_faults, events):
    await set_faults("drop=0.4", seed=1)
    answers = [(await runsync({"what": "echo", "n": n})).body for n in range(8)]
    assert struck(events, "drop")
    assert {answer["status"] for answer in answers} == {"COMPLETED"}


async def test_a_job_is_held_up(runsync, events):
    plain = await runsync({"what": "echo"})
    slow = await runsync({"what": "echo"}, fault="latency=400ms")
    assert slow.body["status"] == plain.body["status"] == "COMPLETED"
    assert slow.seconds >= 0.4
    assert struck(events, "latency", slow.body["id"])


async def test_large_values_pass_slowly(runsync, set_faults):
    await set_faults("slow=1MB/s")
    answer = await runsync({"what": "big", "n": 500_000})
    assert answer.body["status"] == "COMPLETED"
    assert answer.seconds >= 0.5


@pytest.mark.parametrize(("kind", "code"), [("429", "rate_limited"), ("500", "internal_error")])
async def test_clients_are_refused(runsync, set_faults, kind, code):
    await set_faults(f"{kind}=1")
    answer = await runsync({"what": "echo"})
    assert answer.status == int(kind)
    assert answer.error["code"] == code
    assert answer.error["details"] == {"injected": True}


async def test_a_reclaimed_machine_s_job_goes_on_elsewhere(runsync, events, wait_until):
    answer = await runsync({"what": "echo"}, fault="reclaim=1")
    assert answer.body["status"] == "COMPLETED"
    slow = await runsync({"what": "sleep", "n": 2}, fault="reclaim=1+200ms@0s-3s")
    assert slow.body["status"] in ("COMPLETED", "FAILED")
    assert struck(events, "reclaim", slow.body["id"])


async def test_workers_that_do_not_start_are_started_again(start_emulator, http, events):
    emulator = await start_emulator(flashkit_endpoint(), on_event=events, defaults=FAST, faults=["start=0.7"], seed=2)
    answer = await http("POST", f"{emulator.url}/v2/behave/runsync?wait=60000", json={"input": {"what": "echo"}})
    assert answer.body["status"] in ("COMPLETED", "FAILED")
    failures = [event for event in events.all if isinstance(event, WorkerEvent) and event.detail == "exit code 1"]
    assert struck(events, "start")
    assert failures


async def test_the_store_is_frozen_in_its_window_and_thawed(start_emulator, wait_until, events):
    states = []
    emulator = await start_emulator(on_event=events, faults=["redis=down@100ms-400ms"], freeze_store=states.append)
    await wait_until(lambda: states == [True, False])
    emulator.faults.set(emulator.faults.plan.faults)
    await wait_until(lambda: states == [True, False, True])
    await emulator.faults.close()
    assert states == [True, False, True, False]


def test_a_store_that_is_not_the_platform_s_own_cannot_be_down(tmp_path):
    with pytest.raises(InputError, match=r"redis=down@1s cannot strike: .* not the platform's own"):
        Emulator([], state_dir=tmp_path, faults=["kill=0.1", "redis=down@1s"])


async def test_rules_are_shown_changed_and_taken_away(emulator, http, set_faults, runsync):
    shown = await set_faults("behave:kill=0.1,oom=5%", "429=1@10s-20s", seed=9)
    assert shown == {
        "enabled": True,
        "seed": 9,
        "faults": ["behave:kill=0.1", "behave:oom=0.05", "*:429=1@10s-20s"],
    }
    off = await http("PUT", f"{emulator.url}/_/faults", json={"enabled": False})
    assert off.body["enabled"] is False
    assert off.body["faults"] == shown["faults"]
    assert (await http("GET", f"{emulator.url}/_/faults")).body == off.body
    seeded = await http("PUT", f"{emulator.url}/_/faults", json={"seed": 4})
    assert seeded.body == {**off.body, "seed": 4}
    assert (await http("DELETE", f"{emulator.url}/_/faults")).body["faults"] == []


@pytest.mark.parametrize(
    "body",
    [[], {}, {"faults": ["kill=often"]}, {"faults": 3}, {"seed": "x"}, {"rules": ["kill=1"]}, {"faults": "redis=down"}],
)
async def test_rules_that_make_no_sense_change_nothing(emulator, http, set_faults, body):
    before = await set_faults("kill=0.5")
    answer = await http("PUT", f"{emulator.url}/_/faults", json=body)
    assert answer.status == 400
    assert (await http("GET", f"{emulator.url}/_/faults")).body == before


async def test_a_request_with_a_rule_that_makes_no_sense_submits_nothing(emulator, runsync):
    before = len(emulator.platform.jobs("behave"))
    answer = await runsync({"what": "echo"}, fault="kil=1")
    assert answer.status == 400
    assert "did you mean 'kill'" in answer.error["hint"]
    assert len(emulator.platform.jobs("behave")) == before


async def test_rate_limits_hold_where_they_are_asked_for(start_emulator, http):
    emulator = await start_emulator(flashkit_endpoint(), has_rate_limits=True)
    url = f"{emulator.url}/v2/behave/purge-queue"
    answers = [await http("POST", url) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[-1].error["code"] == "rate_limited"
    assert (await http("GET", f"{emulator.url}/v2/behave/health")).status == 200
