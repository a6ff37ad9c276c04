"""How a download appears: whole and at once, whoever else was at it, and whatever an earlier end has left."""

import os
import shutil

import pytest

from flashkit.errors import WeightsError
from flashkit.spec import Weights
from flashkit.worker.weights.fetching import fetch
from flashkit.worker.weights.hub import Hub
from flashkit.worker.weights.leases import Lease
from flashkit.worker.weights.manifest import MANIFEST_NAME, FileEntry, Manifest, matches
from flashkit.worker.weights.progress import SilentProgress
from flashkit.worker.weights.shelves import claim, is_published, on_shelf, prepare, publish
from flashkit.worker.weights.sources import Persistence
from flashkit.worker.weights.transfer import Transfer
from tests.weights.conftest import COMMIT, MODEL, contents, safetensors, write_model

WEIGHTS = Weights("org/model")
MANIFEST = Manifest("org/model", COMMIT, tuple(FileEntry(path, len(content)) for path, content in MODEL.items()))
OTHER = {"config.json": b"{}", "other.bin": b"x"}


@pytest.fixture
def target(tmp_path):
    target = on_shelf(tmp_path, "org/model", COMMIT)
    prepare(target)
    return target


def test_nothing_is_published_before_publish(target):
    staging = write_model(claim(target, "a"))
    assert not is_published(target)
    publish(target, staging, MANIFEST)
    assert is_published(target, MANIFEST)
    assert contents(target.final) == MODEL
    assert not staging.exists()


def test_who_was_slower_leaves_the_others_copy_and_goes(target):
    first = write_model(claim(target, "a"))
    second = write_model(target.staging("b"))
    publish(target, first, MANIFEST)
    inode = (target.final / "config.json").stat().st_ino
    publish(target, second, MANIFEST)
    assert (target.final / "config.json").stat().st_ino == inode
    assert not second.exists()


def test_a_damaged_copy_gives_way(target):
    write_model(target.final, {"config.json": b"broken"})
    publish(target, write_model(claim(target, "a")), MANIFEST)
    assert contents(target.final) == MODEL
    assert [path.name for path in (target.root / ".staging").rglob("*")] == []


def test_a_copy_with_a_manifest_that_cannot_be_read_gives_way(target):
    (write_model(target.final) / MANIFEST_NAME).write_text("{")
    assert not is_published(target)
    publish(target, write_model(claim(target, "a")), MANIFEST)
    assert is_published(target)


def test_whose_staging_folder_was_taken_over_cannot_publish(target):
    staging = write_model(claim(target, "a"))
    taken = claim(target, "b")
    assert contents(taken) == MODEL
    with pytest.raises(FileNotFoundError):
        publish(target, staging, MANIFEST)
    assert not target.final.exists()


def test_of_several_left_over_downloads_the_largest_is_gone_on_with(target):
    small, large = target.staging("a"), target.staging("b")
    write_model(small, {"x": b"1"})
    write_model(large, {"y": bytes(100_000)})
    assert set(contents(claim(target, "c"))) == {"y"}
    assert [path.name for path in (target.root / ".staging" / target.key).iterdir()] == [f"{COMMIT}.c"]


def test_a_copy_that_was_put_aside_is_never_gone_on_with(target):
    write_model(target.root / ".staging" / target.key / "old.token")
    assert contents(claim(target, "a")) == {}


def test_a_place_that_cannot_be_written_is_named(target):
    staging = write_model(claim(target, "a"))
    target.final.parent.parent.mkdir(parents=True)
    target.final.parent.write_text("a file where the model's folder should be")
    with pytest.raises(WeightsError, match="cannot be written: File exists"):
        publish(target, staging, MANIFEST)


def test_a_file_whose_parts_had_all_come_before_the_end_is_not_asked_for_again(hub, settings, tmp_path):
    hub.add("org/model", {"model.safetensors": safetensors(300_000)})
    source = Hub(WEIGHTS, settings)
    (entry,) = source.list_files().files
    folder = write_model(tmp_path / "staging", {"model.safetensors.part": hub.repos["org/model"].files[entry.path]})
    (folder / "model.safetensors.part.done").write_text("100000\n0\n1\n2\n3\n")
    Transfer(source, folder, [entry], progress=SilentProgress(), part_bytes=100_000).run("model")
    source.close()
    assert not hub.asked("/resolve/")
    assert matches(folder / entry.path, entry)
    assert [path.name for path in folder.iterdir()] == [entry.path]


def test_files_are_copied_where_they_cannot_be_linked(hub, settings, manner, monkeypatch):
    hub.add("org/model", MODEL)
    folder = fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=manner).folder
    (folder / "config.json").unlink()

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as file systems without links do
    hub.requests.clear()
    fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=manner)
    assert contents(folder) == MODEL
    assert not hub.asked("/cdn/")


def test_a_copy_with_a_broken_manifest_is_brought_anew_and_a_repair_goes_on_after_a_kill(hub, settings, manner):
    hub.add("org/model", MODEL)
    folder = fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=manner).folder
    (folder / MANIFEST_NAME).write_text("{")
    fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=manner)
    assert is_published(on_shelf(settings.weights_cache, "org/model", COMMIT))
    # A repair that was killed has linked what was whole already.
    (folder / "config.json").unlink()
    staging = on_shelf(settings.weights_cache, "org/model", COMMIT).staging("killed")
    write_model(staging, {"model.safetensors": MODEL["model.safetensors"]})
    fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=manner)
    assert contents(folder) == MODEL


def test_a_worker_that_lost_its_lease_before_it_began_does_not_begin(hub, settings, manner):
    """The lease is taken away while the first worker is about to claim its staging folder."""
    hub.add("org/model", MODEL)
    target = on_shelf(settings.weights_cache, "org/model", COMMIT)
    taken = []

    class Late(SilentProgress):
        def begin(self, what, *, total, done=0):
            if not taken:
                other = Lease(target.lease_file, pace=manner.pace)
                taken.append(other.take_over(target.lease_file.read_bytes()))
                shutil.rmtree(target.root / ".staging" / target.key)
                target.lease_file.unlink()

    folder = fetch(Hub(WEIGHTS, settings), WEIGHTS, settings, manner=with_progress(manner, Late)).folder
    assert taken == [True]
    assert contents(folder) == MODEL


def with_progress(manner, progress):
    import dataclasses

    return dataclasses.replace(manner, make_progress=progress)


def test_patience_ends_with_the_count_of_failures():
    pauses = []
    patience = Persistence(attempts=8, sleep=pauses.append)
    for failures in range(1, 8):
        patience.pause(failures)
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15]
