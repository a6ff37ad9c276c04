"""A figure that says how it was computed, so that nobody has to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

GB: Final = 1_000_000_000
"""Sizes are decimal, as the prices of disks and the tables of GPUs are."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One computed number."""

    value: float
    unit: str
    formula: str
    """With the numbers put in, such as `2 x 80 layers x 8 KV heads x 128 x 2 bytes`."""
    source: str = ""
    """Where the numbers in the formula are from; empty where they are the model's own config or the caller's."""

    @property
    def amount(self) -> str:
        """The number with its unit, for people: `1.34 GB`, `25 sessions`."""
        if self.unit.startswith("bytes"):
            return f"{format_bytes(self.value)}{self.unit.removeprefix('bytes')}"
        if self.unit == "of the time":
            return f"{self.value:.0%} {self.unit}"
        if self.unit.startswith("USD"):
            return f"${format_usd(self.value)}{self.unit.removeprefix('USD')}"
        unit = self.unit.removesuffix("s") if self.value == 1 and len(self.unit) > 1 else self.unit
        return f"{format_number(self.value)} {unit}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"value": self.value, "unit": self.unit, "formula": self.formula, "source": self.source}

    def __str__(self) -> str:
        return f"{self.amount} ({self.formula})"


def format_bytes(count: float) -> str:
    """Return a size for people, with three digits."""
    for unit, size in (("TB", 1_000 * GB), ("GB", GB), ("MB", 1_000_000), ("kB", 1_000)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"  # noqa: PLR2004 - three digits
    return f"{count:.0f} bytes"


def format_usd(amount: float) -> str:
    """Return an amount of dollars for people: to the cent, small ones with three digits."""
    if amount >= 1 or amount == 0:
        return f"{amount:,.2f}"
    return f"{amount:.3g}" if amount >= 0.0001 else f"{amount:.7f}"  # noqa: PLR2004 - not in powers of ten


def format_number(value: float) -> str:
    """Return a number for people: whole ones as they are, others with three digits at least."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def count_of(number: float, what: str) -> str:
    """Return `1 worker` or `3 workers`."""
    return f"{number:g} {what}{'s' * (number != 1)}"
