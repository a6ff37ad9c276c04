"""Weights in S3, on a real server with the quirks of Runpod's: found, pushed, refused, cut, repeated."""

import dataclasses
import json
import logging
import subprocess
import sys

import pytest

from flashkit import catalog
from flashkit.errors import ConfigurationError, WeightsDamaged, WeightsNotFound, WeightsSourceError
from flashkit.spec import Weights
from flashkit.worker.weights import find_weights, resolve_weights
from flashkit.worker.weights.fetching import fetch
from flashkit.worker.weights.manifest import MANIFEST_NAME
from flashkit.worker.weights.progress import LogProgress, SilentProgress
from flashkit.worker.weights.s3 import S3, S3Place, list_objects, make_client
from flashkit.worker.weights.s3_push import describe_for_push, part_bytes, push
from flashkit.worker.weights.sources import Persistence
from tests.weights.conftest import COMMIT, MODEL, OTHER_COMMIT, contents, safetensors, write_model
from tests.weights.s3_server import S3Server

WEIGHTS = Weights("org/model")
QUICK = Persistence(attempts=3, sleep=lambda _: None)


@pytest.fixture(scope="module")
def server():
    with S3Server() as running:
        yield running


@pytest.fixture
def s3(server, monkeypatch):
    """The server with an empty bucket, `models`, and keys for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user_test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rps_test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server.reset()
    client = server_client(server)
    for key in list_objects(client, "models", "", persistence=QUICK) if bucket_exists(client) else ():
        client.delete_object(Bucket="models", Key=key)
    client.create_bucket(Bucket="models")
    client.close()
    server.reset()
    return server


def server_client(server):
    from flashkit.settings import Settings

    return make_client(Settings(s3_endpoint=server.real))


def bucket_exists(client):
    return any(bucket["Name"] == "models" for bucket in client.list_buckets()["Buckets"])


@pytest.fixture
def client(s3):
    client = server_client(s3)
    yield client
    client.close()


@pytest.fixture
def settings(make_settings, s3):
    """Settings that know the bucket, and no hub."""
    return make_settings(s3_endpoint=s3.url, weights_s3="s3://models/shelf")


@pytest.fixture
def push_model(settings, tmp_path):
    """Push a model to the bucket."""

    def do(files=MODEL, *, name="org/model", revision=None, to="s3://models/shelf", progress=None, attempts=4):
        folder = write_model(tmp_path / f"own-{len(list(tmp_path.iterdir()))}", files)
        manifest = describe_for_push(folder, name, revision)
        where = push(
            folder, S3Place.parse(to), manifest, settings, progress=progress or SilentProgress(), attempts=attempts
        )
        return manifest, where

    return do


def put(client, files, prefix):
    for path, content in files.items():
        client.put_object(Bucket="models", Key=f"{prefix}/{path}", Body=content)


def test_what_was_pushed_is_found_by_workers_and_kept_on_the_volume(settings, push_model, s3):
    manifest, where = push_model()
    assert where == f"s3://models/shelf/org/model/{manifest.commit}"
    settings.volume_dir.mkdir()
    found = find_weights(WEIGHTS, settings)
    assert contents(found.folder) == MODEL
    assert (found.commit, found.place) == (manifest.commit, "downloaded from s3://models/shelf")
    assert found.folder == settings.volume_dir / "flashkit-weights/org/model" / manifest.commit
    s3.requests.clear()
    assert find_weights(WEIGHTS, settings).folder == found.folder
    assert s3.requests == []


def test_the_place_in_the_weights_goes_before_that_of_the_settings(settings, push_model):
    push_model(MODEL | {"config.json": b'{"which": "settings"}'})
    push_model(MODEL | {"config.json": b'{"which": "weights"}'}, to="s3://models/elsewhere")
    folder = resolve_weights(Weights("org/model", s3="s3://models/elsewhere"), settings)
    assert b"weights" in contents(folder)["config.json"]


def test_s3_goes_before_the_hub_and_the_hub_follows_it(make_settings, s3, hub, push_model, caplog):
    hub.add("org/model", MODEL)
    hub.add("org/second", MODEL)
    both = make_settings(s3_endpoint=s3.url, weights_s3="s3://models/shelf", hub_url=hub.url)
    push_model()
    assert find_weights(WEIGHTS, both).place == "downloaded from s3://models/shelf"
    assert hub.requests == []
    with caplog.at_level(logging.INFO, "flashkit.weights"):
        assert "the hub" in find_weights(Weights("org/second"), both).place
    assert "passing over s3://models/shelf (org/second): there is no org/second" in caplog.text


@pytest.mark.parametrize("revision", ["v1", "feature/x"])
def test_a_reference_leads_to_its_commit(settings, push_model, revision):
    pushed, _ = push_model(revision=revision)
    push_model(MODEL | {"config.json": b"{}"})
    assert find_weights(Weights("org/model", revision), settings).commit == pushed.commit
    assert find_weights(Weights("org/model", pushed.commit), settings).folder.name == pushed.commit
    assert find_weights(Weights("org/model", pushed.commit[:9]), settings).folder.name == pushed.commit


def test_a_commit_that_is_not_there_is_an_error_that_names_what_is(settings, push_model):
    pushed, _ = push_model()
    with pytest.raises(WeightsNotFound) as caught:
        resolve_weights(Weights("org/model", OTHER_COMMIT), settings)
    assert f"there is no {OTHER_COMMIT} of org/model: it has {pushed.commit}" in caught.value.report.message


def test_an_upload_without_its_last_object_is_not_complete(settings, push_model, client):
    manifest, where = push_model()
    client.delete_object(Bucket="models", Key=f"{where.removeprefix('s3://models/')}/{MANIFEST_NAME}")
    with pytest.raises(WeightsNotFound, match=f"commit {manifest.commit} of org/model has no manifest") as caught:
        resolve_weights(WEIGHTS, settings)
    assert "push it again" in caught.value.report.hint


def test_the_newest_of_several_commits_is_taken_where_no_reference_is(settings, push_model, client):
    pushed, _ = push_model(revision="v1")
    client.delete_object(Bucket="models", Key="shelf/org/model/refs/v1")
    assert find_weights(WEIGHTS, settings).commit == pushed.commit


def test_a_folder_that_somebody_uploaded_will_do_and_is_hashed_on_arrival(settings, client):
    put(client, MODEL, "shelf/org/model")
    folder = resolve_weights(WEIGHTS, settings)
    assert contents(folder) == MODEL
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert all(entry["sha256"] for entry in manifest["files"].values())
    with pytest.raises(WeightsNotFound, match="nothing tells of which commit its files are"):
        resolve_weights(Weights("org/model", COMMIT), settings)


def test_a_damaged_manifest_is_named_and_the_hub_is_asked(settings, push_model, client, hub):
    _, where = push_model()
    client.put_object(Bucket="models", Key=f"{where.removeprefix('s3://models/')}/{MANIFEST_NAME}", Body=b"{")
    with pytest.raises(WeightsNotFound, match=f"{MANIFEST_NAME} is damaged"):
        resolve_weights(WEIGHTS, settings)
    hub.add("org/model", MODEL)
    with_hub = dataclasses.replace(settings, hub_url=hub.url, is_hub_offline=False)
    assert "the hub" in find_weights(WEIGHTS, with_hub).place


def test_a_changed_object_is_refused_by_its_hash(settings, push_model, client, manner):
    _, where = push_model()
    key = f"{where.removeprefix('s3://models/')}/model.safetensors"
    client.put_object(Bucket="models", Key=key, Body=safetensors(seed=7))
    source = S3(S3Place.parse("s3://models/shelf"), WEIGHTS, settings, QUICK)
    with pytest.raises(WeightsDamaged, match=r"model\.safetensors from s3://models/shelf has another content"):
        fetch(source, WEIGHTS, settings, manner=manner)


def test_an_object_that_is_gone_is_named(settings, push_model, client, manner):
    _, where = push_model()
    client.delete_object(Bucket="models", Key=f"{where.removeprefix('s3://models/')}/config.json")
    source = S3(S3Place.parse("s3://models/shelf"), WEIGHTS, settings, QUICK)
    with pytest.raises(WeightsSourceError, match=r"s3://models/shelf: .*key does not exist"):
        fetch(source, WEIGHTS, settings, manner=manner)


def test_a_server_under_load_is_asked_again(settings, push_model, s3):
    s3.fail("PUT", "model.safetensors", "502", times=2)
    s3.fail("HEAD", "config", "502")
    push_model()
    s3.fail("GET", "model.safetensors", "502", times=2)
    s3.fail("GET", MANIFEST_NAME, "502", times=2)
    assert contents(resolve_weights(WEIGHTS, settings)) == MODEL


def test_a_cut_connection_goes_on_where_it_was(settings, push_model, s3, manner):
    big = MODEL | {"model.safetensors": safetensors(1_000_000)}
    push_model(big)
    s3.fail("GET", "model.safetensors", "cut", times=8, value=20_000)
    source = S3(S3Place.parse("s3://models/shelf"), WEIGHTS, settings, QUICK)
    assert contents(fetch(source, WEIGHTS, settings, manner=manner).folder) == big


def test_a_listing_of_many_pages_is_read_to_its_end(client):
    put(client, {f"{n:03}": b"x" for n in range(7)}, "many")
    found = list_objects(client, "models", "many/", persistence=QUICK)
    assert sorted(found) == [f"many/{n:03}" for n in range(7)]


def test_a_token_that_comes_twice_is_used_again(settings, client, s3):
    put(client, {f"{n:03}": b"x" for n in range(10)}, "many")
    through_proxy = make_client(settings)
    s3.fail("GET", "list-type=2.*continuation-token", "repeat", times=2)
    found = list_objects(through_proxy, "models", "many/", persistence=QUICK)
    through_proxy.close()
    assert len(found) == 10
    assert len(s3.asked("GET", "continuation-token")) == 4


def test_a_token_that_never_changes_is_an_error(settings, client, s3):
    put(client, {f"{n:03}": b"x" for n in range(10)}, "many")
    through_proxy = make_client(settings)
    s3.fail("GET", "list-type=2.*continuation-token", "repeat", times=100)
    with pytest.raises(WeightsSourceError, match="gives the same token again"):
        list_objects(through_proxy, "models", "many/", persistence=QUICK)
    through_proxy.close()


def test_folders_that_are_listed_like_files_are_none(settings, client):
    put(client, MODEL, "shelf/org/model")
    put(client, {"": b"", "tokenizer": b"", "tokenizer/": b"", "empty.txt": b""}, "shelf/org/model")
    assert contents(resolve_weights(WEIGHTS, settings)) == MODEL | {"empty.txt": b""}


def test_what_is_there_already_is_not_uploaded_again(push_model, s3):
    push_model()
    s3.requests.clear()
    push_model()
    assert not s3.asked("PUT", r"model\.safetensors|config")
    assert s3.asked("PUT", MANIFEST_NAME)


def test_the_manifest_is_the_last_but_the_reference(push_model, s3):
    push_model()
    puts = [path.partition("?")[0] for _, path, _ in s3.asked("PUT", ".")]
    assert puts[-2].endswith(MANIFEST_NAME)
    assert puts[-1].endswith("refs/main")


def test_a_large_file_goes_up_in_parts(push_model, s3, settings):
    lines = []
    big = {"model.safetensors": safetensors(130_000_000)}
    push_model(big, progress=LogProgress(lambda text, _: lines.append(text)))
    sizes = [size for _, _, size in s3.asked("PUT", "partNumber")]
    assert len(sizes) == 3
    assert max(sizes) <= 64_000_000 + 100_000
    assert "130 MB" in lines[0]


def test_parts_are_no_longer_than_runpod_takes_and_no_more_than_s3_takes():
    for size in (0, 10**8, 10**12, catalog.S3_OBJECT_BYTES):
        assert part_bytes(size) <= catalog.S3_PART_BYTES
        assert size / part_bytes(size) <= 10_000
    with pytest.raises(ConfigurationError, match="too large for S3"):
        part_bytes(catalog.S3_OBJECT_BYTES + 1)


def test_an_upload_that_is_refused_says_why_and_takes_its_progress_back(push_model, s3):
    counts = []

    class Counting(SilentProgress):
        def advance(self, count):
            counts.append(count)

    s3.fail("PUT", "model.safetensors", "502", times=100)
    with pytest.raises(WeightsSourceError, match=r"model\.safetensors failed: HTTP 502"):
        push_model({"model.safetensors": safetensors()}, progress=Counting(), attempts=2)
    assert sum(counts) == 0


def test_a_bucket_that_is_not_there_is_named(push_model, make_settings, s3):
    with pytest.raises(WeightsSourceError, match="s3://nothing: "):
        push_model(to="s3://nothing")
    with pytest.raises(WeightsNotFound, match="s3://nothing: The specified bucket does not exist"):
        resolve_weights(WEIGHTS, make_settings(s3_endpoint=s3.url, weights_s3="s3://nothing"))


def test_missing_keys_are_said_with_which_keys_are_meant(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsNotFound, match="there are no keys for S3") as caught:
        resolve_weights(WEIGHTS, settings)
    assert "not the account's API key" in caught.value.report.hint


def test_a_server_that_is_away_is_named(make_settings, s3):
    away = make_settings(s3_endpoint="http://127.0.0.1:9", weights_s3="s3://models/shelf")
    source = S3(S3Place.parse("s3://models/shelf"), WEIGHTS, away, Persistence(attempts=1))
    with pytest.raises(WeightsSourceError, match="Could not connect"):
        source.list_files()
    source.close()


def test_a_refusal_is_said_with_what_to_check():
    from botocore.exceptions import ClientError

    from flashkit.worker.weights.s3 import in_our_words

    def answered(status, code, message=""):
        return ClientError(
            {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Get"
        )

    with pytest.raises(WeightsSourceError, match="s3://b refuses: AccessDenied"), in_our_words("s3://b"):
        raise answered(403, "AccessDenied")
    with pytest.raises(WeightsSourceError, match=r"s3://b: .*InvalidRange"), in_our_words("s3://b"):
        raise answered(416, "InvalidRange")


def test_an_incomplete_folder_is_not_pushed(tmp_path):
    folder = write_model(tmp_path / "own", {"model.safetensors": safetensors()[:-1]})
    with pytest.raises(WeightsDamaged, match=r"own is not complete: model\.safetensors has"):
        describe_for_push(folder, "org/model", None)


def test_a_folder_without_a_name_is_not_pushed(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing tells which model") as caught:
        describe_for_push(write_model(tmp_path / "own"), None, None)
    assert "--name" in caught.value.report.hint


def test_own_weights_get_a_commit_made_of_their_content(tmp_path):
    first, second = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    commit = describe_for_push(first, "org/model", None).commit
    assert describe_for_push(second, "org/model", None).commit == commit
    (second / "config.json").write_bytes(b"{}")
    assert describe_for_push(second, "org/model", None).commit != commit
    assert describe_for_push(write_model(tmp_path / COMMIT), "org/model", None).commit == COMMIT


def test_a_folder_with_a_manifest_is_pushed_as_it_says(settings, push_model, tmp_path):
    push_model(revision="v1")
    folder = resolve_weights(Weights("org/model", "v1"), settings)
    again = describe_for_push(folder, None, None)
    assert (again.name, again.revision) == ("org/model", "v1")
    (folder / "config.json").unlink()
    with pytest.raises(WeightsDamaged, match=r"config\.json is missing"):
        describe_for_push(folder, None, None)


@pytest.mark.parametrize(("region", "endpoint"), [("EU-RO-1", "https://s3api-eu-ro-1.runpod.io/"), ("us-east-1", None)])
def test_the_address_of_runpods_s3_follows_from_the_region(make_settings, monkeypatch, region, endpoint):
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    client = make_client(make_settings())
    url = client.meta.endpoint_url
    client.close()
    assert url.rstrip("/") == (endpoint or "https://s3.amazonaws.com").rstrip("/")
    assert catalog.s3_endpoint(region) == endpoint


def test_the_region_follows_from_the_address_of_runpods_s3(make_settings, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)
    client = make_client(make_settings(s3_endpoint="https://s3api-us-ks-2.runpod.io/"))
    region = client.meta.region_name
    client.close()
    assert region == "US-KS-2"


def test_without_boto3_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from flashkit.settings import Settings\n"
        "from flashkit.worker.weights.s3 import make_client\n"
        "make_client(Settings())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'flashkit-serverless[s3]'" in done.stderr
