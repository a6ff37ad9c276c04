"""`flashkit replay`: send the input of an earlier job once more, or get it as a command or a test."""

from __future__ import annotations

import json
import pprint
import re
import shlex
from collections.abc import Mapping
from typing import Any

import click


@click.command("replay")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--endpoint", metavar="NAME", help="Where to look for the job; with no JOB, the newest of this endpoint.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long; 0 prints the job's id.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line, strings quoted too.")
@click.option("--as", "form", type=click.Choice(["curl", "pytest"]), help="Print this instead of sending the job.")
@click.option("--url", help="The platform's address, instead of the running `flashkit dev`.")
def command(
    job_id: str | None,
    *,
    endpoint: str | None,
    wait: float | None,
    is_raw: bool,
    form: str | None,
    url: str | None,
) -> int:
    """Send the input of JOB again, to the same endpoint of the running `flashkit dev`, and print the output.

    The beginning of the job's id is enough, as `flashkit dev` shows it; without JOB the newest one is taken. Jobs
    are known as long as the platform keeps them: 30 minutes after their end, those of /runsync 1 minute.
    """
    from flashkit.cli.run import run_to_end

    run_to_end(_replay(job_id, endpoint=endpoint, wait=wait, is_raw=is_raw, form=form, url=url))
    return 0


async def _replay(
    job_id: str | None, *, endpoint: str | None, wait: float | None, is_raw: bool, form: str | None, url: str | None
) -> None:
    from flashkit.cli.local_platform import DevClient, local_settings
    from flashkit.cli.run import run_job, write_for_people, write_json_line
    from flashkit.errors import InputError

    settings = local_settings(url)
    async with DevClient(settings) as platform:
        job = await platform.find_job(job_id, endpoint=endpoint)
    if "input" not in job:
        raise InputError(
            f"the input of job {job['id']} is not kept any more",
            hint="it goes with the job's result; send it again with flashkit run",
        )
    if form is not None:
        click.echo(as_curl(job, settings.require_base_url()) if form == "curl" else as_test(job), nl=False)
        return
    click.echo(f"job {job['id']} of {job['endpoint']}, again", err=True)
    await run_job(settings, str(job["endpoint"]), job["input"], wait, write_json_line if is_raw else write_for_people)


def as_curl(job: Mapping[str, Any], base_url: str) -> str:
    """Return the shell command that sends the job's input to the platform."""
    body = shlex.quote(json.dumps({"input": job["input"]}, ensure_ascii=False))
    url = shlex.quote(f"{base_url}/{job['endpoint']}/runsync")
    return f"curl -s {url} -H 'Content-Type: application/json' -d {body}\n"


def as_test(job: Mapping[str, Any]) -> str:
    """Return a test for pytest that expects of the job's input what came of it."""
    name = re.sub(r"\W", "_", f"{job['endpoint']}_{str(job['id']).removeprefix('sync-')[:8]}")
    call = f"endpoint({job['endpoint']!r}).call({_literal(job['input'])})"
    if job["status"] == "COMPLETED":
        return f"def test_{name}(endpoint):\n    output = {call}\n    assert output == {_literal(job.get('output'))}\n"
    message = re.escape((job.get("error") or {}).get("message", ""))
    return (
        "import pytest\n\nfrom flashkit import JobError\n\n\n"
        f"def test_{name}(endpoint):\n    with pytest.raises(JobError, match={message!r}):\n        {call}\n"
    )


def _literal(value: Any) -> str:
    return pprint.pformat(value, indent=4, width=100, sort_dicts=False).replace("\n", "\n    ")
