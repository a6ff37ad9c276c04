"""Downloads from a hub on loopback with `huggingface_hub` as it is: whole, resumed, refused, cut, damaged, full."""

import datetime
import logging
import os
import shutil
import ssl
import subprocess
import threading
from contextlib import closing

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flashkit.errors import WeightsDamaged, WeightsError, WeightsNotFound, WeightsSourceError
from flashkit.spec import Weights
from flashkit.worker.weights import find_weights, resolve_weights
from flashkit.worker.weights.downloading import Manner
from flashkit.worker.weights.fetching import fetch
from flashkit.worker.weights.http_ranges import RangeReader
from flashkit.worker.weights.hub import Hub
from flashkit.worker.weights.leases import Pace
from flashkit.worker.weights.progress import SilentProgress
from flashkit.worker.weights.sources import Persistence, TransientFailure
from tests.ports import free_port
from tests.weights.conftest import COMMIT, MODEL, OTHER_COMMIT, contents, safetensors, write_model
from tests.weights.hub_server import HubServer

WEIGHTS = Weights("org/model")
BIG = {"config.json": b"{}", "model.safetensors": safetensors(1_000_000)}


def pull(settings, manner, weights=WEIGHTS, **options):
    quick = Persistence(attempts=3, sleep=lambda _: None)
    return fetch(Hub(weights, settings, quick), weights, settings, manner=manner, **options)


def leftovers(settings):
    staging = settings.weights_cache / ".staging"
    return [path.relative_to(staging).as_posix() for path in staging.rglob("*")] if staging.exists() else []


def test_weights_that_are_nowhere_here_are_downloaded_and_found_by_the_next_start(hub, settings, caplog):
    hub.add("org/model", MODEL)
    with caplog.at_level(logging.INFO, "flashkit.weights"):
        found = find_weights(WEIGHTS, settings)
    assert contents(found.folder) == MODEL
    assert (found.commit, found.place) == (COMMIT, f"downloaded from the hub ({hub.url})")
    assert f"downloading commit {COMMIT}" in caplog.text
    assert "100 %" in caplog.text
    hub.requests.clear()
    again = find_weights(WEIGHTS, settings)
    assert (again.folder, again.place) == (found.folder, "downloads")
    assert hub.requests == []
    assert leftovers(settings) == []


def test_a_mounted_volume_is_where_downloads_go(hub, settings):
    hub.add("org/model", MODEL)
    settings.volume_dir.mkdir()
    folder = resolve_weights(WEIGHTS, settings)
    assert folder == settings.volume_dir / "flashkit-weights/org/model" / COMMIT
    assert (folder.parent / "refs/main").read_text() == COMMIT


def test_a_branch_is_resolved_to_a_commit_which_is_recorded_and_found_without_the_hub(hub, settings):
    hub.add("org/model", MODEL, refs={"v1": COMMIT})
    found = find_weights(Weights("org/model", "v1"), settings)
    assert (found.commit, found.revision) == (COMMIT, "v1")
    with hub.down():
        assert find_weights(Weights("org/model", "v1"), settings).folder == found.folder


def test_a_pinned_commit_makes_no_reference(hub, settings):
    hub.add("org/model", MODEL)
    folder = resolve_weights(Weights("org/model", COMMIT), settings)
    assert contents(folder) == MODEL
    assert not (folder.parent / "refs").exists()


def test_a_second_model_is_downloaded_after_the_first_has_taken_the_hub_away(hub, settings):
    hub.add("org/model", MODEL)
    hub.add("org/second", MODEL)
    resolve_weights(WEIGHTS, settings)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert contents(resolve_weights(Weights("org/second"), settings)) == MODEL
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE is True


def test_copies_in_other_formats_stay_away(hub, settings):
    others = ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "openvino/model.bin", "original/params.json"]
    kept = {"2_Dense/pytorch_model.bin": b"no safetensors beside it", "1_Pooling/config.json": b"{}"}
    hub.add("org/model", MODEL | kept | dict.fromkeys([*others, ".gitattributes"], b"x"))
    assert contents(resolve_weights(WEIGHTS, settings)) == MODEL | kept


