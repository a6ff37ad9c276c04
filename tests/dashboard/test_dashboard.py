"""The dashboard in a real browser, before an emulator with real worker processes."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from playwright.async_api import expect

from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.errors import ErrorReport
from flashkit.protocol import PlatformDefaults

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ):
    actions = make_endpoint("actions", "actions", workers=(1, 2))
    example = {"do": "echo", "value": "an example"}
    async with Emulator(
        [
            LocalEndpoint(
                actions.spec, actions.command, actions.cwd, description="Does as it is told.", example=example
            ),
            make_endpoint("quiet", "silent"),
        ],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        shutdown_grace=1.0,
        defaults=PlatformDefaults(poll_hold=1.0),
    ) as emulator:
        yield emulator


@pytest.fixture
def run(emulator):
    """Run a job to its end, and return its id."""

    async def run(job_input):
        job = emulator.submit("actions", JobRequest(input=job_input))
        while not job.status.is_final:
            await emulator.dispatcher.wait_for_job(job, seconds=1)
        return job.id

    return run


async def new_workers(emulator, before):
    """Return when none of these workers is left."""
    while not before.isdisjoint(worker.id for worker in emulator.platform.workers("actions")):
        await asyncio.sleep(0.02)


def row(page, job_id):
    return page.locator(f'tr[data-job="{job_id}"]')


async def send(page, job_input):
    """Fill in the form and send it; leaves the job's detail open."""
    await page.get_by_role("button", name="Send job").first.click()
    await page.get_by_label("Input, as JSON").fill(json.dumps(job_input))
    await page.get_by_role("button", name="Send", exact=True).click()
    detail = page.locator("#detail")
    await expect(detail).to_be_visible()
    return detail


async def test_the_page_asks_nobody_else_and_has_nothing_to_complain_of(emulator, open_page, misdeeds, run):
    await run({"value": 1})
    page = await open_page(emulator.url)
    await expect(page.locator("canvas").first).to_be_visible()
    await expect(page.locator(".card")).to_have_count(2)
    assert misdeeds.hosts == {emulator.url.removeprefix("http://")}
    assert misdeeds.complaints == []


async def test_the_page_cannot_ask_anybody_else(emulator, open_page):
    """The policy that comes with it holds, also against a script that would get in."""
    page = await open_page(emulator.url)
    outcome = await page.evaluate("() => fetch('http://127.0.0.2:9/').then(() => 'sent', (error) => error.name)")
    assert outcome == "TypeError"
    await page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')")
    await page.wait_for_timeout(200)
    assert await page.evaluate("() => window.hit") is None


async def test_a_job_from_the_form_shows_its_output_and_its_lines(emulator, open_page, screenshot, misdeeds):
    page = await open_page(emulator.url)
    detail = await send(page, {"do": "say", "text": "good morning"})
    await expect(detail.locator(".status.COMPLETED").first).to_be_visible()
    await expect(detail.locator("pre").filter(has_text='"said": "good morning"')).to_be_visible()
    await expect(detail.locator(".log").get_by_text("good morning")).to_be_visible()
    await expect(detail.locator(".story li")).to_have_count(3)
    await screenshot(page, "detail")
    await page.keyboard.press("Escape")
    await expect(detail).not_to_be_visible()
    assert misdeeds.complaints == []


async def test_the_form_begins_with_the_endpoints_example_and_says_what_is_no_json(emulator, open_page):
    page = await open_page(emulator.url)
    await page.get_by_role("button", name="Send job").first.click()
    text = page.get_by_label("Input, as JSON")
    assert json.loads(await text.input_value()) == {"do": "echo", "value": "an example"}
    await page.get_by_label("Endpoint", exact=True).select_option("quiet")
    assert json.loads(await text.input_value()) == {}
    await text.fill("{not json")
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("alert").filter(has_text="This is not JSON")).to_be_visible()


async def test_what_happens_is_shown_without_a_reload(emulator, open_page, run):
    page = await open_page(emulator.url)
    await page.evaluate("() => { window.isTheSamePage = true; }")
    job_id = await run({"do": "say", "text": "live line"})
    await expect(row(page, job_id).get_by_text("completed")).to_be_visible()
    await expect(page.locator("#logs").get_by_text("live line", exact=True)).to_be_visible()
    failed = await run({"do": "fail"})
    await expect(row(page, failed).get_by_text("the input made no sense")).to_be_visible()
    assert await page.evaluate("() => window.isTheSamePage")


