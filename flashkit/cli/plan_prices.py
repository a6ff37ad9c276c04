"""What GPUs cost: flashkit's dated catalogue, or Runpod's own at this moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from flashkit.errors import ConfigurationError

if TYPE_CHECKING:
    from flashkit.plan.placing import Prices

DATED: Final = "dated"
_SECONDS_PER_HOUR: Final = 3600


def read_prices(source: str) -> Prices:
    """Return the prices to plan with.

    Args:
        source: `dated`, or whose catalogue to ask: `runpod`, `local` or an address.

    Raises:
        ConfigurationError: There is no key, the text names no platform, or its catalogue has no prices.
        FlashkitError: The platform does not answer.
    """
    from flashkit.plan.placing import dated_prices

    return dated_prices() if source == DATED else asyncio.run(_fetch(source))


async def _fetch(source: str) -> Prices:
    from flashkit.cli.deploy_target import open_target

    async with open_target(source, Path.cwd()) as target, target.api(patience_seconds=0.0, say=_say) as api:
        gpus = await api.list("/catalog/gpus", "gpus")
    return prices_of(gpus, source=f"{target.root}/v2/catalog/gpus, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def _say(text: str) -> None:
    click.echo(text, err=True)


def prices_of(gpus: Sequence[Mapping[str, Any]], *, source: str) -> Prices:
    """Return the prices of a catalogue; GPUs that it has none for keep their dated ones out of the plan.

    Raises:
        ConfigurationError: It has no price of any GPU that flashkit knows.
    """
    from flashkit.catalog import GpuType
    from flashkit.plan.placing import Prices

    hourly = {str(gpu.get("id")): (gpu.get("price") or {}).get("serverless") for gpu in gpus}
    known = {gpu: float(hourly[gpu.value] or 0) / _SECONDS_PER_HOUR for gpu in GpuType if hourly.get(gpu.value)}
    if not known:
        raise ConfigurationError(
            f"{source} has no prices of GPUs that flashkit knows", hint="leave --prices out: the dated ones are used"
        )
    return Prices(known, source)