def test_patterns_say_what_is_downloaded(hub, settings):
    hub.add("org/model", MODEL | {"onnx/model.onnx": b"x", "onnx/model_int8.onnx": b"y"})
    weights = Weights("org/model", allow=("onnx/", "*.json"), ignore=("*int8*",))
    assert set(contents(resolve_weights(weights, settings))) == {"onnx/model.onnx", "config.json"}


def test_patterns_that_fit_nothing_name_what_is_there(hub, settings):
    hub.add("org/model", MODEL)
    with pytest.raises(WeightsNotFound) as caught:
        resolve_weights(Weights("org/model", allow=("*.gguf",)), settings)
    assert "allow=('*.gguf',)" in caught.value.report.message
    assert "config.json, model.safetensors" in caught.value.report.hint


def test_workers_that_want_different_files_of_one_commit_keep_each_others(hub, settings, manner):
    hub.add("org/model", MODEL)
    first = pull(settings, manner, Weights("org/model", allow=("*.json",))).folder
    assert set(contents(first)) == {"config.json"}
    hub.requests.clear()
    pull(settings, manner, Weights("org/model", allow=("*.safetensors",)))
    assert set(contents(first)) == {"config.json", "model.safetensors"}
    assert not hub.asked(r"config\.json")
    with hub.down():
        for pattern in ("*.json", "*.safetensors"):
            assert resolve_weights(Weights("org/model", allow=(pattern,)), settings) == first
    assert resolve_weights(WEIGHTS, settings) == first
    assert contents(first) == MODEL


def test_a_folder_for_an_image_holds_one_commit_and_a_newer_one_takes_its_place(hub, settings, manner):
    repo = hub.add("org/model", MODEL)
    folder = pull(settings, manner, folder=settings.weights_dir).folder
    assert folder == settings.weights_dir / "org/model"
    newer = MODEL | {"config.json": b'{"newer": true}'}
    repo.refs.clear()
    hub.add("org/model", newer, commit=OTHER_COMMIT)
    assert pull(settings, manner, folder=settings.weights_dir).commit == OTHER_COMMIT
    assert contents(folder) == newer
    assert find_weights(Weights("org/model", OTHER_COMMIT), settings).folder == folder.resolve()


def test_files_that_were_put_into_a_folder_by_hand_are_not_removed(hub, settings, manner):
    hub.add("org/model", MODEL)
    write_model(settings.weights_dir / "org/model", {"mine.txt": b"mine"})
    with pytest.raises(WeightsError, match="has files that were not brought by flashkit"):
        pull(settings, manner, folder=settings.weights_dir)
    assert contents(settings.weights_dir / "org/model") == {"mine.txt": b"mine"}


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub, make_settings, manner):
    hub.add("org/model", MODEL, is_gated=True)
    pull(make_settings(hub_url=hub.url, hub_token="hf_good"), manner)
    assert all(headers.get("authorization") == "Bearer hf_good" for _, _, headers in hub.asked("/resolve/"))
    redirected = hub.asked("/cdn/")
    assert redirected
    assert not any("authorization" in {name.lower() for name in headers} for _, _, headers in redirected)


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "is gated, and no token is set"), ("hf_bad", "is gated, and the token in use has no access")],
)
def test_a_gated_repository_says_what_to_do(hub, make_settings, token, said):
    hub.add("org/model", MODEL, is_gated=True)
    with pytest.raises(WeightsError, match=said) as caught:
        resolve_weights(WEIGHTS, make_settings(hub_url=hub.url, hub_token=token))
    assert f"accept its terms at {hub.url}/org/model, then set HF_TOKEN" in caught.value.report.hint


def test_a_private_repository_opens_with_its_token_only(hub, make_settings):
    hub.add("org/model", MODEL, is_private=True)
    with pytest.raises(WeightsNotFound, match="it has no repository org/model, or a private one") as caught:
        resolve_weights(WEIGHTS, make_settings(hub_url=hub.url))
    assert "HF_TOKEN" in caught.value.report.hint
    assert contents(resolve_weights(WEIGHTS, make_settings(hub_url=hub.url, hub_token="hf_good"))) == MODEL


def test_a_revision_that_is_not_there_is_named(hub, settings):
    hub.add("org/model", MODEL)
    with pytest.raises(WeightsNotFound, match="it has no revision 'v9' of org/model"):
        resolve_weights(Weights("org/model", "v9"), settings)


