"""How often Python's garbage collector looks for cycles in a process that serves.

By itself it does so after 700 new objects, which is every few jobs, and now and then it goes through all that the
process has ever loaded. With 32 sessions at once that was a fifth of the CPU time of a step, with 50 jobs a tenth of a
job's, and each of the long searches held everything up for fifty milliseconds. Jobs and turns leave hardly any cycles.
"""

from __future__ import annotations

import gc
from typing import Final

_USUAL: Final = ((700, 10, 10), (2_000, 10, 10), (2_000, 10, 0))
"""What Python begins with, by version."""
_OBJECTS: Final = 10_000


class Collector:
    """The collector's settings, while a worker or the local platform serves."""

    def __init__(self) -> None:
        self._is_relaxed = False
        self._before: tuple[int, int, int] | None = None

    def relax(self, *, is_rare: bool = True) -> None:
        """Never search through what is loaded by now, and search rarely. A program's own settings stay as they are.

        Args:
            is_rare: False where cycles may hold what is scarce, such as the memory of a GPU: then only the first.
        """
        gc.freeze()
        self._is_relaxed = True
        found = gc.get_threshold()
        if is_rare and found in _USUAL:
            self._before = found
            gc.set_threshold(_OBJECTS, *found[1:])

    def restore(self) -> None:
        """Search as usual, for what the process does afterwards."""
        if not self._is_relaxed:
            return
        self._is_relaxed = False
        gc.unfreeze()
        if self._before is not None:
            gc.set_threshold(*self._before)
            self._before = None
