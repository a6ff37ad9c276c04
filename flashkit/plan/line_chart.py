"""A line chart as SVG, drawn here so that a plan needs no plotting library: a few lines, two axes, a legend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 860
_HEIGHT: Final = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 220, 56, 60
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5195")
"""Told apart by people who do not see all colours (Okabe and Ito), and by their order in the legend."""
_THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn. The x axis is logarithmic."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


def draw(chart: Chart) -> str:
    """Return the chart as an SVG document."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    frame = _Frame(min(xs), max(xs), _nice_top(max(ys)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"',
        'font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 28, chart.title, size=16),
        *_axes(chart, frame),
        *(part for number, line in enumerate(chart.lines) for part in _line(number, line, frame)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Turns values into places on the page."""

    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        span = math.log(self.high / self.low) or 1.0
        return _LEFT + math.log(value / self.low) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM)


def _axes(chart: Chart, frame: _Frame) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for step in range(6):
        value = frame.top * step / 5
        y = frame.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e0e0e0"/>')
        parts.append(_text(_LEFT - 8, y + 4, _short(value), anchor="end"))
    for value in _x_ticks(frame):
        x = frame.x(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#444444"/>')
        parts.append(_text(x, bottom + 20, _short(value), anchor="middle"))
    middle = f"{(_TOP + bottom) / 2:.1f}"
    turned = f'text-anchor="middle" transform="rotate(-90 20 {middle})"'
    return [
        *parts,
        f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#444444"/>',
        _text((_LEFT + right) / 2, _HEIGHT - 14, chart.x_label, anchor="middle"),
        f'<text x="20" y="{middle}" {turned}>{escape(chart.y_label)}</text>',
    ]


def _line(number: int, line: Line, frame: _Frame) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
    y = _TOP + 12 + number * 22
    x = _WIDTH - _RIGHT + 16
    return [
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
        _text(x + 28, y + 4, line.name),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _x_ticks(frame: _Frame) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten within the axis; its ends where there are none."""
    lowest, highest = math.floor(math.log10(frame.low)), math.ceil(math.log10(frame.high))
    every = (1, 2, 5) if highest - lowest <= 3 else (1,)  # noqa: PLR2004 - else they run into each other
    ticks = [digit * 10.0**power for power in range(lowest, highest + 1) for digit in every]
    return [tick for tick in ticks if frame.low <= tick <= frame.high] or [frame.low, frame.high]


def _nice_top(value: float) -> float:
    """Return a round number that is not below the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _short(value: float) -> str:
    for size, letter in ((_THOUSAND**3, "G"), (_THOUSAND**2, "M"), (_THOUSAND, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
