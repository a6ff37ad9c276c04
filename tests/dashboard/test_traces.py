"""The trace of a job in a real browser: its spans in time, the one that hung in red, and nothing that is no text."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import expect

from flashkit.cli.apps import describe_app
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.telemetry.otlp import SpanRecord
from flashkit.telemetry.propagation import trace_id_of_job
from flashkit.telemetry.store import open_traces
from tests.templates.test_research_agent import render

expect.set_options(timeout=40_000)

APPS = Path(__file__).parents[1] / "telemetry"
SCRIPTED = Path(__file__).parents[1] / "engines" / "scripted_app.py"


def endpoint(name: str, kind: Kind, folder: Path, **options) -> LocalEndpoint:
    spec = EndpointSpec(name=name, kind=kind, cpu="cpu3c-1-2", workers=WorkerBounds(0, 1), idle_timeout=600, **options)
    command = (sys.executable, "-m", "flashkit.worker", f"traced_app.py:{name}")
    return LocalEndpoint(spec, command, APPS, env={"FLASHKIT_STATE": f"sqlite:///{folder}/sessions.db"})


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, worker_environ):
    folder = tmp_path_factory.mktemp("state")
    async with Emulator(
        [
            endpoint("agent", Kind.ORCHESTRATOR, folder, execution_timeout_ms=5_000),
            endpoint("search", Kind.CPU, folder),
            endpoint("asks", Kind.CPU, folder),
        ],
        state_dir=folder,
        environ=worker_environ,
        traces=open_traces(f"sqlite:///{folder}/traces.db"),
        shutdown_grace=1.0,
        defaults=PlatformDefaults(poll_hold=1.0, stop_grace=1.0),
    ) as emulator:
        yield emulator


async def run(emulator, name, **job_input):
    job = emulator.submit(name, JobRequest(input=job_input))
    while not job.status.is_final:
        await emulator.dispatcher.wait_for_job(job, seconds=1)
    return job


async def open_trace(page, job):
    await page.locator(f'tr[data-job="{job.id}"]').get_by_role("button").first.click()
    return page.locator("#detail")


async def test_a_job_shows_its_trace_from_the_wait_to_the_tool(emulator, open_page, screenshot, misdeeds):
    job = await run(emulator, "asks", query="rivers")
    page = await open_page(f"{emulator.url}/dashboard")
    detail = await open_trace(page, job)
    for name in ("platform asks", "queue", "cold_start asks", "job asks", "job search"):
        await expect(detail.locator(".waterfall .name", has_text=name).first).to_be_visible()
    row = detail.locator(".waterfall button", has_text="job search")
    await row.click()
    await expect(row).to_have_attribute("aria-expanded", "true")
    await expect(detail.locator(".span-facts", has_text="flashkit.job.id")).to_be_visible()
    await row.click()
    await expect(detail.locator(".span-facts")).to_have_count(0)
    await screenshot(page, "trace")
    assert misdeeds.complaints == []


async def test_a_killed_task_shows_the_step_that_hung_in_red(emulator, open_page, screenshot, misdeeds):
    job = await run(emulator, "agent", question="why", how="hangs")
    assert job.status == "TIMED_OUT"
    page = await open_page(f"{emulator.url}/dashboard")
    detail = await open_trace(page, job)
    await expect(detail.locator(".hung")).to_contain_text("'slow_search' was running for")
    hung = detail.locator(".waterfall .cut", has_text="slow_search")
    await expect(hung).to_contain_text("never ended")
    colour = await hung.locator(".name").evaluate("(name) => getComputedStyle(name).color")
    assert colour == await detail.locator(".hung").evaluate("(text) => getComputedStyle(text).color")
    red, green, blue = (int(each) for each in colour.removeprefix("rgb(").removesuffix(")").split(","))
    assert red > max(green, blue) + 50
    assert await hung.locator(".track i").evaluate("(bar) => getComputedStyle(bar).backgroundImage") != "none"
    await hung.scroll_into_view_if_needed()
    await screenshot(page, "trace-of-a-hung-tool")
    assert misdeeds.complaints == []


@pytest.fixture
async def research_agent(tmp_path, worker_environ):
    """The research agent of the template, with a scripted model, 15 seconds of time, and pages that never come."""
    kept: list[asyncio.StreamWriter] = []
    async with AsyncExitStack() as stack:

        async def run_app(app: Path, env: dict[str, str], **options) -> Emulator:
            described = await describe_app(app, env=env)
            few = WorkerBounds(0, 1)
            locals_ = [replace(each.local, spec=replace(each.local.spec, workers=few)) for each in described]
            limits = {"agent": 15_000}
            locals_ = [
                replace(each, spec=replace(each.spec, execution_timeout_ms=limits.get(each.spec.name, 60_000)))
                for each in locals_
            ]
            emulator = Emulator(
                locals_, state_dir=tmp_path / app.stem, environ=worker_environ, shutdown_grace=1.0,
                defaults=PlatformDefaults(poll_hold=1.0, stop_grace=1.0), **options,
            )  # fmt: skip
            return await stack.enter_async_context(emulator)

        stack.callback(lambda: [writer.close() for writer in kept])
        silent = await asyncio.start_server(lambda _reader, writer: kept.append(writer), "127.0.0.1", 0)
        stack.callback(silent.close)
        models = await run_app(SCRIPTED, {})
        env = {
            "FLASHKIT_LLM_URL": f"{models.url}/v2/llm/openai/v1",
            "FLASHKIT_STATE": f"sqlite:///{tmp_path}/sessions.db",
            "SEARCH_URL": f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/search?q={{query}}",
        }
        app = render(tmp_path) / "app.py"
        yield await run_app(app, env, traces=open_traces(f"sqlite:///{tmp_path}/traces.db"))


async def test_the_research_agent_killed_by_its_timeout_names_the_tool_that_hung(
    research_agent, open_page, screenshot, misdeeds
):
    job = await run(research_agent, "agent", question="What happens to a session when its worker dies?")
    assert job.status == "TIMED_OUT"
    page = await open_page(f"{research_agent.url}/dashboard")
    detail = await open_trace(page, job)
    await expect(detail.locator(".hung")).to_contain_text("tool 'web-retrieval' was running for")
    await expect(detail.locator(".waterfall .cut", has_text="tool web-retrieval")).to_contain_text("stopped")
    await screenshot(page, "trace-of-the-research-agent")
    assert misdeeds.complaints == []


async def test_hostile_spans_are_shown_as_text(emulator, open_page, misdeeds):
    job = await run(emulator, "search", query="x")
    hostile = "<img src=x onerror=alert(1)><b>\u202e\x1b[31m" + "very long " * 5_000
    now = time.time_ns()
    await emulator.traces.take(lambda: [
        SpanRecord(trace_id_of_job(job.id), "ab" * 8, None, hostile[:200], "<script>", now, now + 10**9,
                   error=hostile[:2_000], attributes={hostile[:100]: hostile, "list": [hostile[:50]]}),
    ])  # fmt: skip
    page = await open_page(f"{emulator.url}/dashboard")
    detail = await open_trace(page, job)
    row = detail.locator(".waterfall button", has_text="<img src=x")
    await row.click()
    await expect(detail.locator(".span-facts")).to_contain_text("onerror=alert(1)")
    assert await detail.locator("img, script, b").count() == 0
    assert "\u202e" not in await detail.inner_text()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert misdeeds.complaints == []


async def test_a_job_without_a_trace_says_why(start_emulator, make_endpoint, open_page, misdeeds):
    emulator = await start_emulator(make_endpoint("actions", "actions", workers=(1, 1)))
    job = await run(emulator, "actions", do="echo", value=1)
    page = await open_page(f"{emulator.url}/dashboard")
    detail = await open_trace(page, job)
    await expect(detail.locator(".trace")).to_contain_text("No trace is kept of it.")
    assert misdeeds.complaints == []
