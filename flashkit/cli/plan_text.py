"""Plans as text for the terminal: tables, and with `--explain` how each number was made and where it is from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashkit.catalog import READ_ON
from flashkit.cli.console import make_console
from flashkit.plan.app_plan import EndpointPlan
from flashkit.plan.cost import CostPlan
from flashkit.plan.figures import Figure, format_bytes, format_number, format_usd
from flashkit.plan.fleet import FleetPlan, PoolPlan
from flashkit.plan.model_plan import ModelPlan
from flashkit.plan.placing import Misfit, Placement

_PIPE_WIDTH = 1000
_SHOWN = 8
_COST_NAMES = {
    "cold_starts": "cold starts", "billed": "billed on flex workers", "flex": "flex workers", "per_job": "a job",
    "steady_workers": "workers that are always there", "active": "active workers", "pod": "Pods",
    "active_break_even": "an active worker is cheaper from", "pod_break_even": "a Pod is cheaper from",
    "active_jobs": "an active worker is cheaper from", "pod_jobs": "a Pod is cheaper from",
}  # fmt: skip
_FIGURE_NAMES = {
    "on_disk": "weights on disk", "in_memory": "weights in memory", "kv_per_token": "KV cache of a token",
    "kv_per_session": "KV cache of a session", "volume": "network volume", "max_num_seqs": "--max-num-seqs",
    "kv_cache": "KV cache of a session", "room": "room for the KV cache", "most": "sessions that fit",
    "planned": "sessions to plan for", "first_token": "first token", "tokens_per_second": "speed",
    "usd_per_hour": "cost", "usd_per_million_tokens": "cost of tokens",
}  # fmt: skip


def plan_console() -> Console:
    """Return the terminal; where the output is none, it has room for whole tables."""
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def show_model_plan(plan: ModelPlan, *, is_explained: bool, is_all: bool) -> None:
    """Print a model's figures and the workers that it fits."""
    console = plan_console()
    console.print(Text(_title(plan), style="bold"))
    console.print(_figures_table(plan.figures(), is_explained=is_explained))
    shown = plan.placements if is_all else plan.shortlist[:_SHOWN]
    console.print(_placements_table(plan, shown))
    left = len(plan.placements) - len(shown)
    if left > 0:
        console.print(Text(f"{left} more fit, and {len(plan.misfits)} do not: --all", style="dim"))
    if is_explained:
        console.print(Text(f"\n{plan.best.name}", style="bold"))
        console.print(_figures_table(plan.best.figures(), is_explained=True))
    if plan.slice is not None:
        carries = "holds it" if plan.shape.is_encoder else f"carries {plan.slice.sessions.amount}"
        console.print(
            f"MIG slice, on GPUs of your own: {plan.slice.slice.name} {carries}"
            + (f" ({plan.slice.sessions.formula})" if is_explained else "")
        )
    _print_notes(console, [*plan.notes, *_closing(is_explained=is_explained)])
    if is_all:
        _print_misfits(console, plan.misfits)


def show_app_plan(plans: Sequence[EndpointPlan], *, is_explained: bool, is_all: bool) -> None:
    """Print one table of all endpoints, and then what stands out at each."""
    console = plan_console()
    table = _table("endpoint", "model", "as written", "sessions>", "recommended", "always>", "interruptible")
    for each in plans:
        table.add_row(
            Text(each.spec.name, style="bold"), each.spec.weights.name if each.spec.weights else "",
            _written(each), _sessions(each.as_written), _with_price(each.model.best) if each.model else "",
            each.floor.amount if each.floor else "no price known",
            "yes" if each.may_be_interrupted.is_allowed else "no",
        )  # fmt: skip
    console.print(table)
    for each in plans:
        _print_endpoint(console, each, is_explained=is_explained, is_all=is_all)
    _print_notes(console, _closing(is_explained=is_explained))


def show_cost_plan(plan: CostPlan, *, is_explained: bool) -> None:
    """Print what traffic costs in each way."""
    console = plan_console()
    console.print(_figures_table(plan.figures(), names=_COST_NAMES, is_explained=is_explained))
    console.print(Text(f"cheapest for this traffic: {_way(plan.cheapest)}", style="bold green"))
    _print_notes(console, _closing(is_explained=is_explained))


