"""`flashkit deploy`: the plan first, with its cost; then, with a yes, endpoints on Runpod."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.cli.deploy_target import env_option, open_target, patience_option, target_option
from flashkit.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from flashkit.cli.apps import AppEndpoint
    from flashkit.cli.deploy_target import Target
    from flashkit.deploy.actual import Actual
    from flashkit.deploy.api import ManagementApi
    from flashkit.deploy.applying import OnStep, Outcome, Step
    from flashkit.deploy.config import DeployConfig
    from flashkit.deploy.planning import Plan
    from flashkit.deploy.wishes import EndpointWish

ROLLOUT_POLL_SECONDS = 5.0


@click.command("deploy")
@click.argument("app", required=False, metavar="[APP]", type=click.Path(exists=True, path_type=Path))
@env_option
@click.option("--plan", "is_plan", is_flag=True, help="Show what would be done and what it costs, and stop.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--prune", "may_delete", is_flag=True, help="With --yes: endpoints may be deleted.")
@click.option("--keep", "keeps_others", is_flag=True, help="Leave endpoints that the app has no more.")
@click.option(
    "--image", "images", multiple=True, metavar="[NAME=]REFERENCE",
    help="The image of an endpoint, or of all; by default what `flashkit build --push` built.",
)  # fmt: skip
@click.option(
    "--secret", "secrets", multiple=True, metavar="NAME=VARIABLE",
    help="Have the platform keep this variable of the shell under a name, unless it has one of that name.",
)  # fmt: skip
@target_option
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until all workers have the new configuration.")
@click.option("--note", default="", metavar="TEXT", help="What `flashkit rollback --list` says of this deployment.")
@click.option("--no-check", is_flag=True, help="Do not run `flashkit check` first.")
@patience_option
@click.option("--json", "is_json", is_flag=True, help="Print plan and outcome as one JSON object.")
def command(app: Path | None, **given: Any) -> int:
    """Deploy the endpoints of an app to Runpod: make, change and delete until they are as the app says.

    APP is the file that defines them, or its folder; the current one without APP. A plan of all changes with their cost
    an hour comes first. Doing it again changes nothing. The key is taken from RUNPOD_API_KEY or ~/.runpod/config.toml;
    --target local needs none.
    """
    from flashkit.cli.dev import locate_app

    file = locate_app(app or Path.cwd()).resolve()
    return asyncio.run(_deploy(file, given))


async def _deploy(file: Path, given: Mapping[str, Any]) -> int:
    from flashkit.cli.console import make_console
    from flashkit.cli.deploy_text import plan_text, show
    from flashkit.cli.projects import project_folder
    from flashkit.deploy.applying import apply_plan
    from flashkit.deploy.config import read_config

    folder = project_folder(file)
    config = read_config(folder, given["environment"])
    secrets = read_secret_values(given["secrets"], os.environ)
    console = make_console(stderr=given["is_json"])
    async with open_target(given["target"], folder) as target:  # no key is told before anything else is done
        wishes = await _wishes(file, config, given, is_local=target.is_local)
        if not given["no_check"] and not target.is_local:
            await asyncio.to_thread(_check, file, config, console)  # it has an event loop of its own
        async with target.api(patience_seconds=given["patience"], say=say) as api:
            api.confidential.update(secrets.values())
            plan, actual = await _plan(api, wishes, config, secrets, given, is_local=target.is_local)
            if not given["is_json"]:
                show(console, plan_text(plan, target.words))
            if plan.problems:
                raise_problems(plan, is_json=given["is_json"])
            if given["is_plan"] or plan.is_empty:
                _finish(plan, None, given)
                return 0
            _agree(plan, given, target)
            outcome = await apply_plan(
                api, plan, actual, secrets=secrets, note=given["note"], on_step=step_printer(console)
            )
            _finish(plan, outcome, given)
            if given["is_waiting"]:
                await wait_for_rollout(api, outcome, console)
    return 0


async def _wishes(file: Path, config: DeployConfig, given: Mapping[str, Any], *, is_local: bool) -> list[EndpointWish]:
    """Return what the app wants."""
    from flashkit.cli.apps import describe_app
    from flashkit.cli.hub import hub_environment
    from flashkit.cli.projects import project_folder
    from flashkit.deploy.calls import find_calls
    from flashkit.deploy.wishes import AppPart, make_wishes

    endpoints: Sequence[AppEndpoint] = await describe_app(file, env={})
    names = [endpoint.name for endpoint in endpoints]
    stray = [name for name in config.endpoints if name not in names]
    if stray:
        raise ConfigurationError(
            f"the configuration speaks of endpoint {stray[0]!r}, which the app does not have",
            hint=f"the app has: {', '.join(names)}",
        )
    folder = project_folder(file)
    env = hub_environment(folder)
    declared = {name: own.calls for name, own in config.endpoints.items() if own.calls is not None}
    return make_wishes(
        [AppPart(spec=endpoint.spec, env=env) for endpoint in endpoints],
        config,
        calls=find_calls(file, {endpoint.attribute: endpoint.spec for endpoint in endpoints}, declared),
        images=read_image_options(given["images"], names),
        built=_built_images(folder, is_local=is_local),
        default_image=f"local/{config.app}" if is_local else None,
    )


def _built_images(folder: Path, *, is_local: bool) -> dict[str, str]:
    """Return what `flashkit build` built: only pushed images can be had from elsewhere."""
    from flashkit.images.record import read_images

    images = read_images(folder)
    return {name: image.deployable for name, image in images.items() if image.digest is not None or is_local}


def read_image_options(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return images by endpoint; the one for all others is under "".

    Raises:
        InputError: An endpoint is named that there is not.
    """
    images: dict[str, str] = {}
    for text in texts:
        name, equals, image = text.partition("=")
        if equals and name not in names:
            raise InputError(
                f"--image names an endpoint {name!r}, which there is not", hint=f"there is: {', '.join(names)}"
            )
        images[name if equals else ""] = image if equals else text
    return images


