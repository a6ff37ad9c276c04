"""Runpod's documented limits on requests: so many in ten seconds, and so many at the same time, for each endpoint.

A client over a limit gets 429. Limits grow with an endpoint's workers: the documented formula is the larger of the
base and running workers times an amount per worker, and that amount is not documented.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from flashkit.errors import PlatformError
from flashkit.protocol import RATE_LIMITS, RateLimit

_WINDOW_S: Final = 10.0


class RateLimited(PlatformError):
    """There were too many requests of this kind."""

    code = "rate_limited"


@dataclass(frozen=True, slots=True)
class _Key:
    endpoint: str
    action: str


class RateLimiter:
    """Counts the requests of the last ten seconds, and those under way."""

    def __init__(self, *, per_worker: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no requests.

        Args:
            per_worker: Share of the base limit that each running worker is worth.
            clock: Seconds.
        """
        self._per_worker = per_worker
        self._clock = clock
        self._recent: dict[_Key, deque[float]] = {}
        self._open: Counter[_Key] = Counter()

    @contextlib.contextmanager
    def admit(self, endpoint: str, action: str, *, running_workers: int) -> Iterator[None]:
        """Let a request pass, and count it until the end of the block.

        Raises:
            RateLimited: It is one too many.
        """
        limit = RATE_LIMITS.get(action)
        if limit is None:
            yield
            return
        key = _Key(endpoint, action)
        self._check(key, limit, max(1.0, running_workers * self._per_worker))
        self._recent[key].append(self._clock())
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1

    def _check(self, key: _Key, limit: RateLimit, factor: float) -> None:
        recent = self._recent.setdefault(key, deque())
        now = self._clock()
        while recent and recent[0] <= now - _WINDOW_S:
            recent.popleft()
        most, most_open = int(limit.requests * factor), int((limit.concurrent or 0) * factor)
        if len(recent) >= most:
            raise _limited(key, f"{most:,} in {_WINDOW_S:g} s", retry_after_s=recent[0] + _WINDOW_S - now)
        if limit.concurrent is not None and self._open[key] >= most_open:
            raise _limited(key, f"{most_open:,} at the same time", retry_after_s=1.0)


def _limited(key: _Key, limit: str, *, retry_after_s: float) -> RateLimited:
    return RateLimited(
        f"endpoint {key.endpoint!r} takes no more {key.action} requests than {limit}",
        hint=f"send it again in {retry_after_s:.1f} s; submit batches, or poll /status less often",
        details={"action": key.action, "retry_after_s": round(retry_after_s, 1)},
    )
