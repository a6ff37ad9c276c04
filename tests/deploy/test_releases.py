"""Rollbacks: to the deployment before, to an earlier one, of one endpoint; and what cannot be put back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flashkit.catalog import GpuType
from flashkit.deploy.actual import Deployed, read_actual
from flashkit.deploy.config import EndpointConfig
from flashkit.deploy.failures import DeployImpossible, DeployStopped
from flashkit.deploy.identity import Marker
from flashkit.deploy.record import RECORD_VARIABLE, read_record
from flashkit.deploy.releases import Rollback, plan_rollback, restore
from flashkit.emulator.management.service import ManagementOptions
from flashkit.spec import EndpointSpec, EngineSpec, Kind, ScalerType, Weights, WorkerBounds
from flashkit.transport import RetryPolicy
from tests.deploy.conftest import Lab, MakeLab
from tests.deploy.proxy import once
from tests.deploy.test_deploying import AGENT, MODEL, TOOL

CALLS = {"agent": ("tool", "model")}


async def plan(lab: Lab, **options: Any) -> Rollback:
    async with lab.api() as api:
        actual = await read_actual(api, lab.config, asks_secrets=False)
        return await plan_rollback(api, actual, await read_record(api, lab.config), lab.config, **options)


def sized(spec: EndpointSpec, most: int) -> EndpointSpec:
    return replace(spec, workers=WorkerBounds(0, most))


@pytest.fixture(params=[False, True], ids=["graphql-names", "rest-names"])
async def any_lab(request: pytest.FixtureRequest, make_lab: MakeLab) -> Lab:
    return await make_lab(ManagementOptions(has_rest_names=request.param))


async def test_everything_that_can_change_comes_back(any_lab: Lab):
    lab = any_lab
    await lab.deploy([TOOL, MODEL, AGENT], calls=CALLS)
    before = await lab.endpoints()
    changed = (
        replace(TOOL, cpu="cpu3g-4-16", env={"OTHER": "1"}, scaler_value=9, idle_timeout=77, datacenters=()),
        replace(MODEL, gpu=(GpuType.NVIDIA_L4,), gpu_count=2, min_cuda_version=None, volumes=(), flashboot=False),
        replace(AGENT, workers=WorkerBounds(2, 9), execution_timeout_ms=99_000),
    )
    await lab.deploy(changed, calls=CALLS, image="registry.example/app:2")
    assert await lab.endpoints() != before
    await lab.roll_back()
    assert await lab.endpoints() == before


async def test_an_idle_timeout_that_was_hidden_comes_back_where_a_save_replaces_everything(any_lab: Lab):
    lab = any_lab
    cached = replace(MODEL, engine=EngineSpec("vllm", Weights("Qwen/Qwen3-8B", "main")), idle_timeout=926)
    lab.configure(model=EndpointConfig(model_cache=True))
    await lab.deploy([cached])
    before = await lab.endpoints()
    lab.configure(model=EndpointConfig())
    await lab.deploy([replace(cached, scaler_type=ScalerType.REQUEST_COUNT)])
    assert "idleTimeout" not in (await lab.endpoints())["shop-production-model"]["workers"]
    await lab.roll_back()
    assert await lab.endpoints() == before
    await lab.roll_back()
    assert (await plan(lab, to=2)).is_empty, "nothing is sent again and again for a value that is never shown"


async def test_a_rollback_is_a_deployment_and_another_one_undoes_it(lab: Lab):
    for most in (3, 5):
        await lab.deploy([sized(TOOL, most)], note=f"at most {most}")
    await lab.roll_back()
    assert (await lab.endpoints())["shop-production-tool"]["workers"]["max"] == 3
    await lab.roll_back()
    assert (await lab.endpoints())["shop-production-tool"]["workers"]["max"] == 5
    async with lab.api() as api:
        record = await read_record(api, lab.config)
    assert [(item.number, item.note.partition(" of ")[0]) for item in record.deployments] == [
        (1, "at most 3"), (2, "at most 5"), (3, "rollback to deployment 1"), (4, "rollback to deployment 2"),
    ]  # fmt: skip


async def test_one_goes_back_as_far_as_one_wants(lab: Lab):
    for most in (3, 4, 5, 6):
        await lab.deploy([sized(TOOL, most)])
    await lab.roll_back(to=2)
    assert (await lab.endpoints())["shop-production-tool"]["workers"]["max"] == 4


async def test_only_what_the_last_deployment_changed_goes_back(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    await lab.deploy([sized(TOOL, 5), MODEL])
    await lab.deploy([sized(TOOL, 5), sized(MODEL, 9)])
    found = await plan(lab)
    assert [(change.name, change.action.value) for change in found.changes] == [
        ("tool", "unchanged"), ("model", "update"),
    ]  # fmt: skip


async def test_what_changed_after_the_last_deployment_goes_back_to_it(lab: Lab):
    """By hand, or by a deployment that stopped before it was written down."""
    await lab.deploy([TOOL])
    await lab.deploy([sized(TOOL, 5)])
    endpoint = (await lab.endpoints())["shop-production-tool"]
    async with lab.api() as api:
        await api.change(f"/serverless/{endpoint['id']}", {"workers": {"max": 50}})
    assert (await plan(lab)).title.startswith("deployment 2 of")
    await lab.roll_back()
    assert (await lab.endpoints())["shop-production-tool"] == endpoint


async def test_variables_of_others_are_kept_and_ids_are_those_of_now(lab: Lab):
    await lab.deploy([TOOL, AGENT], calls=CALLS)
    await lab.deploy([TOOL, replace(AGENT, env={"MODE": "fast"})], calls=CALLS)
    on_gpu = EndpointSpec(name="tool", kind=Kind.GPU, gpu=(GpuType.NVIDIA_L4,))
    await lab.deploy([on_gpu, replace(AGENT, env={"MODE": "fast"})], calls=CALLS)
    agent = (await lab.endpoints())["shop-production-agent"]
    async with lab.api() as api:
        await api.change(f"/serverless/{agent['id']}", {"env": {**agent["env"], "BY_HAND": "1"}})
    await lab.roll_back(endpoint="agent", to=1)
    endpoints = await lab.endpoints()
    env = endpoints["shop-production-agent"]["env"]
    assert "MODE" not in env
    assert env["BY_HAND"] == "1"
    assert json.loads(env["FLASHKIT_ENDPOINTS"]) == {"tool": endpoints["shop-production-tool"]["id"]}


async def test_one_endpoint_goes_back_by_its_own_versions(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    await lab.deploy([sized(TOOL, 5), sized(MODEL, 5)])
    assert (await plan(lab, endpoint="tool")).title == "version 1 of tool"
    await lab.roll_back(endpoint="tool")
    endpoints = await lab.endpoints()
    assert endpoints["shop-production-tool"]["workers"]["max"] == 3
    assert endpoints["shop-production-model"]["workers"]["max"] == 5


async def test_endpoints_made_since_are_kept_and_named(lab: Lab):
    await lab.deploy([TOOL])
    await lab.deploy([TOOL, MODEL])
    found = await plan(lab)
    assert found.notes == ["model was made later: it is kept (flashkit undeploy model removes it)"]
    assert found.is_empty


async def test_what_was_deleted_or_made_anew_since_cannot_be_put_back(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    await lab.deploy([replace(TOOL, cpu=None, kind=Kind.GPU, gpu=(GpuType.NVIDIA_L4,))])
    problems = (await plan(lab)).problems
    assert problems == [
        "the platform does not remember the release of tool any more, or it was made anew since",
        "model was deleted since: deploy the code of that time again",
    ]


async def test_a_change_that_is_not_understood_is_named(lab: Lab):
    await lab.deploy([TOOL])
    deployed = Deployed("x", "tool", "shop-production-tool", Marker("shop", "production", "tool"), {}, {})
    found = restore(deployed, [{"diff": [{"field": "hat", "old": 1, "new": 2}, {"field": "name", "old": "a"}]}])
    assert found.unknown == ["hat"]


@pytest.mark.parametrize(("field", "old", "name", "value"), [
    ("gpuIds", "ADA_24,-NVIDIA X", "gpu.excludedTypes", ["NVIDIA X"]), ("gpu", {"count": 2}, "gpu.count", 2),
    ("workers", {"max": 7}, "workers.max", 7),
    ("scaling", {"type": "QUEUE_DELAY", "queueDelay": 2}, "scaling.value", 2),
    ("cpu", [{"id": "cpu3c", "vcpuCount": 4}], "cpu", ["cpu3c-4"]), ("instanceIds", ["cpu3c-4-8"], "cpu", ["cpu3c-4"]),
    ("networkVolumeIds", [{"networkVolumeId": "v"}], "networkVolumes", ["v"]),
    ("networkVolumeId", "v", "networkVolumes", ["v"]),
    ("locations", "US-KS-2, EU-RO-1", "dataCenterIds", ["US-KS-2", "EU-RO-1"]),
    ("locations", None, "dataCenterIds", []),
    ("scaling.requestCount", 3, "scaling.value", 3), ("template.ports", "80/http", "ports", ["80/http"]),
])  # fmt: skip
def test_both_ways_of_naming_fields_are_read(field: str, old: Any, name: str, value: Any):
    deployed = Deployed("x", "tool", "n", Marker("shop", "production", "tool"), {}, {})
    assert restore(deployed, [{"diff": [{"field": field, "old": old, "new": None}]}]).fields[name] == value


@pytest.mark.parametrize("names", [("requestCount", "queueDelay"), ("queueDelay", "requestCount")])
def test_a_change_of_the_scaler_is_undone_with_its_value(names: tuple[str, str]):
    deployed = Deployed("x", "tool", "n", Marker("shop", "production", "tool"), {"scaling.value": 4}, {})
    olds = {"requestCount": 17, "queueDelay": None}
    diff = [{"field": f"scaling.{name}", "old": olds[name], "new": None} for name in names]
    assert restore(deployed, [{"diff": diff}]).fields["scaling.value"] == 17


@pytest.mark.parametrize("old", [[{"key": "A", "value": "1"}], {"A": "1"}, None, []])
def test_environments_are_read_as_pairs_and_as_objects(old: Any):
    deployed = Deployed("x", "tool", "n", Marker("shop", "production", "tool"), {}, {"B": "2"})
    found = restore(deployed, [{"diff": [{"field": "template.env", "old": old, "new": []}]}])
    assert found.env == ({"A": "1"} if old else {})


async def test_there_is_nothing_to_go_back_to(lab: Lab):
    with pytest.raises(DeployImpossible, match="nothing of shop is deployed"):
        await plan(lab)
    await lab.deploy([TOOL])
    with pytest.raises(DeployImpossible, match="deployment 1 is the first one"):
        await plan(lab)
    with pytest.raises(DeployImpossible, match="there is no deployment 7") as caught:
        await plan(lab, to=7)
    assert caught.value.report.hint == "there is: 1"
    with pytest.raises(DeployImpossible, match="there is no deployed endpoint 'hat'"):
        await plan(lab, endpoint="hat")
    with pytest.raises(DeployImpossible, match="tool has no earlier version"):
        await plan(lab, endpoint="tool")
    with pytest.raises(DeployImpossible, match="tool has no version 9"):
        await plan(lab, endpoint="tool", to=9)


async def test_without_a_record_one_endpoint_can_still_go_back(lab: Lab):
    await lab.deploy([TOOL])
    await lab.deploy([sized(TOOL, 5)])
    async with lab.api() as api:
        for template in await api.list("/templates", "templates"):
            await api.remove(f"/templates/{template['id']}")
    with pytest.raises(DeployImpossible, match="nobody wrote down"):
        await plan(lab)
    await lab.roll_back(endpoint="tool")
    assert (await lab.endpoints())["shop-production-tool"]["workers"]["max"] == 3


async def test_a_record_that_somebody_damaged_begins_anew(lab: Lab):
    await lab.deploy([TOOL])
    async with lab.api() as api:
        template = (await api.list("/templates", "templates"))[0]
        await api.change(f"/templates/{template['id']}", {"env": {RECORD_VARIABLE: "{"}})
    outcome = await lab.deploy([sized(TOOL, 5)])
    assert outcome.deployment is not None
    assert outcome.deployment.number == 1


async def test_the_record_remembers_the_last_twenty(lab: Lab):
    for most in range(1, 24):
        await lab.deploy([sized(TOOL, most)])
    async with lab.api() as api:
        record = await read_record(api, lab.config)
    assert [item.number for item in record.deployments] == list(range(4, 24))


async def test_a_rollback_that_stops_says_how_far_it_came(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    await lab.deploy([sized(TOOL, 5), sized(MODEL, 5)])
    lab.api_options = {"retry": RetryPolicy(tries=1)}
    async with lab.api() as api:
        model = next(item["id"] for item in await api.list("/serverless", "endpoints") if "model" in str(item["name"]))
    lab.proxy.faults.append(once("PATCH", str(model), "before", times=9))
    with pytest.raises(DeployStopped) as caught:
        await lab.roll_back()
    assert caught.value.report.details["failed"] == "update endpoint model"
    lab.proxy.faults.clear()
    await lab.roll_back(to=1)
    assert (await lab.endpoints())["shop-production-model"]["workers"]["max"] == 3


# ---------------------------------------------------------------------- taking it all away


async def test_volumes_are_kept_unless_they_are_asked_for(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    assert len(await lab.undeploy()) == 2
    async with lab.api() as api:
        assert [item["name"] for item in await api.list("/network-volumes", "networkVolumes")] == ["weights"]
        assert await api.list("/templates", "templates") == [], "the record goes with the app"
    await lab.deploy([TOOL, MODEL])
    await lab.undeploy(removes_volumes=True)
    async with lab.api() as api:
        assert await api.list("/network-volumes", "networkVolumes") == []


async def test_a_volume_that_another_endpoint_has_is_kept_in_any_case(lab: Lab):
    other = Lab(lab.emulator, lab.proxy)
    other.config = replace(other.config, environment="staging")
    await lab.deploy([MODEL])
    await other.deploy([MODEL])
    await lab.undeploy(removes_volumes=True)
    assert list(await lab.endpoints()) == ["shop-staging-model"]
    async with lab.api() as api:
        assert len(await api.list("/network-volumes", "networkVolumes")) == 1


async def test_one_endpoint_is_taken_away_alone_and_the_record_stays(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    await lab.undeploy("tool")
    assert list(await lab.endpoints()) == ["shop-production-model"]
    async with lab.api() as api:
        assert (await read_record(api, lab.config)).latest is not None
    with pytest.raises(DeployImpossible, match="hat is not deployed") as caught:
        await lab.undeploy("hat")
    assert caught.value.report.hint == "there is: model"


async def test_a_removal_that_stops_says_how_far_it_came(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    lab.api_options = {"retry": RetryPolicy(tries=1)}
    lab.proxy.faults.append(once("DELETE", "/network-volumes", "before", times=9))
    with pytest.raises(DeployStopped) as caught:
        await lab.undeploy(removes_volumes=True)
    assert len(caught.value.report.details["done"]) == 2
    assert caught.value.report.details["failed"] == "delete volume weights"
