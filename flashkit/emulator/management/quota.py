"""How many requests a caller has left, as REST v2 says it in headers: by the minute, the hour and the day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Window:
    """So many requests in so many seconds."""

    name: str
    requests: int
    seconds: float


DOCUMENTED_WINDOWS: Final = (Window("minute", 60, 60), Window("hour", 3_000, 3_600), Window("day", 50_000, 86_400))
"""The example of the vendor's schema (2026-08-20); what an account really has is not documented."""


class Quota:
    """Counts the requests of one caller.

    Args:
        windows: What is allowed; nothing means that everything is, and that no header says anything.
    """

    def __init__(self, windows: Sequence[Window] = ()) -> None:
        self._windows = tuple(windows)
        self._used = {window.name: (0.0, 0) for window in windows}
        """When each window began, and how many requests came since."""

    def take(self, now: float) -> Window | None:
        """Count a request, and return the window that is used up, if one is."""
        for window in self._windows:
            began, count = self._used[window.name]
            if now - began >= window.seconds:
                began, count = now, 0
            self._used[window.name] = (began, count)
        full = next((window for window in self._windows if self._left(window) < 1), None)
        if full is None:
            self._used = {name: (began, count + 1) for name, (began, count) in self._used.items()}
        return full

    def seconds_to_reset(self, window: Window, now: float) -> int:
        """Return when the window begins anew, in whole seconds."""
        began, _ = self._used[window.name]
        return max(1, math.ceil(began + window.seconds - now))

    def headers(self, now: float) -> dict[str, str]:
        """Return what every answer says of the quota."""
        if not self._windows:
            return {}
        left = (
            f'"{window.name}";r={self._left(window)};t={self.seconds_to_reset(window, now)}' for window in self._windows
        )
        policy = (f'"{window.name}";q={window.requests};w={window.seconds:g}' for window in self._windows)
        return {"RateLimit": ", ".join(left), "RateLimit-Policy": ", ".join(policy)}

    def _left(self, window: Window) -> int:
        return window.requests - self._used[window.name][1]