async def test_an_error_is_shown_in_full_and_the_job_can_be_retried(emulator, open_page, run):
    job_id = await run({"do": "exit_hard"})
    page = await open_page(emulator.url)
    await row(page, job_id).get_by_role("button").click()
    detail = page.locator("#detail")
    await expect(detail.locator(".failure .message")).to_contain_text("exit")
    await expect(detail.locator(".failure")).to_contain_text("What to do:")
    await detail.get_by_role("button", name="Retry").click()
    await expect(page.get_by_text("The job waits again.")).to_be_visible()


async def test_a_running_job_can_be_cancelled(emulator, open_page):
    page = await open_page(emulator.url)
    detail = await send(page, {"do": "sleep", "seconds": 60})
    await expect(detail.locator("h2 .status.IN_PROGRESS")).to_be_visible()
    await page.keyboard.press("c")
    await expect(detail.locator("h2 .status.CANCELLED")).to_be_visible()


async def test_a_job_can_be_copied_as_curl(emulator, open_page, run):
    job_id = await run({"do": "echo", "value": "it's"})
    page = await open_page(emulator.url, permissions=["clipboard-read", "clipboard-write"])
    await row(page, job_id).get_by_role("button").click()
    await page.locator("#detail").get_by_role("button", name="Copy as curl").click()
    await expect(page.get_by_text("Copied.")).to_be_visible()
    copied = await page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith(f"curl -sS {emulator.url}/v2/actions/run ")
    assert "it'\\''s" in copied


async def test_a_killed_worker_is_seen_to_end(emulator, open_page, run, screenshot):
    await run({"value": 1})
    page = await open_page(emulator.url)
    lane = page.locator('.lane:not(.over)[data-worker^="actions-"]').first
    worker = await lane.get_attribute("data-worker")
    await lane.get_by_role("button", name="Kill").click()
    ended = page.locator(f'.lane.over[data-worker="{worker}"]')
    await expect(ended).to_contain_text("SIGKILL")
    await screenshot(page, "killed")


async def test_endpoints_are_restarted_and_cooled(emulator, open_page, run):
    await run({"value": 1})
    before = {worker.id for worker in emulator.platform.workers("actions")}
    page = await open_page(emulator.url)
    card = page.locator('[data-endpoint="actions"].card')
    await card.get_by_role("button", name="Restart").click()
    await new_workers(emulator, before)
    await run({"value": 1})
    before = {worker.id for worker in emulator.platform.workers("actions")}
    await card.get_by_role("button", name="Force cold start").click()
    await new_workers(emulator, before)


HOSTILE = [
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>",
    "safe\u202egnp.exe",
    "\u2066hidden\u2069\u200b\u0000 end",
    "red \u001b[31malert\u001b[0m",
]


@pytest.mark.parametrize("text", HOSTILE, ids=["markup", "override", "invisible", "terminal"])
async def test_hostile_text_is_shown_as_text(emulator, open_page, run, misdeeds, text):
    job_id = await run({"do": "say", "text": text})
    page = await open_page(emulator.url)
    await row(page, job_id).get_by_role("button").click()
    await expect(page.locator("#detail pre").first).to_be_visible()
    shown = await page.inner_text("body")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\u0000\u001b]", shown)
    assert await page.evaluate("() => window.hit") is None
    assert misdeeds.complaints == []


async def test_huge_outputs_are_cut_and_the_page_lives_on(emulator, open_page, run):
    job_id = await run({"do": "large", "bytes": 5_000_000})
    page = await open_page(emulator.url)
    await row(page, job_id).get_by_role("button").click()
    await expect(page.locator("#detail").get_by_text("the first 100,000 of 5,000,002 characters")).to_be_visible()


async def test_a_flood_of_lines_does_not_stop_the_page(emulator, open_page, run):
    page = await open_page(emulator.url)
    await run({"do": "flood", "bytes": 10_000_000})
    job_id = await run({"do": "say", "text": "after the flood"})
    await expect(row(page, job_id).get_by_text("completed")).to_be_visible()
    assert await page.locator("#logs .line").count() <= 500


async def test_jobs_and_lines_are_searched(emulator, open_page, run):
    needle = await run({"value": "needle in the input"})
    await run({"value": "hay"})
    page = await open_page(emulator.url)
    await page.keyboard.press("/")
    await page.keyboard.type("Needle in")
    await expect(page.locator("#jobs tr")).to_have_count(1)
    await expect(row(page, needle)).to_be_visible()
    await page.get_by_label("Search jobs").fill("no such job")
    await expect(page.get_by_text("No job fits.")).to_be_visible()
    await page.get_by_label("Search logs").fill("no such line")
    await expect(page.locator("#logs")).to_have_attribute("data-empty", "No line fits.")


