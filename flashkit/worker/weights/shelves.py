"""Where downloads go, and how they appear there: whole and at once, or not at all.

A shelf holds each model as `organisation/name/commit/`, so that several commits can stand side by side while workers
of two releases run; `refs/` beside them says what a branch meant. An image's folder holds one commit of each model
as `organisation/name/`. Both keep unfinished downloads below `.staging/`, and on the same disk, so that a rename
publishes them.

Each download stages in a folder that carries its lease's token. Who takes a download over renames that folder to its
own token: the former holder, should it wake up, finds nothing under the old name, and cannot publish.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashkit.errors import WeightsDamaged, WeightsError
from flashkit.worker.weights.manifest import MANIFEST_NAME, Manifest, check_sizes, is_commit, read_manifest
from flashkit.worker.weights.places import reference_file

STAGING: Final = ".staging"


@dataclass(frozen=True, slots=True)
class Target:
    """The folder that one download is to become."""

    root: Path
    final: Path
    key: str
    """Names the lease and the staging folders."""
    commit: str
    refs: Path | None = None
    """The model's folder on a shelf, where branches are noted."""

    @property
    def lease_file(self) -> Path:
        """The file of the lease."""
        return self.root / STAGING / f"{self.key}.lease"

    def staging(self, token: str) -> Path:
        """Return the folder in which the holder of a token collects the files."""
        return self.root / STAGING / self.key / f"{self.commit}.{token}"


def on_shelf(root: Path, name: str, commit: str) -> Target:
    """Return the place of a model at a commit on a shelf."""
    model = root / name
    return Target(root, model / commit, f"{name.replace('/', '--')}--{commit}", commit, model)


def in_folder(root: Path, name: str, commit: str) -> Target:
    """Return the place of a model in a folder that holds one commit of each.

    Raises:
        WeightsError: Files are there that flashkit did not bring, and would remove.
    """
    final = root / name
    if not (final / MANIFEST_NAME).exists() and final.is_dir() and any(final.iterdir()):
        raise WeightsError(
            f"{final} has files that were not brought by flashkit, and a download would take their place",
            hint="move it away, or download to another folder",
        )
    return Target(root, root / name, name.replace("/", "--"), commit)


def prepare(target: Target) -> None:
    """Make the folder that leases are in.

    Raises:
        WeightsError: They cannot be written.
    """
    with explained(target.root):
        (target.root / STAGING).mkdir(parents=True, exist_ok=True)


def claim(target: Target, token: str) -> Path:
    """Return the holder's own staging folder, with what an earlier download of the same commit left."""
    own = target.staging(token)
    with explained(target.root):
        own.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_over(target):
            if left.name.startswith(f"{target.commit}.") and not own.exists():
                with contextlib.suppress(FileNotFoundError):  # somebody else took it
                    left.rename(own)
            else:
                shutil.rmtree(left, ignore_errors=True)
        own.mkdir(exist_ok=True)
    return own


def _left_over(target: Target) -> list[Path]:
    """Return the folders of earlier downloads, the one with the most bytes first."""
    folders = [each for each in (target.root / STAGING / target.key).iterdir() if each.is_dir()]
    return sorted(folders, key=_allocated_bytes, reverse=True)


def _allocated_bytes(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            sizes += path.stat().st_blocks
    return sizes


def publish(target: Target, staging: Path, manifest: Manifest) -> None:
    """Make the staged files appear at their place, with their manifest; a damaged copy there goes.

    Raises:
        WeightsError: It cannot be written.
        FileNotFoundError: Somebody else has taken this download over.
    """
    with explained(target.root):
        write_whole(staging / MANIFEST_NAME, manifest.to_json())
        target.final.parent.mkdir(parents=True, exist_ok=True)
        while not _move_in(staging, target):
            if is_published(target, manifest):  # another worker was quicker
                shutil.rmtree(staging, ignore_errors=True)
                break
            _move_out(target)
        _sync_folder(target.final.parent)
        _clean(target)


def _move_in(staging: Path, target: Target) -> bool:
    """Publish a staging folder; False where something is in its place."""
    try:
        staging.rename(target.final)
    except OSError:
        if not target.final.exists() or not staging.is_dir():
            raise
        return False
    return True


def _move_out(target: Target) -> None:
    """Remove a damaged copy, or one of another commit: renamed first, so that at no time half of it is there."""
    aside = target.root / STAGING / target.key / f"old.{secrets.token_hex(8)}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another worker did it
        target.final.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def is_published(target: Target, wanted: Manifest | None = None) -> bool:
    """Say whether the place holds the commit, complete as far as sizes tell."""
    try:
        held = read_manifest(target.final)
    except WeightsDamaged:
        return False
    if held is None or held.commit != target.commit or check_sizes(target.final, held.files):
        return False
    return wanted is None or {entry.path for entry in wanted.files} <= {entry.path for entry in held.files}


def note_revision(target: Target, revision: str | None) -> None:
    """Write down which commit a branch or tag meant."""
    if target.refs is not None and not (revision and is_commit(revision)):
        file = reference_file(target.refs, revision or "main")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, target.commit)


def write_whole(file: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")  # process ids of two machines may be the same
    with draft.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def room_in(folder: Path) -> int:
    """Return how many bytes can be written to the disk of a folder."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the folder."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise WeightsError(
            f"{exc.filename or root} cannot be written: {exc.strerror}",
            hint=f"make {root} writable, or download to another folder (FLASHKIT_WEIGHTS_CACHE, --to)",
        ) from exc


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clean(target: Target) -> None:
    """Remove the empty folder of staging folders."""
    with contextlib.suppress(OSError):
        (target.root / STAGING / target.key).rmdir()
