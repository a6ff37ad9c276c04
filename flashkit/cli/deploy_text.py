"""Deployments as text for the terminal: the plan as a diff, what it costs, what is done, what is there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashkit.deploy.applying import Moment, Outcome, Step
from flashkit.deploy.planning import Action, Change, FieldChange, Plan
from flashkit.deploy.prices import HOURS_PER_MONTH, Cost, total
from flashkit.deploy.releases import Rollback
from flashkit.deploy.status import AppStatus, EndpointStatus, hardware_of
from flashkit.deploy.undeploying import Removal
from flashkit.telemetry.advice import Advice

LOOKS: Final = {
    Action.CREATE: ("+", "green"),
    Action.UPDATE: ("~", "yellow"),
    Action.REPLACE: ("±", "red"),
    Action.DELETE: ("-", "red"),
    Action.UNCHANGED: ("=", "dim"),
}
_WORDS: Final = {
    Action.CREATE: "new",
    Action.UPDATE: "changed",
    Action.REPLACE: "deleted and made anew: its id changes",
    Action.DELETE: "deleted",
    Action.UNCHANGED: "unchanged",
}
_ENDINGS: Final = {
    Action.CREATE: "to make",
    Action.UPDATE: "to change",
    Action.REPLACE: "to make anew",
    Action.DELETE: "to delete",
    Action.UNCHANGED: "unchanged",
}
_STEP_LOOKS: Final = {Moment.DONE: ("✓", "green"), Moment.FAILED: ("✗", "red")}
_LONGEST_VALUE: Final = 100
_ARROW: Final = " → "


def plan_text(plan: Plan, where: str) -> RenderableType:
    """Return a plan: changes, costs, notes, and the reasons against it."""
    config = plan.config
    head = Text.assemble(
        (config.app, "bold"), " · ", (config.environment, "bold"), f"{_ARROW}{where}", style="", end="\n"
    )
    secrets = [Text.assemble("  ", ("+", "green"), " secret   ", (name, "bold"), "  stored") for name in plan.secrets]
    parts: list[RenderableType] = [head, *secrets, *changes_text(plan.changes)]
    if plan.costs and not plan.problems:
        parts += [Text(""), cost_table(plan.costs)]
    parts += [Text.assemble(("  note  ", "cyan"), note) for note in plan.notes]
    parts += [_problem_text(problem.message, problem.hint) for problem in plan.problems]
    parts += [Text(""), summary_text(plan.changes)]
    return Group(*parts)


def changes_text(changes: Sequence[Change]) -> Iterator[Text]:
    """Yield a line for each change, and one for each of its fields."""
    width = max((len(change.name) for change in changes), default=0)
    for change in changes:
        mark, style = LOOKS[change.action]
        known = f"  {change.id}" if change.id else ""
        is_quiet = change.action is Action.UNCHANGED
        yield Text.assemble(
            "  ",
            (mark, style),
            f" {change.kind:<9}",
            (f"{change.name:<{width}}", "dim" if is_quiet else "bold"),
            (f"  {_WORDS[change.action]}", style),
            (known, "dim"),
        )
        fields = [item for item in change.fields if not (change.action is Action.CREATE and item.after in (None, ""))]
        name_width = max((len(item.field) for item in fields), default=0)
        for item in fields:
            yield _field_text(item, name_width)


def _field_text(item: FieldChange, width: int) -> Text:
    text = Text.assemble("      ", (f"{item.field:<{width}}  ", ""))
    if item.before is not None:
        text.append(value_text(item.before), "red" if item.after is None else "dim")
        text.append(_ARROW if item.after is not None else "  removed", "dim")
    if item.after is not None:
        text.append(value_text(item.after), "green" if item.before is None else "yellow")
    elif item.before is None:
        text.append("none", "dim")
    return text


def value_text(value: Any) -> str:
    """Return a value on one line, shortened where it is long."""
    if isinstance(value, list | tuple):
        text = ", ".join(map(str, value)) or "none"
    elif isinstance(value, str):
        text = value if value and value.isprintable() else orjson.dumps(value).decode()
    else:
        text = orjson.dumps(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def cost_table(costs: Sequence[Cost]) -> Table:
    """Return what everything costs an hour, and the sum."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("  US$ an hour", "left"), ("", "left"), ("always", "right"), ("at most", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "")  # type: ignore[arg-type]
    for cost in costs:
        table.add_row(f"  {cost.name}", Text(cost.hardware, style="dim"), money(cost.always), money(cost.at_most))
    whole = total(costs)
    always = _sum_text(whole.always, [cost.always for cost in costs])
    at_most = _sum_text(whole.at_most, [cost.at_most for cost in costs])
    table.add_row("  total", Text(_monthly(whole), style="dim"), always, at_most, style="bold")
    return table


def _monthly(cost: Cost) -> str:
    return "" if not cost.always else f"${cost.always * HOURS_PER_MONTH:,.2f} a month without any job"


def _sum_text(amount: float | None, parts: Sequence[float | None]) -> str:
    """Return a sum, or what is known of it."""
    known = sum(part for part in parts if part is not None)
    return f"more than {money(known)}" if amount is None and known else money(amount)


def money(amount: float | None) -> str:
    """Return a price an hour, or that it is not known."""
    return "unknown" if amount is None else f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.4f}"  # noqa: PLR2004


