"""Render the research agent, run it on the local platform, ask it a question, and show what happened.

Everything is real: the template as `cookiecutter` renders it, worker processes with the runpod SDK, the job
queue, all-MiniLM-L6-v2 embeddings and SmolLM2-135M text. Knowledge base and web pages are this project's
own documentation, served on loopback.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from cookiecutter.main import cookiecutter
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from flashkit.cli.apps import describe_app
from flashkit.cli.console import Screen
from flashkit.client import Client
from flashkit.emulator.events import Event, JobEvent, WorkerEvent
from flashkit.emulator.server import Emulator
from flashkit.errors import FlashkitError
from flashkit.settings import Settings

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".flashkit"
QUESTION = "Why does flashkit run workers as separate processes, and what happens to a job when its worker dies?"
BAR_WIDTH = 44

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass
class Timeline:
    """What every job and worker did, from the events of the emulator."""

    screen: Screen
    began: float = field(default_factory=time.monotonic)
    ended_jobs: list[tuple[float, JobEvent]] = field(default_factory=list)
    workers_started: int = 0

    def __call__(self, event: Event) -> None:
        """Note the event, and show it as `flashkit dev` would."""
        if isinstance(event, JobEvent) and event.status.is_final:
            self.ended_jobs.append((time.monotonic() - self.began, event))
        if isinstance(event, WorkerEvent) and event.what == "starting":
            self.workers_started += 1
        self.screen.show_event(event)

    def table(self) -> Table:
        """Return one row a job, in the order in which they were submitted."""
        span = max((end for end, _ in self.ended_jobs), default=1.0)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading, justify in (("endpoint", "left"), ("worker", "left"), ("queue", "right"), ("cold start", "right")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # the two words rich knows
        table.add_column("run", justify="right")
        table.add_column(f"0 s{span:{BAR_WIDTH - 5}.0f} s", no_wrap=True, width=BAR_WIDTH + 1)
        for end, job in sorted(self.ended_jobs, key=lambda item: _submitted(*item)):
            table.add_row(
                job.endpoint, _short(job.worker_id), _ms(job.delay_ms), _ms(job.cold_start_ms), _ms(job.execution_ms),
                _bar(end, job, span),
            )  # fmt: skip
        return table


def _submitted(end: float, job: JobEvent) -> float:
    return end - ((job.delay_ms or 0) + (job.execution_ms or 0)) / 1000


def _short(worker_id: str | None) -> str:
    """Return a worker's id without the part that only sets apart runs of the emulator."""
    return (worker_id or "").rpartition("-")[0]


def _ms(value: int | None) -> str:
    return "" if value is None else f"{value:,} ms"


def _bar(end: float, job: JobEvent, span: float) -> Text:
    run = (job.execution_ms or 0) / 1000
    points = [max(0.0, point) / span * BAR_WIDTH for point in (_submitted(end, job), end - run, end)]
    first, second, third = (round(point) for point in points)
    text = Text(" " * first)
    text.append("·" * (second - first), style="dim")
    text.append("█" * max(1, third - second), style="cyan")
    return text


def render_project() -> Path:
    """Return the folder of a freshly rendered research agent."""
    return Path(
        cookiecutter(
            str(ROOT / "worker_templates" / "research_agent"), no_input=True, output_dir=str(STATE / "demo"),
            overwrite_if_exists=True,
        )
    )  # fmt: skip


@contextmanager
def served_pages(project: Path) -> Iterator[str]:
    """Serve the project's documentation on loopback and give the URL."""
    command = [sys.executable, "serve_pages.py", str(ROOT / "docs"), "--port", "0", "--quiet"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1].rstrip("/")
        finally:
            server.terminate()


async def ask(project: Path, question: str, env: Mapping[str, str]) -> tuple[Any, Timeline]:
    """Run the agent's endpoints, submit the question, and return the report and the timeline."""
    endpoints = await describe_app(project / "app.py", env=env)
    timeline = Timeline(Screen(log_level="warning", console=console))
    async with Emulator(
        [each.local for each in endpoints], state_dir=STATE / "demo-state", on_event=timeline
    ) as emulator:
        timeline.screen.show_banner(endpoints, url=emulator.url, state_dir=STATE / "demo-state", is_reloading=False)
        console.print(f"[bold]question[/]  {question}\n")
        async with Client(Settings(base_url=f"{emulator.url}/v2")) as client:
            report = await client.endpoint("agent").call({"question": question}, timeout=280)
    return report, timeline


def show(report: Mapping[str, Any], timeline: Timeline) -> None:
    """Print the cited answer, its critique and the timeline."""
    console.rule("answer")
    console.print(Markdown(report["answer"]))
    for source in report["sources"]:
        console.print(Text(f"  [{source['number']}] {source['title']}  {source['source']}", style="dim"))
    critique = report["critique"]
    console.print(f"\n[bold]written by[/] {report['written_by']}   [bold]critique[/]", end=" ")
    console.print(Text(critique["opinion"]))
    console.print(f"{len(critique['unsupported'])} unsupported sentences were taken out", style="dim")
    console.rule("timeline")
    console.print(timeline.table())
    cold_starts = sum(job.cold_start_ms is not None for _, job in timeline.ended_jobs)
    console.print(
        f"\n{len(timeline.ended_jobs)} jobs, {timeline.workers_started} workers started, "
        f"{cold_starts} jobs came first to a new worker"
    )


def main() -> int:
    """Run the demo; the exit code is 0 only when a cited answer came back."""
    question = " ".join(sys.argv[1:]) or QUESTION
    project = render_project()
    with served_pages(project) as pages_url:
        env = {
            "FLASHKIT_WEIGHTS_DIR": str(STATE / "models"),
            "FLASHKIT_STATE": f"sqlite:///{STATE / 'demo-state' / 'sessions.db'}",
            "KNOWLEDGE_DIR": str(ROOT / "docs"),
            "SEARCH_URL": pages_url + "/search?q={query}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
        }
        try:
            report, timeline = uvloop.run(ask(project, question, env))
        except FlashkitError as exc:
            console.print(Text(exc.report.render(), style="red"))
            return 1
    show(report, timeline)
    return 0 if report["sources"] else 1


if __name__ == "__main__":
    sys.exit(main())
