"""Weights that are not whole: what a start notices without reading them, what `verify` notices, and their repair."""

import json
import logging

import pytest

from flashkit.errors import WeightsError, WeightsNotFound
from flashkit.spec import Weights
from flashkit.worker.weights import find_weights, offline, resolve_weights
from flashkit.worker.weights.folders import check_folder
from flashkit.worker.weights.manifest import MANIFEST_NAME
from flashkit.worker.weights.progress import SilentProgress
from flashkit.worker.weights.verifying import repair, verify
from tests.weights.conftest import COMMIT, MODEL, contents, safetensors, write_model, write_snapshot

WEIGHTS = Weights("org/model")


def problems(folder):
    return dict(check_folder(folder))


def test_a_sound_folder_has_no_problems(tmp_path):
    assert problems(write_model(tmp_path / "m")) == {}


def test_an_empty_folder_and_one_without_weights_are_not_weights(tmp_path):
    assert problems(tmp_path) == {".": "holds no files"}
    assert "holds no weights" in problems(write_model(tmp_path / "m", {"config.json": b"{}"}))["."]


def test_a_safetensors_file_that_is_cut_off_is_named_with_both_sizes(tmp_path):
    folder = write_model(tmp_path / "m", {"model.safetensors": safetensors()[:-1]})
    size = len(safetensors())
    assert problems(folder) == {"model.safetensors": f"has {size - 1:,} bytes, not the {size:,} of its header"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "its header is damaged"),
        (b"\x10\0\0\0\0\0\0\0{", "is cut off or no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "its header is damaged"),
        (b"\x04\0\0\0\0\0\0\0{\xff\xff}", "its header is damaged"),
        (b"\xff" * 9, "is cut off or no safetensors file"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path, content, problem):
    assert problem in problems(write_model(tmp_path / "m", {"model.safetensors": content}))["model.safetensors"]


def test_a_shard_that_an_index_names_and_that_is_missing_is_named(tmp_path):
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    folder = write_model(tmp_path / "m", {"model.safetensors.index.json": index, "one.safetensors": safetensors()})
    assert problems(folder) == {"two.safetensors": "is missing; model.safetensors.index.json names it"}


def test_an_index_of_another_kind_is_no_problem(tmp_path):
    assert problems(write_model(tmp_path / "m", MODEL | {"files.index.json": b"[]"})) == {}


def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    found = problems(write_model(tmp_path / "m", {"model.bin": pointer}))
    assert "is a pointer of Git LFS" in found["model.bin"]


def test_a_link_to_a_blob_that_is_gone_is_named(tmp_path):
    folder = write_snapshot(tmp_path)
    (folder / "model.safetensors").resolve().unlink()
    assert problems(folder) == {"model.safetensors": "is a link to a file that is not there"}


def test_a_damaged_copy_in_the_image_is_named_and_the_next_place_is_used(make_settings, caplog):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model", MODEL | {"model.safetensors": safetensors()[:-9]})
    cached = write_snapshot(settings.hub_cache)
    assert resolve_weights(WEIGHTS, settings) == cached
    assert f"passing over weights folder ({baked}): damaged: model.safetensors has" in caplog.text


def test_damage_everywhere_is_an_error_that_names_the_files(make_settings):
    settings = make_settings()
    index = json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(8)}}).encode()
    write_model(settings.weights_dir / "org/model", {"m.index.json": index, "x.bin": b"x"})
    with pytest.raises(
        WeightsNotFound, match=r"damaged: 0\.safetensors is missing; m\.index\.json names it; .* 3 files more"
    ):
        resolve_weights(WEIGHTS, settings)


@pytest.fixture
def pulled(hub, settings):
    """Weights that were downloaded from the hub."""
    hub.add("org/model", MODEL)
    return find_weights(WEIGHTS, settings).folder


def check(settings, weights=WEIGHTS):
    return list(verify(weights, settings, progress=SilentProgress()))


def test_a_missing_file_of_a_download_is_named_and_brought_anew(hub, settings, pulled, caplog):
    (pulled / "config.json").unlink()
    hub.requests.clear()
    with caplog.at_level(logging.INFO, "flashkit.weights"):
        assert resolve_weights(WEIGHTS, settings) == pulled
    assert "damaged: config.json is missing" in caplog.text
    assert contents(pulled) == MODEL
    assert len(hub.asked("resolve")) == 1  # what was whole was not asked for again


def test_a_file_that_was_cut_off_is_brought_anew(hub, settings, pulled):
    (pulled / "model.safetensors").write_bytes(MODEL["model.safetensors"][:100])
    assert resolve_weights(WEIGHTS, settings) == pulled
    assert contents(pulled) == MODEL


def test_a_damaged_download_and_no_hub_is_an_error_with_both(hub, settings, pulled):
    (pulled / "config.json").unlink()
    with hub.down(), pytest.raises(WeightsNotFound) as caught:
        resolve_weights(WEIGHTS, settings)
    assert "damaged: config.json is missing" in caught.value.report.message
    assert "failed 3 times" in caught.value.report.message


