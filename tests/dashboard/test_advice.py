"""Advice in the dashboard: the figure and the setting, as text, for the endpoint that is looked at."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from playwright.async_api import expect

from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.telemetry.advice import Advice

expect.set_options(timeout=30_000)


def endpoint(name):
    spec = EndpointSpec(name=name, kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(0, 3))
    return LocalEndpoint(spec, ("false",), Path())


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory):
    async with Emulator([endpoint("llm"), endpoint("tool")], state_dir=tmp_path_factory.mktemp("state")) as emulator:
        emulator.adviser._known_until = math.inf
        yield emulator


async def test_advice_is_shown_as_text_and_goes_when_it_is_over(emulator, open_page, misdeeds, screenshot):
    emulator.adviser._advice = [
        Advice("queue_growing", "llm", "its queue grew from 10 to 50 jobs", "raise max: workers=(0, 6)"),
        Advice("fleet_idle", "tool", "<img src=x onerror=alert(1)>", "lower max: workers=(0, 1)"),
    ]
    page = await open_page(emulator.url)
    advice = page.locator("#advice .advice")
    await expect(advice).to_have_count(2)
    await expect(advice.first).to_have_text("llm its queue grew from 10 to 50 jobs. raise max: workers=(0, 6)")
    await expect(advice.nth(1)).to_contain_text("<img src=x onerror=alert(1)>")
    await screenshot(page, "advice")
    await page.locator('[data-endpoint="llm"] .choose').click()
    await expect(advice).to_have_count(1)
    emulator.adviser._advice = []
    await expect(advice).to_have_count(0)
    assert not misdeeds.complaints
