"""A drawing of a simulation: jobs, waits and workers over time, as an SVG file that any browser shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from flashkit.cli.quantities import format_ms
from flashkit.errors import ConfigurationError
from flashkit.simulation.results import Point
from flashkit.simulation.trials import Answer, Trial
from flashkit.spec import ScalerType

_WIDTH: Final = 960
_HEIGHT: Final = 220
_MARGIN: Final = 56


def draw(answer: Answer, file: Path) -> None:
    """Write a drawing of the waits and workers over time: of the cheapest setting where one was searched.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    trial = answer.cheapest or answer.trials[0]
    try:
        file.write_text(_svg(answer, trial), encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"the plot cannot be written to {file}: {exc.strerror}") from exc


def _svg(answer: Answer, trial: Trial) -> str:
    spec, result = trial.spec, trial.result
    scaler = "queue delay" if spec.scaler_type is ScalerType.QUEUE_DELAY else "request count"
    title = (
        f"{spec.name}: {answer.question.load.words}; workers {spec.workers.min}-{spec.workers.max}, idle "
        f"{spec.idle_timeout} s, {scaler} {spec.scaler_value}"
    )
    panels = (
        ("jobs", "#888", [float(point.jobs) for point in result.points]),
        ("p95 wait, s", "#c0392b", [point.wait_p95 or 0.0 for point in result.points]),
        ("workers", "#2471a3", [point.workers for point in result.points]),
    )
    height = 40 + len(panels) * (_HEIGHT + _MARGIN)
    size = f'width="{_WIDTH + 2 * _MARGIN}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for number, (name, colour, values) in enumerate(panels):
        parts += _panel(name, colour, values, result.points, result.seconds, top=50 + number * (_HEIGHT + _MARGIN))
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    name: str, colour: str, values: Sequence[float], points: Sequence[Point], seconds: float, *, top: float
) -> Iterator[str]:
    """Yield one curve as steps, with its highest value and the hours below."""
    most, bottom = max(values, default=0.0) or 1.0, top + _HEIGHT
    right = _MARGIN + _WIDTH
    title = escape(f"{name}, up to {max(values, default=0.0):.3g}")
    yield f'<text x="{_MARGIN}" y="{top - 6:g}" fill="{colour}">{title}</text>'
    yield f'<path d="M{_MARGIN} {top:g}V{bottom:g}H{right}" fill="none" stroke="#bbb"/>'
    steps = [f"M{_MARGIN} {bottom:g}"]
    for point, value in zip(points, values, strict=True):
        x = _MARGIN + _WIDTH * point.at / seconds
        steps.append(f"H{x:.1f}V{bottom - _HEIGHT * value / most:.1f}")
    yield f'<path d="{"".join(steps)}H{right}V{bottom:g}Z" fill="{colour}" fill-opacity="0.25" stroke="{colour}"/>'
    for quarter in range(5):
        x, at = _MARGIN + _WIDTH * quarter / 4, format_ms(seconds * quarter / 4 * 1000) if quarter else "0"
        yield f'<text x="{x:g}" y="{bottom + 18:g}" text-anchor="middle" fill="#666">{at}</text>'
