"""`flashkit weights` as people run it: real processes, a hub and an S3 server on loopback."""

import json
import re
import sys

import pexpect
import pytest

from flashkit.worker.weights.manifest import MANIFEST_NAME
from tests.cli.conftest import FLASHKIT, clean_environment, run_flashkit
from tests.weights.conftest import COMMIT, MODEL, contents, safetensors, write_model, write_snapshot
from tests.weights.s3_server import S3Server

KEYS = {"AWS_ACCESS_KEY_ID": "user_test", "AWS_SECRET_ACCESS_KEY": "rps_test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def environment(tmp_path, hub):
    return {
        "HOME": str(tmp_path),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "FLASHKIT_WEIGHTS_DIR": str(tmp_path / "image"),
        "FLASHKIT_VOLUME": str(tmp_path / "volume"),
        "FLASHKIT_MODEL_CACHE": str(tmp_path / "runpod"),
        **KEYS,
    }


@pytest.fixture
def flashkit(tmp_path, environment):
    def run(*arguments, **more):
        return run_flashkit("weights", *arguments, folder=tmp_path, **{**environment, **more})

    return run


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


def test_pull_brings_a_model_to_where_workers_look_and_prints_the_folder(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL)
    done = flashkit("pull", "org/model")
    folder = tmp_path / ".cache/flashkit/weights/org/model" / COMMIT
    assert (done.code, done.out) == (0, f"{folder}\n")
    assert f"org/model from the hub ({hub.url}): 100 %" in done.err
    assert contents(folder) == MODEL
    listed = json.loads(flashkit("ls", "--json").out)
    assert [(copy["name"], copy["commit"], copy["state"]) for copy in listed] == [("org/model", COMMIT, "complete")]


def test_pull_for_an_image(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL | {"extra.txt": b"x"})
    done = flashkit("pull", "org/model", "--to", "image", "--ignore", "*.txt", "--revision", "main", "--json")
    assert json.loads(done.out) == {
        "name": "org/model", "commit": COMMIT, "revision": "main", "where": str(tmp_path / "image/org/model")
    }  # fmt: skip
    assert set(contents(tmp_path / "image/org/model")) == {"config.json", "model.safetensors"}


def test_pull_to_the_volume_needs_one(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL)
    done = flashkit("pull", "org/model", "--to", "volume")
    assert done.code == 2
    assert "no network volume is mounted here" in done.err
    assert "s3://VOLUME_ID/flashkit-weights" in done.err
    (tmp_path / "volume").mkdir()
    assert (
        str(tmp_path / "volume/flashkit-weights/org/model" / COMMIT)
        in flashkit("pull", "org/model", "--to", "volume").out
    )


def test_a_model_goes_to_s3_and_from_there_to_a_worker(flashkit, hub, s3, tmp_path):
    hub.add("org/model", MODEL)
    address = {"FLASHKIT_S3_ENDPOINT": s3.url}
    make_bucket(s3, "volume1")
    done = flashkit("pull", "org/model", "--to", "s3://volume1/flashkit-weights", **address)
    assert (done.code, done.out) == (0, f"s3://volume1/flashkit-weights/org/model/{COMMIT}\n")
    hub.requests.clear()
    done = flashkit("pull", "org/model", "--from", "s3://volume1/flashkit-weights", "--to", "image", **address)
    assert done.code == 0
    assert contents(tmp_path / "image/org/model") == MODEL
    assert hub.requests == []


def make_bucket(s3, name):
    from flashkit.settings import Settings
    from flashkit.worker.weights.s3 import make_client

    with pytest.MonkeyPatch.context() as patch:
        for key, value in KEYS.items():
            patch.setenv(key, value)
        client = make_client(Settings(s3_endpoint=s3.real))
        client.create_bucket(Bucket=name)
        client.close()


def test_push_of_own_weights(flashkit, s3, tmp_path):
    make_bucket(s3, "volume2")
    write_model(tmp_path / "tuned")
    address = {"FLASHKIT_S3_ENDPOINT": s3.url}
    refused = flashkit("push", "tuned", "s3://volume2/w", **address)
    assert refused.code == 2
    assert "say it: --name organisation/name" in refused.err
    done = flashkit("push", "tuned", "s3://volume2/w", "--name", "me/tuned", "--revision", "v1", "--json", **address)
    assert re.fullmatch(r"s3://volume2/w/me/tuned/[0-9a-f]{40}", json.loads(done.out)["where"])
    plain = flashkit("push", "tuned", "s3://volume2/w", "--name", "me/tuned", **address)
    assert plain.out.startswith("s3://volume2/w/me/tuned/")


def test_push_to_what_is_no_place_in_s3_is_refused(flashkit, tmp_path):
    write_model(tmp_path / "tuned")
    for place in ("volume2/w", "s3://"):
        done = flashkit("push", "tuned", place, "--name", "me/tuned")
        assert done.code == 2
        assert "write s3://bucket/prefix" in done.err


def test_pull_falls_back_to_the_hub_and_says_so(flashkit, hub, s3):
    hub.add("org/model", MODEL)
    make_bucket(s3, "volume3")
    address = {"FLASHKIT_S3_ENDPOINT": s3.url, "FLASHKIT_WEIGHTS_S3": "s3://volume3/w"}
    done = flashkit("pull", "org/model", **address)
    assert done.code == 0
    assert "s3://volume3/w: there is no org/model" in done.err
    hub_only = flashkit("pull", "org/model", "--from", "hub", **address)
    assert "s3://" not in hub_only.err


def test_pull_from_nowhere_is_refused(flashkit):
    assert "neither hub nor s3://" in flashkit("pull", "org/model", "--from", "home").err
    offline = flashkit("pull", "org/model", HF_HUB_OFFLINE="1")
    assert (offline.code, "HF_HUB_OFFLINE is set" in offline.err) == (2, True)


def test_errors_of_the_hub_are_said_without_a_traceback(flashkit, hub):
    hub.add("org/gated", MODEL, is_gated=True)
    gated = flashkit("pull", "org/gated")
    assert gated.code == 2
    assert "WeightsError: the repository org/gated is gated, and no token is set" in gated.err
    unknown = flashkit("pull", "org/nothing")
    assert f"the hub ({hub.url}): it has no repository org/nothing" in unknown.err
    assert "Traceback" not in gated.err + unknown.err
    name = flashkit("pull", "model")
    assert (name.code, "organisation/name" in name.err) == (3, True)


def test_verify_reads_everything_and_its_exit_code_tells(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL)
    flashkit("pull", "org/model")
    folder = tmp_path / ".cache/flashkit/weights/org/model" / COMMIT
    done = flashkit("verify", "org/model")
    assert (done.code, done.out) == (0, f"{folder}: 3 files, 50.1 KB, commit {COMMIT}: whole\n")
    (folder / "model.safetensors").write_bytes(b"?" * len(MODEL["model.safetensors"]))
    damaged = flashkit("verify", "org/model", "--revision", COMMIT)
    assert damaged.code == 1
    assert "NOT whole" in damaged.out
    assert "damaged: model.safetensors has another content" in damaged.out
    data = json.loads(flashkit("verify", "org/model", "--json").out)
    assert [each["path"] for each in data[0]["damage"]] == ["model.safetensors"]
    repaired = flashkit("verify", "org/model", "--repair")
    assert (repaired.code, f"repaired: {folder}" in repaired.out) == (0, True)
    assert flashkit("verify", "org/model").code == 0


def test_verify_all_checks_every_copy(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL)
    flashkit("pull", "org/model")
    write_snapshot(tmp_path / "hf/hub")
    write_model(tmp_path / "image/org/model")
    done = flashkit("verify", "org/model", "--all")
    assert done.out.count(": whole") == 2
    assert "not compared, as no hash is known: config.json, model.safetensors, tokenizer/vocab.txt" in done.out
    assert done.code == 1


def test_verify_of_what_is_not_here_names_the_nearest(flashkit, hub):
    hub.add("org/model", MODEL)
    flashkit("pull", "org/model")
    done = flashkit("verify", "org/modl")
    assert done.code == 2
    assert "did you mean org/model?" in done.err
    assert "bring them here: flashkit weights pull x/y" in flashkit("verify", "x/y").err


def test_ls_is_a_table_for_people(flashkit, hub, tmp_path):
    assert "there are no weights on this machine" in flashkit("ls").out
    hub.add("org/model", MODEL)
    flashkit("pull", "org/model")
    write_model(tmp_path / "image/org/cut", {"model.safetensors": safetensors()[:-1]})
    out = flashkit("ls").out
    assert re.search(r"^name +commit +size +place +state +folder *$", out, re.MULTILINE)
    assert re.search(rf"^org/model +{COMMIT[:12]} +50.1 KB +downloads +complete", out, re.MULTILINE)
    assert re.search(r"^org/cut +not known +.* damaged: model.safetensors has", out, re.MULTILINE)


def test_plan_takes_the_size_from_here_then_from_the_hub(flashkit, hub, tmp_path):
    hub.add("org/model", MODEL)
    write_model(tmp_path / "image/org/here")
    size = sum(map(len, MODEL.values()))
    assert json.loads(flashkit("plan", "org/here", "--json").out)["size_bytes"] == size
    assert json.loads(flashkit("plan", "org/here", "org/model", "--json").out)["size_bytes"] == 2 * size
    unknown = flashkit("plan", "org/nothing")
    assert (unknown.code, "give it: --size 16GB" in unknown.err) == (2, True)


def test_plan_is_a_table_with_formulas_and_sources(flashkit):
    out = flashkit("plan", "org/model", "--size", "16 GB", "--gpu", "a100", "--starts-per-day", "12").out
    assert re.search(
        r"^network volume +40 s to 1\.33 min +40 s to 1\.33 min +\$1\.26 +\$16\.64 +\$17\.90 *$", out, re.MULTILINE
    )
    assert "size / 200-400 MB/s, at every start" in out
    assert "source: docs.runpod.io/storage/network-volumes" in out
    assert "facts read on" in out
    assert "name a --gpu" in flashkit("plan", "org/model", "--size", "16GB").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "org/model", "--size", "much"), "is not a size"),
        (("plan", "org/model", "--size", "1GB", "--gpu", "A10O"), "did you mean 'A100'"),
        (("plan",), "Missing argument"),
        (("pul", "org/model"), "Did you mean 'pull'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(flashkit, arguments, said):
    done = flashkit(*arguments)
    assert done.code == 2
    assert said in done.err


def test_a_terminal_shows_a_bar(hub, tmp_path, environment):
    hub.add("org/model", {"model.safetensors": safetensors(2_000_000)})
    child = pexpect.spawn(
        sys.executable, [*FLASHKIT[1:], "weights", "pull", "org/model"],
        cwd=tmp_path, env=clean_environment(**environment, TERM="xterm"), encoding="utf-8", dimensions=(24, 80),
        timeout=60,
    )  # fmt: skip
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "2.0/2.0 MB" in child.before, ascii(child.before)
    assert str(tmp_path / ".cache/flashkit/weights/org/model") in child.before
    assert (tmp_path / ".cache/flashkit/weights/org/model" / COMMIT / MANIFEST_NAME).exists()
