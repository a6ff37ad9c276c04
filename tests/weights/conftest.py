"""Folders, hubs and S3 servers for tests of weights; everything is on loopback and below `tmp_path`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashkit.settings import OFFLINE_VARIABLES, Settings
from flashkit.worker.weights import offline
from flashkit.worker.weights.downloading import Manner
from flashkit.worker.weights.leases import Pace
from flashkit.worker.weights.progress import SilentProgress
from flashkit.worker.weights.sources import Persistence
from tests.weights.hub_server import HubServer

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "beef00" + "1" * 34


@pytest.fixture(autouse=True)
def on_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what finding weights does to the process: it keeps it off the hub."""
    for name in (*OFFLINE_VARIABLES, "HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in offline._ours:
        os.environ.pop(name, None)
    offline._ours.clear()
    offline._tell_loaded(is_offline=False)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Make settings all of whose folders are below the test's own; there is no hub unless it is given."""

    def make(**options: object) -> Settings:
        folders = {
            "weights_dir": tmp_path / "image",
            "weights_cache": tmp_path / "downloads",
            "volume_dir": tmp_path / "volume",
            "model_cache_dir": tmp_path / "runpod",
            "hub_cache": tmp_path / "hub-cache",
            "is_hub_offline": "hub_url" not in options,
            "hub_url": "http://127.0.0.1:9",
        }
        return Settings(**{**folders, **options})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings], hub: HubServer) -> Settings:
    """Settings with the hub of the tests."""
    return make_settings(hub_url=hub.url)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub without repositories."""
    with HubServer() as server:
        yield server


@pytest.fixture
def manner() -> Manner:
    """Downloads in small parts, without pauses."""
    return Manner(
        pace=Pace(beat_seconds=0.1, dead_seconds=1.0, poll_seconds=0.02),
        persistence=Persistence(attempts=4, sleep=lambda _: None),
        threads=4,
        part_bytes=100_000,
        make_progress=SilentProgress,
    )


def safetensors(size: int = 50_000, *, seed: int = 0) -> bytes:
    """Return a file of the safetensors format with one tensor of so many random bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    block = random.Random(seed).randbytes(min(size, 999_983))  # no multiple of a part's length
    return len(header).to_bytes(8, "little") + header + (block * (size // len(block) + 1))[:size]


MODEL = {"config.json": b'{"model_type": "test"}', "model.safetensors": safetensors(), "tokenizer/vocab.txt": b"a\nb\n"}


def write_model(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write a model's files as somebody would copy them: without a manifest."""
    for path, content in (MODEL if files is None else files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def write_snapshot(
    root: Path, *, commit: str = COMMIT, ref: str | None = "main", name: str = "models--org--model"
) -> Path:
    """Write a model as the Hugging Face libraries keep it: links to blobs named by their hashes."""
    model = root / name
    for path, content in MODEL.items():
        sha256 = hashlib.sha256(content).hexdigest()
        tag = sha256 if len(content) > 10_000 else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob, link = model / "blobs" / tag, model / "snapshots" / commit / path
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / ref).write_text(commit)
    return model / "snapshots" / commit


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder without its manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "flashkit-weights.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Puller:
    """A process of `puller.py`."""

    def __init__(self, volume: Path, hub: str, **options: object) -> None:
        text = json.dumps({"volume": str(volume), "hub": hub, **options})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.weights.puller", text],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[2],
            env={**os.environ, "no_proxy": "127.0.0.1"},
        )  # fmt: skip
        self.text = ""

    def wait_for(self, word: str) -> None:
        """Read lines up to one with the word."""
        for line in self.process.stdout:
            self.text += line
            if word in line:
                return
        raise AssertionError(f"{word!r} did not come:\n{self.text}")

    def end(self) -> int:
        """Read everything, and return the exit code."""
        self.text += self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(timeout=60)


@pytest.fixture
def start_puller(tmp_path: Path) -> Iterator[Callable[..., Puller]]:
    """Start processes that bring a model onto the volume; they are killed with the test."""
    started: list[Puller] = []

    def start(hub: HubServer, **options: object) -> Puller:
        (tmp_path / "volume").mkdir(exist_ok=True)
        started.append(Puller(tmp_path / "volume", hub.url, **options))
        return started[-1]

    yield start
    for puller in started:
        puller.process.kill()
        puller.process.wait()
        puller.process.stdout.close()
