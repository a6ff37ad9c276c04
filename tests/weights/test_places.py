"""Where weights are found: every layout, the order, revisions, and what is passed over with which words."""

import json
import logging
import os
import shutil

import pytest

from flashkit.errors import WeightsNotFound
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights import find_weights, resolve_weights
from flashkit.worker.weights.manifest import MANIFEST_NAME, FileEntry, Manifest, Selection
from tests.weights.conftest import COMMIT, MODEL, OTHER_COMMIT, write_model, write_snapshot

WEIGHTS = Weights("org/model")


def manifest_of(files, *, commit=COMMIT, name="org/model", **options):
    entries = tuple(FileEntry(path, len(content)) for path, content in files.items())
    return Manifest(name, commit, entries, **options).to_json()


def write_shelf(root, *, commit=COMMIT, ref=None, files=None):
    folder = write_model(root / "org/model" / commit, files)
    (folder / MANIFEST_NAME).write_text(manifest_of(MODEL if files is None else files, commit=commit))
    if ref:
        (root / "org/model/refs").mkdir(exist_ok=True)
        (root / "org/model/refs" / ref).write_text(commit)
    return folder


LAYOUTS = {
    "weights folder": lambda s: write_model(s.weights_dir / "org/model"),
    "Hugging Face cache": lambda s: write_snapshot(s.hub_cache),
    "model cache": lambda s: write_snapshot(s.volume_dir / "huggingface-cache/hub"),
    "model store": lambda s: write_model(s.model_cache_dir / "model-store/huggingface/org/model" / COMMIT),
    "model cache of the SDK": lambda s: write_model(s.model_cache_dir / "cache/org/model/main"),
    "network volume": lambda s: write_shelf(s.volume_dir / "flashkit-weights"),
    "network volume, by hand": lambda s: write_model(s.volume_dir / "models/org/model"),
    "downloads": lambda s: write_shelf(s.weights_cache),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found_and_said_in_the_log(make_settings, layout, caplog):
    settings = make_settings()
    folder = LAYOUTS[layout](settings)
    with caplog.at_level(logging.INFO, "flashkit.weights"):
        found = find_weights(WEIGHTS, settings)
    assert found.folder.resolve() == folder.resolve()
    assert found.place == layout.partition(",")[0]
    assert f"weights org/model: {found.place} ({found.folder})" in caplog.text


def test_the_order_is_the_documented_one(make_settings):
    settings = make_settings()
    folders = {layout: write(settings) for layout, write in LAYOUTS.items()}
    for layout, folder in folders.items():
        assert find_weights(WEIGHTS, settings).folder.resolve() == folder.resolve(), layout
        shutil.rmtree(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lower_cased_name_is_found(make_settings, layout):
    settings = make_settings()
    folder = LAYOUTS[layout](settings)
    assert find_weights(Weights("Org/Model"), settings).folder.resolve() == folder.resolve()


def test_the_model_cache_may_have_files_without_a_folder_for_the_revision(make_settings):
    settings = make_settings()
    folder = write_model(settings.model_cache_dir / "model-store/huggingface/org/model")
    assert resolve_weights(WEIGHTS, settings).resolve() == folder.resolve()


def test_a_path_is_used_and_nothing_else(make_settings, tmp_path):
    settings = make_settings()
    write_model(settings.weights_dir / "org/model")
    own = write_model(tmp_path / "fine-tuned")
    assert resolve_weights(Weights("org/model", path=str(own)), settings) == own
    with pytest.raises(WeightsNotFound, match="not found in 1 places: path= of the weights"):
        resolve_weights(Weights("org/model", path=str(tmp_path / "nowhere")), settings)


def test_finding_weights_keeps_the_hugging_face_libraries_off_the_hub(make_settings):
    settings = make_settings()
    write_model(settings.weights_dir / "org/model")
    resolve_weights(WEIGHTS, settings)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


def test_what_the_user_has_set_stays(make_settings, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    settings = make_settings()
    write_model(settings.weights_dir / "org/model")
    resolve_weights(WEIGHTS, settings)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert "TRANSFORMERS_OFFLINE" not in os.environ


@pytest.mark.parametrize("pinned", [COMMIT, COMMIT[:7], "v1"])
def test_a_pinned_revision_is_found_in_a_hugging_face_cache_beside_others(make_settings, pinned):
    settings = make_settings()
    wanted = write_snapshot(settings.hub_cache, ref="v1")
    write_snapshot(settings.hub_cache, commit=OTHER_COMMIT)
    found = find_weights(Weights("org/model", pinned), settings)
    assert (found.folder, found.commit) == (wanted, COMMIT)


def test_without_a_revision_a_hugging_face_cache_gives_main_or_its_newest_snapshot(make_settings):
    settings = make_settings()
    main = write_snapshot(settings.hub_cache, ref="main")
    newer = write_snapshot(settings.hub_cache, commit=OTHER_COMMIT, ref=None)
    os.utime(main, (1, 1))
    assert find_weights(WEIGHTS, settings).folder == main
    (settings.hub_cache / "models--org--model/refs/main").unlink()
    assert find_weights(WEIGHTS, settings).folder == newer


def test_a_branch_of_a_hugging_face_cache_is_followed_to_its_commit(make_settings):
    settings = make_settings()
    folder = write_snapshot(settings.hub_cache, ref="feature")
    found = find_weights(Weights("org/model", "feature"), settings)
    assert (found.folder, found.commit, found.revision) == (folder, COMMIT, "feature")


@pytest.mark.parametrize("pinned", [COMMIT, COMMIT[:8], "v1"])
def test_a_shelf_has_several_commits_side_by_side(make_settings, pinned):
    settings = make_settings()
    shelf = settings.volume_dir / "flashkit-weights"
    wanted = write_shelf(shelf, ref="v1")
    newest = write_shelf(shelf, commit=OTHER_COMMIT)
    os.utime(wanted, (1, 1))
    assert resolve_weights(Weights("org/model", pinned), settings) == wanted
    assert resolve_weights(WEIGHTS, settings) == newest


@pytest.mark.parametrize("layout", ["model store", "network volume", "Hugging Face cache", "model cache", "downloads"])
def test_a_copy_of_another_commit_is_passed_over_by_name(make_settings, layout):
    settings = make_settings()
    LAYOUTS[layout](settings)
    with pytest.raises(WeightsNotFound) as caught:
        resolve_weights(Weights("org/model", OTHER_COMMIT), settings)
    assert f"it has {COMMIT}, not {OTHER_COMMIT}" in caught.value.report.message


def test_a_baked_copy_of_another_commit_is_passed_over_by_its_manifest(make_settings, caplog):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    (baked / MANIFEST_NAME).write_text(manifest_of(MODEL, revision="main"))
    cached = write_snapshot(settings.hub_cache, commit=OTHER_COMMIT)
    with caplog.at_level(logging.INFO, "flashkit.weights"):
        assert resolve_weights(Weights("org/model", OTHER_COMMIT), settings) == cached
    assert f"passing over weights folder ({baked}): it has main {COMMIT}, not {OTHER_COMMIT}" in caplog.text


def test_a_copy_of_the_wrong_branch_is_passed_over(make_settings):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    (baked / MANIFEST_NAME).write_text(manifest_of(MODEL, revision="main"))
    with pytest.raises(WeightsNotFound, match="not v2"):
        resolve_weights(Weights("org/model", "v2"), settings)
    assert resolve_weights(Weights("org/model", "main"), settings).resolve() == baked.resolve()


def test_a_copy_of_which_nothing_tells_the_commit_is_taken_with_a_word(make_settings, caplog):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    assert resolve_weights(Weights("org/model", COMMIT), settings).resolve() == baked.resolve()
    assert f"nothing tells whether a copy is of {COMMIT}" in caplog.text


def test_the_notes_of_hf_download_tell_the_commit(make_settings):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    notes = baked / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    for path in ("config.json", "model.safetensors"):
        (notes / f"{path}.metadata").write_text(f"{COMMIT}\n{'0' * 64}\n1700000000\n")
    assert find_weights(Weights("org/model", COMMIT), settings).commit == COMMIT
    with pytest.raises(WeightsNotFound, match=f"it has commit {COMMIT}, not {OTHER_COMMIT}"):
        resolve_weights(Weights("org/model", OTHER_COMMIT), settings)
    (notes / "config.json.metadata").write_bytes(b"\xff\xfe")
    assert find_weights(WEIGHTS, settings).commit is None


def test_a_shelf_without_a_manifest_is_not_complete(make_settings):
    settings = make_settings()
    (write_shelf(settings.volume_dir / "flashkit-weights") / MANIFEST_NAME).unlink()
    with pytest.raises(WeightsNotFound, match="it has no manifest: its download or upload is not complete"):
        resolve_weights(WEIGHTS, settings)


@pytest.mark.parametrize(
    ("held", "asked", "is_taken"),
    [
        ([Selection(("*.json",))], {}, False),
        ([Selection(("*.json",))], {"allow": ["*.json"]}, True),
        ([Selection(("*.json",)), Selection()], {}, True),
        ([Selection()], {"allow": ["*.json", "*.txt"]}, True),
        ([Selection()], {"allow": ["*.json", "onnx/"]}, False),
        ([Selection()], {"ignore": ["*.txt"]}, True),
        ([Selection((), ("*.txt",))], {}, False),
        ([], {"allow": ["onnx/"]}, True),
    ],
)
def test_a_copy_that_may_lack_files_is_passed_over(make_settings, held, asked, is_taken):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    (baked / MANIFEST_NAME).write_text(manifest_of(MODEL, selections=tuple(held)))
    if is_taken:
        assert resolve_weights(Weights("org/model", **asked), settings).resolve() == baked.resolve()
    else:
        with pytest.raises(WeightsNotFound, match="it holds another part of the files: allow="):
            resolve_weights(Weights("org/model", **asked), settings)


def test_a_folder_that_holds_another_model_is_passed_over(make_settings):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    (baked / MANIFEST_NAME).write_text(manifest_of(MODEL, name="org/else"))
    with pytest.raises(WeightsNotFound, match="it holds org/else"):
        resolve_weights(WEIGHTS, settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2}', "has format 2, and this flashkit reads format 1"),
        ('{"format": 1, "name": "a", "commit": "main", "files": {}}', "is damaged"),
        (json.dumps({"format": 1, "name": "a", "commit": COMMIT, "files": {"../x": {"size": 1}}}), "is damaged"),
        (json.dumps({"format": 1, "name": "a", "commit": COMMIT, "files": {"x": {"size": -1}}}), "is damaged"),
        (json.dumps({"format": 1, "name": "a", "commit": COMMIT, "files": {"/x": {"size": 1}}}), "is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(make_settings, text, said):
    settings = make_settings()
    baked = write_model(settings.weights_dir / "org/model")
    (baked / MANIFEST_NAME).write_text(text)
    with pytest.raises(WeightsNotFound) as caught:
        resolve_weights(WEIGHTS, settings)
    assert MANIFEST_NAME in caught.value.report.message
    assert said in caught.value.report.message


def test_a_manifest_that_is_a_folder_is_named(make_settings):
    settings = make_settings()
    (write_model(settings.weights_dir / "org/model") / MANIFEST_NAME).mkdir()
    with pytest.raises(WeightsNotFound, match="cannot be read: Is a directory"):
        resolve_weights(WEIGHTS, settings)


def test_weights_that_are_nowhere_name_every_place_and_what_to_do(make_settings):
    with pytest.raises(WeightsNotFound) as caught:
        resolve_weights(Weights("org/model", "v9"), make_settings())
    message = caught.value.report.message
    assert "'org/model' at v9" in message
    for word in ("weights folder", "Hugging Face cache", "model cache", "model store", "network volume", "downloads"):
        assert f"{word} (" in message
    assert "not asked, as HF_HUB_OFFLINE is set" in message
    assert len(caught.value.report.details["places"]) == 9
    assert "flashkit weights pull org/model" in caught.value.report.hint


def test_the_call_without_settings_reads_the_environment(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "org/model")
    monkeypatch.setenv("FLASHKIT_WEIGHTS_DIR", str(tmp_path))
    assert resolve_weights(WEIGHTS) == folder.resolve()


def test_settings_take_the_variables_of_the_hugging_face_libraries(tmp_path):
    def read(**environ):
        return Settings.from_environment(environ, folder=tmp_path)

    assert str(read(HF_HOME="/x").hub_cache) == "/x/hub"
    assert str(read(HF_HOME="/x", HF_HUB_CACHE="/y").hub_cache) == "/y"
    assert read(HF_ENDPOINT="http://mirror/").hub_url == "http://mirror"
    assert read(TRANSFORMERS_OFFLINE="ON").is_hub_offline
    assert not read(HF_HUB_OFFLINE="0").is_hub_offline
    assert "hf_secret" not in repr(read(HF_TOKEN="hf_secret"))