async def test_everything_can_be_done_from_the_keyboard(emulator, open_page, run):
    await run({"value": "first"})
    last = await run({"value": "last"})
    page = await open_page(emulator.url)
    await expect(row(page, last)).to_be_visible()
    await page.keyboard.press("j")
    assert await page.evaluate("() => document.activeElement.dataset.job") == last
    await page.keyboard.press("Enter")
    await expect(page.locator("#detail")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#detail")).not_to_be_visible()
    assert await page.evaluate("() => document.activeElement.dataset.job") == last
    await page.keyboard.press("s")
    await expect(page.get_by_label("Input, as JSON")).to_be_focused()
    await page.keyboard.press("Escape")  # leaves the text
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("e")
    await expect(page.locator(".card.chosen")).to_have_attribute("data-endpoint", "actions")


async def test_one_endpoint_is_shown_alone(emulator, open_page, run):
    await run({"value": 1})
    page = await open_page(emulator.url)
    await page.locator('[data-endpoint="quiet"] .choose').click()
    await expect(page.get_by_text("No jobs yet.")).to_be_visible()
    await page.get_by_role("button", name="show all").click()
    await expect(page.locator("#jobs tr").first).to_be_visible()


async def ground(page):
    return await page.evaluate("() => getComputedStyle(document.body).backgroundColor")


async def test_light_and_dark_follow_the_system_until_the_person_chooses(emulator, open_page, screenshot):
    light = await open_page(emulator.url, color_scheme="light")
    dark = await open_page(emulator.url, color_scheme="dark")
    assert (await ground(light), await ground(dark)) == ("rgb(245, 246, 250)", "rgb(11, 13, 19)")
    await screenshot(light, "light")
    await screenshot(dark, "dark")
    await dark.keyboard.press("t")
    assert await ground(dark) == "rgb(245, 246, 250)"
    await dark.reload()
    assert await ground(dark) == "rgb(245, 246, 250)"


async def test_a_phone_needs_no_sideways_scrolling(emulator, open_page, run, screenshot):
    await run({"value": 1})
    page = await open_page(emulator.url, viewport={"width": 390, "height": 844}, has_touch=True)
    await expect(page.locator("#jobs tr").first).to_be_visible()
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= 390
    await screenshot(page, "phone")


async def test_an_app_that_does_not_import_is_announced(emulator, open_page):
    page = await open_page(emulator.url)
    emulator.problems["app.py"] = ErrorReport("definition_error", "name 'cpu' is not defined", hint="import it")
    await expect(page.get_by_role("alert").filter(has_text="name 'cpu' is not defined")).to_be_visible()
    del emulator.problems["app.py"]
    await expect(page.get_by_text("name 'cpu' is not defined")).to_have_count(0)


async def test_the_clock_is_moved_on(emulator, open_page):
    before = emulator.clock.now()
    page = await open_page(emulator.url)
    await page.keyboard.press("a")
    await page.get_by_role("button", name="10 s", exact=True).click()
    await expect(page.get_by_text("The clock was moved on.")).to_be_visible()
    assert emulator.clock.now() >= before + 10


async def test_a_platform_with_a_key_asks_for_it(start_emulator, make_endpoint, open_page):
    emulator = await start_emulator(make_endpoint("actions", "actions"), api_key="secret", shutdown_grace=1.0)
    page = await open_page(emulator.url, is_live=False)
    await page.get_by_role("textbox", name="Key").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("textbox", name="Key")).to_have_value("")
    await page.get_by_role("textbox", name="Key").fill("secret")
    await page.keyboard.press("Enter")
    await page.get_by_text("live", exact=True).wait_for()
    detail = await send(page, {"value": "with a key"})
    await expect(detail.locator("pre").filter(has_text="with a key").last).to_be_visible()
    assert "secret" not in await page.evaluate("() => JSON.stringify({ ...localStorage })")


async def test_the_page_says_when_the_platform_is_gone_and_comes_back_with_it(
    start_emulator, make_endpoint, open_page, tmp_path, worker_environ
):
    first = Emulator([make_endpoint("actions", "actions")], state_dir=tmp_path / "a", environ=worker_environ)
    await first.__aenter__()
    page = await open_page(first.url)
    await first.__aexit__(None, None, None)
    await expect(page.get_by_text("no connection")).to_be_visible()
    await start_emulator(make_endpoint("quiet", "silent"), port=int(first.url.rpartition(":")[2]))
    await expect(page.locator('[data-endpoint="quiet"].card')).to_be_visible()
    await expect(page.locator('[data-endpoint="actions"].card')).to_have_count(0)
