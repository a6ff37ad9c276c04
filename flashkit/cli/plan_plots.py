"""Charts of plans as files."""

from __future__ import annotations

from pathlib import Path

from flashkit.errors import ConfigurationError
from flashkit.plan.line_chart import Chart, draw


def write_chart(path: Path, chart: Chart) -> None:
    """Write a chart as SVG.

    Raises:
        ConfigurationError: The file's name ends otherwise, or it cannot be written.
    """
    if path.suffix.lower() != ".svg":
        raise ConfigurationError(
            f"--plot={path} is not an SVG file", hint=f"write --plot {path.with_suffix('.svg')}; browsers show it"
        )
    try:
        path.write_text(draw(chart), encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror}", hint="name another file") from exc
