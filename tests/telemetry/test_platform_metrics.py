"""Metrics and accounts of real workers on the local platform: what they did is in `/metrics` and in their sessions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flashkit.testing import LocalPlatform

APP = Path(__file__).with_name("metered_app.py")
PATIENCE_SECONDS = 40.0


@pytest.fixture(scope="module")
def platform():
    with LocalPlatform(APP) as platform:
        yield platform


def scrape(platform):
    """Return every sample by its name and its labels' values."""
    with urllib.request.urlopen(f"{platform.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_for(platform, *wanted):
    """Return the samples once these are among them: workers report a moment after they have done something."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not all(key in (samples := scrape(platform)) for key in wanted):
        missing = [key for key in wanted if key not in samples]
        assert time.monotonic() < give_up_at, (missing, sorted(samples))
        time.sleep(0.2)
    return samples


def test_what_an_agent_did_is_in_the_metrics_and_in_its_account(platform):
    job = platform.endpoint("agent").run({"question": "why", "session_id": "s1"})
    assert job.output() == "A short answer."
    samples = wait_for(
        platform,
        ("flashkit_session_turns_total", "agent", "completed"),
        ("flashkit_tool_calls_total", "agent", "ok", "plan"),
        ("flashkit_tool_calls_total", "agent", "ok", "lookup"),
        ("flashkit_session_cost_usd_total", "agent"),
        ("flashkit_session_turn_tokens_sum", "agent"),
        ("flashkit_worker_job_duration_seconds_count", "writer", "ok"),
        ("flashkit_worker_start_duration_seconds_count", "writer"),
        ("gen_ai_client_operation_duration_seconds_count", "writer", "", "chat", "tiny"),
        ("gen_ai_client_token_usage_sum", "writer", "chat", "tiny", "output"),
        ("flashkit_session_step_duration_seconds_count", "agent", "call", "ok"),
        ("flashkit_job_tokens_total", "writer", "output"),
    )
    assert samples["flashkit_session_cost_usd_total", "agent"] == 0.25
    assert samples["flashkit_session_turn_tokens_sum", "agent"] == 7
    assert samples["flashkit_session_step_duration_seconds_count", "agent", "call", "ok"] == 2
    assert samples["flashkit_jobs_total", "agent", "COMPLETED"] == 1
    assert samples["flashkit_cold_start_duration_seconds_count", "writer"] == 1
    assert samples["flashkit_job_tokens_total", "writer", "output"] > 0

    store = platform.environment["FLASHKIT_STATE"]
    command = [sys.executable, "-m", "flashkit", "sessions", "show", "s1", "--json", "--store", store]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    used = json.loads(shown.stdout)["used"]
    assert used["models"]["tiny"]["output_tokens"] == samples["flashkit_job_tokens_total", "writer", "output"]
    assert used["endpoints"]["writer"]["gpu"].startswith("NVIDIA A100")
    assert used["endpoints"]["writer"]["usd"] > 0
    assert used["endpoints"]["lookup"]["gpu"] == ""
    assert (used["spent_tokens"], used["spent_usd"]) == (7, 0.25)


def test_a_tool_that_fails_is_counted_as_that(platform):
    job = platform.endpoint("agent").run({"question": "broken"})
    assert "no answer" in job.wait().error.message
    samples = wait_for(
        platform,
        ("flashkit_tool_calls_total", "agent", "error", "lookup"),
        ("flashkit_session_turns_total", "agent", "failed"),
    )
    assert samples["flashkit_tool_calls_total", "agent", "error", "lookup"] == 1


def test_a_worker_that_is_told_to_go_reports_its_last_job_first(platform):
    platform.endpoint("lookup").run({"query": "last"}).output()
    request = urllib.request.Request(f"{platform.url}/_/endpoints/lookup/restart", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    done = scrape(platform)["flashkit_jobs_total", "lookup", "COMPLETED"]
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while scrape(platform).get(("flashkit_worker_job_duration_seconds_count", "lookup", "ok"), 0) < done:
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
