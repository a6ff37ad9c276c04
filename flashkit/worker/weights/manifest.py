"""What a folder of weights must hold: every file with its size and hash, and the commit they are of.

The manifest is a file in the folder, written when a download or upload is complete and never before. A start
compares sizes, which costs a `stat` a file; `flashkit weights verify` reads every byte and compares hashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Self

from flashkit.errors import WeightsDamaged

MANIFEST_NAME: Final = "flashkit-weights.json"
_FORMAT: Final = 1
_CHUNK_BYTES: Final = 4 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the weights, its path relative to their folder. A hash that is not known is None."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    """Hash as git computes it: what the hub says of files that are not kept in large-file storage."""

    @property
    def has_hash(self) -> bool:
        """True when the file's content can be checked."""
        return bool(self.sha256 or self.git_sha1)


class Selection(NamedTuple):
    """Which files somebody asked for, as patterns; empty ones mean the usual choice."""

    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class Damage(NamedTuple):
    """What is wrong with one file."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one model at one commit."""

    name: str
    commit: str
    files: tuple[FileEntry, ...]
    revision: str | None = None
    """Branch or tag that the commit was found under."""
    source: str = ""
    """Where they came from, in words."""
    selections: tuple[Selection, ...] = ()
    """What was asked for when they were downloaded: all that these patterns select is here."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        """Return the text of the manifest's file."""
        files = {
            entry.path: {"size": entry.size, "sha256": entry.sha256, "git_sha1": entry.git_sha1}
            for entry in sorted(self.files, key=lambda entry: entry.path)
        }
        data = {
            "format": _FORMAT, "name": self.name, "commit": self.commit, "revision": self.revision,
            "source": self.source, "selections": [each._asdict() for each in self.selections], "files": files,
        }  # fmt: skip
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Self:
        """Read a manifest; `where` names it in errors.

        Raises:
            WeightsDamaged: It is no manifest, or one of a newer flashkit.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise WeightsDamaged(
                    f"{where} has format {data['format']!r}, and this flashkit reads format {_FORMAT}",
                    hint="update flashkit here, or download the weights again with this one",
                )
            return cls(
                name=str(data["name"]),
                commit=_checked_commit(data["commit"]),
                files=tuple(_read_entry(path, entry) for path, entry in data["files"].items()),
                revision=data.get("revision"),
                source=str(data.get("source", "")),
                selections=tuple(
                    Selection(tuple(each["allow"]), tuple(each["ignore"])) for each in data.get("selections", ())
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise WeightsDamaged(f"{where} is damaged: {exc!r}", hint="download or push these weights again") from exc


def is_commit(text: str) -> bool:
    """Say whether this is the full hash of a commit, and not a branch or a tag."""
    return bool(_COMMIT.fullmatch(text))


def is_safe_path(path: str) -> bool:
    """Say whether a path stays below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path


def _checked_commit(value: object) -> str:
    if not isinstance(value, str) or not is_commit(value):
        raise ValueError(f"commit {value!r}")
    return value


def _read_entry(path: str, entry: Mapping[str, Any]) -> FileEntry:
    if not is_safe_path(path) or not isinstance(entry["size"], int) or entry["size"] < 0:
        raise ValueError(f"entry {path!r}")
    return FileEntry(path, entry["size"], entry.get("sha256"), entry.get("git_sha1"))


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, None where it has none.

    Raises:
        WeightsDamaged: It cannot be read.
    """
    file = folder / MANIFEST_NAME
    try:
        return Manifest.from_json(file.read_bytes(), where=str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise WeightsDamaged(f"{file} cannot be read: {exc.strerror}") from exc


def check_sizes(folder: Path, files: Iterable[FileEntry]) -> list[Damage]:
    """Return which files are missing or have another size."""
    return [Damage(entry.path, problem) for entry in files if (problem := _size_problem(folder, entry))]


def _size_problem(folder: Path, entry: FileEntry) -> str | None:
    try:
        size = (folder / entry.path).stat().st_size
    except OSError as exc:
        return "is missing" if isinstance(exc, FileNotFoundError) else f"cannot be read: {exc.strerror}"
    return None if size == entry.size else f"has {size:,} bytes, not {entry.size:,}"


def check_hashes(
    folder: Path, files: Iterable[FileEntry], *, on_bytes: Callable[[int], None] = lambda _: None, threads: int = 4
) -> list[Damage]:
    """Return which files are missing or have another content; the bytes of all of them are read.

    Args:
        folder: Where they are.
        files: What they should be. Of a file without a known hash the size is compared.
        on_bytes: Told how many bytes more have been read.
        threads: Files that are read at the same time.
    """

    def check(entry: FileEntry) -> Damage | None:
        problem = _size_problem(folder, entry) or _hash_problem(folder / entry.path, entry, on_bytes)
        return Damage(entry.path, problem) if problem else None

    with ThreadPoolExecutor(threads) as pool:
        return [damage for damage in pool.map(check, files) if damage]


def _hash_problem(path: Path, entry: FileEntry, on_bytes: Callable[[int], None]) -> str | None:
    try:
        is_sound = matches(path, entry, on_bytes=on_bytes)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return None if is_sound else "has another content than it should (its hash is wrong)"


def matches(path: Path, entry: FileEntry, *, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Say whether a file has the content of an entry, as far as a hash of it is known."""
    if entry.sha256:
        return hash_file(path, on_bytes=on_bytes) == entry.sha256
    if entry.git_sha1:
        return hash_file(path, is_git=True, on_bytes=on_bytes) == entry.git_sha1
    return True


def hash_file(path: Path, *, is_git: bool = False, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file, or what git calls its blob."""
    import hashlib  # a start that compares sizes needs no OpenSSL

    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha1(usedforsecurity=False) if is_git else hashlib.sha256()
        if is_git:
            digest.update(b"blob %d\0" % path.stat().st_size)
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        while count := file.readinto(view):
            digest.update(view[:count])
            on_bytes(count)
        return digest.hexdigest()
