"""What a plan says, by hand: sizes, seconds and dollars from the catalogue's facts."""

import json

import pytest

from flashkit import catalog
from flashkit.catalog import GpuPool, GpuType
from flashkit.worker.weights.plan import plan_weights


def options(size_gb, **more):
    plan = plan_weights(("org/model",), round(size_gb * 1e9), **{"starts_per_day": 12, **more})
    return {option.place: option for option in plan.options}


def test_all_places_stand_side_by_side():
    assert list(options(16)) == [
        "baked into the image", "network volume", "network volume, HIGH_PERFORMANCE", "platform's model cache"
    ]  # fmt: skip


def test_seconds_are_size_by_rate():
    found = options(16)
    assert found["baked into the image"].first_start_seconds.low == pytest.approx(16_000 / 59)
    assert found["baked into the image"].later_start_seconds.low == pytest.approx(16)
    volume = found["network volume"]
    assert (volume.first_start_seconds.low, volume.first_start_seconds.high) == (40, 80)
    assert found["network volume, HIGH_PERFORMANCE"].later_start_seconds.low == pytest.approx(40 / 3)


def test_storage_follows_the_price_list():
    assert options(16)["network volume"].storage_usd_per_month == pytest.approx(18 * 0.07)
    assert options(1)["network volume"].storage_usd_per_month == pytest.approx(10 * 0.07)  # the smallest volume
    assert options(2_000)["network volume"].storage_usd_per_month == pytest.approx(1000 * 0.07 + 1200 * 0.05)
    assert options(16)["baked into the image"].storage_usd_per_month == pytest.approx(1.6)
    assert options(16)["platform's model cache"].storage_usd_per_month == 0


def test_starts_are_paid_at_the_gpus_price():
    volume = options(16, gpu=GpuType.NVIDIA_A100_80GB_PCIe)["network volume"]
    assert volume.starts_usd_per_month == pytest.approx(12 * 365 / 12 * 60 * 0.00076)
    assert volume.usd_per_month == pytest.approx(volume.storage_usd_per_month + volume.starts_usd_per_month)
    assert options(16, gpu=GpuPool.AMPERE_80)["network volume"].starts_usd_per_month == volume.starts_usd_per_month
    assert options(16)["network volume"].starts_usd_per_month is None
    assert options(16, gpu=GpuType.NVIDIA_RTX_5090)["network volume"].starts_usd_per_month is None  # no known price


def test_a_start_beyond_the_platforms_limit_is_warned_of():
    assert any("RUNPOD_INIT_TIMEOUT" in note for note in options(40)["baked into the image"].notes)
    assert not any("RUNPOD_INIT_TIMEOUT" in note for note in options(16)["network volume"].notes)


def test_what_no_volume_can_hold_is_said():
    assert any("does not fit" in note for note in options(5_000)["network volume"].notes)


def test_every_number_has_its_formula_and_source():
    for option in options(16).values():
        assert set(option.formulas) == {
            "first_start_seconds", "later_start_seconds", "storage_usd_per_month", "starts_usd_per_month"
        }  # fmt: skip
        assert option.sources


def test_a_plan_is_plain_json():
    plan = plan_weights(("a/b", "c/d"), 10**9, starts_per_day=1, gpu=GpuType.NVIDIA_L4)
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["names"] == ["a/b", "c/d"]
    assert data["gpu"] == "NVIDIA L4"
    assert data["facts_read_on"] == catalog.READ_ON
    assert len(data["options"]) == 4
