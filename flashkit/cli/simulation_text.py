"""Simulations for people: a table of settings, the course of time in three lines, and what to write into the app."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashkit.cli.console import describe_spec, make_console
from flashkit.cli.quantities import format_ms
from flashkit.simulation.results import Point, Result
from flashkit.simulation.trials import Answer, Trial

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_HOUR: Final = 3600.0
_NOTES: Final = "p50 to p99: waits; cold, warm: starts of workers; use: of the room that is paid; hours: of workers"


def print_answer(answer: Answer) -> None:
    """Print what was found."""
    make_console().print(Group(*_parts(answer)), soft_wrap=True)


def _parts(answer: Answer) -> Iterator[RenderableType]:
    question, load = answer.question, answer.question.load
    yield Text.assemble((question.spec.name, "bold green"), f"  {describe_spec(question.spec)}")
    mean = format_ms(load.work_seconds / len(load) * 1000)
    yield Text.assemble(("load   ", "dim"), f"{load.words}: {len(load):,} jobs of {mean}")
    yield Text.assemble(("cold   ", "dim"), f"{question.cold_start.value:.3g} s ({question.cold_start.formula})")
    if question.spec.flashboot:
        thaw = min(question.times.thaw, question.times.cold_start)
        note = "for a worker that FlashBoot has kept, which the platform does not promise: compare --no-flashboot"
        yield Text.assemble(("thaw   ", "dim"), f"{thaw:.3g} s {note}")
    trials = [*answer.trials, *([answer.cheapest] if answer.cheapest else [])]
    yield Text("")
    yield _table(trials)
    yield Text(_NOTES, style="dim")
    for trial in trials:
        if trial.floors:
            yield Text(
                f"{trial.name}: {' '.join(map(str, trial.floors))} workers at least, hour after hour", style="dim"
            )
    yield Text("")
    shown = answer.cheapest or trials[0]
    yield Text.assemble(("the course of ", "dim"), shown.name, (f", {format_ms(shown.result.seconds * 1000)}", "dim"))
    yield from _course(shown)
    yield Text(_cold_words(shown.result), style="dim")
    if answer.cheapest:
        yield Text("")
        yield from _advice(answer, answer.cheapest)


def _table(trials: Sequence[Trial]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("setting", style="bold", no_wrap=True)
    for name in ("workers", "idle s", "p50 s", "p95 s", "p99 s", "cold", "warm", "use", "hours", "$/h"):
        table.add_column(name, justify="right", no_wrap=True)
    is_losing = any(_lost(trial) for trial in trials)
    if is_losing:
        table.add_column("lost", justify="right", style="red")
    for trial in trials:
        table.add_row(*_row(trial, is_losing=is_losing))
    return table


def _seconds(value: float) -> str:
    """Return seconds with a tenth where that says something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits


def _lost(trial: Trial) -> int:
    """Return how many jobs were not done: dropped from the queue, or ended by the execution timeout."""
    return trial.result.dropped + trial.result.timed_out


def _row(trial: Trial, *, is_losing: bool) -> list[str]:
    result, spec = trial.result, trial.spec
    hourly = result.cost_per_hour
    cells = [
        trial.name,
        f"{spec.workers.min}-{spec.workers.max}",
        str(spec.idle_timeout),
        *(_seconds(wait) for wait in (result.waits.p50, result.waits.p95, result.waits.p99)),
        f"{result.cold_starts:,}",
        f"{result.warm_starts:,}",
        f"{result.utilisation:.0%}",
        f"{result.worker_seconds / _HOUR:,.1f}",
        "-" if hourly is None else f"{hourly:,.2f}",
    ]
    return [*cells, f"{_lost(trial):,}"] if is_losing else cells


def _course(trial: Trial) -> Iterator[Text]:
    """Yield jobs, waits and workers over time, each as a line of bars, with the highest value after it."""
    pairs = list(_in_pairs(trial.result.points))
    series = (
        ("jobs", [float(sum(point.jobs for point in pair)) for pair in pairs], "{:,.0f}"),
        ("wait p95", [max(point.wait_p95 or 0.0 for point in pair) for pair in pairs], "{:.3g} s"),
        ("workers", [sum(point.workers for point in pair) / len(pair) for pair in pairs], "{:.3g}"),
    )
    for name, values, form in series:
        most = max(values, default=0.0)
        yield Text.assemble((f"{name:<9}", "dim"), (_bars(values), "cyan"), f"  up to {form.format(most)}")


def _in_pairs(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Yield two points at a time, so that the course fits a terminal."""
    for first in range(0, len(points), 2):
        yield points[first : first + 2]


def _bars(values: Sequence[float]) -> str:
    """Return a block for each value, of a height relative to the highest; only 0 has none."""
    most, steps = max(values, default=0.0), len(_BLOCKS) - 1
    return "".join(_BLOCKS[math.ceil(round(value / most * steps, 3))] if most else _BLOCKS[0] for value in values)


def _cold_words(result: Result) -> str:
    starts = f"cold starts: {result.cold_starts:,}; {result.cold_share:.2%} of the jobs waited for one"
    lost = f"; {result.dropped:,} jobs were given up in the queue, {result.timed_out:,} ran into their timeout"
    return starts + lost * bool(result.dropped or result.timed_out)


def _advice(answer: Answer, best: Trial) -> Iterator[Text]:
    own, spec = answer.trials[0].result, best.spec
    setting = f"workers=({spec.workers.min}, {spec.workers.max}), idle_timeout={spec.idle_timeout}"
    yield Text.assemble("cheapest of ", f"{answer.tried} settings: ", (setting, "bold green"))
    yield Text(_compared(own, best.result), style="dim")


def _compared(own: Result, best: Result) -> str:
    waits = f"p95 wait {_seconds(best.waits.p95)} s instead of {_seconds(own.waits.p95)} s"
    if own.cost_usd is None or best.cost_usd is None:
        return f"{waits}; {best.worker_seconds / _HOUR:,.1f} worker-hours instead of {own.worker_seconds / _HOUR:,.1f}"
    return f"{waits}; ${best.cost_usd:,.2f} instead of ${own.cost_usd:,.2f} in {format_ms(best.seconds * 1000)}"
