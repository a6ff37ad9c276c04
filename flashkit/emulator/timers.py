"""One heap of timers for the whole platform.

Everything that time alone can change has at most one timer, keyed by the thing itself. Most timers are
overtaken by events (a job finishes long before its time to live runs out), so nothing is ever searched in
the heap: an entry that does not match its key's current one is dead and skipped, and when the dead
outnumber the living the heap is built anew. Memory is therefore bounded by the number of keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_DEAD_ENTRIES_TOLERATED: Final = 64


class Timers(Generic[K]):
    """Deadlines by key; setting, dropping and reading the first one take logarithmic time at most."""

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, when: float) -> None:
        """Make the key due at `when` or before: an earlier deadline stays, and its owner sets the later one.

        Moving a deadline back would cost a heap entry for each job that a busy worker does; whoever is
        called early looks at the time and sets the timer again.
        """
        due = self._due.get(key)
        if due is not None and due[0] <= when:
            return
        self._serial += 1
        self._due[key] = (when, self._serial)
        heapq.heappush(self._heap, (when, self._serial, key))
        if len(self._heap) > 2 * len(self._due) + _DEAD_ENTRIES_TOLERATED:
            self._bury_the_dead()

    def drop(self, key: K) -> None:
        """Forget the key's deadline, if it has one."""
        self._due.pop(key, None)

    def first(self) -> float | None:
        """Return the earliest deadline, None when there is none."""
        heap = self._heap
        while heap:
            when, serial, key = heap[0]
            if self._due.get(key) == (when, serial):
                return when
            heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> K | None:
        """Return a key whose deadline has come and forget the deadline; None when there is none."""
        first = self.first()
        if first is None or first > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        return key

    def _bury_the_dead(self) -> None:
        self._heap = [(when, serial, key) for key, (when, serial) in self._due.items()]
        heapq.heapify(self._heap)
