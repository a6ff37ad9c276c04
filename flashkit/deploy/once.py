"""Making something once, over a network that may lose the answer: look before it is made again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from flashkit.deploy.api import ManagementApi, Uncertain

LOOK_AGAIN_SECONDS: Final = (1.0, 3.0)
"""Waits before one looks whether something was made after all: what is new may take a moment to be listed."""
_ATTEMPTS: Final = 3
"""How often something is made that turns out not to be there."""


async def make_once(
    api: ManagementApi, make: Callable[[], Awaitable[str]], look: Callable[[], Awaitable[str | None]]
) -> str:
    """Make something and return its id; where the answer got lost, look for it before it is made again.

    Raises:
        Uncertain: The answers got lost again and again, and it is not to be found.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return await make()
        except Uncertain:
            for seconds in LOOK_AGAIN_SECONDS:
                await api.wait(seconds)
                if (found := await look()) is not None:
                    return found
            if attempt == _ATTEMPTS:
                raise
