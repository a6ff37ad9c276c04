"""`flashkit logs`: what happened on the local platform, and what happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click


@click.command("logs")
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--endpoint", metavar="NAME", help="Of this endpoint only.")
@click.option("--job", "job_id", metavar="ID", help="Of this job only; the beginning of its id is enough.")
@click.option(
    "-n", "--lines", "count", default=200, show_default=True, type=click.IntRange(1, 1000),
    help="How many of the latest events to show first.",
)  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="Print each event as a JSON object on a line.")
@click.option("--url", help="The platform's address, instead of the running `flashkit dev`.")
@click.option("--env", "environment", metavar="NAME", help="What deployed workers print, in this environment.")
@click.option("--target", metavar="runpod|local|URL", help="The same, where they were deployed to; Runpod by default.")
def command(
    *,
    is_following: bool,
    endpoint: str | None,
    job_id: str | None,
    count: int,
    is_json: bool,
    url: str | None,
    environment: str | None,
    target: str | None,
) -> int:
    """Show requests, workers and what they print, of the `flashkit dev` that runs in this folder or one above it.

    With --env or --target: the lines of workers that run now of what `flashkit deploy` deployed.
    """
    if environment is not None or target is not None:
        if job_id is not None or url is not None:
            raise click.UsageError("--job and --url go with flashkit dev, not with --env and --target")
        from flashkit.cli.deployed_logs import show_deployed_logs
        from flashkit.deploy.config import DEFAULT_ENVIRONMENT

        showing = show_deployed_logs(
            target=target,
            environment=environment or DEFAULT_ENVIRONMENT,
            endpoint=endpoint,
            count=count,
            is_following=is_following,
            is_json=is_json,
        )
        asyncio.run(showing)
        return 0
    write = write_json if is_json else make_writer(log_level="info" if job_id else "warning")
    asyncio.run(show_logs(write, is_following=is_following, endpoint=endpoint, job_id=job_id, count=count, url=url))
    return 0


async def show_logs(
    write: Callable[[Mapping[str, Any]], None],
    *,
    is_following: bool,
    endpoint: str | None,
    job_id: str | None,
    count: int,
    url: str | None,
) -> None:
    """Write the latest events, and those to come."""
    from flashkit.cli.local_platform import DevClient, local_settings

    async with DevClient(local_settings(url)) as platform:
        if endpoint is not None:
            await platform.check_endpoint(endpoint)
        if job_id is not None:
            job_id = str((await platform.find_job(job_id, endpoint=endpoint))["id"])
        wanted: dict[str, str | int | None] = {"endpoint": endpoint, "job": job_id, "last": count}
        if not is_following:
            for event in (await platform.get("/_/events", **wanted))["events"]:
                write(event)
            return
        async for event in platform.follow(**wanted):
            write(event)


def write_json(event: Mapping[str, Any]) -> None:
    """Print one event as a line of JSON."""
    import orjson

    sys.stdout.write(orjson.dumps(event).decode(errors="replace") + "\n")
    sys.stdout.flush()


def make_writer(*, log_level: str) -> Callable[[Mapping[str, Any]], None]:
    """Return what prints events as `flashkit dev` does."""
    from flashkit.cli.console import Screen
    from flashkit.cli.local_platform import read_event

    screen = Screen(log_level=log_level)

    def write(data: Mapping[str, Any]) -> None:
        if event := read_event(data):
            screen.show_event(event, at=float(data["at"]))

    return write
