"""With an SDK release that flashkit does not know, jobs run in the SDK's own loop: slower, never wrong."""

from __future__ import annotations

import dataclasses

import pytest

from flashkit.errors import JobFailed
from tests.worker.conftest import Lab, app_endpoint

pytestmark = pytest.mark.timeout(90)


async def test_the_plain_loop_gives_the_same_results(interpreter: str, lab: Lab) -> None:
    behave, count = (
        dataclasses.replace(endpoint, command=(interpreter, "unverified_sdk.py", endpoint.command[-1]))
        for endpoint in (app_endpoint(interpreter, "behave", concurrency=4), app_endpoint(interpreter, "count"))
    )
    await lab.run(behave, count)
    client = lab.client.endpoint("behave")

    assert (await client.call({"what": "echo", "n": 1}, timeout=30))["n"] == 1
    assert await client.call({"what": "none"}, timeout=30) is None
    for job_input, type_name in (
        ({"what": "lambda"}, "OutputError"),
        ({"what": "exit", "n": 1}, "HandlerExit"),
        ({"what": "raise"}, "LookupError"),
        ({"n": 1}, "InputError"),
    ):
        with pytest.raises(JobFailed) as caught:
            await client.call(job_input, timeout=30)
        assert caught.value.report.type == type_name

    assert [chunk async for chunk in lab.client.endpoint("count").stream({"n": 3})] == [0, 1, 2]
    with pytest.raises(JobFailed, match="failed at 1"):
        await lab.client.endpoint("count").call({"n": 3, "fail_at": 1}, timeout=30)
    assert any("not one flashkit was verified with" in text for _, text in lab.lines())
