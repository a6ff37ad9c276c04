"""Idempotency keys on the side of the called endpoint: work that was done or is being done is not done again.

A session's call carries a key in its job's input. Where endpoints share a store (`FLASHKIT_STATE`), the
first job with a key claims it; another job with the same key waits for the first one's result. Failures
are not kept: the next job with the key runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from flashkit.errors import FlashkitError, PayloadTooLarge, StoreUnavailable
from flashkit.settings import Settings
from flashkit.worker.sessions.store import Store, open_settings_store

log = logging.getLogger(__name__)

CLAIM_SECONDS: Final = 30.0
"""A job that does not renew its claim for this long is taken for dead."""
STORE_SECONDS: Final = 3.0
"""How long a job waits for a store that does not answer; then it runs unchecked, as its own time is short."""
_POLL_S: Final = (0.05, 1.0)


class Deduplicator:
    """Runs each key once among all workers that share the store."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        self._store: Store = open_settings_store(settings)
        self._endpoint = endpoint

    async def close(self) -> None:
        """Close connections."""
        await self._store.close()

    async def run(
        self, key: str, job_id: str, work: Callable[[], Awaitable[bytes]], *, instead_of: str | None = None
    ) -> bytes:
        """Return what the work gave, now or when another job with the key did it.

        `instead_of` names a job that the platform lost: what it had claimed is free.
        A store that cannot be reached is no reason to refuse the job: it runs, and a warning says so.
        """
        key = f"{self._endpoint}:{key}"
        try:
            if instead_of is not None:
                await self._store.unclaim(key, instead_of)
            result = await self._claim(key, job_id)
        except FlashkitError as exc:
            log.warning("idempotency keys are not checked: %s", exc)
            return await work()
        if result is not None:
            return result
        renewing = asyncio.create_task(self._renew(key, job_id))
        try:
            output = await work()
        except BaseException:
            await self._leave(key, job_id)
            raise
        finally:
            renewing.cancel()
        await self._settle(key, job_id, output)
        return output

    async def _claim(self, key: str, job_id: str) -> bytes | None:
        """Return the key's result, waiting for it while another job works on it; None when it is this job's."""
        pause = _POLL_S[0]
        while True:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    claim = await self._store.claim(key, job_id, lease_s=CLAIM_SECONDS)
            except TimeoutError as exc:
                raise StoreUnavailable(f"the store has not answered for {STORE_SECONDS:g} s") from exc
            if claim.result is not None or claim.mine:
                return claim.result
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])

    async def _renew(self, key: str, job_id: str) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 3)
            try:
                await self._store.claim(key, job_id, lease_s=CLAIM_SECONDS)
            except FlashkitError as exc:
                log.warning("idempotency key of job %s could not be renewed: %s", job_id, exc)

    async def _settle(self, key: str, job_id: str, output: bytes) -> None:
        try:
            await self._store.settle(key, job_id, output)
        except PayloadTooLarge:
            await self._leave(key, job_id)
        except FlashkitError as exc:
            log.warning("the result of job %s is not kept for its idempotency key: %s", job_id, exc)

    async def _leave(self, key: str, job_id: str) -> None:
        try:
            await self._store.unclaim(key, job_id)
        except FlashkitError as exc:
            log.warning("idempotency key of job %s stays claimed until its time is over: %s", job_id, exc)
