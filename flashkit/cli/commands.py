"""The commands of `flashkit`, each in a module that is imported when it runs or shows its help."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "build": ("flashkit.cli.build", "Build the images of an app, and show what is in them."),
    "check": ("flashkit.cli.check", "Find mistakes that cost money, time or secrets in production."),
    "deploy": ("flashkit.cli.deploy", "Deploy the endpoints of an app to Runpod: a plan with its cost first."),
    "dev": ("flashkit.cli.dev", "Run the endpoints of an app on this machine."),
    "logs": ("flashkit.cli.logs", "Show what happens on the running `flashkit dev`, or what deployed workers print."),
    "mcp": ("flashkit.cli.mcp", "Offer CPU endpoints as tools of the Model Context Protocol."),
    "metrics": ("flashkit.cli.metrics", "Write a Grafana dashboard, alert rules and a Prometheus configuration."),
    "new": ("flashkit.cli.new", "Make a project of a template."),
    "plan": ("flashkit.cli.plan", "Plan memory, GPUs, workers and cost before anything is paid for."),
    "replay": ("flashkit.cli.replay", "Send the input of an earlier job again."),
    "rollback": ("flashkit.cli.rollback", "Put an earlier deployment back."),
    "run": ("flashkit.cli.run", "Send a job to an endpoint and print its output."),
    "sessions": ("flashkit.cli.sessions", "See sessions, resume, settle, rewind, fork, compare and delete them."),
    "status": ("flashkit.cli.status", "Show what runs of an app on Runpod."),
    "trace": ("flashkit.cli.trace", "Show what a task did, step by step, and run it again from its journal."),
    "undeploy": ("flashkit.cli.undeploy", "Delete an app's endpoints from Runpod."),
    "weights": ("flashkit.cli.weights", "Bring, push, check and compare the weights of models."),
}
"""Module (its attribute `command` is the command) and short help, so that --help imports nothing."""


class Group(click.Group):
    """A group of commands that names the nearest one to a name that is none."""

    usual: str | None = None
    """The command that words are for which name none, where there is such a one."""
    alone: str | None = None
    """The command that no word at all is for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments, with the name of the command that they are for where they name none."""
        if not args and self.alone is not None:
            args = [self.alone]
        elif args and self.usual is not None and args[0] not in [*self.list_commands(ctx), *ctx.help_option_names]:
            args = [self.usual, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, and the arguments after it.

        Raises:
            click.UsageError: There is no such command.
        """
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            from difflib import get_close_matches

            near = get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


class _LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001 - click's
    if is_asked:
        from flashkit import __version__

        click.echo(f"flashkit {__version__}")
        ctx.exit()


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def cli() -> None:
    """Develop, run and ship AI agents on Runpod Serverless.

    Start with `flashkit dev app.py`, then `flashkit run NAME '{"question": "..."}'` in another terminal.
    """
