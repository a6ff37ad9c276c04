"""What a plan says: actions, fields before and after, order, costs, notes; and that looking changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flashkit.catalog import DataCenter, GpuPool, GpuType
from flashkit.deploy.calls import dependency_order
from flashkit.deploy.config import DeployConfig, EndpointConfig
from flashkit.deploy.hardware import choose_gpus, known_pools
from flashkit.deploy.identity import Marker, read_marker
from flashkit.deploy.planning import Action, Change, Plan
from flashkit.deploy.prices import Cost, PriceList, total
from flashkit.emulator.management.service import ManagementOptions
from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds
from tests.deploy.conftest import IMAGE, Lab, MakeLab
from tests.deploy.test_deploying import AGENT, API, APP, CALLS, MODEL, TOOL


def find(plan: Plan, name: str) -> Change:
    return next(change for change in plan.changes if change.name == name)


def fields(change: Change) -> dict[str, tuple[object, object]]:
    return {item.field: (item.before, item.after) for item in change.fields}


async def test_looking_changes_nothing(lab: Lab):
    plan, _ = await lab.plan(APP, calls=CALLS)
    assert [change.action for change in plan.changes] == [Action.CREATE] * 5
    assert lab.proxy.writes == []
    assert plan.count(Action.CREATE) == 5
    lab.proxy.check_all()


async def test_callees_are_made_before_their_callers(lab: Lab):
    plan, _ = await lab.plan((AGENT, TOOL, MODEL), calls={"agent": ("tool", "model"), "tool": ("model",)})
    assert [change.name for change in plan.endpoints] == ["model", "tool", "agent"]


def test_a_circle_is_begun_where_the_fewest_ids_are_missing():
    assert dependency_order({"a": ("b", "c"), "b": ("a",), "c": ()}) == ["c", "a", "b"]
    assert dependency_order({"a": ("a",), "b": ()}) == ["a", "b"]


async def test_callers_get_the_ids_of_those_they_call(lab: Lab):
    await lab.deploy(APP, calls=CALLS)
    endpoints = await lab.endpoints()
    ids = {name.removeprefix("shop-production-"): item["id"] for name, item in endpoints.items()}
    agent = json.loads(endpoints["shop-production-agent"]["env"]["FLASHKIT_ENDPOINTS"])
    assert agent == {name: ids[name] for name in ("model", "tool", "web")}
    web = json.loads(endpoints["shop-production-web"]["env"]["FLASHKIT_ENDPOINTS"])
    assert web == {name: ids[name] for name in ("agent", "model", "tool")}
    assert "FLASHKIT_ENDPOINTS" not in endpoints["shop-production-tool"]["env"]


async def test_ids_that_are_not_known_yet_are_said_to_be_so(lab: Lab):
    await lab.deploy([TOOL, AGENT], calls={"agent": ("tool",)})
    plan, _ = await lab.plan([TOOL, AGENT, MODEL], calls={"agent": ("tool", "model")})
    change = find(plan, "agent")
    before, after = fields(change)["env.FLASHKIT_ENDPOINTS"]
    assert change.action is Action.UPDATE
    assert json.loads(str(before)).keys() == {"tool"}
    assert json.loads(str(after))["model"] == "(known after apply)"


async def test_workers_are_told_which_endpoint_they_run(lab: Lab):
    await lab.deploy([TOOL])
    assert (await lab.endpoints())["shop-production-tool"]["env"]["FLASHKIT_ENDPOINT"] == "tool"


async def test_an_update_sends_what_differs_and_nothing_else(lab: Lab):
    await lab.deploy(APP, calls=CALLS)
    lab.proxy.forget()
    changed = replace(TOOL, env={"LOG_LEVEL": "debug"}, flashboot=False, execution_timeout_ms=90_000)
    plan, _ = await lab.plan((changed, *APP[1:]), calls=CALLS)
    assert fields(find(plan, "tool")) == {
        "env.LOG_LEVEL": ("info", "debug"),
        "flashboot": ("FLASHBOOT", "OFF"),
        "timeout": (600_000, 90_000),
    }
    await lab.deploy((changed, *APP[1:]), calls=CALLS)
    sent = lab.proxy.writes[0].sent
    assert sent.keys() == {"env", "flashboot", "timeout"}
    assert sent["env"]["LOG_LEVEL"] == "debug"
    assert lab.proxy.write_lines[1:] == [lab.proxy.write_lines[1]], "only the record follows"


async def test_what_the_platform_put_into_the_environment_survives_updates(lab: Lab):
    await lab.deploy([API])
    await lab.deploy([replace(API, env={"MODE": "fast"})])
    env = (await lab.endpoints())["shop-production-web"]["env"]
    assert (env["PORT"], env["PORT_HEALTH"], env["MODE"]) == ("80", "80", "fast")


async def test_a_variable_that_the_app_drops_is_removed_and_one_that_somebody_added_is_kept(lab: Lab):
    await lab.deploy([TOOL])
    endpoint = (await lab.endpoints())["shop-production-tool"]
    async with lab.api() as api:
        await api.change(f"/serverless/{endpoint['id']}", {"env": {**endpoint["env"], "BY_HAND": "1"}})
    plan, _ = await lab.plan([replace(TOOL, env={})])
    assert fields(find(plan, "tool")) == {"env.LOG_LEVEL": ("info", None)}
    assert plan.notes == ["tool keeps variables that flashkit did not set: BY_HAND"]
    await lab.deploy([replace(TOOL, env={})])
    env = (await lab.endpoints())["shop-production-tool"]["env"]
    assert "LOG_LEVEL" not in env
    assert env["BY_HAND"] == "1"


async def test_changes_by_hand_are_found_and_put_right(lab: Lab):
    await lab.deploy([TOOL])
    endpoint = (await lab.endpoints())["shop-production-tool"]
    async with lab.api() as api:
        body = {"workers": {"max": 9}, "env": {**endpoint["env"], "LOG_LEVEL": "trace"}, "name": "renamed"}
        await api.change(f"/serverless/{endpoint['id']}", body)
    plan, _ = await lab.plan([TOOL])
    assert fields(find(plan, "tool")) == {
        "workers.max": (9, 3), "env.LOG_LEVEL": ("trace", "info"), "name": ("renamed", "shop-production-tool"),
    }  # fmt: skip
    await lab.deploy([TOOL])
    assert (await lab.endpoints())["shop-production-tool"] == endpoint


async def test_a_copy_made_by_hand_is_named_and_left_alone(lab: Lab):
    await lab.deploy([TOOL])
    original = (await lab.endpoints())["shop-production-tool"]
    keys = ("image", "args", "disk", "ports", "env", "workers", "scaling", "timeout", "type")
    copy = {key: original[key] for key in keys} | {"name": "a-copy", "cpu": [{"id": "cpu3c", "vcpuCount": 2}]}
    async with lab.api() as api:
        copied = await api.create("/serverless", copy)
    plan, _ = await lab.plan([TOOL])
    assert plan.is_empty
    assert plan.notes == [
        f"tool is there twice: {original['id']} is used, {copied['id']} is not; delete it in Runpod's console"
    ]


async def test_the_order_of_gpus_is_kept_and_a_change_of_it_is_a_change(make_lab: MakeLab):
    lab = await make_lab(ManagementOptions(sorts_lists=True))
    spec = EndpointSpec(name="model", kind=Kind.GPU, gpu=(GpuPool.AMPERE_80, GpuType.NVIDIA_L40S))
    await lab.deploy([spec])
    assert lab.proxy.writes[0].sent["gpu"]["pools"] == ["AMPERE_80", "ADA_48_PRO"]
    assert (await lab.plan([spec]))[0].is_empty, "the platform gave the pools back in its own order"
    turned = replace(spec, gpu=spec.gpu[::-1])
    plan, _ = await lab.plan([turned])
    assert fields(find(plan, "model"))["gpu.order"] == (["AMPERE_80", "NVIDIA L40S"], ["NVIDIA L40S", "AMPERE_80"])
    lab.proxy.forget()
    await lab.deploy([turned])
    assert lab.proxy.writes[0].sent["gpu"]["pools"] == ["ADA_48_PRO", "AMPERE_80"]
    assert (await lab.plan([turned]))[0].is_empty


def test_one_type_is_its_pool_without_the_others():
    choice = choose_gpus([GpuType.NVIDIA_L4, GpuType.NVIDIA_RTX_4090], known_pools())
    assert choice.pools == ("AMPERE_24", "ADA_24")
    assert choice.excluded == ("NVIDIA GeForce RTX 3090", "NVIDIA RTX A5000")
    assert choice.accepted == ("NVIDIA L4", "NVIDIA GeForce RTX 4090")


def test_a_type_that_only_the_platform_knows_is_excluded_too():
    pools = {**known_pools(), "AMPERE_24": [*known_pools()["AMPERE_24"], "NVIDIA NEW"]}
    assert "NVIDIA NEW" in choose_gpus([GpuType.NVIDIA_L4], pools).excluded


def test_a_whole_pool_takes_types_of_it_in():
    choice = choose_gpus([GpuType.NVIDIA_L4, GpuPool.AMPERE_24], known_pools())
    assert (choice.pools, choice.excluded) == (("AMPERE_24",), ())


async def test_volumes_are_found_by_name_and_place_and_only_grow(lab: Lab):
    async with lab.api() as api:
        made = await api.create("/network-volumes", {"name": "weights", "size": 80, "dataCenter": "US-KS-2"})
        await api.create("/network-volumes", {"name": "weights", "size": 80, "dataCenter": "EU-RO-1"})
    plan, _ = await lab.plan([MODEL])
    assert find(plan, "weights").action is Action.UNCHANGED
    assert plan.notes == ["volume weights keeps its 80 GB: volumes cannot shrink to 50 GB"]
    bigger = replace(MODEL, volumes=(NetworkVolume("weights", 120, DataCenter.US_KS_2),))
    await lab.deploy([bigger])
    assert (await lab.endpoints())["shop-production-model"]["networkVolumes"] == [made["id"]]
    assert lab.proxy.writes[2].sent == {"size": 120}
    assert (await lab.plan([bigger]))[0].is_empty


async def test_two_endpoints_share_a_volume_of_the_larger_size(lab: Lab):
    other = replace(MODEL, name="other", volumes=(NetworkVolume("weights", 90, DataCenter.US_KS_2),))
    await lab.deploy([MODEL, other])
    assert [item.sent["size"] for item in lab.proxy.writes if item.path == "/v2/network-volumes"] == [90]
    assert (await lab.plan([MODEL, other]))[0].is_empty


async def test_a_volume_without_a_place_is_where_its_endpoint_is(lab: Lab):
    await lab.deploy([replace(MODEL, volumes=(NetworkVolume("weights", 50),))])
    assert lab.proxy.writes[0].sent["dataCenter"] == "US-KS-2"


async def test_an_endpoint_with_a_volume_runs_where_the_volume_is(lab: Lab):
    await lab.deploy([replace(MODEL, datacenters=())])
    assert (await lab.endpoints())["shop-production-model"]["dataCenterIds"] == ["US-KS-2"]


async def test_what_cannot_be_changed_in_place_is_made_anew(lab: Lab):
    await lab.deploy([TOOL, AGENT], calls={"agent": ("tool",)})
    before = (await lab.endpoints())["shop-production-tool"]["id"]
    on_gpu = EndpointSpec(name="tool", kind=Kind.GPU, gpu=(GpuType.NVIDIA_L4,))
    plan, _ = await lab.plan([on_gpu, AGENT], calls={"agent": ("tool",)})
    assert find(plan, "tool").action is Action.REPLACE
    assert [change.name for change in plan.removals] == ["tool"]
    outcome = await lab.deploy([on_gpu, AGENT], calls={"agent": ("tool",)})
    after = (await lab.endpoints())["shop-production-tool"]["id"]
    assert after != before
    assert outcome.endpoints["tool"].id == after
    env = (await lab.endpoints())["shop-production-agent"]["env"]
    assert json.loads(env["FLASHKIT_ENDPOINTS"]) == {"tool": after}
    assert (await lab.plan([on_gpu, AGENT], calls={"agent": ("tool",)}))[0].is_empty


async def test_endpoints_that_the_app_has_no_more_are_deleted_or_kept(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    plan, _ = await lab.plan([TOOL])
    assert find(plan, "model").action is Action.DELETE
    kept, _ = await lab.plan([TOOL], keeps_others=True)
    assert kept.is_empty
    assert "not in the app any more, and is kept" in kept.notes[0]
    await lab.deploy([TOOL])
    assert list(await lab.endpoints()) == ["shop-production-tool"]


async def test_environments_do_not_touch_each_other(lab: Lab):
    await lab.deploy([TOOL, MODEL])
    staging = Lab(lab.emulator, lab.proxy, DeployConfig("shop", "staging"))
    plan, _ = await staging.plan([TOOL])
    assert [change.action for change in plan.endpoints] == [Action.CREATE]
    await staging.deploy([TOOL])
    assert sorted(await lab.endpoints()) == [
        "shop-production-model", "shop-production-tool", "shop-staging-tool",
    ]  # fmt: skip
    assert (await lab.plan([TOOL, MODEL]))[0].is_empty


async def test_the_image_is_kept_where_nobody_names_one(lab: Lab):
    await lab.deploy([TOOL])
    plan, _ = await lab.plan([TOOL], image=None)
    assert plan.is_empty
    assert plan.problems == []
    plan, _ = await lab.plan([TOOL], image="registry.example/app:2")
    assert fields(find(plan, "tool")) == {"image": (IMAGE, "registry.example/app:2")}


async def test_the_configuration_says_what_has_no_place_in_code(lab: Lab):
    async with lab.api() as api:
        registry = await api.create("/registries", {"name": "hub", "username": "me", "password": "x"})
    lab.configure(
        tool=EndpointConfig(
            image="registry.example/tool:7", args="python tool.py", disk=33, registry="hub", workers=(0, 1),
            env={"LOG_LEVEL": "warning"},
        )
    )  # fmt: skip
    await lab.deploy([TOOL], image=None)
    made = (await lab.endpoints())["shop-production-tool"]
    assert (made["image"], made["args"], made["disk"], made["registry"]) == (
        "registry.example/tool:7", "python tool.py", 33, registry["id"],
    )  # fmt: skip
    assert (made["workers"]["max"], made["env"]["LOG_LEVEL"]) == (1, "warning")
    assert (await lab.plan([TOOL], image=None))[0].is_empty


async def test_one_vcpu_is_made_and_changed_by_graphql_the_rest_by_rest(lab: Lab):
    small = replace(TOOL, cpu="cpu3c-1-2")
    await lab.deploy([small])
    assert lab.proxy.write_lines[0] == "POST /graphql"
    assert (await lab.plan([small]))[0].is_empty
    lab.proxy.forget()
    wider = replace(small, workers=WorkerBounds(0, 7))
    await lab.deploy([wider])
    assert lab.proxy.write_lines[0].startswith("PATCH /v2/serverless/")
    bigger = replace(wider, cpu="cpu3c-2-4")
    plan, _ = await lab.plan([bigger])
    assert fields(find(plan, "tool"))["cpu"] == (["cpu3c-1"], ["cpu3c-2"])
    lab.proxy.forget()
    await lab.deploy([bigger])
    assert lab.proxy.write_lines[0].startswith("PATCH /v2/serverless/")
    lab.proxy.forget()
    await lab.deploy([wider])
    assert lab.proxy.write_lines[0] == "POST /graphql"
    assert (await lab.plan([wider]))[0].is_empty
    lab.proxy.check_all()


async def test_models_for_the_platforms_cache_go_through_graphql(lab: Lab):
    weights = EngineSpec("vllm", Weights("Qwen/Qwen3-8B", "main"))
    spec = replace(MODEL, engine=weights)
    lab.configure(model=EndpointConfig(model_cache=True, env={"KEEP": "me"}))
    await lab.deploy([spec])
    sent = next(item.sent for item in lab.proxy.writes if item.path == "/graphql")["variables"]["input"]
    assert sent["modelReferences"] == ["Qwen/Qwen3-8B:main"]
    assert sent["gpuIds"] == "ADA_48_PRO,AMPERE_80,-NVIDIA A100-SXM4-80GB,-NVIDIA L40,-NVIDIA RTX 6000 Ada Generation"
    assert (await lab.plan([spec]))[0].is_empty
    endpoint = (await lab.endpoints())["shop-production-model"]
    async with lab.api() as api:
        await api.change(f"/serverless/{endpoint['id']}", {"env": {**endpoint["env"], "BY_HAND": "1"}})
    lab.configure(model=EndpointConfig(env={"KEEP": "me"}))
    plan, _ = await lab.plan([spec])
    assert fields(find(plan, "model")) == {"models": (["Qwen/Qwen3-8B:main"], [])}
    await lab.deploy([spec])
    after = (await lab.endpoints())["shop-production-model"]
    assert after["env"]["BY_HAND"] == "1"
    assert {**after, "env": {}} == {**endpoint, "env": {}}, "a save replaces everything, and everything was sent"


async def test_scaling_on_requests_sends_no_idle_timeout(lab: Lab):
    await lab.deploy([replace(TOOL, scaler_type=ScalerType.REQUEST_COUNT)])
    assert lab.proxy.writes[0].sent["workers"] == {"min": 0, "max": 3}
    await lab.deploy([TOOL])
    assert (await lab.endpoints())["shop-production-tool"]["workers"]["idleTimeout"] == 5


async def test_a_cuda_floor_is_set_and_cleared(lab: Lab):
    await lab.deploy([MODEL])
    await lab.deploy([replace(MODEL, min_cuda_version=None)])
    assert (await lab.endpoints())["shop-production-model"]["gpu"]["minCudaVersion"] is None


def test_a_marker_is_read_back_and_anything_else_is_none():
    marker = Marker("shop", "production", "tool", ("B", "A"), ("NVIDIA L4",), "cpu3c-1-2", ("a/b",))
    assert read_marker({"FLASHKIT_DEPLOYMENT": marker.to_json()}) == replace(marker, keys=("A", "B"))
    for text in ("", "{", "[]", "3", '{"app": "shop"}'):
        assert read_marker({"FLASHKIT_DEPLOYMENT": text}) is None
    assert read_marker({}) is None


# ---------------------------------------------------------------------- costs


async def test_a_plan_says_what_it_costs_an_hour(lab: Lab):
    plan, _ = await lab.plan(APP, calls=CALLS)
    costs = {cost.name: cost for cost in plan.costs}
    model = costs["model"]
    assert model.always == pytest.approx(1 * 0.00060 * 3600), "the dearest of its GPUs, as one that is always there"
    assert model.at_most == pytest.approx(3 * 0.00076 * 3600)
    assert (costs["tool"].always, costs["tool"].at_most) == (0, None), "nobody knows what CPUs cost"
    assert costs["weights"].always == pytest.approx(50 * 0.07 / 730)
    whole = total(plan.costs)
    assert (whole.always, whole.at_most) == (None, None)


def test_prices_are_the_platforms_own_where_it_has_them():
    prices = PriceList.read(
        [{"id": "NVIDIA L4", "price": {"serverless": 0.5}}, {"id": "NVIDIA A40", "price": {}}],
        [{"id": "cpu3c", "price": {"serverlessPerVcpu": 0.03}}, {"id": "cpu5c", "price": {"serverlessPerVcpu": 0}}],
    )
    assert (prices.gpus, prices.vcpus) == ({"NVIDIA L4": 0.5}, {"cpu3c": 0.03})


def test_the_sum_of_known_costs_is_their_sum():
    costs = [Cost("a", "", 1.0, 2.0), Cost("b", "", 0.0, 3.0)]
    assert (total(costs).always, total(costs).at_most) == (1.0, 5.0)


async def test_gpus_of_several_count_several_times(lab: Lab):
    plan, _ = await lab.plan([replace(MODEL, gpu=(GpuType.NVIDIA_L40S,), gpu_count=2)])
    cost = next(cost for cost in plan.costs if cost.name == "model")
    assert cost.hardware == "2x NVIDIA L40S"
    assert cost.at_most == pytest.approx(2 * 3 * 0.00053 * 3600)
