"""`flashkit logs --env` and `--target`: what workers of deployed endpoints print."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from flashkit.cli.deploy_target import RUNPOD, open_target
from flashkit.errors import ConfigurationError

if TYPE_CHECKING:
    from flashkit.deploy.actual import Deployed
    from flashkit.deploy.api import ManagementApi

QUIET_SECONDS: Final = 2.0
"""Without --follow, a worker's stream is read until it says nothing for so long."""
MOST_LINES: Final = 5_000


async def show_deployed_logs(
    *, target: str | None, environment: str, endpoint: str | None, count: int, is_following: bool, is_json: bool
) -> None:
    """Print the latest lines of all workers that run, and those to come."""
    from flashkit.cli.deploy import say
    from flashkit.deploy.actual import read_endpoints
    from flashkit.deploy.config import read_config

    folder = Path.cwd()
    config = read_config(folder, environment)
    async with open_target(target or RUNPOD, folder) as found, found.api(patience_seconds=120, say=say) as api:
        endpoints = (await read_endpoints(api, config)).endpoints
        if endpoint is not None and endpoint not in endpoints:
            raise ConfigurationError(
                f"there is no endpoint {endpoint!r} of {config.app} in {environment}",
                hint=f"there is: {', '.join(endpoints) or 'none'}",
            )
        chosen = [item for name, item in endpoints.items() if endpoint in (None, name)]
        workers = [(item, worker) for item in chosen for worker in await _workers(api, item)]
        if not workers:
            click.echo("no worker of these endpoints runs now", err=True)
            return
        tail = str(min(count, MOST_LINES))
        width = max(len(item.name) for item, _ in workers)
        await asyncio.gather(
            *(
                _show(api, item, worker, tail=tail, width=width, is_following=is_following, is_json=is_json)
                for item, worker in workers
            )
        )


async def _workers(api: ManagementApi, deployed: Deployed) -> list[str]:
    data = await api.get(f"/serverless/{deployed.id}/workers")
    return [str(worker["id"]) for worker in data.get("workers") or ()]


async def _show(
    api: ManagementApi, deployed: Deployed, worker: str, *, tail: str, width: int, is_following: bool, is_json: bool
) -> None:
    stream = api.events(f"/serverless/{deployed.id}/workers/{worker}/logs", tail=tail)
    async for event in _until_quiet(stream, None if is_following else QUIET_SECONDS):
        if is_json:
            import orjson

            line = orjson.dumps({"endpoint": deployed.name, "worker": worker, **event}).decode(errors="replace")
        else:
            at = str(event.get("ts", ""))[11:19]
            line = f"{at}  {deployed.name:<{width}}  {worker[:8]}  {event.get('line', '')}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


async def _until_quiet(
    stream: AsyncIterator[Mapping[str, Any]], seconds: float | None
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield what comes, until nothing has come for so long."""
    iterator = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(seconds):
                event = await anext(iterator)
        except (StopAsyncIteration, TimeoutError):
            return
        yield event
