"""The folders of this machine in which a model's weights may be, in the order in which they are looked at.

1. The image: FLASHKIT_WEIGHTS_DIR/organisation/name, then the cache of the Hugging Face libraries (HF_HOME).
2. The platform's model cache, in the three layouts that Runpod's documentation and its SDKs name. The folder's
   name may be lower-cased there (runpod-workers/worker-vllm, issue 310).
3. The network volume: flashkit-weights/, which flashkit fills, then models/organisation/name.
4. flashkit's own downloads on this machine.

After them come S3 and the hub (`resolving`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.manifest import is_commit

VOLUME_FOLDER: Final = "flashkit-weights"
"""Folder of a network volume that flashkit fills."""
NOTHING: Final = "nothing is there"
_SHORTEST_COMMIT: Final = 7


@dataclass(frozen=True, slots=True)
class Place:
    """One place where a model may be, and the folder found there."""

    name: str
    """The place in words, for logs and errors."""
    looked_at: Path
    folder: Path | None = None
    """None where there is nothing."""
    revision: str | None = None
    """The branch or tag that led to the folder."""
    needs_manifest: bool = False
    """True where flashkit alone writes: a folder without a manifest is not complete."""
    note: str = NOTHING
    """Why there is no folder."""
    root: Path | None = None
    """The folder with all models, where flashkit may bring files anew; None for what others look after."""


def local_places(weights: Weights, settings: Settings) -> Iterator[Place]:
    """Yield the places in order; each is looked at only when it is asked for."""
    if weights.path is not None:
        path = Path(weights.path).expanduser()
        yield Place("path= of the weights", path, path if path.is_dir() else None)
        return
    volume, cache = settings.volume_dir, settings.model_cache_dir
    yield _plain("weights folder", settings.weights_dir, weights)
    yield _hub_cache("Hugging Face cache", settings.hub_cache.expanduser(), weights)
    yield _hub_cache("model cache", volume / "huggingface-cache" / "hub", weights)
    yield _by_revision("model store", cache / "model-store" / "huggingface", weights)
    yield _by_revision("model cache of the SDK", cache / "cache", weights)
    yield from _shelf("network volume", volume / VOLUME_FOLDER, weights)
    yield _plain("network volume", volume / "models", weights)
    yield from _shelf("downloads", settings.weights_cache.expanduser(), weights)


def shelf_root(settings: Settings) -> Path:
    """Return where downloads go: the network volume, or this machine's own folder where none can be written."""
    if os.access(settings.volume_dir, os.W_OK):
        return settings.volume_dir / VOLUME_FOLDER
    return settings.weights_cache.expanduser()


def reference_file(model: Path, revision: str) -> Path:
    """Return the file of a shelf that names the commit of a branch or tag."""
    return model / "refs" / quote(revision, safe="")


def fits_revision(wanted: str, *, commit: str | None, revision: str | None) -> bool | None:
    """Say whether weights of a commit, found under a revision, are the ones that are wanted; None: nobody knows."""
    if wanted in (commit, revision):
        return True
    if _looks_like_commit(wanted):
        return None if commit is None else commit.startswith(wanted)
    return None if revision is None else False


def _looks_like_commit(text: str) -> bool:
    return len(text) >= _SHORTEST_COMMIT and all(letter in "0123456789abcdef" for letter in text)


def _plain(name: str, root: Path, weights: Weights) -> Place:
    """Look for `root/organisation/name/`."""
    return Place(name, root / weights.name, find_below(root, weights.name), root=root)


def _hub_cache(name: str, root: Path, weights: Weights) -> Place:
    """Look for `root/models--organisation--name/snapshots/commit/`."""
    wanted = root / f"models--{weights.name.replace('/', '--')}"
    model = find_below(root, wanted.name)
    if model is None:
        return Place(name, wanted)
    revision = weights.revision or "main"
    commit = _read_text(model / "refs" / revision) or revision
    if (folder := model / "snapshots" / commit).is_dir():
        return Place(name, folder, folder, revision=weights.revision if commit != weights.revision else None)
    snapshots = sorted(_folders(model / "snapshots"), key=lambda each: each.stat().st_mtime)
    fitting = [each for each in snapshots if weights.revision is None or each.name.startswith(weights.revision)]
    if fitting:
        return Place(name, fitting[-1], fitting[-1])
    held = ", ".join(each.name for each in snapshots) or "no snapshot"
    return Place(name, wanted, note=f"it has {held}, not {revision}")


def _by_revision(name: str, root: Path, weights: Weights) -> Place:
    """Look for `root/organisation/name/revision/`, or the files themselves one level up."""
    model = find_below(root, weights.name)
    if model is None:
        return Place(name, root / weights.name)
    if any(each.is_file() for each in model.iterdir()):
        return Place(name, model, model)
    held = sorted(_folders(model), key=lambda each: (each.name == "main", each.stat().st_mtime))
    wanted = weights.revision
    fitting = [each for each in held if wanted is None or fits_revision(wanted, commit=each.name, revision=each.name)]
    if fitting:
        return Place(name, fitting[-1], fitting[-1], revision=None if is_commit(fitting[-1].name) else fitting[-1].name)
    names = ", ".join(each.name for each in held) or "nothing"
    return Place(name, model, note=f"it has {names}, not {wanted}" if held else NOTHING)


def _shelf(name: str, root: Path, weights: Weights) -> Iterator[Place]:
    """Look for `root/organisation/name/commit/`: the commit that a reference names first, then others that fit."""
    model = find_below(root, weights.name) or root / weights.name
    found = list(shelf_commits(model, weights.revision))
    if not found:
        held = ", ".join(each.name for each in _commits(model))
        yield Place(name, model, note=f"it has {held}, not {weights.revision}" if held else NOTHING)
    for folder, revision in found:
        yield Place(name, folder, folder, revision=revision, needs_manifest=True, root=root)


def shelf_commits(model: Path, revision: str | None) -> Iterator[tuple[Path, str | None]]:
    """Yield the folders of a shelf that fit a revision, the best first, with the reference that led to them."""
    referred = model / (_read_text(reference_file(model, revision or "main")) or "nothing")
    if referred.is_dir():
        yield referred, revision
    for folder in _commits(model):
        if folder != referred and (revision is None or folder.name.startswith(revision)):
            yield folder, None


def _commits(model: Path) -> list[Path]:
    """Return the folders that are named by a commit, the newest first."""
    folders = [each for each in _folders(model) if is_commit(each.name)]
    return sorted(folders, key=lambda each: each.stat().st_mtime, reverse=True)


def find_below(root: Path, name: str) -> Path | None:
    """Return the folder of this name below a root; where there is none, one whose name differs in case only."""
    folder = root
    for part in name.split("/"):
        exact = folder / part
        if not exact.is_dir():
            wanted = part.casefold()
            others = (each for each in _folders(folder) if each.name.casefold() == wanted)
            exact = next(others, exact)
        folder = exact
    return folder.resolve() if folder.is_dir() else None


def _folders(parent: Path) -> list[Path]:
    try:
        return [each for each in parent.iterdir() if each.is_dir()]
    except OSError:
        return []


def _read_text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