def test_a_file_that_the_hub_lists_and_has_not_is_named(hub, settings, manner):
    repo = hub.add("org/model", dict(MODEL))
    source = Hub(WEIGHTS, settings)
    source.list_files()
    entry = next(entry for entry in source.list_files().files if entry.path == "config.json")
    del repo.files["config.json"]
    missing = pytest.raises(WeightsSourceError, match=r"a file of org/model is not there: .*404")
    with closing(source), missing, source.open_range(entry, 0, 1):
        pass


def test_a_file_that_the_hub_refuses_without_a_reason_is_an_error(hub, settings):
    hub.add("org/model", MODEL)
    source = Hub(WEIGHTS, settings)
    entry = source.list_files().files[0]
    hub.fail("/resolve/", "status", value=400, times=2)
    with pytest.raises(WeightsSourceError, match="it answers"), source.open_range(entry, 0, 1):
        pass
    hub.fail("/resolve/", "status", value=418)
    with closing(source), pytest.raises(WeightsSourceError, match="HTTP 418"), source.open_range(entry, 0, 1):
        pass


def test_a_hub_that_is_down_does_not_matter_while_the_weights_are_here(hub, settings):
    write_model(settings.weights_dir / "org/model")
    with hub.down():
        assert contents(resolve_weights(WEIGHTS, settings)) == MODEL
    assert hub.requests == []


@pytest.mark.parametrize("kind", ["drop", "status"])
def test_a_hub_that_is_down_is_an_error_that_names_all_places(hub, settings, kind):
    hub.add("org/model", MODEL)
    hub.fail(".", kind, times=100, value=503)
    with pytest.raises(WeightsNotFound, match="failed 3 times") as caught:
        resolve_weights(WEIGHTS, settings)
    assert f"the hub ({hub.url})" in caught.value.report.message
    assert len(caught.value.report.details["places"]) == 9


def test_a_listing_that_fails_once_is_asked_for_again(hub, settings, manner):
    hub.add("org/model", MODEL)
    hub.fail("/api/models/", "status", value=500)
    assert contents(pull(settings, manner).folder) == MODEL


def test_a_busy_file_server_is_asked_again(hub, settings, manner):
    hub.add("org/model", MODEL)
    hub.fail("/cdn/", "status", value=503)
    hub.fail("config", "status", value=429)
    hub.fail("config", "drop")
    assert contents(pull(settings, manner).folder) == MODEL


def test_a_signed_address_that_has_expired_is_asked_for_anew(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "status", value=403)
    assert contents(pull(settings, manner).folder) == BIG


def test_a_connection_that_is_cut_again_and_again_goes_on_where_it_was(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "cut", times=12, value=30_000)
    assert contents(pull(settings, manner).folder) == BIG
    starts = {headers["Range"] for _, _, headers in hub.asked("/cdn/")}
    assert len(starts) > 12  # each try began behind what had come


def test_a_server_without_ranges_will_do(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "no-ranges", times=100)
    assert contents(pull(settings, manner).folder) == BIG


def test_a_connection_that_is_reset_goes_on_where_it_was(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "reset", times=4, value=30_000)
    hub.fail("/cdn/", "no-ranges reset", value=30_000)
    hub.fail("/cdn/", "no-ranges cut", value=30_000)
    assert contents(pull(settings, manner).folder) == BIG


def test_redirects_without_an_end_are_a_failure_of_the_source(hub, settings, manner):
    hub.add("org/model", MODEL)
    hub.fail("/resolve/", "loop", times=10_000)
    with pytest.raises(WeightsSourceError, match="more than 5 redirects"):
        pull(settings, manner)


def test_a_redirect_that_leaves_http_is_not_followed(hub, settings, manner):
    hub.add("org/model", MODEL)
    hub.fail("/resolve/", "away", times=10_000)
    with pytest.raises(WeightsSourceError, match="a redirect to ftp://"):
        pull(settings, manner)