def show_fleet(plans: Sequence[FleetPlan], *, seconds: float, is_explained: bool) -> None:
    """Print one row for each size of fleet."""
    console = plan_console()
    tiers = [f"{each.tier.gpu}>" for each in plans[0].tiers]
    table = _table("concurrent>", *tiers, "GPUs>", "USD an hour>", "an interaction-hour>", f"{seconds:g} s>")
    for plan in plans:
        table.add_row(
            f"{plan.concurrent:,}", *(f"{each.gpus.value:,.0f}" for each in plan.tiers), f"{plan.gpus.value:,.0f}",
            f"{plan.usd_per_hour.value:,.2f}", f"${plan.usd_per_interaction_hour.value:.4f}",
            f"${plan.usd_per_interaction(seconds).value:.7f}",
        )  # fmt: skip
    console.print(table)
    if is_explained:
        for plan in plans:
            console.print(Text(f"\n{plan.concurrent:,} at the same time", style="bold"))
            console.print(_figures_table({each.tier.gpu: each.gpus for each in plan.tiers}, is_explained=True))
            console.print(_figures_table({"together": plan.usd_per_hour}, is_explained=True))


def show_pools(plan: PoolPlan, *, is_explained: bool) -> None:
    """Print dedicated pools and each shared one side by side."""
    console = plan_console()
    console.print(Text(f"\npools for the peaks of {plan.concurrent:,} at the same time", style="bold"))
    table = _table("pool", "GPUs>", "USD an hour>", *(["how"] if is_explained else []))
    parts = " + ".join(f"{each.gpus.value:g} {each.tier.gpu}" for each in plan.dedicated.tiers)
    rows = [(f"one for each tier: {parts}", plan.dedicated.gpus, plan.dedicated.usd_per_hour)]
    rows += [(f"one shared, of {each.tier.gpu}", each.gpus, each.usd_per_hour) for each in plan.shared]
    for name, gpus, cost in rows:
        how = [f"{gpus.formula}; {cost.formula}"] if is_explained else []
        table.add_row(name, f"{gpus.value:,.0f}", f"{cost.value:,.2f}", *how)
    console.print(table)
    saved = plan.dedicated.usd_per_hour.value - plan.best.usd_per_hour.value
    verdict = f"saves ${format_usd(saved)} an hour" if saved > 0 else f"costs ${format_usd(-saved)} an hour more"
    console.print(
        f"sharing {plan.best.tier.gpu} {verdict}; every interaction then gets that GPU, so check that the most "
        "demanding tier can live with it"
    )


# ------------------------------------------------------------------ parts


def _title(plan: ModelPlan) -> str:
    demand = plan.demand
    what = "text" if plan.shape.is_encoder else "session"
    sessions = f"{demand.sessions:,} {what}{'s' * (demand.sessions != 1)} of {demand.context_tokens:,} tokens"
    parameters = f"{format_number(plan.shape.parameters / 1e9)} billion parameters"
    return f"{plan.name}: {parameters}, {sessions}, for {demand.workload.value}"


def _figures_table(
    figures: Mapping[str, Figure], *, is_explained: bool, names: Mapping[str, str] = _FIGURE_NAMES
) -> Table:
    table = _table("figure", "value>", *(["formula", "source"] if is_explained else []))
    for name, figure in figures.items():
        words = names.get(name, name.replace("_", " "))
        how = [figure.formula, figure.source or "the model's config, and what was asked for"] if is_explained else []
        table.add_row(words, Text(figure.amount, style="bold"), *how)
    return table


def _placements_table(plan: ModelPlan, placements: Sequence[Placement]) -> Table:
    columns = _EMBEDDING_COLUMNS if plan.shape.is_encoder else _COLUMNS
    table = _table("worker", *(f"{name}>" for name in columns))
    for each in placements:
        style = "bold green" if each is plan.best else ""
        table.add_row(Text(each.name, style=style), *(text(each) for text in columns.values()))
    return table


_MEMORY_COLUMNS: Mapping[str, Callable[[Placement], str]] = {
    "weights": lambda each: format_bytes(each.weights.value),
    "overhead": lambda each: format_bytes(each.overhead.value),
    "room": lambda each: format_bytes(each.room.value),
}
_SESSION_COLUMNS: Mapping[str, Callable[[Placement], str]] = {
    "fit": lambda each: format_number(each.most.value),
    "plan for": lambda each: format_number(each.planned.value),
    "workers": lambda each: format_number(each.workers.value),
    "first token": lambda each: _seconds(each.first_token.value),
}
_PRICE_COLUMNS: Mapping[str, Callable[[Placement], str]] = {
    "tokens/s": lambda each: format_number(round(each.tokens_per_second.value)),
    "USD/h": lambda each: _price(each.usd_per_hour),
    "USD/M tokens": lambda each: _price(each.usd_per_million_tokens),
}
_COLUMNS = {**_MEMORY_COLUMNS, **_SESSION_COLUMNS, **_PRICE_COLUMNS}
_EMBEDDING_COLUMNS = {**_MEMORY_COLUMNS, **_PRICE_COLUMNS}


