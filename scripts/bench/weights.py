"""Weights: downloads against `snapshot_download`, finding what an image brings, and reading ahead of a load.

All from one run and alternating, each measurement in a process of its own. The hub is tests/weights/hub_server.py in
a process on loopback; both clients get the same files from it.

    .venv/bin/python scripts/bench/weights.py [--gb 1] [--rounds 5] [--folder /dev/shm] [--only downloads]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import median_cpu_seconds, print_result, python

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".flashkit" / "models" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
FILES = 4
VOLUME_MB_PER_SECOND = 200
BLOCK = 1 << 20

TIMED = """
import json, resource, time
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
{prepare}
began, used = time.perf_counter(), cpu()
{work}
print(json.dumps([time.perf_counter() - began, cpu() - used]))
"""
PLAIN = {
    "prepare": "from huggingface_hub import snapshot_download\nimport huggingface_hub.utils as u\n"
    "u.disable_progress_bars()",
    "work": "snapshot_download('org/model', endpoint={url!r}, cache_dir={to!r})",
}
OURS = {
    "prepare": "import huggingface_hub\nfrom pathlib import Path\nfrom flashkit.settings import Settings\n"
    "from flashkit.spec import Weights\nfrom flashkit.worker.weights.fetching import fetch\n"
    "from flashkit.worker.weights.hub import Hub\nw = Weights('org/model')\ns = Settings(hub_url={url!r})",
    "work": "fetch(Hub(w, s), w, s, shelf=Path({to!r}))",
}
BAKED = """
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights import resolve_weights
import os, time
settings = Settings.from_environment(dict(os.environ, RUNPOD_ENDPOINT_BASE_URL="http://127.0.0.1:9/v2"))
resolve_weights(Weights("HuggingFaceTB/SmolLM2-135M-Instruct"), settings)
"""
LOAD = """
import time
began = time.perf_counter()
{read_ahead}
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()
imported = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained({folder!r})
with torch.inference_mode():
    total = sum(float(parameter.sum()) for parameter in model.parameters())  # every page is touched
ended = time.perf_counter()
import json
print(json.dumps([ended - began, ended - imported]))
"""
READ_AHEAD = """
from pathlib import Path
from flashkit.worker.weights import read_ahead
reading = read_ahead(Path({folder!r}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where files are written; /dev/shm leaves the disk out")
    parser.add_argument("--only", choices=("downloads", "baked", "read-ahead"))
    options = parser.parse_args()
    figures: dict[str, float] = {}
    if options.only in (None, "downloads"):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures |= measure_downloads(Path(folder), options.gb, options.rounds)
    if options.only in (None, "baked"):
        figures |= measure_baked()
    if options.only in (None, "read-ahead"):
        figures |= measure_read_ahead(options.rounds)
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}")
    print_result("weights", figures)


def measure_downloads(folder: Path, gb: float, rounds: int) -> dict[str, float]:
    """Return megabytes a second and CPU seconds of both clients."""
    repo = folder / "repo"
    repo.mkdir()
    (repo / "config.json").write_text("{}")
    size = 0
    for number in range(FILES):
        with (repo / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(round(gb * 1e9 / FILES / BLOCK)):
                size += file.write(os.urandom(BLOCK))
    seen: dict[str, list[tuple[float, float]]] = {"plain": [], "flashkit": []}
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "weights" / "hub_server.py", repo],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = server.stdout.readline().strip()
        for _ in range(rounds):
            for name, parts in (("plain", PLAIN), ("flashkit", OURS)):
                to = folder / "to"
                code = TIMED.format(**{key: text.format(url=url, to=str(to)) for key, text in parts.items()})
                seen[name].append(tuple(run(code)))
                shutil.rmtree(to)
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(timeout=30)
    rates = {name: statistics.median(size / 1e6 / wall for wall, _ in times) for name, times in seen.items()}
    cpus = {name: statistics.median(cpu for _, cpu in times) for name, times in seen.items()}
    return {
        "flashkit_mb_per_s": rates["flashkit"],
        "snapshot_download_mb_per_s": rates["plain"],
        "vs_snapshot_download": rates["flashkit"] / rates["plain"],
        "flashkit_cpu_s_per_gb": cpus["flashkit"] / size * 1e9,
        "snapshot_download_cpu_s_per_gb": cpus["plain"] / size * 1e9,
    }


def measure_baked() -> dict[str, float]:
    """Return the CPU milliseconds of finding weights in the image: with the imports it needs, and the call alone."""
    os.environ["FLASHKIT_WEIGHTS_DIR"] = str(MODEL.parents[1])
    spent = median_cpu_seconds(python(BAKED)) - median_cpu_seconds(python("pass"))
    call = TIMED.format(prepare=BAKED, work=BAKED.strip().splitlines()[-1])
    return {"baked_cpu_ms": spent * 1000, "baked_call_ms": statistics.median(run(call)[0] for _ in range(7)) * 1000}


def measure_read_ahead(rounds: int) -> dict[str, float]:
    """Return seconds from the start of a process to a loaded model, with a cold page cache.

    Once at the disk's own speed and once held back to that of a network volume, where the kernel lets us.
    """
    run(LOAD.format(read_ahead="", folder=str(MODEL)))  # the libraries are in the page cache from here on
    figures = _time_loads(rounds, "disk", "")
    with slow_disk(VOLUME_MB_PER_SECOND) as prefix:
        if prefix:
            figures |= _time_loads(rounds, f"{VOLUME_MB_PER_SECOND}_mb_per_s", prefix)
        else:
            print("the disk cannot be held back here: no blkio cgroup that may be written", file=sys.stderr)
    return figures


def _time_loads(rounds: int, disk: str, prefix: str) -> dict[str, float]:
    seen: dict[str, list[tuple[float, float]]] = {"alone": [], "ahead": []}
    ways = [("alone", ""), ("ahead", READ_AHEAD.format(folder=str(MODEL)))]
    for number in range(rounds):
        for name, code in ways if number % 2 else reversed(ways):
            drop_from_page_cache(MODEL)
            seen[name].append(tuple(run(prefix + LOAD.format(read_ahead=code, folder=str(MODEL)))))
    return {
        f"{what}_{name}_s_{disk}": statistics.median(times[index] for times in seen[name])
        for name in seen
        for index, what in enumerate(("start_to_loaded", "load"))
    }


@contextlib.contextmanager
def slow_disk(mb_per_second: int) -> Iterator[str]:
    """Return a line of Python that puts a process where the disk is so slow; empty where that cannot be had."""
    group = Path("/sys/fs/cgroup/blkio/flashkit-bench")
    device = MODEL.stat().st_dev
    try:
        group.mkdir()
        limit = f"{os.major(device)}:{os.minor(device)} {mb_per_second * 1_000_000}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
    except OSError:
        yield ""
        return
    try:
        yield f"import os\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    finally:
        group.rmdir()


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
