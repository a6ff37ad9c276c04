"""Endpoint specs: what is accepted, what is refused and how, and the way through JSON."""

import dataclasses
import json

import pytest

from flashkit.catalog import DataCenter, GpuPool, GpuType
from flashkit.errors import DefinitionError
from flashkit.spec import EndpointSpec, EngineSpec, Kind, NetworkVolume, ScalerType, Weights, WorkerBounds


def _spec(**options):
    return EndpointSpec(**{"name": "tool", "kind": Kind.CPU, "cpu": "cpu3c-1-2", **options})


def _refusal(build, *args, **options):
    with pytest.raises(DefinitionError) as caught:
        build(*args, **options)
    return str(caught.value)


FULL = EndpointSpec(
    name="full",
    kind=Kind.EMBEDDING,
    gpu=(GpuType.NVIDIA_L40S, GpuPool.AMPERE_80),
    gpu_count=2,
    min_cuda_version="12.8",
    datacenters=(DataCenter.US_GA_2, DataCenter.EU_RO_1),
    workers=WorkerBounds(1, 7),
    idle_timeout=300,
    execution_timeout_ms=5_000,
    scaler_type=ScalerType.REQUEST_COUNT,
    scaler_value=2,
    flashboot=False,
    concurrency=3,
    volumes=(NetworkVolume("models", size=50, datacenter=DataCenter.US_GA_2),),
    env={"LOG_LEVEL": "debug"},
    engine=EngineSpec("embedding", Weights("organisation/name", revision="abc"), {"max_batch_tokens": 8192}),
)


@pytest.mark.parametrize("spec", [_spec(), FULL])
def test_a_spec_survives_json(spec):
    assert EndpointSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_json_form_has_every_field():
    assert set(FULL.to_dict()) == {field.name for field in dataclasses.fields(EndpointSpec)}


def test_a_spec_from_json_is_checked_again():
    data = _spec().to_dict() | {"gpu": ["A10O"]}
    assert "did you mean 'A100'" in _refusal(EndpointSpec.from_dict, data)


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.name = "other"


def test_the_environment_is_a_copy_of_the_callers():
    env = {"A": "1"}
    spec = _spec(env=env)
    env["A"] = "2"
    assert spec.env == {"A": "1"}


@pytest.mark.parametrize("name", ["a", "agent-2", "0", "a" * 63])
def test_a_good_name_is_accepted(name):
    assert _spec(name=name).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "Agent", "a_b", "a b", "a/b", "ä", "a" * 64, 5, None, "a\n"])
def test_a_name_that_cannot_be_in_a_url_is_refused(name):
    assert "cannot be an endpoint's name" in _refusal(_spec, name=name)


def test_each_kind_needs_its_compute():
    assert "names no CPU instance" in _refusal(_spec, cpu=None)
    assert "pins no GPU" in _refusal(_spec, kind=Kind.GPU, cpu=None)
    assert "pins no GPU" in _refusal(_spec, kind=Kind.EMBEDDING, cpu=None)
    assert "either gpu= or cpu=" in _refusal(_spec, kind=Kind.ORCHESTRATOR, cpu=None)
    assert "either gpu= or cpu=" in _refusal(_spec, kind=Kind.ORCHESTRATOR, gpu=(GpuType.NVIDIA_L4,))


@pytest.mark.parametrize("option", ["gpu_count", "scaler_value", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, True])
def test_a_count_must_be_a_whole_number_of_at_least_one(option, value):
    assert f"{option}={value!r}" in _refusal(_spec, **{option: value})


@pytest.mark.parametrize(
    ("option", "values"),
    [("idle_timeout", [0, 3_601, -1, "5", 1.5, None]), ("execution_timeout_ms", [4_999, 604_800_001, "60000", None])],
)
def test_a_timeout_out_of_range_names_the_range(option, values):
    for value in values:
        refusal = _refusal(_spec, **{option: value})
        assert f"{option}={value!r}" in refusal
        assert "the platform accepts" in refusal


def test_timeouts_at_the_ends_of_their_ranges_are_accepted():
    assert _spec(idle_timeout=1, execution_timeout_ms=5_000)
    assert _spec(idle_timeout=3_600, execution_timeout_ms=604_800_000)


@pytest.mark.parametrize(("workers", "expected"), [(3, (0, 3)), ((1, 10), (1, 10)), ([2, 2], (2, 2))])
def test_workers_may_be_a_maximum_or_a_pair(workers, expected):
    bounds = WorkerBounds.from_option(workers)
    assert (bounds.min, bounds.max) == expected


@pytest.mark.parametrize(
    "workers",
    [
        0,
        -1,
        True,
        2.5,
        None,
        "3",
        "12",
        (1,),
        (1, 2, 3),
        (3, 1),
        (0, 0),
        (-1, 2),
        ("0", "3"),
        (0, 1.5),
        {},
        WorkerBounds(5, 1),
    ],
)
def test_workers_that_are_no_bounds_are_refused(workers):
    assert "workers=" in _refusal(WorkerBounds.from_option, workers)


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "a b/c", "/b", "https://hub/a"])
def test_weights_that_are_no_repository_are_refused(name):
    assert "organisation/name" in _refusal(Weights, name)


@pytest.mark.parametrize("size", [0, 9, 4_097, -5, "50", None])
def test_a_volume_of_impossible_size_is_refused(size):
    assert "volumes have 10 to 4096 GB" in _refusal(NetworkVolume, "models", size=size)


def test_a_volume_needs_a_name_and_a_known_data_centre():
    assert "needs a name" in _refusal(NetworkVolume, "")
    assert "did you mean" in _refusal(NetworkVolume, "models", datacenter="US-GA-1")
    assert NetworkVolume("models", datacenter="us-ga-2").datacenter is DataCenter.US_GA_2


def test_a_volume_elsewhere_than_the_workers_is_refused():
    volume = NetworkVolume("models", datacenter="EU-RO-1")
    assert "its own data centre only" in _refusal(_spec, volumes=(volume,), datacenters=(DataCenter.US_GA_2,))
    assert _spec(volumes=(volume,), datacenters=(DataCenter.EU_RO_1,))
    assert _spec(volumes=(volume,))


@pytest.mark.parametrize("env", [{"A": 1}, {1: "A"}, {"A": None}])
def test_an_environment_of_other_than_strings_is_refused(env):
    assert "is not a string" in _refusal(_spec, env=env)


@pytest.mark.parametrize("name", ["RUNPOD_POD_ID", "RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_AI_API_KEY", "RUNPOD_ENDPOINT_ID"])
def test_the_platforms_own_variables_are_refused(name):
    assert "belongs to the platform" in _refusal(_spec, env={name: "x"})


@pytest.mark.parametrize(
    "options", [{"env": ["A=1"]}, {"env": "A=1"}, {"engine": "organisation/name"}, {"volumes": ("models",)}]
)
def test_an_option_of_the_wrong_type_is_refused_with_an_example(options):
    refusal = _refusal(_spec, **options)
    assert "has the wrong type" in refusal
    assert "hint: write" in refusal