def test_a_flipped_bit_is_left_alone_by_a_start_and_named_by_verify(settings, pulled):
    changed = bytearray(MODEL["model.safetensors"])
    changed[-1] ^= 1
    (pulled / "model.safetensors").write_bytes(changed)
    assert resolve_weights(WEIGHTS, settings) == pulled
    (verdict,) = check(settings)
    assert [str(each) for each in verdict.damage] == [
        "model.safetensors has another content than it should (its hash is wrong)"
    ]
    assert not verdict.is_sound


def test_repair_brings_the_damaged_file_alone(hub, settings, pulled, manner):
    (pulled / "model.safetensors").write_bytes(b"x" * len(MODEL["model.safetensors"]))
    (verdict,) = check(settings)
    hub.requests.clear()
    assert repair(verdict, WEIGHTS, settings, manner=manner).folder == pulled
    assert contents(pulled) == MODEL
    assert not hub.asked(r"config\.json")
    assert check(settings)[0].is_sound


def test_repair_of_a_folder_for_an_image(hub, settings, manner, pulled):
    from flashkit.worker.weights.fetching import fetch, remote_sources

    (source,) = remote_sources(WEIGHTS, settings)
    baked = fetch(source, WEIGHTS, settings, folder=settings.weights_dir, manner=manner).folder
    (baked / "config.json").write_bytes(b"{}")
    verdict = check(settings)[0]
    assert verdict.folder == baked.resolve()
    assert repair(verdict, WEIGHTS, settings, manner=manner).folder == baked
    assert contents(baked) == MODEL


def test_repair_without_a_source_says_why(make_settings, hub, settings, pulled, manner):
    (pulled / "config.json").write_bytes(b"[" * len(MODEL["config.json"]))
    (verdict,) = check(settings)
    offline._ours.clear()  # as if the user had set it
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        repair(verdict, WEIGHTS, make_settings(is_hub_offline=True), manner=manner)
    with hub.down(), pytest.raises(WeightsError, match="failed 3 times"):
        repair(verdict, WEIGHTS, settings, manner=manner)


def test_what_other_tools_keep_is_not_repaired(make_settings, manner):
    settings = make_settings()
    folder = write_snapshot(settings.hub_cache)
    (folder / "config.json").resolve().write_bytes(b"?")
    (verdict,) = check(settings)
    assert [each.path for each in verdict.damage] == ["config.json"]
    with pytest.raises(WeightsError, match="another tool keeps it"):
        repair(verdict, WEIGHTS, settings, manner=manner)


def test_a_folder_by_hand_is_not_repaired(make_settings, manner):
    settings = make_settings()
    write_model(settings.weights_dir / "org/model", MODEL | {"model.safetensors": b""})
    (verdict,) = check(settings)
    with pytest.raises(WeightsError, match="nothing tells of which commit it is"):
        repair(verdict, WEIGHTS, settings, manner=manner)


def test_a_hugging_face_cache_is_verified_by_the_names_of_its_blobs(make_settings):
    settings = make_settings()
    folder = write_snapshot(settings.hub_cache)
    assert check(settings)[0].is_sound
    (folder / "model.safetensors").resolve().write_bytes(safetensors(seed=1))
    assert [each.path for each in check(settings)[0].damage] == ["model.safetensors"]


def test_a_folder_by_hand_is_compared_with_the_hub_where_a_revision_is_named(hub, settings):
    hub.add("org/model", MODEL)
    folder = write_model(settings.weights_dir / "org/model")
    (verdict,) = check(settings)
    assert len(verdict.unchecked) == len(MODEL)
    assert not verdict.is_sound
    assert check(settings, Weights("org/model", "main"))[0].is_sound
    (folder / "config.json").write_bytes(b"{" * len(MODEL["config.json"]))
    assert [each.path for each in check(settings, Weights("org/model", "main"))[0].damage] == ["config.json"]


def test_a_folder_by_hand_stays_unchecked_while_the_hub_is_down(hub, settings):
    write_model(settings.weights_dir / "org/model")
    with hub.down():
        (verdict,) = check(settings, Weights("org/model", "main"))
    assert len(verdict.unchecked) == len(MODEL)


def test_verify_tells_a_manifest_that_cannot_be_read(make_settings):
    settings = make_settings()
    (write_model(settings.weights_dir / "org/model") / MANIFEST_NAME).write_text("{")
    (verdict,) = check(settings)
    assert "is damaged" in verdict.damage[0].problem


def test_verify_tells_a_file_that_cannot_be_read(settings, pulled):
    (pulled / "config.json").unlink()
    (pulled / "config.json").mkdir()
    (pulled / "model.safetensors").unlink()
    found = {each.path: each.problem for each in check(settings)[0].damage}
    assert found["model.safetensors"] == "is missing"
    assert "bytes, not" in found["config.json"] or "cannot be read" in found["config.json"]


def test_the_manifest_tells_commit_source_and_every_file(hub, settings, pulled):
    manifest = json.loads((pulled / MANIFEST_NAME).read_text())
    assert manifest["commit"] == COMMIT
    assert hub.url in manifest["source"]
    assert {path: entry["size"] for path, entry in manifest["files"].items()} == {
        path: len(content) for path, content in MODEL.items()
    }
    assert all(entry["sha256"] or entry["git_sha1"] for entry in manifest["files"].values())
