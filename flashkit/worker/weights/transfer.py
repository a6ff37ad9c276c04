"""The bytes of a download: many parts at a time, each written where it belongs; none is asked for twice.

A file is cut into parts of 32 MiB. `<file>.part` has the length of the whole, `<file>.part.done` the numbers of the
parts that are in it; both outlive a killed process. A part's bytes always go to the same place, so two processes
that write one file at the same time, which leases prevent but cannot exclude, write the same. A file that is
complete is hashed, synced to the disk, and only then gets its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flashkit.errors import WeightsDamaged, WeightsError, WeightsSourceError
from flashkit.worker.weights.manifest import FileEntry, matches
from flashkit.worker.weights.progress import Progress, format_size
from flashkit.worker.weights.shelves import explained, room_in
from flashkit.worker.weights.sources import Body, Persistence, Source, TransientFailure, times

PART_BYTES: Final = 32 << 20
THREADS: Final = 8
_BUFFER_BYTES: Final = 1 << 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_SPARE_BYTES: Final = 64 << 20
"""Left free on the disk: logs and other programs need some."""


class Stopped(Exception):
    """The download was told to stop: its lease is lost, or another part failed."""


@dataclass(slots=True)
class _File:
    """One file on its way."""

    entry: FileEntry
    path: Path
    missing: set[int]
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards `missing`, which several threads empty

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def journal(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.done")


class Transfer:
    """Brings files from a source into a folder.

    Args:
        source: Where they come from.
        folder: Where they go; what an earlier transfer left there is used.
        files: What they are.
        progress: Told how far it is.
        is_stopped: Asked before each piece of a part.
        threads: Parts at a time.
        part_bytes: How long a part is.
        persistence: How failures of the source are met.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        files: Sequence[FileEntry],
        *,
        progress: Progress,
        is_stopped: Callable[[], bool] = lambda: False,
        threads: int = THREADS,
        part_bytes: int = PART_BYTES,
        persistence: Persistence = Persistence(),  # noqa: B008
    ) -> None:
        self._source = source
        self._folder = folder
        self._progress = progress
        self._is_stopped = is_stopped
        self._threads = threads
        self._part_bytes = part_bytes
        self._persistence = persistence
        self._has_failed = threading.Event()
        self._buffers = threading.local()
        self.total_bytes = sum(entry.size for entry in files)
        self._files = [self._find(entry) for entry in files]

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to come."""
        return sum(self._part_size(file.entry, part) for file in self._files for part in file.missing)

    def require_room(self, what: str) -> None:
        """Refuse to start where the disk cannot hold what is to come.

        Raises:
            WeightsError: It cannot; the message has the numbers.
        """
        needed, free = self.missing_bytes, room_in(self._folder)
        if needed and needed + _SPARE_BYTES > free:
            raise _no_room(what, self._folder, needed=needed, free=free, total=self.total_bytes)

    def run(self, what: str) -> None:
        """Bring all files. Those that are complete have their names when this fails, and parts stay for the next time.

        Raises:
            WeightsSourceError: The source failed too often.
            WeightsDamaged: It sent other bytes than it should, twice.
            WeightsError: The disk is full or broken.
            Stopped: It was told to.
        """
        self._progress.begin(what, total=self.total_bytes, done=self.total_bytes - self.missing_bytes)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="weights")
        tasks = [pool.submit(self._guarded, job) for job in self._jobs(self._files)]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            self._has_failed.set()
            pool.shutdown(wait=True, cancel_futures=True)
        failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        if failures:  # the others stopped because of one of them
            raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            with self._disk_explained():
                job()
        except BaseException:
            self._has_failed.set()  # at once: others end after their next piece
            raise

    def _jobs(self, files: Sequence[_File]) -> Iterator[Callable[[], None]]:
        """Yield what is to be done, long files first: the end is then many short ones, and all threads are busy."""
        for file in sorted(files, key=lambda each: each.entry.size, reverse=True):
            if not file.missing:
                if not file.path.exists():
                    yield lambda file=file: self._finish(file)  # type: ignore[misc]  # all parts came, then a kill
                continue
            self._open(file)
            for part in sorted(file.missing):
                yield lambda file=file, part=part: self._bring(file, part)  # type: ignore[misc]

    def _find(self, entry: FileEntry) -> _File:
        file = _File(entry, self._folder / entry.path, set(range(self._part_count(entry))))
        if file.path.exists():
            file.missing = set()
        elif file.partial.exists():
            file.missing -= self._parts_in(file)
        return file

    def _parts_in(self, file: _File) -> set[int]:
        if file.partial.stat().st_size != file.entry.size:
            return set()
        try:
            size, *parts = file.journal.read_text().rpartition("\n")[0].split()
        except (OSError, ValueError):
            return set()
        return {int(part) for part in parts if part.isdecimal()} if size == str(self._part_bytes) else set()

    def _open(self, file: _File) -> None:
        with self._disk_explained():
            file.path.parent.mkdir(parents=True, exist_ok=True)
            if len(file.missing) == self._part_count(file.entry):
                file.journal.write_text(f"{self._part_bytes}\n")
            with file.partial.open("ab") as stream:
                stream.truncate(file.entry.size)

    def _bring(self, file: _File, part: int) -> None:
        start = part * self._part_bytes
        descriptor = os.open(file.partial, os.O_WRONLY)
        try:
            self._copy(file.entry, descriptor, start, start + self._part_size(file.entry, part))
        finally:
            os.close(descriptor)
        with file.lock:
            with file.journal.open("a") as journal:
                journal.write(f"{part}\n")
            file.missing.discard(part)
            is_last = not file.missing
        if is_last:
            self._finish(file)

    def _copy(self, entry: FileEntry, descriptor: int, position: int, stop: int) -> None:
        failures = 0
        while position < stop:
            came = position
            try:
                with self._source.open_range(entry, position, stop) as body:
                    while position < stop:
                        position += self._copy_piece(body, descriptor, position, stop)
            except TransientFailure as exc:
                failures = 1 if position > came else failures + 1
                if failures >= self._persistence.attempts:
                    raise WeightsSourceError(
                        f"{self._source.label} failed{times(failures)} at {entry.path}: {exc}",
                        hint="try again later: what has come is kept, and only the rest is asked for",
                    ) from exc
                self._persistence.pause(failures)

    def _copy_piece(self, body: Body, descriptor: int, position: int, stop: int) -> int:
        if self._has_failed.is_set() or self._is_stopped():
            raise Stopped
        view = self._buffer()[: stop - position]
        count = body.readinto(view)
        if not count:
            raise TransientFailure(f"the answer ended {stop - position:,} bytes early")
        _write(descriptor, view[:count], position)
        self._progress.advance(count)
        return count

    def _finish(self, file: _File) -> None:
        """Check a file, put it on the disk for good, and give it its name."""
        if not matches(file.partial, file.entry):
            self._again(file)
        with file.partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        file.partial.rename(file.path)
        file.journal.unlink(missing_ok=True)

    def _again(self, file: _File) -> None:
        """Bring a file anew whose content is wrong: what was left of an earlier time may be from a broken disk."""
        self._progress.advance(-file.entry.size)
        descriptor = os.open(file.partial, os.O_WRONLY)
        try:
            self._copy(file.entry, descriptor, 0, file.entry.size)
        finally:
            os.close(descriptor)
        if not matches(file.partial, file.entry):
            file.journal.unlink(missing_ok=True)
            file.partial.unlink()
            raise WeightsDamaged(
                f"{file.entry.path} from {self._source.label} has another content than its hash says, twice",
                hint="the copy there is damaged: push or upload it again, or take the weights from elsewhere",
                details={"files": [file.entry.path]},
            )

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(_BUFFER_BYTES))
        view: memoryview = self._buffers.view
        return view

    def _part_count(self, entry: FileEntry) -> int:
        return max(1, -(-entry.size // self._part_bytes))

    def _part_size(self, entry: FileEntry, part: int) -> int:
        return min(self._part_bytes, entry.size - part * self._part_bytes)

    @contextlib.contextmanager
    def _disk_explained(self) -> Iterator[None]:
        try:
            with explained(self._folder):
                yield
        except WeightsError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno in _NO_ROOM:
                free = room_in(self._folder)
                raise _no_room(
                    "the weights", self._folder, needed=self.missing_bytes, free=free, total=self.total_bytes
                ) from exc.__cause__
            raise


def _write(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def _no_room(what: str, folder: Path, *, needed: int, free: int, total: int) -> WeightsError:
    had = f" ({format_size(total - needed)} of {format_size(total)} are there)" if needed < total else ""
    return WeightsError(
        f"{what}: {format_size(needed)} are to come{had}, and the disk of {folder} has {format_size(free)} left",
        hint="make the network volume or the container's disk larger, or download less (Weights allow=, ignore=)",
        details={"needed_bytes": needed, "free_bytes": free, "total_bytes": total},
    )
