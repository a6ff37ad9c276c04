"""`flashkit weights ls`: every copy of every layout, and downloads that are under way or were cut short."""

import json
import os

from flashkit.spec import Weights
from flashkit.worker.weights import find_weights
from flashkit.worker.weights.inventory import list_copies
from flashkit.worker.weights.leases import Lease
from tests.weights.conftest import COMMIT, MODEL, safetensors, write_model, write_snapshot


def test_every_layout_is_listed_with_commit_size_and_state(hub, settings):
    hub.add("org/model", MODEL)
    pulled = find_weights(Weights("org/model"), settings).folder
    write_model(settings.weights_dir / "org/baked", MODEL | {"model.safetensors": safetensors()[:-1]})
    write_snapshot(settings.hub_cache, name="models--org--cached-name")
    write_snapshot(settings.volume_dir / "huggingface-cache/hub", name="models--org--platform")
    write_model(settings.model_cache_dir / "model-store/huggingface/org/store" / COMMIT)
    write_model(settings.volume_dir / "models/org/by-hand")
    (settings.hub_cache / "version.txt").write_text("1")
    copies = {copy.name: copy for copy in list_copies(settings)}
    assert set(copies) == {"org/baked", "org/cached-name", "org/platform", "org/store", "org/by-hand", "org/model"}
    size = sum(map(len, MODEL.values()))
    assert (copies["org/model"].folder, copies["org/model"].size_bytes) == (pulled, size)
    assert {copies[name].commit for name in ("org/model", "org/cached-name", "org/platform", "org/store")} == {COMMIT}
    assert copies["org/by-hand"].commit is None
    assert copies["org/baked"].state.startswith("damaged: model.safetensors has")
    assert copies["org/model"].state == "complete"
    assert copies["org/cached-name"].place == "Hugging Face cache"


def test_nothing_is_listed_where_nothing_is(make_settings):
    assert list(list_copies(make_settings())) == []


def test_a_manifest_that_cannot_be_read_is_damage(hub, settings):
    hub.add("org/model", MODEL)
    pulled = find_weights(Weights("org/model"), settings).folder
    (pulled / "flashkit-weights.json").write_text("{")
    (copy,) = list_copies(settings)
    assert "is damaged" in copy.state


def test_downloads_that_are_under_way_or_were_interrupted_are_told_apart(make_settings):
    settings = make_settings()
    staging = settings.weights_cache / ".staging" / f"org--model--{COMMIT}"
    partial = staging / f"{COMMIT}.token" / "model.safetensors.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(8192))
    (staging / "old.token").mkdir()
    (copy,) = list_copies(settings)
    assert (copy.name, copy.commit) == ("org/model", COMMIT)
    assert "was interrupted, and goes on with the next one" in copy.state
    lease = Lease(staging.with_name(f"{staging.name}.lease"), lambda: {"done": 1, "total": 4})
    assert lease.try_acquire()
    with lease:
        assert [copy.state for copy in list_copies(settings)] == ["downloading, 25 %"]
    staging.with_name(f"{staging.name}.lease").write_text(json.dumps({"host": "x", "pid": os.getpid()}))
    assert [copy.state for copy in list_copies(settings)] == ["downloading"]
