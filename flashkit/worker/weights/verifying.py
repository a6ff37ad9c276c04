"""Whether weights on this machine are what they should be, byte by byte, and bringing anew what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flashkit.errors import FlashkitError, WeightsDamaged, WeightsError
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights.downloading import Manner
from flashkit.worker.weights.fetching import fetch, remote_sources
from flashkit.worker.weights.folders import Evidence, check_folder, known_hashes, read_evidence
from flashkit.worker.weights.hub import Hub
from flashkit.worker.weights.manifest import Damage, FileEntry, check_hashes
from flashkit.worker.weights.places import Place, local_places
from flashkit.worker.weights.progress import Progress
from flashkit.worker.weights.resolving import Found, mismatch


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of checking one copy."""

    place: Place
    folder: Path
    commit: str | None
    files: tuple[FileEntry, ...]
    damage: tuple[Damage, ...]

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Files whose content nothing could be compared with."""
        return tuple(entry.path for entry in self.files if not entry.has_hash and entry.size)

    @property
    def is_sound(self) -> bool:
        """True when every file was compared and is what it should be."""
        return not self.damage and not self.unchecked


def verify(weights: Weights, settings: Settings, *, progress: Progress) -> Iterator[Verdict]:
    """Yield a verdict for every copy on this machine of the revision that is asked for, in the order of the places."""
    for place in local_places(weights, settings):
        if place.folder is None:
            continue
        try:
            evidence = read_evidence(place.folder)
        except WeightsDamaged as exc:
            yield Verdict(place, place.folder, None, (), (Damage(".", exc.report.message),))
            continue
        if mismatch(evidence, weights, needs_manifest=False) is None:
            yield _check(place, place.folder, evidence, _expected(place.folder, evidence, weights, settings), progress)


def repair(verdict: Verdict, weights: Weights, settings: Settings, *, manner: Manner) -> Found:
    """Bring the damaged files of a copy anew, from where it came or from the hub, and return it.

    Raises:
        WeightsError: It is not flashkit's to repair, or no source has this commit.
    """
    root = verdict.place.root
    if root is None or verdict.commit is None:
        raise WeightsError(
            f"{verdict.folder} is not flashkit's to repair: {_why_not(verdict)}",
            hint=f"remove it and bring the weights again: flashkit weights pull {weights.name}",
        )
    for damage in verdict.damage:
        (verdict.folder / damage.path).unlink(missing_ok=True)
    pinned = Weights(weights.name, verdict.commit, allow=weights.allow, ignore=weights.ignore, s3=weights.s3)
    problem: FlashkitError | None = None
    for source in remote_sources(pinned, settings):
        try:
            is_shelf = verdict.place.needs_manifest
            return fetch(
                source, pinned, settings,
                folder=None if is_shelf else root, shelf=root if is_shelf else None, manner=manner,
            )  # fmt: skip
        except WeightsError as exc:
            problem = exc
    raise problem or WeightsError("HF_HUB_OFFLINE is set, so nothing can be brought anew", hint="unset it")


def _check(place: Place, folder: Path, evidence: Evidence, files: tuple[FileEntry, ...], progress: Progress) -> Verdict:
    progress.begin(str(folder), total=sum(entry.size for entry in files))
    damage = [] if evidence.manifest else check_folder(folder)
    seen = {each.path for each in damage}
    damage += check_hashes(folder, [entry for entry in files if entry.path not in seen], on_bytes=progress.advance)
    return Verdict(place, folder, evidence.commit, files, tuple(damage))


def _expected(folder: Path, evidence: Evidence, weights: Weights, settings: Settings) -> tuple[FileEntry, ...]:
    """Return what the files should be: by the manifest, by the notes of other tools, by the hub."""
    if evidence.manifest is not None:
        return evidence.manifest.files
    noted = known_hashes(folder)
    commit = evidence.commit or weights.revision
    if all(entry.has_hash for entry in noted) or commit is None or settings.is_hub_offline:
        return noted
    try:
        with closing(Hub(Weights(weights.name, commit, allow=("*",)), settings)) as hub:
            listing = hub.list_files()
    except FlashkitError:
        return noted  # the verdict says what could not be compared
    there = {entry.path for entry in noted}
    known = {entry.path: entry for entry in listing.files}
    return tuple(
        known.get(path, entry) for path, entry in ((entry.path, entry) for entry in noted if entry.path in there)
    )


def _why_not(verdict: Verdict) -> str:
    return "nothing tells of which commit it is" if verdict.place.root is not None else "another tool keeps it"
