"""Traces as text for the terminal: a table of many, and the tree of one with a bar for each span.

What spans say was written by anybody: it is shown as text, without characters that control a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashkit.cli.console import make_console
from flashkit.cli.quantities import format_ms
from flashkit.telemetry.clean import one_line
from flashkit.telemetry.store import TraceSummary
from flashkit.telemetry.tree import Node, Trace, describe_end

BAR_WIDTH = 32
SHOWN_SPANS = 400
_PIPE_WIDTH = 160
_NAME_CHARACTERS = 60
_NOTE_CHARACTERS = 120
_STYLES = {
    "platform": "dim",
    "queue": "yellow",
    "cold_start": "blue",
    "phase": "blue",
    "job": "cyan",
    "request": "cyan",
    "step": "green",
    "effect": "green",
    "tool": "green",
    "call": "green",
    "llm": "magenta",
    "embedding": "magenta",
    "commit": "dim",
}
_OPEN = "bold red"


def wide_console() -> Console:
    """Return a console that gives trees room where the output is no terminal."""
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def traces_table(traces: Sequence[TraceSummary], *, now_s: float | None = None) -> Table:
    """Return one row a trace."""
    now = time.time() if now_s is None else now_s
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("job", "endpoint", "began", "took", "spans", "error"):
        table.add_column(heading, no_wrap=heading != "error", overflow="fold")
    for each in traces:
        took = format_ms((each.end_ns - each.start_ns) / 1e6) if each.end_ns else "open"
        table.add_row(
            Text(one_line(each.job_id or each.trace_id, _NAME_CHARACTERS), style="bold"),
            Text(one_line(each.name, _NAME_CHARACTERS)),
            f"{format_ms(max(0.0, now - each.start_ns / 1e9) * 1000)} ago",
            Text(took, style="" if each.end_ns else _OPEN),
            str(each.spans),
            Text(one_line(each.error, _NOTE_CHARACTERS), style="red"),
        )
    return table


def trace_tree(trace: Trace) -> Group:
    """Return a trace: a line for each span, indented below its parent, with its share of the time as a bar."""
    nodes = list(trace.nodes())
    parts: list[RenderableType] = [
        Text.assemble(
            ("trace ", "dim"), (trace.trace_id, "bold"),
            (f"  {len(nodes)} spans · {format_ms((trace.end_ns - trace.start_ns) / 1e6)}", "dim"),
        ),
    ]  # fmt: skip
    if message := describe_end(trace):
        parts.append(Text(one_line(message, 400), style=_OPEN))
    parts += [
        Text(f"clock of {one_line(worker, 80)} is off by up to {format_ms(skew / 1e6)}: its spans were moved", "yellow")
        for worker, skew in trace.skewed.items()
    ]
    parts.append(_spans_table(nodes[:SHOWN_SPANS], trace))
    if len(nodes) > SHOWN_SPANS:
        parts.append(Text(f"… and {len(nodes) - SHOWN_SPANS} more; --json has them all", style="dim"))
    return Group(*parts)


def _spans_table(nodes: Iterable[Node], trace: Trace) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.columns[-1].no_wrap = False
    span_ns = max(1, trace.end_ns - trace.start_ns)
    for node in nodes:
        table.add_row(
            _name(node),
            Text(format_ms(node.duration_s * 1000) + ("+" if node.is_open else ""), style=_style(node)),
            _bar(node, trace.start_ns, span_ns),
            _notes(node),
        )
    return table


def _name(node: Node) -> Text:
    name = one_line(node.record.name, _NAME_CHARACTERS)
    kind = f"{node.record.op} " if node.record.op not in ("", node.record.name) else ""
    return Text.assemble("  " * min(node.depth, 20), (kind, "dim"), (name, _style(node)))


def _style(node: Node) -> str:
    if node.is_cut_off:
        return _OPEN
    return "red" if node.record.error else _STYLES.get(node.record.op, "")


def _bar(node: Node, start_ns: int, span_ns: int) -> Text:
    start = min(BAR_WIDTH - 1, max(0, int((node.start_ns - start_ns) / span_ns * BAR_WIDTH)))
    length = max(1, round((node.end_ns - node.start_ns) / span_ns * BAR_WIDTH))
    bar = ("░" if node.is_open else "█") * min(length, BAR_WIDTH - start)
    return Text.assemble(" " * start, (bar, _style(node)), " " * (BAR_WIDTH - start - len(bar)))


def _notes(node: Node) -> Text:
    told = node.record.attributes
    used = [
        f"{told[key]} {what}"
        for key, what in (("gen_ai.usage.input_tokens", "in"), ("gen_ai.usage.output_tokens", "out"))
        if key in told
    ]
    first = told.get("gen_ai.response.time_to_first_chunk")
    reasons = told.get("gen_ai.response.finish_reasons")
    notes = (
        "never ended" if node.is_cut_off else "still open" if node.is_open else "",
        node.record.error,
        f"{' + '.join(used)} tokens" if used else "",
        f"first token {format_ms(first * 1000)}" if isinstance(first, int | float) else "",
        ", ".join(map(str, reasons)) if isinstance(reasons, list) else "",
        f"clock moved by {format_ms(abs(node.skew_ns) / 1e6)}" if abs(node.skew_ns) >= 1_000_000 else "",  # noqa: PLR2004
    )
    text = one_line(" · ".join(note for note in notes if note), _NOTE_CHARACTERS)
    return Text(text, style=_OPEN if node.is_cut_off else "red" if node.record.error else "dim")
