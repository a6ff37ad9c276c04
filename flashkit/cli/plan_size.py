"""`flashkit plan MODEL|APP`: memory, sessions and GPUs of a model, or of every model that an app loads."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("size")
@click.argument("target", metavar="MODEL|APP", type=click.Path(exists=True, path_type=Path))
@click.option("--context", "context", default=4096, show_default=True, type=click.IntRange(min=1), metavar="TOKENS",
              help="Tokens of one session, its prompt and answer together.")  # fmt: skip
def command(target: Path, *, context: int) -> None:
    """Say which GPU a model or an app needs, and how many sessions it carries."""
    import json

    from flashkit.plan.sizing import kv_bytes, kv_bytes_per_token, read_shape, weights_bytes

    file = target / "config.json" if target.is_dir() else target
    shape = read_shape(json.loads(file.read_text(encoding="utf-8")))
    for figure in (weights_bytes(shape), kv_bytes_per_token(shape), kv_bytes(shape, context)):
        click.echo(str(figure))
