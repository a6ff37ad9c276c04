"""What `flashkit dev` does for sessions by itself: it lets those go on whose wait is over or whose worker is gone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flashkit.cli.dev_store import SQLITE, DevStore
from flashkit.errors import FlashkitError
from flashkit.settings import Settings

_EVERY_S: Final = 2.0


async def resume_for_ever(url: str, dev_store: DevStore, say: Callable[[str], None]) -> None:
    """Look every few seconds for sessions that nobody goes on with, until cancelled.

    Args:
        url: The platform's address.
        dev_store: Where the sessions are.
        say: Tells the developer what was done.
    """
    from flashkit.client import Client
    from flashkit.worker.sessions.overdue import resume_overdue
    from flashkit.worker.sessions.store import open_settings_store

    settings = dataclasses.replace(
        Settings.from_environment(), base_url=f"{url}/v2", state_url=dev_store.url, state_namespace=dev_store.namespace
    )
    store = open_settings_store(settings, budget_s=_EVERY_S)
    try:
        async with Client(settings) as client:
            while True:
                await asyncio.sleep(_EVERY_S)
                if not _is_there(dev_store.url):
                    continue
                with contextlib.suppress(FlashkitError):  # the store is away: it is looked at again soon
                    for each in await resume_overdue(store, client):
                        what = f"goes on with job {each.job}" if each.job else f"cannot go on: {each.problem}"
                        say(f"session {each.session} {what}")
    finally:
        await store.close()


def _is_there(url: str) -> bool:
    """Tell whether there is a store; a file is not begun before a session is."""
    return not url.startswith(SQLITE) or Path(url.removeprefix(SQLITE)).exists()
