"""What a download needs of the place that it comes from; the hub and S3 fulfil it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flashkit.errors import WeightsSourceError
from flashkit.worker.weights.manifest import FileEntry

T = TypeVar("T")


class TransientFailure(Exception):
    """The other side was away, answered 5xx or hung up: the same can be asked again."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """How often something is asked for again when the other side fails, and how long in between."""

    attempts: int = 10
    """Failures in a row."""
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int) -> None:
        """Wait before the next try."""
        self.sleep(min(self.first_pause_seconds * 2 ** (failures - 1), self.longest_pause_seconds))

    def try_hard(self, ask: Callable[[], T], label: str) -> T:
        """Return what asking gives.

        Raises:
            WeightsSourceError: It failed too often; `label` names who was asked.
        """
        for failures in itertools.count(1):
            try:
                return ask()
            except TransientFailure as exc:
                if failures >= self.attempts:
                    raise WeightsSourceError(
                        f"{label} failed{times(failures)}: {exc}", hint="try again when it is there"
                    ) from exc
                self.pause(failures)
        raise AssertionError("counting does not end")


def times(count: int) -> str:
    """Return how often, where that is worth saying."""
    return f" {count} times" if count > 1 else ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a place has of a model: the files of one commit."""

    name: str
    commit: str
    files: tuple[FileEntry, ...]
    revision: str | None = None
    """The branch or tag that was asked for."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


class Body(Protocol):
    """Bytes that come over a network."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Put bytes into the buffer and return how many; 0 at the end.

        Raises:
            TransientFailure: The connection broke.
        """


class Source(Protocol):
    """A place on the network that has models."""

    @property
    def label(self) -> str:
        """The place in words, for logs, errors and manifests."""

    def list_files(self) -> Listing:
        """Return the files of the commit that is wanted.

        Raises:
            WeightsSourceError: The place is down or has not the model.
            WeightsError: It refuses, and no other place will do.
        """

    def open_range(self, entry: FileEntry, start: int, stop: int) -> AbstractContextManager[Body]:
        """Return a file's bytes from `start` up to and without `stop`.

        Raises:
            TransientFailure: Not now; ask again.
            WeightsError: Never.
        """

    def close(self) -> None:
        """Close the connections."""
