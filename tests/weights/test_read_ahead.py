"""Reading ahead: everything is read, in the background, within bounds; problems are left to who loads."""

import os
import subprocess
import sys
import time

from flashkit.worker.weights import read_ahead
from tests.weights.conftest import safetensors, write_model

FILES = {"config.json": b"{}", "a.safetensors": safetensors(20_000_000), "b/model.bin": bytes(3_000_000)}
SIZE = sum(len(content) for path, content in FILES.items() if not path.endswith(".json"))


def cached_share(path):
    """How much of a file is in the page cache, by `fincore`; None where that is not installed."""
    done = subprocess.run(["fincore", "-bnro", "res", str(path)], capture_output=True, text=True, check=False)
    return int(done.stdout) / path.stat().st_size if done.returncode == 0 else None


def test_all_weights_are_read_and_nothing_else(tmp_path):
    reading = read_ahead(write_model(tmp_path, FILES))
    assert reading.wait(30)
    assert (reading.read_bytes, reading.total_bytes, reading.is_done) == (SIZE, SIZE, True)


def test_what_was_dropped_from_the_page_cache_is_there_again(tmp_path):
    write_model(tmp_path, FILES)
    path = tmp_path / "a.safetensors"
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = cached_share(path)
    assert read_ahead(tmp_path).wait(30)
    after = cached_share(path)
    assert before is None or (before < 0.1 and after >= 1.0)


def test_no_more_is_read_than_is_allowed(tmp_path):
    reading = read_ahead(write_model(tmp_path, FILES), limit_bytes=10 << 20)
    assert reading.wait(30)
    assert reading.total_bytes == 8 << 20  # whole pieces


def test_reading_can_be_stopped_and_ends_by_itself(tmp_path):
    reading = read_ahead(write_model(tmp_path, FILES), threads=1)
    reading.stop()
    deadline = time.monotonic() + 20
    while not reading.is_done:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not reading.wait(0) or reading.read_bytes == SIZE


def test_a_folder_that_is_not_there_and_a_file_that_goes_are_no_errors(tmp_path):
    assert read_ahead(tmp_path / "nowhere").wait(5)
    write_model(tmp_path, {"a.safetensors": safetensors(), "gone.bin": b"x"})
    (tmp_path / "gone.bin").unlink()
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nothing")
    assert read_ahead(tmp_path).wait(30)


def test_a_file_that_is_shorter_than_it_was_ends_the_reading(tmp_path):
    reading = read_ahead(write_model(tmp_path, {"a.safetensors": safetensors(30_000_000)}), threads=1)
    (tmp_path / "a.safetensors").write_bytes(b"")
    reading.wait(30)
    assert reading.is_done


def test_reading_does_not_hold_up_the_end_of_a_process(tmp_path):
    write_model(tmp_path, FILES)
    code = (
        f"from pathlib import Path\nfrom flashkit.worker.weights import read_ahead\nread_ahead(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
