"""`flashkit rollback`: an earlier deployment, put back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.cli.deploy_target import env_option, open_target, patience_option, target_option

if TYPE_CHECKING:
    from flashkit.deploy.record import Record


@click.command("rollback")
@click.argument("endpoint", required=False, metavar="[ENDPOINT]")
@env_option
@click.option(
    "--to", "number", type=click.IntRange(min=1), metavar="NUMBER",
    help="The deployment to go back to, or the version of ENDPOINT; by default the one before.",
)  # fmt: skip
@click.option("--list", "is_list", is_flag=True, help="List the deployments that are remembered, and stop.")
@click.option("--plan", "is_plan", is_flag=True, help="Show what would change, and stop.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@target_option
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until all workers have the earlier configuration.")
@patience_option
@click.option("--json", "is_json", is_flag=True, help="With --list: as JSON.")
def command(endpoint: str | None, **given: Any) -> int:
    """Put an app's endpoints back to what they were before the last deployment, or after an earlier one.

    Images, variables, bounds and hardware go back; ids stay. Endpoints that were made since are kept, deleted ones do
    not come back. It is a deployment of its own: another rollback undoes it. The app is the one of the current folder,
    as for `flashkit undeploy`.
    """
    return asyncio.run(_roll_back(endpoint, given))


async def _roll_back(endpoint: str | None, given: Mapping[str, Any]) -> int:
    from flashkit.cli.console import make_console
    from flashkit.cli.deploy import ask, say, step_printer, wait_for_rollout
    from flashkit.cli.deploy_text import outcome_text, rollback_text, show
    from flashkit.deploy.actual import read_endpoints
    from flashkit.deploy.config import read_config
    from flashkit.deploy.failures import DeployImpossible
    from flashkit.deploy.record import read_record
    from flashkit.deploy.releases import apply_rollback, plan_rollback

    folder = Path.cwd()
    config = read_config(folder, given["environment"])
    console = make_console()
    async with (
        open_target(given["target"], folder) as target,
        target.api(patience_seconds=given["patience"], say=say) as api,
    ):
        record = await read_record(api, config)
        if given["is_list"]:
            _list(record, is_json=given["is_json"])
            return 0
        actual = await read_endpoints(api, config)
        plan = await plan_rollback(api, actual, record, config, endpoint=endpoint, to=given["number"])
        show(console, rollback_text(plan, target.words))
        if plan.problems:
            raise DeployImpossible(
                f"this cannot be put back: {plan.problems[0]}", hint="deploy the code of that time instead"
            )
        if given["is_plan"] or plan.is_empty:
            return 0
        if not given["is_sure"]:
            ask(f"Put this back on {target.words}?")
        outcome = await apply_rollback(api, plan, actual, on_step=step_printer(console))
        show(console, outcome_text(outcome))
        if given["is_waiting"]:
            await wait_for_rollout(api, outcome, console)
    return 0


def _list(record: Record, *, is_json: bool) -> None:
    if is_json:
        import orjson

        data = [item.to_dict() for item in record.deployments]
        sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    for item in record.deployments:
        endpoints = ", ".join(sorted(item.releases))
        click.echo(f"{item.number:>4}  {item.at}  {endpoints}{'  ' + item.note if item.note else ''}")
    if not record.deployments:
        click.echo("no deployment is remembered")
