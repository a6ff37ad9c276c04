"""`flashkit metrics`: the Grafana dashboard, the alert rules and a Prometheus configuration, as files of your own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import click

from flashkit.errors import ConfigurationError
from flashkit.settings import find_dev_server

FILES = ("prometheus.yml", "alerts.yml", "dashboard.json")
_USUAL_TARGET = "127.0.0.1:8484"


@click.command("metrics")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--target", metavar="HOST:PORT", help="What Prometheus scrapes, instead of the running `flashkit dev`.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
def command(folder: Path, *, target: str | None, force: bool) -> None:
    """Write a Grafana dashboard, alert rules and a Prometheus configuration into FOLDER.

    The numbers in the alerts are starting points: change them to your own targets.
    """
    target = target or _running_target() or _USUAL_TARGET
    taken = [name for name in FILES if (folder / name).exists()]
    if taken and not force:
        raise ConfigurationError(
            f"{folder} has {', '.join(taken)} already", hint="name another folder, or write over them with --force"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).write_text(read_file(name).replace(_USUAL_TARGET, target))
    except OSError as exc:
        raise ConfigurationError(f"{folder} cannot be written: {exc.strerror}", hint="name another folder") from exc
    click.echo(f"wrote {', '.join(FILES)} to {folder}")
    click.echo(f"next: prometheus --config.file={folder / 'prometheus.yml'}, and import dashboard.json in Grafana")


def read_file(name: str) -> str:
    """Return one of the files as flashkit brings it."""
    return files("flashkit.telemetry").joinpath("observability", name).read_text(encoding="utf-8")


def _running_target() -> str | None:
    dev = find_dev_server(Path.cwd())
    return None if dev is None else urlsplit(dev.url).netloc
