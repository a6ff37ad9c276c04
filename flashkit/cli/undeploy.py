"""`flashkit undeploy`: what an app has on the platform, taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flashkit.cli.deploy_target import env_option, open_target, patience_option, target_option


@click.command("undeploy")
@click.argument("endpoints", nargs=-1, metavar="[ENDPOINT]...")
@env_option
@click.option("--volumes", "removes_volumes", is_flag=True, help="Delete their network volumes too, with all files.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@target_option
@patience_option
def command(endpoints: tuple[str, ...], **given: Any) -> int:
    """Delete an app's endpoints from Runpod, or only those that are named.

    The app is the one of the current folder: `app` in flashkit.toml or [tool.flashkit] of pyproject.toml, else the
    project's name. Its file is not looked at. Network volumes are kept, unless --volumes asks for them; those of other
    endpoints are kept in any case.
    """
    return asyncio.run(_undeploy(endpoints, given))


async def _undeploy(endpoints: tuple[str, ...], given: Mapping[str, Any]) -> int:
    from flashkit.cli.console import make_console
    from flashkit.cli.deploy import ask, say, step_printer
    from flashkit.cli.deploy_text import removal_text, show
    from flashkit.deploy.config import read_config
    from flashkit.deploy.undeploying import apply_removal, plan_removal

    folder = Path.cwd()
    config = read_config(folder, given["environment"])
    console = make_console()
    async with (
        open_target(given["target"], folder) as target,
        target.api(patience_seconds=given["patience"], say=say) as api,
    ):
        removal = await plan_removal(api, config, endpoints, removes_volumes=given["removes_volumes"])
        if not removal.endpoints:
            click.echo(f"nothing of {config.app} is deployed to {config.environment} on {target.words}")
            return 0
        show(console, removal_text(removal, config.app, config.environment, target.words))
        if not given["is_sure"]:
            ask(f"Delete this from {target.words}? Endpoints get new ids when they are deployed again.")
        await apply_removal(api, config, removal, on_step=step_printer(console))
    return 0
