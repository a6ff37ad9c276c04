"""How vLLM's processes wait for each other on a CPU: awake for a moment, then in naps.

Where a model runs beside its scheduler (split, or with `mode="serve"`), both pass messages through shared memory, and
whoever waits looks again and again, for a second after the last message, with a whole core. On a machine with few cores
that core is the one that streams the answers, runs the other workers of `flashkit dev` and the platform: measured on
two, these waited up to 0.6 s for their turn. So a wait that takes longer goes on in naps, each of them short beside the
time that was waited already.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final
from weakref import WeakKeyDictionary

AWAKE_S: Final = 0.0003
"""How long to look again and again."""
NAP_SHARE: Final = 0.01
"""A nap's length as a share of the time waited so far: a long wait gets longer by that at most."""
SHORTEST_NAP_S: Final = 0.00002
LONGEST_NAP_S: Final = 0.001


def nap_after(waited: float) -> float:
    """Return for how many seconds to sleep before looking again, after so many; 0 to look at once."""
    if waited < AWAKE_S:
        return 0.0
    return min(LONGEST_NAP_S, max(SHORTEST_NAP_S, waited * NAP_SHARE))


def wait_in_naps() -> None:
    """Let this process, and those forked from it, wait so; a vLLM without these waits stays as it is."""
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = getattr(shm_broadcast, "SpinCondition", None)
    if not (hasattr(condition, "wait") and hasattr(condition, "record_read")):
        return
    since: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
    """When each of those that wait began to."""
    wait, record_read = condition.wait, condition.record_read

    def wait_here(self: Any, timeout_ms: int | None = None) -> None:
        now = time.monotonic()
        if now > self.last_read + self.busy_loop_s:
            wait(self, timeout_ms)  # nothing came for long: it sleeps until it is woken
        elif nap := nap_after(now - since.setdefault(self, now)):
            time.sleep(nap)
        else:
            os.sched_yield()

    def record_read_here(self: Any) -> None:
        record_read(self)
        since.pop(self, None)

    condition.wait, condition.record_read = wait_here, record_read_here
