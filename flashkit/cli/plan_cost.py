"""`flashkit plan cost`: what traffic costs on flex workers, active workers and Pods, and where they break even."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.errors import ConfigurationError, FlashkitError

if TYPE_CHECKING:
    from flashkit.catalog import GpuPool, GpuType
    from flashkit.plan.cost import Rates, Traffic
    from flashkit.plan.line_chart import Chart

_STEPS = 60
_GIVEN = "given"


@click.command("cost")
@click.option("--gpu", required=True, metavar="NAME", help="What a worker has.")
@click.option("--gpu-count", default=1, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option("--jobs-per-day", required=True, type=float, metavar="N")
@click.option("--seconds-per-job", required=True, type=float, metavar="SECONDS", help="That a job runs.")
@click.option(
    "--concurrency",
    default=1,
    show_default=True,
    type=int,
    metavar="N",
    help="Jobs that one worker runs at the same time.",
)
@click.option("--idle-timeout", default=5.0, show_default=True, type=float, metavar="SECONDS")
@click.option(
    "--cold-start",
    "cold_start",
    default=60.0,
    show_default=True,
    type=float,
    metavar="SECONDS",
    help="How long a worker takes to start; it is paid.",
)
@click.option(
    "--hours-per-day", default=24.0, show_default=True, type=float, metavar="HOURS", help="In which the jobs come."
)
@click.option(
    "--flex-price",
    type=click.FloatRange(min=0, min_open=True),
    metavar="USD_PER_SECOND",
    help="Of one GPU, instead of the dated one.",
)
@click.option("--active-price", type=click.FloatRange(min=0, min_open=True), metavar="USD_PER_SECOND")
@click.option(
    "--pod-price",
    type=click.FloatRange(min=0, min_open=True),
    metavar="USD_PER_HOUR",
    help="Of one GPU in a Pod that is there all the time.",
)
@click.option("--explain", "is_explained", is_flag=True, help="The formula and source of every figure.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg",
              help="Draw the cost of a month by jobs a day.")  # fmt: skip
def command(**asked: Any) -> None:
    """Say what traffic costs a month, in each way to pay, and from which load on another way is cheaper.

    Jobs come independently of each other. Your own load through the scaler itself: flashkit plan simulate.
    """
    from flashkit.plan.cost import Traffic, plan_cost

    traffic = Traffic(
        jobs_per_day=asked["jobs_per_day"], seconds_per_job=asked["seconds_per_job"],
        concurrency=asked["concurrency"], idle_timeout=asked["idle_timeout"], cold_start_seconds=asked["cold_start"],
        hours_per_day=asked["hours_per_day"],
    )  # fmt: skip
    rates = _rates(_gpu(asked["gpu"]), asked["gpu_count"], asked)
    plan = plan_cost(traffic, rates)
    if asked["plot"] is not None:
        from flashkit.cli.plan_plots import write_chart

        write_chart(asked["plot"], _chart(traffic, rates, asked["gpu"]))
    if asked["is_raw"]:
        from flashkit.cli.run import write_json_line

        write_json_line({"gpu": asked["gpu"], "gpu_count": asked["gpu_count"], **plan.to_dict()})
        return
    from flashkit.cli.plan_text import show_cost_plan

    show_cost_plan(plan, is_explained=asked["is_explained"])


def _gpu(name: str) -> GpuType | GpuPool:
    from flashkit.catalog import resolve_gpus

    try:
        return resolve_gpus([name])[0]
    except FlashkitError as exc:
        raise ConfigurationError(f"--{exc.report.message}", hint=exc.report.hint) from exc


def _rates(gpu: GpuType | GpuPool, count: int, asked: Mapping[str, Any]) -> Rates:
    """Return the dated prices, or those that were given."""
    from flashkit.plan.cost import Rates, rates_of

    flex, active, pod = asked["flex_price"], asked["active_price"], asked["pod_price"]
    if flex is None:
        rates = rates_of(gpu, count, pod_usd_per_hour=pod)
    else:
        pods = None if pod is None else pod / 3600 * count
        rates = Rates(flex * count, None, pods, flex_source=_GIVEN, pod_source=_GIVEN)
    return rates if active is None else replace(rates, active=active * count, active_source=_GIVEN)


def _chart(traffic: Traffic, rates: Rates, name: str) -> Chart:
    from flashkit.plan.cost import flex_usd_per_month, steady_usd_per_month
    from flashkit.plan.line_chart import Chart, Line

    counts = [traffic.jobs_per_day * 10 ** (2.5 * step / _STEPS - 1.5) for step in range(_STEPS + 1)]
    loads = [replace(traffic, jobs_per_day=count) for count in counts]
    lines = [Line("flex workers", tuple((each.jobs_per_day, flex_usd_per_month(each, rates)) for each in loads))]
    for words, price in (("active workers", rates.active), ("Pods", rates.pod)):
        if price is not None:
            points = tuple((each.jobs_per_day, steady_usd_per_month(each, price)) for each in loads)
            lines.append(Line(words, points))
    title = f"{name}: a month of jobs of {traffic.seconds_per_job:g} s"
    return Chart(title, "jobs a day", "USD a month", tuple(lines))
