"""One download, from the list of files to the folder that is there at once: lease, staging, transfer, publication."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from flashkit.errors import WeightsDamaged, WeightsError
from flashkit.spec import Weights
from flashkit.worker.weights.leases import Lease, Pace, Watch, holder_facts, read_lease
from flashkit.worker.weights.manifest import FileEntry, Manifest, Selection, check_hashes, hash_file, read_manifest
from flashkit.worker.weights.progress import Progress, make_progress, percent
from flashkit.worker.weights.shelves import (
    Target,
    claim,
    explained,
    is_published,
    note_revision,
    prepare,
    publish,
)
from flashkit.worker.weights.sources import Listing, Persistence, Source
from flashkit.worker.weights.transfer import PART_BYTES, THREADS, Stopped, Transfer

log = logging.getLogger("flashkit.weights")

_TRIES = 3
"""How often a staging folder that has gone is made anew."""
_TELL_SECONDS = 10.0
"""Who waits for another worker's download says so this often."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How downloads are done; the defaults are right outside of tests."""

    pace: Pace = field(default_factory=Pace)
    persistence: Persistence = field(default_factory=Persistence)
    threads: int = THREADS
    part_bytes: int = PART_BYTES
    make_progress: Callable[[], Progress] = make_progress
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class _Amounts:
    """What others see of a download in its lease."""

    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> dict[str, Any]:
        return self.facts


class _Counted:
    """A progress that also keeps the lease's facts up to date."""

    def __init__(self, progress: Progress, amounts: _Amounts) -> None:
        self._progress = progress
        self._amounts = amounts

    def __enter__(self) -> _Counted:
        self._progress.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._progress.__exit__(*args)

    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        self._amounts.facts.update(done=done, total=total)
        self._progress.begin(what, total=total, done=done)

    def advance(self, count: int) -> None:
        # Threads may lose a step of each other here: it is for people who wait, the transfer counts for itself.
        self._amounts.facts["done"] = self._amounts.facts.get("done", 0) + count
        self._progress.advance(count)


def download(
    source: Source,
    listing: Listing,
    target: Target,
    weights: Weights,
    *,
    manner: Manner = Manner(),
) -> Path:
    """Return the folder with the files of a listing, complete and checked; one worker of all brings them.

    Raises:
        WeightsError: No room, a disk that cannot be written, a source that fails or sends damaged files.
    """
    asked = Selection(weights.allow, weights.ignore)
    manifest = Manifest(listing.name, listing.commit, listing.files, listing.revision, source.label, (asked,))
    try:
        prepare(target)
        _Download(source, target, manifest, manner).run()
        with explained(target.root):
            note_revision(target, listing.revision)
    except FileNotFoundError as exc:
        raise WeightsError(
            f"{listing.name}: {exc.filename or exc} went away during the download",
            hint=f"let nothing remove files below {target.root}, and try again",
        ) from exc
    return target.final


class _Download:
    """One worker's part in a download: it brings the files, or waits for who does."""

    def __init__(self, source: Source, target: Target, manifest: Manifest, manner: Manner) -> None:
        self._source = source
        self._target = target
        self._manifest = manifest
        self._manner = manner
        self._amounts = _Amounts()

    @property
    def _is_done(self) -> bool:
        return is_published(self._target, self._manifest)

    def run(self) -> None:
        """Return when the files are there."""
        while not self._is_done:
            lease = self._wait_for_lease()
            if lease is None:
                return
            with lease:
                if not self._is_done:
                    self._bring_unless_taken(lease)

    def _wait_for_lease(self) -> Lease | None:
        """Return the lease when it is this worker's turn, None when another one has brought the files meanwhile."""
        file, name, manner = self._target.lease_file, self._manifest.name, self._manner
        lease = Lease(file, self._amounts, manner.pace)
        watch = Watch(manner.pace, manner.clock)
        told_at = float("-inf")
        with explained(self._target.root):
            while not lease.try_acquire():
                dead = watch.look(file)
                if dead is not None and lease.take_over(dead):
                    log.warning("%s: the worker that downloaded it is gone; going on where it was", name)
                    return lease
                if manner.clock() - told_at >= _TELL_SECONDS:
                    told_at = manner.clock()
                    log.info("%s: waiting for %s", name, _describe_holder(read_lease(file)))
                manner.sleep(manner.pace.poll_seconds)
                if self._is_done:
                    return None
        return lease

    def _bring_unless_taken(self, lease: Lease) -> None:
        """Bring the files while the lease is this worker's.

        A worker that was frozen between its lease and its first step may take the staging folder away before it
        notices that its lease is lost; the folder is then taken back.
        """
        for tries in itertools.count(1):
            try:
                self._bring(lease)
            except (Stopped, FileNotFoundError):
                if lease.was_taken():
                    log.warning("%s: another worker took this download over; waiting for it", self._manifest.name)
                elif tries < _TRIES:
                    continue
                else:
                    raise
            return

    def _bring(self, lease: Lease) -> None:
        target, manifest, manner = self._target, self._manifest, self._manner
        if lease.was_taken():
            raise Stopped
        staging = claim(target, lease.token)
        with explained(target.root):
            kept = _keep_sound_files(target, staging, manifest)
        with _Counted(manner.make_progress(), self._amounts) as progress:
            transfer = Transfer(
                self._source, staging, manifest.files,
                progress=progress, is_stopped=lambda: lease.is_lost, threads=manner.threads,
                part_bytes=manner.part_bytes, persistence=manner.persistence,
            )  # fmt: skip
            transfer.require_room(manifest.name)
            transfer.run(f"{manifest.name} from {self._source.label}")
        files = tuple(_hashed(staging, entry) for entry in manifest.files)
        selections = tuple(dict.fromkeys(manifest.selections + kept.selections))
        publish(target, staging, replace(manifest, files=files + kept.files, selections=selections))


def _describe_holder(content: bytes | None) -> str:
    facts = holder_facts(content or b"")
    host = str(facts.get("host", "")).partition(" ")[0]
    far = f", {percent(facts['done'], facts['total'])}" if facts.get("total") else ""
    return (
        f"another worker's download ({host} process {facts.get('pid')}{far})" if facts else "another worker's download"
    )


class _Kept(NamedTuple):
    """What a copy has that is to be replaced, beyond the files that are wanted: other workers have asked for them."""

    files: tuple[FileEntry, ...] = ()
    selections: tuple[Selection, ...] = ()


def _keep_sound_files(target: Target, staging: Path, manifest: Manifest) -> _Kept:
    """Put what is whole of the copy that this download replaces into the staging folder, without copying it."""
    try:
        held = read_manifest(target.final)
    except WeightsDamaged:
        held = None
    if held is None or held.commit != target.commit:
        return _Kept()
    wanted = {entry.path for entry in manifest.files}
    others = tuple(entry for entry in held.files if entry.path not in wanted)
    sound = {entry.path for entry in (*manifest.files, *others) if _keep(target.final, staging, entry)}
    are_all_sound = all(entry.path in sound for entry in others)
    return _Kept(tuple(entry for entry in others if entry.path in sound), held.selections if are_all_sound else ())


def _keep(folder: Path, staging: Path, entry: FileEntry) -> bool:
    old, new = folder / entry.path, staging / entry.path
    if new.exists():
        return True
    if not entry.has_hash or check_hashes(folder, [entry]):
        return False
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError:  # a file system without links
        shutil.copyfile(old, new)
    return True


def _hashed(folder: Path, entry: FileEntry) -> FileEntry:
    """Return an entry with a hash: of what has come, where the source knew none."""
    return entry if entry.has_hash else replace(entry, sha256=hash_file(folder / entry.path))
