"""`flashkit plan fleet`: GPUs and cost of many interactions at the same time, in tiers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashkit.errors import ConfigurationError

if TYPE_CHECKING:
    from flashkit.plan.fleet import Tier
    from flashkit.plan.line_chart import Chart

_YOURS = "the tiers that were given"


@click.command("fleet")
@click.argument("concurrent", metavar="CONCURRENT...", nargs=-1, required=True, type=int)
@click.option(
    "--tier",
    "tiers",
    multiple=True,
    metavar="GPU:PERCENT:PER_GPU:USD_PER_HOUR",
    help="A kind of GPU, its share of the interactions, how many one carries, its price; may be repeated.",
)
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long one interaction takes, for its cost.",
)
@click.option("--pools", "is_pooled", is_flag=True, help="Compare a pool for each tier with one that all share.")
@click.option("--explain", "is_explained", is_flag=True, help="The formula and source of every figure.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg",
              help="Draw the cost of an hour by the number of interactions.")  # fmt: skip
def command(
    concurrent: tuple[int, ...],
    tiers: tuple[str, ...],
    seconds: float,
    *,
    is_pooled: bool,
    is_explained: bool,
    is_raw: bool,
    plot: Path | None,
) -> None:
    """Say how many GPUs so many interactions at the same time need, and what they cost.

    Without --tier it is the reference fleet: 70 % on L40S, 25 % on A100, 5 % on H100, at its own prices of rented
    GPUs. What a GPU carries of your model: flashkit plan MODEL.
    """
    from flashkit.plan.fleet import REFERENCE_SOURCE, REFERENCE_TIERS, compare_pools, plan_fleet

    chosen = tuple(map(_read_tier, tiers)) or REFERENCE_TIERS
    source = _YOURS if tiers else REFERENCE_SOURCE
    plans = [plan_fleet(count, chosen, source=source) for count in concurrent]
    pools = [compare_pools(count, chosen, source=source) for count in concurrent] if is_pooled else []
    if plot is not None:
        from flashkit.cli.plan_plots import write_chart

        write_chart(plot, _chart(chosen, max(concurrent)))
    if is_raw:
        from flashkit.cli.run import write_json_line

        fleets = [
            {**plan.to_dict(), "usd_per_interaction": plan.usd_per_interaction(seconds).to_dict()} for plan in plans
        ]
        write_json_line({"fleets": fleets, "pools": [pool.to_dict() for pool in pools]})
        return
    from flashkit.cli.plan_text import show_fleet, show_pools

    show_fleet(plans, seconds=seconds, is_explained=is_explained)
    for pool in pools:
        show_pools(pool, is_explained=is_explained)


def _read_tier(text: str) -> Tier:
    from flashkit.plan.fleet import Tier

    try:
        gpu, percent, per_gpu, price = text.split(":")
        return Tier(gpu, Fraction(percent.rstrip("%")) / 100, int(per_gpu), Fraction(price.lstrip("$")))
    except (ValueError, ZeroDivisionError):
        raise ConfigurationError(
            f"--tier {text!r} is not GPU:PERCENT:PER_GPU:USD_PER_HOUR",
            hint="such as --tier L40S:70:50:0.72: 70 % of the interactions, 50 on a GPU, $0.72 an hour",
        ) from None


def _chart(tiers: Sequence[Tier], largest: int) -> Chart:
    from flashkit.plan.fleet import compare_pools, plan_fleet
    from flashkit.plan.line_chart import Chart, Line

    counts = sorted({max(1, round(largest * 10 ** (-step / 8))) for step in range(17)})
    fleet = tuple((float(count), plan_fleet(count, tiers).usd_per_hour.value) for count in counts)
    pools = [compare_pools(count, tiers) for count in counts]
    lines = [Line("in tiers", fleet)]
    lines.append(
        Line("pool for each tier", tuple((float(p.concurrent), p.dedicated.usd_per_hour.value) for p in pools))
    )
    for number, tier in enumerate(tiers):
        points = tuple((float(p.concurrent), p.shared[number].usd_per_hour.value) for p in pools)
        lines.append(Line(f"shared, {tier.gpu}", points))
    return Chart("Cost of a fleet", "interactions at the same time", "USD an hour", tuple(lines))