def test_a_failed_download_keeps_what_has_come_and_shows_nothing(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "drop", times=0)
    quick = Manner(pace=manner.pace, persistence=Persistence(attempts=2, sleep=lambda _: None), threads=1,
                   part_bytes=100_000, make_progress=SilentProgress)  # fmt: skip
    real_take, seen = hub.take_fault, []

    def fail_late(path):
        if "/cdn/" in path:
            seen.append(path)
            if 5 < len(seen) < 12:
                hub.fail("/cdn/", "drop")
        return real_take(path)

    hub.take_fault = fail_late
    with pytest.raises(WeightsSourceError, match=r"failed 2 times at model\.safetensors") as caught:
        pull(settings, quick)
    assert "what has come is kept" in caught.value.report.hint
    with pytest.raises(WeightsNotFound):
        resolve_weights(WEIGHTS, Settings_offline(settings))
    assert any(name.endswith(".part") for name in leftovers(settings))
    hub.take_fault, before = real_take, len(hub.asked("/cdn/"))
    assert contents(pull(settings, quick).folder) == BIG
    assert len(hub.asked("/cdn/")) - before == 11 - 5  # of 11 parts
    assert leftovers(settings) == []


def Settings_offline(settings):  # noqa: N802
    import dataclasses

    return dataclasses.replace(settings, is_hub_offline=True)


def test_bytes_that_were_spoilt_on_the_way_are_asked_for_again(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "corrupt")
    assert contents(pull(settings, manner).folder) == BIG


def test_a_source_whose_bytes_are_wrong_twice_is_refused_by_the_files_name(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "corrupt", times=1000)
    with pytest.raises(WeightsDamaged, match=r"model\.safetensors from the hub .* has another content") as caught:
        pull(settings, manner)
    assert caught.value.report.details["files"] == ["model.safetensors"]
    hub.faults.clear()
    assert contents(pull(settings, manner).folder) == BIG


def test_parts_that_a_broken_disk_spoilt_are_found_out_and_brought_anew(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "drop", times=0)
    stopped = Manner(pace=manner.pace, persistence=Persistence(attempts=1), threads=1, part_bytes=100_000,
                     make_progress=SilentProgress)  # fmt: skip
    real_take, seen = hub.take_fault, []

    def fail_late(path):
        seen.append(path)
        if len(seen) > 8 and "/cdn/" in path:
            hub.fail("/cdn/", "drop")
        return real_take(path)

    hub.take_fault = fail_late
    with pytest.raises(WeightsSourceError):
        pull(settings, stopped)
    hub.take_fault = real_take
    hub.faults.clear()
    (partial,) = (settings.weights_cache / ".staging").rglob("model.safetensors.part")
    with partial.open("rb+") as file:
        file.write(b"spoilt")
    assert contents(pull(settings, manner).folder) == BIG


@pytest.mark.parametrize("spoil", ["length", "journal", "numbers"])
def test_a_partial_file_that_makes_no_sense_is_begun_anew(hub, settings, manner, spoil):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "status", value=404, times=100)
    with pytest.raises(WeightsSourceError):
        pull(settings, manner)
    hub.faults.clear()
    (partial,) = (settings.weights_cache / ".staging").rglob("model.safetensors.part")
    journal = partial.with_name("model.safetensors.part.done")
    if spoil == "length":
        partial.write_bytes(b"short")
    elif spoil == "journal":
        journal.write_bytes(b"\xff\xff\n")
    else:
        journal.write_text("77\n0\n1\n")  # parts of another length
    assert contents(pull(settings, manner).folder) == BIG


def test_a_damaged_partial_download_of_another_commit_is_not_used(hub, settings, manner):
    hub.add("org/model", BIG)
    hub.fail("/cdn/", "drop", times=100)
    with pytest.raises(WeightsSourceError):
        pull(settings, manner, folder=settings.weights_dir)
    hub.faults.clear()
    newer = BIG | {"model.safetensors": safetensors(1_000_000, seed=3)}
    hub.add("org/model", newer, commit=OTHER_COMMIT)
    assert contents(pull(settings, manner, folder=settings.weights_dir).folder) == newer
    assert not list((settings.weights_dir / ".staging").rglob("*"))


