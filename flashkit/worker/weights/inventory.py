"""All weights on this machine: what is where, of which commit, how large, and whether it is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flashkit.errors import WeightsDamaged
from flashkit.settings import Settings
from flashkit.worker.weights.folders import check_folder, read_evidence, walk
from flashkit.worker.weights.leases import holder_facts, holder_is_gone, read_lease
from flashkit.worker.weights.manifest import check_sizes, is_commit
from flashkit.worker.weights.places import VOLUME_FOLDER
from flashkit.worker.weights.progress import percent
from flashkit.worker.weights.shelves import STAGING


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a model's weights."""

    name: str
    commit: str | None
    place: str
    folder: Path
    size_bytes: int
    state: str
    """`complete`, or what is wrong."""


def list_copies(settings: Settings) -> Iterator[Copy]:
    """Yield every copy in the folders that are looked at for weights, in their order."""
    volume, cache = settings.volume_dir, settings.model_cache_dir
    yield from _plain("weights folder", settings.weights_dir)
    yield from _hub_cache("Hugging Face cache", settings.hub_cache.expanduser())
    yield from _hub_cache("model cache", volume / "huggingface-cache" / "hub")
    yield from _by_revision("model store", cache / "model-store" / "huggingface")
    yield from _by_revision("model cache of the SDK", cache / "cache")
    yield from _shelf("network volume", volume / VOLUME_FOLDER)
    yield from _plain("network volume", volume / "models")
    yield from _shelf("downloads", settings.weights_cache.expanduser())


def _plain(place: str, root: Path) -> Iterator[Copy]:
    for folder in _folders(root, 2):
        yield _describe(f"{folder.parent.name}/{folder.name}", place, folder)
    yield from _unfinished(place, root)


def _hub_cache(place: str, root: Path) -> Iterator[Copy]:
    for model in _folders(root, 1):
        if name := re.fullmatch(r"models--(.+?)--(.+)", model.name):
            for folder in _folders(model / "snapshots", 1):
                yield _describe(f"{name[1]}/{name[2]}", place, folder)


def _by_revision(place: str, root: Path) -> Iterator[Copy]:
    for folder in _folders(root, 3):
        yield _describe(f"{folder.parent.parent.name}/{folder.parent.name}", place, folder)


def _shelf(place: str, root: Path) -> Iterator[Copy]:
    for folder in _folders(root, 3):
        if is_commit(folder.name):
            yield _describe(f"{folder.parent.parent.name}/{folder.parent.name}", place, folder)
    yield from _unfinished(place, root)


def _describe(name: str, place: str, folder: Path) -> Copy:
    try:
        evidence = read_evidence(folder)
        damage = check_sizes(folder, evidence.manifest.files) if evidence.manifest else check_folder(folder)
        state = f"damaged: {'; '.join(map(str, damage))}" if damage else "complete"
        return Copy(name, evidence.commit, place, folder, _size_of(folder), state)
    except WeightsDamaged as exc:
        return Copy(name, None, place, folder, _size_of(folder), f"damaged: {exc.report.message}")


def _unfinished(place: str, root: Path) -> Iterator[Copy]:
    for folder in _folders(root / STAGING, 2):
        commit = folder.name.partition(".")[0]
        if not is_commit(commit):
            continue
        name = folder.parent.name.removesuffix(f"--{commit}").replace("--", "/", 1)
        size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
        yield Copy(name, commit, place, folder, size, _state_of(root / STAGING / f"{folder.parent.name}.lease"))


def _state_of(lease: Path) -> str:
    content = read_lease(lease)
    if content is None or holder_is_gone(content):
        return "not complete: its download was interrupted, and goes on with the next one"
    facts = holder_facts(content)
    return f"downloading, {percent(facts['done'], facts['total'])}" if facts.get("total") else "downloading"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in walk(folder) if path.exists())


def _folders(root: Path, depth: int) -> list[Path]:
    """Return the folders so many levels below a root, without hidden ones."""
    try:
        found = sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return []
    return found if depth == 1 else [below for each in found for below in _folders(each, depth - 1)]
