"""Command lines that end with another command line: `flashkit dev --ci -- pytest -q`."""

from __future__ import annotations

from typing import Any

import click


class CommandWithTail(click.Command):
    """Hands over what follows `--` as the argument `tail`, so that it is not taken for arguments of our own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before `--`."""
        own, tail = args, list[str]()
        if "--" in args:
            cut = args.index("--")
            own, tail = args[:cut], args[cut + 1 :]
        rest = super().parse_args(ctx, own)
        ctx.params["tail"] = tuple(tail)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        pieces: list[Any] = super().collect_usage_pieces(ctx)
        return [*pieces, "[-- COMMAND...]"]