def test_an_empty_file_is_a_file(hub, settings, manner):
    hub.add("org/model", MODEL | {"empty.txt": b""})
    assert contents(pull(settings, manner).folder)["empty.txt"] == b""


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 MB, where one may be mounted."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = shutil.which("mount")
    options = [mount, "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder]
    if mount is None or subprocess.run(options, check=False, capture_output=True).returncode:
        pytest.skip("a disk may not be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(hub, settings, manner, small_disk):
    hub.add("org/model", {"model.safetensors": safetensors(60_000_000)})
    with pytest.raises(WeightsError, match=r"org/model: 60 MB are to come, and the disk of .* has 105 MB left"):
        pull(settings, manner)
    assert not hub.asked("/resolve/")


def test_a_disk_that_fills_up_on_the_way_is_said_with_the_numbers(hub, settings, manner, small_disk):
    hub.add("org/model", {"model.safetensors": safetensors(30_000_000)})
    filler = small_disk / "filler"
    real_take = hub.take_fault

    def fill(path):
        if "/cdn/" in path and not filler.exists():
            filler.write_bytes(bytes(90_000_000))
        return real_take(path)

    hub.take_fault = fill
    with pytest.raises(WeightsError, match=r"are to come .*, and the disk of .* has .* left") as caught:
        pull(settings, manner)
    assert "make the network volume" in caught.value.report.hint
    filler.unlink()
    hub.take_fault = real_take
    assert (pull(settings, manner).folder / "model.safetensors").stat().st_size > 30_000_000


def test_a_folder_that_cannot_be_written_is_named(hub, settings, manner, tmp_path):
    hub.add("org/model", MODEL)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WeightsError, match=r"file.* cannot be written: Not a directory"):
        pull(settings, manner, shelf=blocked)


def test_a_staging_folder_that_somebody_removes_is_named(hub, settings, manner):
    hub.add("org/model", BIG)
    real_take = hub.take_fault

    def remove(path):
        if "/cdn/" in path:
            for each in (settings.weights_cache / ".staging").glob("*/*"):
                shutil.rmtree(each)
        return real_take(path)

    hub.take_fault = remove
    with pytest.raises(WeightsError, match=r"went away during the download|cannot be written"):
        pull(settings, manner)


def test_three_threads_of_one_worker_bring_a_model_once(hub, settings, manner):
    hub.add("org/model", BIG)
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(pull(settings, manner).folder)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert len(set(folders)) == 1
    assert len(hub.asked("/cdn/")) == 11


def test_a_proxy_of_the_environment_is_used(hub, settings, manner, monkeypatch):
    hub.add("org/model", MODEL)
    monkeypatch.setenv("http_proxy", hub.url)  # it takes whole addresses as well
    monkeypatch.setenv("no_proxy", "")
    assert contents(pull(settings, manner).folder) == MODEL
    assert any(path.startswith("http://") for _, path, _ in hub.asked("/resolve/"))


def test_https_trusts_who_the_environment_trusts(tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HubServer() as server:
        server.add("org/model", MODEL)
        host = server._servers[0]
        host.socket = context.wrap_socket(host.socket, server_side=True)
        url = server.url.replace("http://127.0.0.1", "https://localhost") + "/cdn/org/model/config.json"
        buffer = memoryview(bytearray(100))
        unknown = pytest.raises(TransientFailure, match="certificate verify failed")
        with closing(RangeReader({})) as reader, unknown, reader.open(url, 1, 5):
            pass
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with closing(RangeReader({})) as reader, reader.open(url, 1, 5) as body:
            assert bytes(buffer[: body.readinto(buffer)]) == MODEL["config.json"][1:5]


def make_certificate(folder):
    """Write a key and a certificate for localhost that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    (folder / "certificate.pem").write_bytes(text)
    return folder / "certificate.pem"


@pytest.mark.parametrize("login", ["", "user:secret@"])
def test_a_tunnel_that_cannot_be_made_is_a_failure_of_the_source(monkeypatch, login):
    port = free_port()
    monkeypatch.setenv("https_proxy", f"http://{login}127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(TransientFailure, match="refused"), RangeReader({}).open("https://hub.invalid/x", 0, 1):
        pass


def test_the_manner_of_a_worker_is_patient():
    manner = Manner()
    assert manner.pace == Pace(2.0, 20.0, 0.5)
    assert manner.persistence.attempts >= 10
