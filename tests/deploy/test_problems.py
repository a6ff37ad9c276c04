"""Why a deployment cannot be carried out: found before anything is sent, all at once, each with its next step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flashkit.catalog import DataCenter, GpuType
from flashkit.deploy.config import DeployConfig, EndpointConfig
from flashkit.emulator.management.service import ManagementOptions
from flashkit.spec import EndpointSpec, Kind, NetworkVolume
from tests.deploy.conftest import Lab, MakeLab
from tests.deploy.test_deploying import AGENT, MODEL, TOOL


async def only_problem(lab: Lab, *specs: EndpointSpec, **options: object) -> tuple[str, str]:
    plan, _ = await lab.plan(specs, **options)  # type: ignore[arg-type]
    assert len(plan.problems) == 1, [problem.message for problem in plan.problems]
    assert lab.proxy.writes == []
    return plan.problems[0].message, plan.problems[0].hint


async def test_a_name_that_somebody_else_has(lab: Lab):
    async with lab.api() as api:
        other = await api.create(
            "/serverless",
            {
                "name": "shop-production-tool", "image": "i:1", "type": "QUEUE",
                "cpu": [{"id": "cpu3c", "vcpuCount": 2}], "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
            },
        )  # fmt: skip
    lab.proxy.forget()
    message, hint = await only_problem(lab, TOOL)
    assert message == f"the name shop-production-tool is taken by endpoint {other['id']}, which flashkit did not make"
    assert "flashkit.toml" in hint


async def test_an_image_that_nobody_named(lab: Lab):
    message, hint = await only_problem(lab, TOOL, image=None)
    assert message == "there is no image for tool"
    assert "--image tool=" in hint


@pytest.mark.parametrize("image", ["Registry/UPPER Case", "name:", "https://registry.example/x:1", "-x"])
async def test_an_image_that_is_none(lab: Lab, image: str):
    assert "is not an image reference" in (await only_problem(lab, TOOL, image=image))[0]


@pytest.mark.parametrize("image", ["a", "me/app", "registry.example:5000/a/b_c:v1.2", f"a@sha256:{'0' * 64}"])
async def test_an_image_that_is_one(lab: Lab, image: str):
    assert (await lab.plan([TOOL], image=image))[0].problems == []


async def test_a_value_that_looks_like_a_secret_is_not_sent_and_not_shown(lab: Lab):
    spec = replace(TOOL, env={"DB_PASSWORD": "hunter2-correct-horse", "MAX_TOKENS": "4096", "TOKENIZER": "fast"})
    plan, _ = await lab.plan([spec])
    assert [problem.message for problem in plan.problems] == [
        "DB_PASSWORD of tool looks like a secret, and is not sent in the clear"
    ]
    assert "{{ RUNPOD_SECRET_db-password }}" in plan.problems[0].hint
    assert "hunter2" not in str(plan.to_dict())


async def test_a_value_that_only_looks_like_a_secret_can_be_said_to_be_plain(lab: Lab):
    spec = replace(TOOL, env={"SECRET_NAME": "a-name-of-something"})
    assert "SECRET_NAME" in (await only_problem(lab, spec))[0]
    lab.config = DeployConfig("shop", "production", plain=frozenset({"SECRET_NAME"}))
    assert (await lab.plan([spec]))[0].problems == []


async def test_a_secret_that_the_account_has_not(lab: Lab):
    lab.configure(tool=EndpointConfig(env={"HF_TOKEN": "{{ RUNPOD_SECRET_hf }}"}))
    message, hint = await only_problem(lab, TOOL, asks_secrets=True, is_local=False)
    assert message == "tool refers to the secret hf, which the account does not have"
    assert "--secret hf=" in hint


async def test_a_secret_is_stored_once_before_what_refers_to_it(lab: Lab):
    lab.configure(tool=EndpointConfig(env={"HF_TOKEN": "{{ RUNPOD_SECRET_hf }}"}))
    outcome = await lab.deploy([TOOL], secrets={"hf": "value-of-the-secret"}, asks_secrets=True)
    assert [step.words.partition(" (")[0] for step in outcome.steps] == ["stored secret hf", "created endpoint tool"]
    assert lab.proxy.writes[0].sent["variables"]["input"]["value"] == "value-of-the-secret"
    again = await lab.deploy([TOOL], secrets={"hf": "another-value"}, asks_secrets=True)
    assert again.steps == [], "a secret of this name is there: it is not touched"
    assert (await lab.endpoints())["shop-production-tool"]["env"]["HF_TOKEN"] == "{{ RUNPOD_SECRET_hf }}"


async def test_a_caller_without_a_key(lab: Lab):
    message, hint = await only_problem(lab, TOOL, AGENT, calls={"agent": ("tool",)}, is_local=False)
    assert message == "agent may call tool, and has no key to do it with"
    assert "RUNPOD_API_KEY" in hint
    lab.configure(agent=EndpointConfig(env={"RUNPOD_API_KEY": "{{ RUNPOD_SECRET_worker-key }}"}))
    plan, _ = await lab.plan([TOOL, AGENT], calls={"agent": ("tool",)}, is_local=False)
    assert plan.problems == []
    assert [note for note in plan.notes if "FLASHKIT_STATE" in note], "its sessions would be lost with its worker"


async def test_a_volume_that_is_nowhere(lab: Lab):
    spec = replace(MODEL, datacenters=(), volumes=(NetworkVolume("weights", 50),))
    message, hint = await only_problem(lab, spec)
    assert message == "volume weights of model has no data centre"
    assert "datacenter=" in hint


async def test_two_volumes_in_one_place(lab: Lab):
    volumes = (NetworkVolume("a", 50, DataCenter.US_KS_2), NetworkVolume("b", 50, DataCenter.US_KS_2))
    message, _ = await only_problem(lab, replace(MODEL, volumes=volumes))
    assert message == "model has two volumes in one data centre"


async def test_two_volumes_of_one_name_in_one_place_are_named(lab: Lab):
    async with lab.api() as api:
        ids = [
            str((await api.create("/network-volumes", {"name": "weights", "size": 50, "dataCenter": "US-KS-2"}))["id"])
            for _ in range(2)
        ]
    lab.proxy.forget()
    message, _ = await only_problem(lab, MODEL)
    assert message == f"there are 2 volumes named weights in US-KS-2: {', '.join(ids)}"


async def test_a_registry_that_the_account_has_not(lab: Lab):
    lab.configure(tool=EndpointConfig(registry="hub"))
    message, hint = await only_problem(lab, TOOL)
    assert message == "the account has no registry credential named 'hub'"
    assert hint.endswith("name one of: none")


async def test_hardware_that_a_data_centre_does_not_have(lab: Lab):
    message, hint = await only_problem(lab, replace(TOOL, cpu="cpu5c-2-4", datacenters=(DataCenter.US_KS_2,)))
    assert message == "cpu5c-2-4 of tool is not offered in US-KS-2"
    assert hint == "it is in: EU-RO-1"


async def test_hardware_that_is_all_taken_now_is_told_and_deployed(make_lab: MakeLab):
    stock = {("US-KS-2", "NVIDIA L4"): "NONE", ("EU-RO-1", "NVIDIA L4"): "HIGH"}
    lab = await make_lab(ManagementOptions(stock=stock))
    spec = EndpointSpec(name="model", kind=Kind.GPU, gpu=(GpuType.NVIDIA_L4,), datacenters=(DataCenter.US_KS_2,))
    plan, _ = await lab.plan([spec])
    assert plan.problems == []
    assert plan.notes == ["NVIDIA L4 of model is all taken in US-KS-2 now: its workers will wait"]
    anywhere, _ = await lab.plan([replace(spec, datacenters=(DataCenter.US_KS_2, DataCenter.EU_RO_1))])
    assert anywhere.notes == []


async def test_a_name_that_is_too_long(lab: Lab):
    lab.config = DeployConfig("a" * 150, "production")
    message, _ = await only_problem(lab, replace(TOOL, name="t" * 60))
    assert "has more than 191 characters" in message


async def test_all_problems_are_told_at_once(lab: Lab):
    spec = replace(MODEL, env={"API_KEY": "correct-horse-battery"}, volumes=(NetworkVolume("w"),), datacenters=())
    plan, _ = await lab.plan([spec, TOOL], image=None)
    assert len(plan.problems) == 4
    assert plan.costs, "what it would cost is known nevertheless"