def summary_text(changes: Sequence[Change]) -> Text:
    """Return how many things change."""
    counts = [(action, sum(change.action is action for change in changes)) for action in Action]
    words = [f"{count} {_ENDINGS[action]}" for action, count in counts if count]
    return Text(", ".join(words) or "nothing to do", style="bold")


def _problem_text(message: str, hint: str) -> Text:
    return Text.assemble(("  ✗ ", "red"), message, "\n    ", (f"hint: {hint}", "dim"))


def step_text(step: Step) -> Text | None:
    """Return the line for a step that is over; one that begins has none."""
    if step.moment is Moment.BEGUN:
        return None
    mark, style = _STEP_LOOKS[step.moment]
    words = step.words if step.moment is Moment.DONE else f"could not {step.action} {step.kind} {step.name}"
    return Text.assemble("  ", (mark, style), f" {words}")


def outcome_text(outcome: Outcome) -> RenderableType:
    """Return what came of a deployment, and how to use it."""
    parts: list[RenderableType] = []
    if outcome.deployment is not None:
        parts.append(Text(f"deployment {outcome.deployment.number} is done", style="bold"))
    if outcome.warning:
        parts.append(Text.assemble(("  note  ", "cyan"), outcome.warning))
    if outcome.rolling:
        names = ", ".join(outcome.rolling)
        parts.append(Text(f"workers of {names} are replaced one by one: flashkit status shows how far it is"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, deployed in sorted(outcome.endpoints.items()):
        url = deployed.urls.get("runSync") or deployed.urls.get("base") or ""
        table.add_row(f"  {name}", Text(deployed.id, style="bold"), url)
    ids = orjson.dumps({name: item.id for name, item in sorted(outcome.endpoints.items())}).decode()
    usage = Text.assemble(("by name: ", "dim"), f"export FLASHKIT_ENDPOINTS={shlex.quote(ids)}")
    return Group(*parts, table, *([usage] if outcome.endpoints else []))


def rollback_text(plan: Rollback, where: str) -> RenderableType:
    """Return what would be put back."""
    head = Text.assemble(
        (plan.config.app, "bold"), " · ", (plan.config.environment, "bold"), f"{_ARROW}{where}: back to {plan.title}"
    )
    notes = [Text.assemble(("  note  ", "cyan"), note) for note in plan.notes]
    problems = [Text.assemble(("  ✗ ", "red"), problem) for problem in plan.problems]
    return Group(head, *changes_text(plan.changes), *notes, *problems, Text(""), summary_text(plan.changes))


def removal_text(removal: Removal, app: str, environment: str, where: str) -> RenderableType:
    """Return what would be removed, and what stays."""
    head = Text.assemble((app, "bold"), " · ", (environment, "bold"), f"{_ARROW}{where}")
    lines = [
        Text.assemble("  ", ("-", "red"), " endpoint  ", (item.name, "bold"), f"  {item.id}")
        for item in removal.endpoints
    ]
    for volume in removal.volumes:
        mark, style, words = ("-", "red", "deleted with all files") if removal.removes_volumes else ("=", "dim", "kept")
        lines.append(
            Text.assemble(
                "  ", (mark, style), " volume    ", (volume.key.name, "bold"),
                f"  {volume.id}  {volume.size} GB in {volume.key.datacenter}, {words}",
            )
        )  # fmt: skip
    for volume in removal.shared:
        text = f"  {volume.id}  kept: other endpoints have it"
        lines.append(Text.assemble("  ", ("=", "dim"), " volume    ", (volume.key.name, "bold"), text))
    return Group(head, *lines)


def status_text(status: AppStatus, where: str, advice: Sequence[Advice] = ()) -> RenderableType:
    """Return a table of what runs, and what the figures advise."""
    config = status.config
    last = status.record.latest
    told = f", deployment {last.number} of {last.at}" if last else ""
    head = Text.assemble((config.app, "bold"), " · ", (config.environment, "bold"), f"{_ARROW}{where}{told}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("  endpoint", "id", "hardware", "bounds", "workers", "version"):
        table.add_column(name)
    for item in status.endpoints:
        table.add_row(*_status_row(item))
    doubles = [Text.assemble(("  note  ", "cyan"), f"{item} is there twice: delete it") for item in status.doubles]
    lines = [
        Text.assemble(("  advice  ", "cyan"), (each.endpoint, "bold"), f": {each.figure}; {each.setting}")
        for each in advice
    ]
    return Group(head, table, *doubles, *lines)


def _status_row(item: EndpointStatus) -> tuple[RenderableType, ...]:
    fields = item.deployed.fields
    states = [f"{count} {state}" for state, count in item.workers.items() if count]
    bad = any(item.workers.get(state) for state in ("throttled", "unhealthy"))
    version = "" if item.version is None else str(item.version)
    rolling = f"{version}, {item.stale} workers behind" if item.stale else version
    return (
        Text(f"  {item.deployed.name}", style="bold"),
        item.deployed.id,
        hardware_of(fields),
        f"{fields.get('workers.min')} to {fields.get('workers.max')}",
        Text(", ".join(states) or "none", style="red" if bad else ""),
        Text(rolling, style="yellow" if item.stale else ""),
    )


def show(console: Console, content: RenderableType) -> None:
    """Print; where the output is no terminal it has room."""
    if not console.is_terminal:
        console.width = 400
    console.print(content)
