"""The whole agent on a running platform: real workers, real models, real HTTP.

Start `python serve_pages.py` and `flashkit dev app.py` in this folder (or point RUNPOD_ENDPOINT_BASE_URL at
a platform), then run `pytest -m platform`. Without a platform these tests are skipped on a laptop and fail
in CI.
"""

import os
import re

import pytest
from flashkit import ConfigurationError, Settings

import app

pytestmark = pytest.mark.platform


@pytest.fixture(autouse=True)
def platform() -> str:
    try:
        return Settings.from_environment().require_base_url()
    except ConfigurationError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no platform: {exc}")


async def test_a_question_gets_a_cited_answer():
    report = await app.research.remote(question="What happens to a session when its worker dies?")

    cited = {int(number) for number in re.findall(r"\[(\d+)\]", report.answer)}
    assert cited == {source.number for source in report.sources}
    assert cited
    assert any(source.source == "session-state.md" for source in report.sources)
    assert len(report.sub_queries) == 3


async def test_a_page_that_cannot_be_fetched_fails_alone():
    report = await app.research.remote(question="How many workers should stay warm?", urls=["http://127.0.0.1:9/"])

    assert len(report.failed_pages) == 1
    assert "127.0.0.1:9" in report.failed_pages[0]
    assert report.sources


async def test_a_question_that_no_source_is_about_is_not_answered():
    report = await app.research.remote(question="Which cheese goes well with figs?", urls=[])

    assert report.written_by == "nobody"
    assert report.sources == []
