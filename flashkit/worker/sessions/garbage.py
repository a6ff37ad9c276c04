"""How often Python's garbage collector looks for cycles while sessions run.

By itself it does so after 700 new objects, a few steps of sessions side by side, and now and then it goes through
all that the process has ever loaded. Measured with 32 sessions at once, that was a fifth of the CPU time of a step,
and each of the long searches held everything up for fifty milliseconds. Sessions leave hardly any cycles.
"""

from __future__ import annotations

import gc
from typing import Final

_USUAL: Final = ((700, 10, 10), (2_000, 10, 10), (2_000, 10, 0))
"""What Python begins with, by version."""
_OBJECTS: Final = 10_000


class Collector:
    """The collector's settings, while one runner's sessions are there."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None

    def relax(self) -> None:
        """Search rarely, and never through what is loaded by now. A program that has its own settings keeps them."""
        gc.freeze()
        found = gc.get_threshold()
        if found in _USUAL:
            self._before = found
            gc.set_threshold(_OBJECTS, *found[1:])

    def restore(self) -> None:
        """Search as usual, for what the process does after its sessions."""
        gc.unfreeze()
        if self._before is not None:
            gc.set_threshold(*self._before)
            self._before = None
