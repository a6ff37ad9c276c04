"""What a folder tells about the weights in it, whoever put them there.

flashkit's own downloads have a manifest. Folders that other tools made tell less: a snapshot in a Hugging Face
cache is named by its commit and its files by their hashes; `hf download --local-dir` leaves notes beside the
files; safetensors files begin with a header that gives their length. All of it is used, and costs no reading of
the weights themselves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flashkit.worker.weights.manifest import MANIFEST_NAME, Damage, FileEntry, Manifest, is_commit, read_manifest

WEIGHT_SUFFIXES: Final = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ckpt", ".ot", ".tflite", ".npz",
)  # fmt: skip
_HEADER_LIMIT_BYTES: Final = 100_000_000
"""Longest header that the safetensors format allows."""
_POINTER: Final = b"version https://git-lfs"
_POINTER_LIMIT_BYTES: Final = 1024
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a folder's origin; None where nothing tells."""

    commit: str | None = None
    revision: str | None = None
    manifest: Manifest | None = None


def read_evidence(folder: Path) -> Evidence:
    """Return what the folder tells about where its files come from.

    Raises:
        WeightsDamaged: Its manifest cannot be read.
    """
    if manifest := read_manifest(folder):
        return Evidence(manifest.commit, manifest.revision, manifest)
    if is_commit(folder.name):  # a snapshot of a Hugging Face cache, or a copy of one
        return Evidence(folder.name)
    return Evidence(_noted_commit(folder))


def check_folder(folder: Path) -> list[Damage]:
    """Return what is wrong with a folder that has no manifest, as far as its files tell without being read."""
    files = list(walk(folder))
    if not files:
        return [Damage(".", "holds no files")]
    if not any(path.name.endswith(WEIGHT_SUFFIXES) for path in files):
        return [Damage(".", "holds no weights (no *.safetensors, *.bin, *.gguf, ...)")]
    found = [Damage(_relative(path, folder), problem) for path in files if (problem := _file_problem(path))]
    return found + [damage for path in files if path.name.endswith(".index.json") for damage in _missing(path, folder)]


def known_hashes(folder: Path) -> tuple[FileEntry, ...]:
    """Return the files of a folder without a manifest with the hashes that other tools noted, where they did."""
    return tuple(_entry_of(path, folder) for path in sorted(walk(folder)))


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without the manifest and what hidden folders hold."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if name != MANIFEST_NAME)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _noted_commit(folder: Path) -> str | None:
    """Return the commit that `hf download --local-dir` noted for every file, None unless it is one and the same."""
    notes = (folder / ".cache" / "huggingface" / "download").rglob("*.metadata")
    commits = {_note_lines(note)[0] for note in notes}
    return commits.pop() if len(commits) == 1 and all(map(is_commit, commits)) else None


def _note_lines(note: Path) -> list[str]:
    """Return commit and ETag from a note of `hf download`."""
    try:
        return [*note.read_text().splitlines(), "", ""][:2]
    except (OSError, ValueError):
        return ["", ""]


def _entry_of(path: Path, folder: Path) -> FileEntry:
    tag = path.resolve().name if path.is_symlink() else ""  # in a cache, files are links to blobs named by their hash
    if not _is_hash(tag):
        note = folder / ".cache" / "huggingface" / "download" / f"{_relative(path, folder)}.metadata"
        tag = _note_lines(note)[1].strip('"')
    return FileEntry(
        _relative(path, folder),
        path.stat().st_size,
        sha256=tag if _SHA256.fullmatch(tag) else None,
        git_sha1=tag if is_commit(tag) else None,
    )


def _is_hash(text: str) -> bool:
    return bool(_SHA256.fullmatch(text)) or is_commit(text)


def _file_problem(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        if size < _POINTER_LIMIT_BYTES and path.read_bytes().startswith(_POINTER):
            return "is a pointer of Git LFS, not the file (run `git lfs pull`)"
        return _safetensors_problem(path, size) if path.suffix == ".safetensors" else None
    except FileNotFoundError:
        return "is a link to a file that is not there"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _safetensors_problem(path: Path, size: int) -> str | None:
    """Compare a file's length with what its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _HEADER_LIMIT_BYTES):
            return f"is cut off or no safetensors file ({size:,} bytes)"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "is no safetensors file: its header is damaged"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size:,} bytes, not the {expected:,} of its header"


def _missing(index: Path, folder: Path) -> Iterator[Damage]:
    """Yield the files that an index of shards names and that are not there."""
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # some other file of that name
    for shard in sorted(map(str, shards)):
        path = index.parent / shard
        if not path.is_file():
            yield Damage(_relative(path, folder), f"is missing; {index.name} names it")
