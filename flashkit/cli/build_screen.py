"""What `flashkit build` shows: the steps while they run, then what the image is made of and what to cut.

In a terminal the steps are redrawn where they stand; in a pipe each is a line once it has ended. With --json all of it
goes to standard error, and standard output has one line of JSON at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flashkit.cli.console import make_console
from flashkit.cli.quantities import format_bytes, format_ms
from flashkit.images.build_log import State, Step
from flashkit.images.docker import ImageFacts
from flashkit.images.findings import Finding, largest_files
from flashkit.images.layers import Contents
from flashkit.images.planning import pull_seconds
from flashkit.images.record import BuiltImage

_LOOKS: Final = {
    State.RUNNING: ("▸", "cyan"),
    State.DONE: ("✓", "green"),
    State.CACHED: ("·", "dim"),
    State.FAILED: ("✗", "red"),
}
_PIPE_WIDTH: Final = 160
_INSTRUCTION_WIDTH: Final = 90
_GB: Final = 1_000_000_000


class BuildScreen:
    """The terminal of one `flashkit build`."""

    def __init__(self, *, is_json: bool, console: Console | None = None) -> None:
        self._is_json = is_json
        self._console = console or make_console(stderr=is_json)
        if not self._console.is_terminal:
            self._console.width = _PIPE_WIDTH
        self._findings: dict[str, list[Finding]] = {}

    @contextmanager
    def building(self, tag: str, endpoints: Sequence[str]) -> Iterator[Callable[[Step], None]]:
        """Show the steps of a build for as long as the block lasts."""
        serves = f" for {', '.join(endpoints)}" if endpoints else ""
        self._console.print(Text.assemble("building ", (tag, "bold"), serves))
        started = time.monotonic()
        if self._console.is_terminal:
            with _LiveSteps(self._console) as steps:
                yield steps.show
        else:
            yield _StepLines(self._console).show
        self._console.print(f"built in {format_ms((time.monotonic() - started) * 1000)}")

    @contextmanager
    def pushing(self, tag: str) -> Iterator[Callable[[str], None]]:
        """Show how far a push is."""
        with self._console.status(f"pushing {tag}") as status:
            yield lambda line: status.update(Text(f"pushing {tag}: {line}"))
        self._console.print(Text.assemble("pushed ", (tag, "bold")))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what takes a moment."""
        with self._console.status(text):
            yield

    def warn(self, text: str) -> None:
        """Say what may go wrong later."""
        self._console.print(Text(f"warning: {text}", style="yellow"))

    def show_contents(self, tag: str, facts: ImageFacts, contents: Contents, findings: Sequence[Finding]) -> None:
        """Show the layers, the largest files, and what to cut."""
        self._findings[tag] = list(findings)
        self._console.print(_layer_table(contents))
        for path, size in largest_files(contents):
            self._console.print(Text(f"  {format_size(size):>9}  /{path}", style="dim"))
        seconds = pull_seconds(facts.size_bytes)
        self._console.print(
            f"{format_size(facts.size_bytes)}, {facts.platform}, user {facts.user or 'root'}; "
            f"a new host pulls it in about {format_ms(seconds * 1000)}"
        )
        for finding in findings:
            self._console.print(describe_finding(finding))

    def finish(self, built: Sequence[BuiltImage]) -> None:
        """Say what was built."""
        if not self._is_json:
            for image in built:
                self._console.print(Text(f"built {image.deployable} for {', '.join(image.endpoints)}", style="bold"))
            return
        from flashkit.cli.run import write_json_line

        images = [
            image.to_dict() | {"findings": [finding.to_dict() for finding in self._findings[image.reference]]}
            for image in built
        ]
        write_json_line({"images": images})


class _StepLines:
    """Writes a line for each step that has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[int] = set()

    def show(self, step: Step) -> None:
        if step.state is not State.RUNNING and step.number not in self._told and not step.is_internal:
            self._told.add(step.number)
            self._console.print(describe_step(step))


class _LiveSteps:
    """Redraws the steps, with the last line of what those that run have written."""

    def __init__(self, console: Console) -> None:
        self._steps: dict[int, Step] = {}
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._draw)

    def __enter__(self) -> _LiveSteps:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, step: Step) -> None:
        if not step.is_internal:
            self._steps[step.number] = step

    def _draw(self) -> Group:
        lines = []
        for step in list(self._steps.values()):
            lines.append(describe_step(step))
            if step.state is State.RUNNING and step.output:
                lines.append(Text(f"    {step.output[-1]}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def describe_step(step: Step) -> Text:
    """Return one line about a step: its mark, its time, its name."""
    mark, style = _LOOKS[step.state]
    took = "cached" if step.state is State.CACHED else format_ms(step.seconds * 1000) if step.seconds else ""
    return Text.assemble((f"  {mark} ", style), (f"{took:>8}  ", "dim"), shorten(step.name), no_wrap=True)


def shorten(instruction: str) -> str:
    """Return an instruction on one line that fits beside others."""
    text = " ".join(instruction.replace("# buildkit", "").replace("/bin/sh -c #(nop) ", "").split())
    text = text.replace("RUN /bin/sh -c ", "RUN ")
    return text if len(text) <= _INSTRUCTION_WIDTH else f"{text[: _INSTRUCTION_WIDTH - 1]}…"


def _layer_table(contents: Contents) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("size", justify="right")
    table.add_column("made by", no_wrap=True)
    for number, layer in enumerate(contents.layers, start=1):
        table.add_row(str(number), format_size(layer.size_bytes), Text(shorten(layer.instruction) or "the FROM image"))
    return table


def describe_finding(finding: Finding) -> Text:
    """Return what to cut: how much, where, and what to do."""
    size = f"{format_size(finding.size_bytes)}: " if finding.size_bytes else ""
    text = Text.assemble(("  cut ", "yellow"), (size, "bold"), finding.message, f"\n      {finding.advice}")
    for path in finding.paths:
        text.append(f"\n      {path}", style="dim")
    return text


def format_size(size: int) -> str:
    """Return a size for people: 812 B, 3.4 MB, 12.3 GB."""
    return f"{size / _GB:.3g} GB" if size >= _GB else format_bytes(size)
