"""How long a cold start takes where nobody has measured one: an estimate that says what it is."""

from __future__ import annotations

import math
from typing import Final

from flashkit.catalog import VOLUME_MB_PER_SECOND
from flashkit.plan.figures import Figure
from flashkit.plan.sizing import parameters_in_name, quantization_in_name, weights_bytes_of
from flashkit.spec import EndpointSpec

PLAIN_SECONDS: Final = 5.0
"""Assumed: a container with Python and a handler that loads nothing."""
ENGINE_SECONDS: Final = 15.0
"""Assumed: an engine's start beside its weights, graphs and warm-up among it."""


def estimate_cold_start(spec: EndpointSpec) -> Figure:
    """Return the seconds that a new worker of this endpoint needs, with the formula.

    The size of a model is taken from its name. Models whose names tell none count as without weights.
    """
    weights = spec.weights
    parameters = parameters_in_name(weights.name) if weights else None
    if weights is None or parameters is None:
        seconds = PLAIN_SECONDS + (ENGINE_SECONDS if spec.engine else 0.0)
        parts = f"{PLAIN_SECONDS:g} s for the container" + f", {ENGINE_SECONDS:g} s for the engine" * bool(spec.engine)
        return Figure(seconds, "seconds", f"assumed: {parts}")
    size = weights_bytes_of(parameters, quantization=quantization_in_name(weights.name))
    rate = (VOLUME_MB_PER_SECOND.low + VOLUME_MB_PER_SECOND.high) / 2
    beside = f"{PLAIN_SECONDS:g} s for the container and {ENGINE_SECONDS:g} s for the engine"
    return Figure(
        math.ceil(PLAIN_SECONDS + ENGINE_SECONDS + size.value / (rate * 1e6)),
        "seconds",
        f"{size.amount} of weights at {rate:g} MB/s, {beside}",
        "size: the model's name; rate: the platform's page on network volumes; the rest is assumed",
    )