def _print_endpoint(console: Console, plan: EndpointPlan, *, is_explained: bool, is_all: bool) -> None:
    """Print what stands out at an endpoint; with formulas and sources where they are asked for."""
    important = [plan.problem] if plan.problem else []
    if isinstance(plan.as_written, Misfit):
        important.append(f"does not fit as written: {plan.as_written.reason}")
    lines = _explained(plan) if is_explained else _cost_in_short(plan.cost)
    if important or lines or (is_all and plan.model):
        console.print(Text(f"\n{plan.spec.name}", style="bold"))
    for line in important:
        console.print(Text(f"  {line}", style="yellow"))
    for line in lines:
        console.print(Text(f"  {line}"))
    if is_all and plan.model is not None:
        console.print(_placements_table(plan.model, plan.model.shortlist[:_SHOWN]))


def _explained(plan: EndpointPlan) -> list[str]:
    figures = dict(plan.model.figures()) if plan.model else {}
    if isinstance(plan.as_written, Placement):
        figures |= plan.as_written.figures()
    named = [(_FIGURE_NAMES.get(name, name.replace("_", " ")), figure) for name, figure in figures.items()]
    named += [("workers.min", plan.floor)] if plan.floor else []
    named += [(_COST_NAMES[name], figure) for name, figure in plan.cost.figures().items()] if plan.cost else []
    lines = [f"{name}: {figure}" + (f"; {figure.source}" if figure.source else "") for name, figure in named]
    verdict = plan.may_be_interrupted
    lines.append(f"interruptible machines: {'yes' if verdict.is_allowed else 'no'}, as {verdict.reason}")
    return lines + (list(plan.model.notes) if plan.model else [])


def _cost_in_short(cost: CostPlan | None) -> list[str]:
    if cost is None:
        return []
    ways = {
        name: figure for name, figure in (("flex", cost.flex), ("active", cost.active), ("pod", cost.pod)) if figure
    }
    lines = ["; ".join(f"{_COST_NAMES[name]} {figure.amount}" for name, figure in ways.items())]
    lines.append(f"cheapest for this traffic: {_way(cost.cheapest)}")
    for name, figure in (("active_jobs", cost.active_jobs), ("pod_jobs", cost.pod_jobs)):
        if figure is not None:
            lines.append(f"{_COST_NAMES[name]} {figure.amount}")
    return lines


def _written(plan: EndpointPlan) -> Text:
    if plan.as_written is None:
        return Text(plan.spec.cpu or ", ".join(gpu.value for gpu in plan.spec.gpu))
    count = f"{plan.as_written.gpu_count}x " if plan.as_written.gpu_count > 1 else ""
    name = count + plan.as_written.gpu.value.removeprefix("NVIDIA ").removeprefix("GeForce ")
    if isinstance(plan.as_written, Misfit):
        return Text(f"{name}: does not fit", style="red")
    return Text(_with_price(plan.as_written))


def _with_price(placement: Placement) -> str:
    """Return a worker with what one of them costs on flex."""
    if placement.usd_per_hour is None:
        return placement.name
    return f"{placement.name}, ${format_usd(placement.usd_per_hour.value / placement.workers.value)}/h"


def _sessions(placed: Placement | Misfit | None) -> str:
    if not isinstance(placed, Placement):
        return ""
    return f"{format_number(placed.planned.value)} of {format_number(placed.most.value)}"


def _print_misfits(console: Console, misfits: Sequence[Misfit]) -> None:
    for each in misfits:
        count = f"{each.gpu_count}x " if each.gpu_count > 1 else ""
        console.print(
            Text(f"does not fit: {count}{each.gpu.value.removeprefix('NVIDIA ')}: {each.reason}", style="dim")
        )


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Text(f"note: {note}", style="dim"))


def _closing(*, is_explained: bool) -> list[str]:
    more = "" if is_explained else "; formulas and sources: --explain"
    return [f"prices and facts as of {READ_ON}, speeds are what data sheets allow at best{more}"]


def _way(name: str) -> str:
    return {"flex": "flex workers (workers.min = 0)", "active": "active workers (workers.min above 0)"}.get(
        name, "Pods"
    )


def _price(figure: Figure | None) -> str:
    return "no price" if figure is None else format_usd(figure.value)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        is_number = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if is_number else "left", overflow="fold")
    return table
