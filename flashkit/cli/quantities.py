"""Durations, sizes and money as people write them."""

from __future__ import annotations

from flashkit.catalog import GPUS, GpuPool, GpuType
from flashkit.spec import EndpointSpec


def format_ms(milliseconds: float) -> str:
    """Return a duration for people: 12 ms, 1.3 s, 10 min, 2 h."""
    if milliseconds < 1000:  # noqa: PLR2004
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 60 * size or unit == "h":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("the last unit takes everything")


def format_bytes(size: int) -> str:
    """Return a size for people: 812 B, 1.2 KB, 3.4 MB."""
    if size < 1000:  # noqa: PLR2004
        return f"{size} B"
    if size < 1_000_000:  # noqa: PLR2004
        return f"{size / 1000:.3g} KB"
    return f"{size / 1_000_000:.3g} MB"


def format_usd(amount: float) -> str:
    """Return a sum for people: $0.00004, $1.20."""
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.5f}"


def estimate_usd(spec: EndpointSpec, *, milliseconds: float) -> float | None:
    """Return what one worker costs for so long on its preferred GPU, None where no price is known.

    Flex prices of the catalogue. No source gives a price per second for CPU workers.
    """
    if not spec.gpu:
        return None
    price = _price_per_second(spec.gpu[0])
    return None if price is None else price * spec.gpu_count * milliseconds / 1000


def _price_per_second(gpu: GpuType | GpuPool) -> float | None:
    if isinstance(gpu, GpuType):
        return GPUS[gpu].usd_per_second
    prices = [item.usd_per_second for item in GPUS.values() if item.pool is gpu and item.usd_per_second is not None]
    return max(prices, default=None)
