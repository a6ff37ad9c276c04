"""Names of GPUs, CPU instances and data centres: what resolves, and what a wrong name suggests."""

import pytest

from flashkit import catalog
from flashkit.catalog import GPU_NAMES, GPUS, DataCenter, GpuPool, GpuType, nearest_names, resolve_gpus
from flashkit.errors import DefinitionError


def _error(resolve, *arguments):
    with pytest.raises(DefinitionError) as caught:
        resolve(*arguments)
    return caught.value.report


@pytest.mark.parametrize("gpu", GpuType)
def test_every_gpu_resolves_by_member_name_and_device_name(gpu):
    assert resolve_gpus([gpu]) == resolve_gpus([gpu.name]) == resolve_gpus([gpu.value.lower()]) == (gpu,)


@pytest.mark.parametrize("gpu", GpuType)
def test_every_gpu_has_its_facts(gpu):
    facts = GPUS[gpu]
    assert facts.type is gpu
    assert 8 <= facts.vram_gb <= 288
    assert facts.usd_per_second is None or 0 < facts.usd_per_second < 0.01


@pytest.mark.parametrize("pool", GpuPool)
def test_every_pool_resolves_and_has_gpus(pool):
    assert resolve_gpus([pool]) == resolve_gpus([pool.value.lower()]) == (pool,)
    assert any(gpu.pool is pool for gpu in GPUS.values())


@pytest.mark.parametrize("name", GPU_NAMES)
def test_every_name_that_is_suggested_resolves(name):
    assert resolve_gpus([name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RTX 4090", [GpuType.NVIDIA_RTX_4090]),
        ("RTX4090", [GpuType.NVIDIA_RTX_4090]),
        ("rtx-4090", [GpuType.NVIDIA_RTX_4090]),
        ("4090", [GpuType.NVIDIA_RTX_4090]),
        ("geforce rtx3090", [GpuType.NVIDIA_RTX_3090]),
        ("A100", [GpuType.NVIDIA_A100_80GB_PCIe, GpuType.NVIDIA_A100_SXM4_80GB]),
        ("A100-80GB", [GpuType.NVIDIA_A100_80GB_PCIe, GpuType.NVIDIA_A100_SXM4_80GB]),
        ("a100 pcie", [GpuType.NVIDIA_A100_80GB_PCIe]),
        ("h-100", [GpuType.NVIDIA_H100_80GB_HBM3, GpuType.NVIDIA_H100_PCIe, GpuType.NVIDIA_H100_NVL]),
        ("L4", [GpuType.NVIDIA_L4]),
        ("L40", [GpuType.NVIDIA_L40]),
        ("l40s", [GpuType.NVIDIA_L40S]),
        ("A6000", [GpuType.NVIDIA_RTX_A6000]),
    ],
)
def test_a_fragment_resolves_to_the_models_of_one_pool(name, expected):
    assert list(resolve_gpus([name])) == expected


def test_the_order_of_preference_is_kept_and_repeats_are_dropped():
    assert resolve_gpus(["L4", "B200", "nvidia l4"]) == (GpuType.NVIDIA_L4, GpuType.NVIDIA_B200)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("A10O", "A100"),
        ("4090ti", "RTX 4090"),
        ("RTX 4090 Ti", "RTX 4090"),
        ("B20", "B200"),
        ("A100 SXM", "A100-SXM4-80GB"),
    ],
)
def test_a_misspelt_gpu_suggests_short_names(name, first):
    report = _error(resolve_gpus, [name])
    assert report.details["nearest"][0] == first
    assert f"did you mean {first!r}" in report.message


def test_suggestions_are_plain_strings():
    report = _error(resolve_gpus, ["A10O"])
    assert {type(name) for name in report.details["nearest"] + report.details["valid"]} == {str}
    assert "<" not in report.message + (report.hint or "")


def test_a_name_like_no_other_lists_the_valid_ones_without_guessing():
    report = _error(resolve_gpus, ["quantum"])
    assert "did you mean" not in report.message
    assert "RTX 4090" in report.hint


@pytest.mark.parametrize("name", ["RTX 6000", "rtx6000", "NVIDIA", "ada"])
def test_a_fragment_of_several_pools_lists_what_it_could_be(name):
    report = _error(resolve_gpus, [name])
    assert "fits several GPUs" in report.message
    assert GpuType.NVIDIA_RTX_6000_ADA.value in report.message


@pytest.mark.parametrize("name", ["", "  ", "-"])
def test_an_empty_gpu_name_is_refused(name):
    assert "is not known" in _error(resolve_gpus, [name]).message


@pytest.mark.parametrize("name", [4090, None, 1.5, ["A100"]])
def test_a_gpu_that_is_not_a_string_is_refused(name):
    assert "is not a GPU name" in _error(resolve_gpus, [name]).message


def test_any_gpu_is_refused_because_its_cost_is_not_known():
    assert "pin one or more" in _error(resolve_gpus, ["any"]).hint


@pytest.mark.parametrize("name", ["US-GA-2", "us-ga-2", "us_ga_2", DataCenter.US_GA_2])
def test_a_data_centre_resolves_in_any_spelling(name):
    assert catalog.resolve_datacenter(name) is DataCenter.US_GA_2


def test_a_misspelt_data_centre_suggests_its_neighbours():
    assert "'US-GA-2'" in _error(catalog.resolve_datacenter, "US-GA-1").message


@pytest.mark.parametrize("name", catalog.CPU_FLAVORS)
def test_every_cpu_instance_resolves_in_any_case(name):
    assert catalog.resolve_cpu(name.upper()) == name


def test_a_cpu_instance_with_impossible_memory_suggests_possible_ones():
    assert "'cpu5c-4-8'" in _error(catalog.resolve_cpu, "cpu5c-4-16").message


def test_a_cuda_version_may_be_text_or_number():
    assert catalog.resolve_cuda("12.8") == catalog.resolve_cuda(12.8) == "12.8"
    assert "valid names: 11.8, 12.0" in _error(catalog.resolve_cuda, "12.10").hint


def test_nearest_names_are_best_first_and_limited():
    assert nearest_names("idle_timeuot", ["workers", "idle_timeout", "timeout"], limit=1) == ["idle_timeout"]
    assert nearest_names("zzz", ["workers"]) == []


@pytest.mark.parametrize("value", ["5", None, [5], {}])
def test_a_range_does_not_contain_what_is_not_a_number(value):
    assert value not in catalog.VOLUME_SIZE_GB
