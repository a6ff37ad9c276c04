"""Advice for `flashkit status`: from the figures of a local platform, or from one look at each endpoint's `/health`.

Advice is an extra: a platform that does not answer in time, or has no figures, gives none, and the status stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from flashkit.cli.deploy_target import MANAGEMENT_PATH, Target
from flashkit.deploy.status import AppStatus, EndpointStatus
from flashkit.errors import FlashkitError
from flashkit.telemetry.advice import Advice, advise_now
from flashkit.transport import Request, RetryPolicy, Transport, expect_object

ANSWER_SECONDS: Final = 5.0
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


async def read_advice(status: AppStatus, target: Target) -> list[Advice]:
    """Return what the platform's figures advise on the app's endpoints."""
    key = None if target.key is None else target.key.value
    transport = Transport(key, ANSWER_SECONDS, RetryPolicy(tries=1))
    try:
        if target.is_local:
            return await _ask_platform(transport, target.root.removesuffix(MANAGEMENT_PATH), _names_of(status))
        found = await asyncio.gather(*(_look_at(transport, item) for item in status.endpoints))
    finally:
        await transport.close()
    return [advice for advice in found if advice is not None]


def _names_of(status: AppStatus) -> set[str]:
    return {name for item in status.endpoints for name in (item.deployed.name, item.deployed.deployed_name)}


async def _ask_platform(transport: Transport, root: str, names: Iterable[str]) -> list[Advice]:
    answer = await _get(transport, f"{root}/_/advice")
    return [Advice(**each) for each in answer.get("advice", ()) if each["endpoint"] in names]


async def _look_at(transport: Transport, item: EndpointStatus) -> Advice | None:
    fields = item.deployed.fields
    url = item.deployed.urls.get("runSync", "")
    parts = urlsplit(url)
    if not url or (parts.scheme != "https" and parts.hostname not in _LOOPBACK):  # the key goes with the question
        return None
    health = await _get(transport, f"{url.rpartition('/')[0]}/health")
    bounds = [int(fields.get(f"workers.{name}") or 0) for name in ("min", "max")]
    return advise_now(item.deployed.name, health, min_workers=bounds[0], max_workers=bounds[1]) if bounds[1] else None


async def _get(transport: Transport, url: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return dict(expect_object(await transport.send(Request("GET", url, is_repeatable=True))))
    except (FlashkitError, TimeoutError):
        return {}
