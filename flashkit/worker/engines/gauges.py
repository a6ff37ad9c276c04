"""What an engine shows of itself in metrics: requests that it has, and how full its KV cache is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from flashkit.telemetry.metrics_worker import watch_gauge

_GAUGES: Final = {"kv_cache_usage": "flashkit.engine.kv_cache.usage", "request_count": "flashkit.engine.requests"}
"""Attribute of an engine that has such a figure, and the gauge that shows it."""


def watch_engine(engine: object) -> None:
    """Show the engine's figures whenever metrics are sent; a figure that it does not have is left out."""
    for attribute, gauge in _GAUGES.items():
        if hasattr(type(engine), attribute):
            watch_gauge(gauge, _reader(engine, attribute))


def _reader(engine: Any, attribute: str) -> Callable[[], float | None]:
    def read() -> float | None:
        value: float | None = getattr(engine, attribute)
        return value

    return read
