"""Deployments against the local management API, over real HTTP, each exchange checked with the vendor's schema."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flashkit.catalog import DataCenter, GpuType
from flashkit.emulator.management.service import ManagementOptions
from flashkit.spec import EndpointSpec, Kind, NetworkVolume, ScalerType, WorkerBounds
from tests.deploy.conftest import MakeLab

TOOL = EndpointSpec(name="tool", kind=Kind.CPU, cpu="cpu3c-2-4", env={"LOG_LEVEL": "info"})
MODEL = EndpointSpec(
    name="model",
    kind=Kind.GPU,
    gpu=(GpuType.NVIDIA_L40S, GpuType.NVIDIA_A100_80GB_PCIe),
    workers=WorkerBounds(1, 3),
    datacenters=(DataCenter.US_KS_2,),
    volumes=(NetworkVolume("weights", 50, DataCenter.US_KS_2),),
    min_cuda_version="12.4",
)
AGENT = EndpointSpec(name="agent", kind=Kind.ORCHESTRATOR, cpu="cpu3c-4-8", workers=WorkerBounds(1, 3), idle_timeout=60)
API = EndpointSpec(
    name="web",
    kind=Kind.CPU,
    cpu="cpu3c-2-4",
    load_balanced=True,
    scaler_type=ScalerType.REQUEST_COUNT,
    execution_timeout_ms=60_000,
)
APP = (TOOL, MODEL, AGENT, API)
CALLS = {"agent": ("tool", "model", "web"), "web": ("tool", "model", "agent")}


@pytest.mark.parametrize(
    "names", [ManagementOptions(), ManagementOptions(has_rest_names=True)], ids=["graphql", "rest"]
)
async def test_deploy_change_deploy_roll_back_undeploy(make_lab: MakeLab, names: ManagementOptions):
    lab = await make_lab(names)
    first = await lab.deploy(APP, calls=CALLS)
    assert [step.words.partition(" (")[0] for step in first.steps] == [
        "created volume weights",
        "created endpoint tool",
        "created endpoint model",
        "created endpoint agent",
        "created endpoint web",
        "updated endpoint agent",
    ]
    before = await lab.endpoints()

    changed = (*APP[:1], replace(MODEL, workers=WorkerBounds(1, 5)), *APP[2:])
    lab.proxy.forget()
    second = await lab.deploy(changed, calls=CALLS)
    assert [step.words.partition(" (")[0] for step in second.steps] == ["updated endpoint model"]
    assert lab.proxy.writes[0].sent == {"workers": {"min": 1, "max": 5, "idleTimeout": 5}}
    assert (await lab.endpoints())["shop-production-model"]["workers"]["max"] == 5

    third = await lab.roll_back()
    assert third.deployment is not None
    assert third.deployment.number == 3
    assert await lab.endpoints() == before

    assert [line.partition(" (")[0] for line in await lab.undeploy()] == [
        "deleted endpoint tool", "deleted endpoint model", "deleted endpoint agent", "deleted endpoint web",
    ]  # fmt: skip
    assert await lab.endpoints() == {}
    lab.proxy.check_all()
