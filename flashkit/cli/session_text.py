"""Sessions as text for the terminal: a table of many, and the timeline of one with a bar for each step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashkit.cli.console import make_console
from flashkit.cli.quantities import format_bytes, format_ms
from flashkit.worker.sessions.accounts import Account
from flashkit.worker.sessions.admin import PERSON
from flashkit.worker.sessions.comparing import Difference
from flashkit.worker.sessions.timeline import DAMAGED, SessionView, Step, StepState, Summary, TurnState, TurnView

BAR_WIDTH = 32
_PIPE_WIDTH = 140
_VALUE_CHARACTERS = 60
_STYLES = {
    "done": "green",
    "idle": "green",
    "running": "cyan",
    "waiting": "yellow",
    "interrupted": "yellow",
    "given up": "dim",
    "unknown": "magenta",
    "blocked": "magenta",
    "failed": "red",
    DAMAGED: "red",
}
_HEADINGS = ("session", "status", "turns>", "changed>", "stored>", "about")
_DIFFERENCE_LOOKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def wide_console() -> Console:
    """Return a console that gives tables room where the output is no terminal."""
    console = make_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def sessions_table(sessions: Iterable[Summary], *, now_ms: float | None = None) -> Table:
    """Return one row a session."""
    now = time.time() * 1000 if now_ms is None else now_ms
    table = _table(*_HEADINGS)
    table.columns[0].overflow = "fold"  # an id that is cut cannot be copied
    table.columns[0].no_wrap = False
    for each in sessions:
        session, status, *numbers, about = _facts(each, now)
        table.add_row(Text(session, style="bold"), _state(status), *numbers, Text(about))
    return table


def sessions_lines(sessions: Iterable[Summary], *, now_ms: float | None = None) -> list[str]:
    """Return one line a session for other programs, with tabs between what a table would have in columns."""
    now = time.time() * 1000 if now_ms is None else now_ms
    rows = [[heading.removesuffix(">") for heading in _HEADINGS], *(_facts(each, now) for each in sessions)]
    return ["\t".join(row) for row in rows]


def _facts(summary: Summary, now_ms: float) -> list[str]:
    return [
        summary.session,
        str(summary.status),
        str(summary.turn),
        f"{format_ms(max(0.0, now_ms - summary.updated_ms))} ago",
        format_bytes(summary.stored_bytes),
        _about(summary).partition("\n")[0].replace("\t", " "),
    ]


def session_timeline(view: SessionView) -> Group:
    """Return what a session is doing, and every step of its turns that the journal has."""
    parts: list[RenderableType] = [_heading(view)]
    for turn in view.turns:
        parts += [Text(), _turn_heading(turn)]
        if turn.steps:
            parts.append(_steps_table(turn))
        parts += [Text(f"  event {event.name}: {_cut(event.preview)}", style="dim") for event in turn.events]
    if not view.turns and not view.damage:
        parts.append(Text("\nthe journal holds no steps: those of finished turns were not kept", style="dim"))
    if view.damage:
        parts.append(Text(f"\nthe journal is damaged here: {view.damage}", style="red"))
    return Group(*parts)


def differences(found: Sequence[Difference]) -> Text:
    """Return one line for each difference."""
    text = Text()
    for each in found:
        mark, style = _DIFFERENCE_LOOKS[each.what]
        before = _shown(each.before) if each.what != "added" else ""
        after = _shown(each.after) if each.what != "removed" else ""
        arrow = " → " if before and after else ""
        text.append_text(Text.assemble((f"{mark} {each.path}", style), f"  {before}{arrow}{after}\n"))
    text.rstrip()
    return text


def next_command(view: SessionView) -> str | None:
    """Return what a person would do with this session now."""
    session, turn = view.summary.session, view.open_turn
    if view.summary.status == DAMAGED:
        return f"flashkit sessions rewind {session} --to last-good   (or quarantine {session})"
    if turn is None or turn.state is TurnState.RUNNING:
        return None
    unknown = next((step for step in turn.steps if step.state is StepState.UNKNOWN), None)
    if unknown is not None:
        return f"flashkit sessions settle {session} {unknown.key} --result JSON   (or --again)"
    waiting = next((step for step in turn.steps if step.kind == "event" and step.state is StepState.WAITING), None)
    if waiting is not None:
        event = waiting.key.rpartition("/")[2].partition("#")[0].removeprefix("event:")
        return f"flashkit sessions event {session} {event} JSON"
    return f"flashkit sessions resume {session}"


def _heading(view: SessionView) -> Text:
    summary = view.summary
    text = Text.assemble(("session ", "dim"), (summary.session, "bold"), "  ", _state(summary.status))
    facts = [
        f"endpoint {view.endpoint}" if view.endpoint else "",
        f"{format_bytes(summary.stored_bytes)} stored",
        f"{summary.pending} events wait" if summary.pending else "",
        f"attempt {summary.attempts}" if summary.attempts > 1 else "",
        f"forked from {view.forked_from}" if view.forked_from else "",
    ]
    text.append(f"  {' · '.join(fact for fact in facts if fact)}", style="dim")
    if about := _about(summary):
        text.append(f"\n  {about}")
    for line in used_lines(view.used):
        text.append_text(Text.assemble("\n  ", ("used: ", "dim"), line))
    if command := next_command(view):
        text.append_text(Text.assemble("\n  ", ("next: ", "dim"), (command, "cyan")))
    return text


def used_lines(used: Account) -> list[str]:
    """Return what a session has used: a line for each model and endpoint, and one for what its code reports."""
    models = [
        f"{name}: {each.input_tokens:,} tokens in, {each.output_tokens:,} out in {_calls(each.calls)}"
        for name, each in used.models.items()
    ]
    endpoints = [
        f"{name}: {each.seconds:,.1f} s on {each.gpu or 'CPU'} in {_calls(each.calls)}"
        + (f", at most ${each.usd:,.4f}" if each.usd else "")
        for name, each in used.endpoints.items()
    ]
    spent = [f"{used.spent_tokens:,} tokens and ${used.spent_usd:,.4f} by session.spend()"]
    return [*models, *endpoints, *(spent if used.spent_tokens or used.spent_usd else [])]


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _turn_heading(turn: TurnView) -> Text:
    began = datetime.fromtimestamp(turn.started_ms / 1000).astimezone().strftime("%H:%M:%S")
    took = format_ms(turn.seconds * 1000)
    return Text.assemble(
        (f"turn {turn.number}", "bold"), "  ", _state(turn.state), (f"  {began} · {took} · code {turn.code}  ", "dim"),
        _cut(turn.preview),
    )  # fmt: skip


def _steps_table(turn: TurnView) -> Table:
    table = _table("  step", "kind", "state", "took>", "size>", "")
    table.add_column("")
    span_ms = max(1.0, turn.seconds * 1000)
    for step in turn.steps:
        table.add_row(
            f"  {step.key}",
            step.kind,
            _state(step.state),
            "" if step.seconds is None else format_ms(step.seconds * 1000),
            "" if step.size_bytes is None else format_bytes(step.size_bytes),
            _bar(step, turn.started_ms, span_ms),
            Text(_notes(step, turn), style="dim"),
        )
    return table


def _bar(step: Step, began_ms: int, span_ms: float) -> Text:
    if step.started_ms is None:
        return Text()
    start = min(BAR_WIDTH - 1, max(0, round((step.started_ms - began_ms) / span_ms * BAR_WIDTH)))
    length = max(1, round((step.seconds or 0) * 1000 / span_ms * BAR_WIDTH))
    bar = "█" * min(length, BAR_WIDTH - start) if step.state is StepState.DONE else "░" * (BAR_WIDTH - start)
    return Text.assemble(" " * start, (bar, _STYLES[step.state]))


def _notes(step: Step, turn: TurnView) -> str:
    notes = (
        f"attempt {step.attempt}" if step.attempt > 1 else "",
        f"job {step.job}" if step.job and step.state is not StepState.DONE else "",
        "in a blob" if step.blob else "",
        "settled by a person" if step.settled else "",
        "other input than recorded" if step.has_other_input else "",
        f"by code {step.code}" if step.code and step.code != turn.code else "",
    )
    return " · ".join(note for note in notes if note)


def _about(summary: Summary) -> str:
    if summary.reason:
        return summary.reason
    if summary.lease_left_s > 0:
        return f"worker {summary.owner} has it for {summary.lease_left_s:.0f} s more"
    if summary.status != TurnState.INTERRUPTED:
        return ""
    is_person = summary.owner.startswith(PERSON)
    return "no worker has it yet" if is_person else f"worker {summary.owner} left or died in it"


def _state(state: str) -> Text:
    return Text(str(state), style=_STYLES.get(state, ""))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading.removesuffix(">"), justify="right" if heading.endswith(">") else "left", no_wrap=True)
    return table


def _shown(value: Any) -> str:
    return _cut(orjson.dumps(value).decode())


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 1] + "…"
