"""`flashkit plan`: what a model or an app needs before anything is paid for, and how many workers a load needs.

`flashkit plan MODEL` is short for `flashkit plan size MODEL`. Each command is in a module of its own, imported when it
runs or shows its help.
"""

from __future__ import annotations

import importlib

import click

from flashkit.cli.commands import Group

COMMANDS = {
    "size": ("flashkit.cli.plan_size", "Say which GPU a model or an app needs, and what it carries."),
    "fleet": ("flashkit.cli.plan_fleet", "Say how many GPUs so many interactions at the same time need."),
    "cost": ("flashkit.cli.plan_cost", "Say what traffic costs, and where flex, active workers and Pods break even."),
    "simulate": ("flashkit.cli.plan_simulate", "Try settings of an endpoint against a load, and find the cheapest."),
}
"""Module (its attribute `command` is the command) and short help."""


class _PlanGroup(Group):
    usual = "size"

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group("plan", cls=_PlanGroup)
def command() -> None:
    """Plan memory, GPUs, workers and cost before anything is paid for.

    `flashkit plan MODEL` or `flashkit plan APP` says which GPU it needs and how many sessions that carries. Every
    figure names its formula and its source: add --explain.
    """
