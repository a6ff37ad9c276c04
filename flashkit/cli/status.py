"""`flashkit status`: what runs of an app on the platform."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flashkit.cli.deploy_target import env_option, open_target, patience_option, target_option


@click.command("status")
@env_option
@target_option
@patience_option
@click.option("--json", "is_json", is_flag=True, help="Print it as one JSON object.")
def command(**given: Any) -> int:
    """Show an app's endpoints on Runpod: ids, bounds, workers by state, how far a rollout is, and what to change.

    The app is the one of the current folder, as for `flashkit undeploy`.
    """
    return asyncio.run(_status(given))


async def _status(given: Mapping[str, Any]) -> int:
    from flashkit.cli.console import make_console
    from flashkit.cli.deploy import say
    from flashkit.cli.deploy_text import show, status_text
    from flashkit.cli.status_advice import read_advice
    from flashkit.deploy.config import read_config
    from flashkit.deploy.status import read_status

    folder = Path.cwd()
    config = read_config(folder, given["environment"])
    async with (
        open_target(given["target"], folder) as target,
        target.api(patience_seconds=given["patience"], say=say) as api,
    ):
        status = await read_status(api, config)
        advice = await read_advice(status, target)
    if given["is_json"]:
        import orjson

        told = {**status.to_dict(), "advice": [each.to_dict() for each in advice]}
        sys.stdout.write(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif status.endpoints:
        show(make_console(), status_text(status, target.words, advice))
    else:
        click.echo(f"nothing of {config.app} is deployed to {config.environment} on {target.words}")
    return 0
