"""Whatever an app asks for: deployed once, there is nothing left to do; changed and rolled back, it is as it was."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flashkit.catalog import CPU_FLAVORS, CUDA_VERSIONS, DataCenter, GpuPool, GpuType
from flashkit.deploy.config import DeployConfig, EndpointConfig
from flashkit.deploy.planning import Action
from flashkit.emulator.management.service import PREFIX, ManagementOptions
from flashkit.emulator.server import Emulator
from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds
from tests.deploy.conftest import Lab
from tests.deploy.proxy import RecordingProxy

NAMES = ("alpha", "beta", "gamma", "delta")
CPU3_PLACES = [DataCenter.EU_RO_1, DataCenter.US_KS_2, DataCenter.US_CA_2]
WORDS = st.sampled_from(["a", "info", "1", "x y", "ä→ü", '{"json": true}', ""])
APPS = itertools.count(1)


@st.composite
def volumes(draw: st.DrawFn, places: tuple[DataCenter, ...]) -> tuple[NetworkVolume, ...]:
    choices = places or (DataCenter.EU_RO_1,)
    chosen = draw(st.lists(st.sampled_from(choices), max_size=2, unique=True))
    names = st.sampled_from(["weights", "data"])
    return tuple(NetworkVolume(draw(names), draw(st.integers(10, 200)), place) for place in chosen)


@st.composite
def specs(draw: st.DrawFn, name: str) -> EndpointSpec:
    kind = draw(st.sampled_from([Kind.CPU, Kind.GPU, Kind.EMBEDDING, Kind.ORCHESTRATOR]))
    options: dict[str, Any] = {}
    if kind in (Kind.GPU, Kind.EMBEDDING):
        gpus = st.one_of(st.sampled_from(GpuType), st.sampled_from(GpuPool))
        options["gpu"] = tuple(draw(st.lists(gpus, min_size=1, max_size=4, unique=True)))
        options["gpu_count"] = draw(st.integers(1, 4))
        options["min_cuda_version"] = draw(st.sampled_from([None, *CUDA_VERSIONS]))
        places = st.sampled_from(list(DataCenter))
    else:
        options["cpu"] = draw(st.sampled_from(CPU_FLAVORS))
        is_new = options["cpu"].startswith("cpu5")
        places = st.sampled_from([DataCenter.EU_RO_1] if is_new else CPU3_PLACES)
    options["datacenters"] = tuple(draw(st.lists(places, max_size=2, unique=True)))
    if kind is Kind.EMBEDDING:
        options["engine"] = EngineSpec("embedding", Weights("org/model", draw(st.sampled_from([None, "main"]))))
    is_balanced = kind in (Kind.CPU, Kind.GPU) and draw(st.booleans())
    scaler = ScalerType.REQUEST_COUNT if is_balanced else draw(st.sampled_from(ScalerType))
    low = draw(st.integers(0, 3))
    return EndpointSpec(
        name=name,
        kind=kind,
        workers=WorkerBounds(low, draw(st.integers(max(low, 1), 9))),
        idle_timeout=draw(st.integers(1, 3600)),
        execution_timeout_ms=draw(st.integers(5_000, 330_000)),
        scaler_type=scaler,
        scaler_value=draw(st.integers(1, 20)),
        flashboot=draw(st.booleans()),
        load_balanced=is_balanced,
        volumes=draw(volumes(options["datacenters"])),
        env=draw(st.dictionaries(st.sampled_from(["LOG_LEVEL", "MODE", "PORT", "EMPTY"]), WORDS, max_size=3)),
        **options,
    )


@st.composite
def apps(draw: st.DrawFn) -> tuple[tuple[EndpointSpec, ...], dict[str, tuple[str, ...]], dict[str, EndpointConfig]]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    endpoints = tuple(draw(specs(name)) for name in names)
    pairs = draw(st.sets(st.tuples(st.sampled_from(names), st.sampled_from(names))))
    calls = {name: tuple(sorted(callee for caller, callee in pairs if caller == name != callee)) for name in names}
    configs = {
        spec.name: EndpointConfig(
            args=draw(st.sampled_from([None, "python app.py"])),
            disk=draw(st.sampled_from([None, 20])),
            model_cache=spec.engine is not None and draw(st.booleans()),
            env=draw(st.dictionaries(st.sampled_from(["EXTRA", "MODE"]), WORDS, max_size=1)),
        )
        for spec in endpoints
    }
    return endpoints, calls, configs


@pytest.fixture(scope="module", params=[False, True], ids=["graphql-names", "rest-names-sorted"])
async def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    options = ManagementOptions(has_rest_names=request.param, sorts_lists=request.param)
    async with (
        Emulator([], state_dir=tmp_path_factory.mktemp("account"), management=options) as emulator,
        RecordingProxy(emulator.url + PREFIX) as proxy,
    ):
        yield Lab(emulator, proxy)


async def own_endpoints(lab: Lab) -> dict[str, dict[str, Any]]:
    prefix = f"{lab.config.app}-"
    return {name: item for name, item in (await lab.endpoints()).items() if name.startswith(prefix)}


@pytest.mark.timeout(600)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # an example takes seconds: shrinking would take hours
)
@given(first=apps(), second=apps(), image=st.sampled_from(["i:1", "i:2"]))
async def test_a_deployed_app_needs_nothing_and_can_be_rolled_back(shared: Lab, first: Any, second: Any, image: str):
    lab = Lab(shared.emulator, shared.proxy, DeployConfig(f"app{next(APPS)}", endpoints=first[2]))
    lab.proxy.forget()
    await lab.deploy(first[0], calls=first[1])
    await nothing_is_left(lab, first)
    before = await own_endpoints(lab)

    lab.config = DeployConfig(lab.config.app, endpoints=second[2])
    plan, _ = await lab.plan(second[0], calls=second[1], image=image)
    replaced = {change.name for change in plan.endpoints if change.action in (Action.REPLACE, Action.DELETE)}
    await lab.deploy(second[0], calls=second[1], image=image)
    await nothing_is_left(lab, second, image=image)

    if not replaced and not plan.is_empty:
        await lab.roll_back(to=1)
        after = await own_endpoints(lab)
        pairs = [(f"{name}.{key}", then, after[name].get(key)) for name in before for key, then in before[name].items()]
        assert [pair for pair in pairs if pair[1] != pair[2]] == []
    await lab.undeploy(removes_volumes=True)
    assert await own_endpoints(lab) == {}
    lab.proxy.check_all()


async def nothing_is_left(lab: Lab, app: Any, *, image: str | None = None) -> None:
    """The same deployment again writes nothing, even when somebody added a variable by hand."""
    options: dict[str, Any] = {"calls": app[1], **({"image": image} if image else {})}
    plan, _ = await lab.plan(app[0], **options)
    assert plan.is_empty, [change.to_dict() for change in plan.changes if change.action is not Action.UNCHANGED]
    count = len(lab.proxy.writes)
    await lab.deploy(app[0], **options)
    assert len(lab.proxy.writes) == count
    name, item = next(iter((await own_endpoints(lab)).items()))
    async with lab.api() as api:
        await api.change(f"/serverless/{item['id']}", {"env": {**item["env"], "BY_HAND": "kept"}})
        plan, _ = await lab.plan(app[0], **options)
        assert plan.is_empty, f"{name}: a variable that flashkit did not set is none of its business"
        assert any("BY_HAND" in note for note in plan.notes)
        await api.change(f"/serverless/{item['id']}", {"env": item["env"]})