def read_secret_values(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return values of secrets by name, taken from variables of the shell.

    Raises:
        ConfigurationError: A text cannot be read, or the variable is not set.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, variable = text.partition("=")
        if not equals or not name or not variable.isidentifier():
            # What was written is not repeated: it may be the secret itself.
            raise ConfigurationError(
                "--secret takes a name and the variable that has the value, not the value itself",
                hint="write --secret hf-token=HF_TOKEN",
            )
        if not environ.get(variable):
            raise ConfigurationError(
                f"--secret {name}={variable}: {variable} is not set", hint=f"export {variable}=..."
            )
        values[name] = environ[variable]
    return values


async def _plan(
    api: ManagementApi,
    wishes: Sequence[EndpointWish],
    config: DeployConfig,
    secrets: Mapping[str, str],
    given: Mapping[str, Any],
    *,
    is_local: bool,
) -> tuple[Plan, Actual]:
    from flashkit.deploy.actual import read_actual
    from flashkit.deploy.confidential import secrets_named
    from flashkit.deploy.planning import make_plan

    asks_secrets = bool(secrets) or any(secrets_named(wish.env) for wish in wishes)
    actual = await read_actual(api, config, asks_secrets=asks_secrets)
    plan = make_plan(
        wishes, actual, config, new_secrets=list(secrets), keeps_others=given["keeps_others"], is_local=is_local
    )
    return plan, actual


def raise_problems(plan: Plan, *, is_json: bool) -> None:
    """Refuse a plan that cannot be carried out; in a terminal its problems have been shown.

    Raises:
        DeployImpossible: Always.
    """
    from flashkit.deploy.failures import DeployImpossible

    first = plan.problems[0]
    count = len(plan.problems)
    if is_json:
        _print_json({"plan": plan.to_dict()})
    raise DeployImpossible(
        f"the plan cannot be carried out: {first.message}" if count == 1 else f"{count} things stand in the way",
        hint=first.hint if count == 1 else "each has its next step above",
        details={"problems": [problem.to_dict() for problem in plan.problems]},
    )


def _check(file: Path, config: DeployConfig, console: Console) -> None:
    """Run `flashkit check`, and refuse what it finds to be an error.

    Raises:
        ConfigurationError: It found errors.
    """
    from flashkit.checks.project import Environment
    from flashkit.checks.rule import Severity
    from flashkit.checks.running import check_projects
    from flashkit.cli.check_project import read_projects
    from flashkit.cli.check_text import report_text
    from flashkit.settings import Settings

    names = {item.value for item in Environment}
    going_to = Environment(config.environment) if config.environment in names else Environment.STAGING
    projects = read_projects([file], going_to, here=Path.cwd().resolve(), settings=Settings.from_environment())
    report = check_projects(projects, going_to)
    if report.has_at_least(Severity.ERROR):
        console.print(report_text(report, is_strict=False))
        raise ConfigurationError(
            "flashkit check found errors, so nothing was deployed", hint="correct them, or go on with --no-check"
        )


def _agree(plan: Plan, given: Mapping[str, Any], target: Target) -> None:
    """Ask whether to go on.

    Raises:
        ConfigurationError: Nobody can be asked, and nobody said yes.
        click.Abort: The answer was no.
    """
    removals = [f"{change.kind} {change.name}" for change in plan.removals]
    if given["is_sure"]:
        if removals and not given["may_delete"]:
            raise ConfigurationError(
                f"the plan deletes {', '.join(removals)}",
                hint="allow it with --prune, or leave what the app has no more with --keep",
            )
        return
    ask(f"Deploy to {target.words}{', deleting ' + ', '.join(removals) if removals else ''}?")


def ask(question: str) -> None:
    """Ask a person.

    Raises:
        ConfigurationError: There is none.
        click.Abort: The answer was no.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError("there is nobody to ask", hint="say --yes to go on without, or --plan to only look")
    click.confirm(question, abort=True, err=True)


def step_printer(console: Console) -> OnStep:
    """Return what prints steps as they are done."""
    from flashkit.cli.deploy_text import step_text

    def show_step(step: Step) -> None:
        if (line := step_text(step)) is not None:
            console.print(line)

    return show_step


def _finish(plan: Plan, outcome: Outcome | None, given: Mapping[str, Any]) -> None:
    if given["is_json"]:
        _print_json({"plan": plan.to_dict(), "outcome": None if outcome is None else outcome.to_dict()})
    elif outcome is not None:
        from flashkit.cli.console import make_console
        from flashkit.cli.deploy_text import outcome_text, show

        show(make_console(), outcome_text(outcome))


async def wait_for_rollout(api: ManagementApi, outcome: Outcome, console: Console) -> None:
    """Wait until no worker of a changed endpoint has an older configuration."""
    from flashkit.deploy.status import read_rollout

    for name in outcome.rolling:
        shown = None
        while (rollout := await read_rollout(api, outcome.endpoints[name].id)).in_progress:
            if shown != rollout:
                console.print(f"  {name}: {rollout.latest} of {rollout.total} workers have the new configuration")
                shown = rollout
            await asyncio.sleep(ROLLOUT_POLL_SECONDS)
        console.print(f"  {name}: all workers have the new configuration")


def say(text: str) -> None:
    """Tell of waits and repeats, apart from the output."""
    click.echo(text, err=True)


def _print_json(data: Mapping[str, Any]) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")
