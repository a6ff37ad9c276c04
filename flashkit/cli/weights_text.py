"""Weights as text for the terminal: what is here, what came of a check, and a plan's options side by side."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from flashkit.cli.console import make_console
from flashkit.cli.quantities import format_ms
from flashkit.worker.weights.inventory import Copy
from flashkit.worker.weights.plan import Option, Span, WeightsPlan
from flashkit.worker.weights.progress import format_size
from flashkit.worker.weights.verifying import Verdict

_COMMIT_CHARACTERS = 12
_PIPE_WIDTH = 1000
"""Folders are long, and one that is cut cannot be copied."""
_SHOWN = 10


def show_table(table: Table) -> None:
    """Print a table; where the output is no terminal it has room."""
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def copies_table(copies: Iterable[Copy]) -> Table:
    """Return one row a copy."""
    table = _table("name", "commit", "size>", "place", "state", "folder")
    for copy in copies:
        style = "green" if copy.state == "complete" else "red" if copy.state.startswith("damaged") else "yellow"
        commit = (copy.commit or "not known")[:_COMMIT_CHARACTERS]
        table.add_row(
            Text(copy.name, style="bold"), commit, format_size(copy.size_bytes), copy.place,
            Text(copy.state, style=style), str(copy.folder),
        )  # fmt: skip
    return table


def describe_verdict(verdict: Verdict) -> str:
    """Return what came of checking a copy, and every file that is not right."""
    size = format_size(sum(entry.size for entry in verdict.files))
    head = f"{verdict.folder}: {len(verdict.files)} files, {size}, commit {verdict.commit or 'not known'}"
    lines = [f"  damaged: {each}" for each in verdict.damage]
    if verdict.unchecked:
        shown = ", ".join(verdict.unchecked[:_SHOWN])
        more = len(verdict.unchecked) - _SHOWN
        lines.append(f"  not compared, as no hash is known: {shown}" + (f" and {more} more" if more > 0 else ""))
    return "\n".join([f"{head}: {'whole' if verdict.is_sound else 'NOT whole'}", *lines])


def show_plan(plan: WeightsPlan) -> None:
    """Print the options of a plan, then how each number was made."""
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    on = f", {plan.gpu}" if plan.gpu else ""
    title = f"{', '.join(plan.names)}: {format_size(plan.size_bytes)}, {plan.starts_per_day:g} cold starts a day{on}"
    console.print(Text(title, style="bold"))
    console.print(_options_table(plan))
    for option in plan.options:
        console.print(_explanation(option))
    console.print(Text(f"facts read on {plan.read_on}; times are for the weights alone, without engine and warm-up"))


def _options_table(plan: WeightsPlan) -> Table:
    table = _table(
        "place", "first start on a host>", "later starts>", "storage a month>", "starts a month>", "together>"
    )
    for option in plan.options:
        starts = option.starts_usd_per_month
        table.add_row(
            Text(option.place, style="bold"), _span(option.first_start_seconds), _span(option.later_start_seconds),
            _usd(option.storage_usd_per_month), "name a --gpu" if starts is None else _usd(starts),
            _usd(option.usd_per_month),
        )  # fmt: skip
    return table


def _explanation(option: Option) -> Text:
    text = Text.assemble("\n", (option.place, "bold"))
    for name, formula in option.formulas.items():
        text.append(f"\n  {name.replace('_', ' ')}: {formula}")
    for note in option.notes:
        text.append(f"\n  note: {note}", style="yellow" if "limit" in note or "fit" in note else "")
    text.append(f"\n  source: {', '.join(option.sources)}", style="dim")
    return text


def _span(span: Span) -> str:
    low, high = format_ms(span.low * 1000), format_ms(span.high * 1000)
    return low if low == high else f"{low} to {high}"


def _usd(amount: float) -> str:
    return f"${amount:,.2f}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        is_number = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if is_number else "left", overflow="fold")
    return table
