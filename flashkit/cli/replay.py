"""`flashkit replay`: send the input of an earlier job once more."""

from __future__ import annotations

import asyncio

import click


@click.command("replay")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--endpoint", metavar="NAME", help="Where to look for the job; with no JOB, the newest of this endpoint.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long; 0 prints the job's id.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line, strings quoted too.")
@click.option("--url", help="The platform's address, instead of the running `flashkit dev`.")
def command(job_id: str | None, *, endpoint: str | None, wait: float | None, is_raw: bool, url: str | None) -> int:
    """Send the input of JOB again, to the same endpoint of the running `flashkit dev`, and print the output.

    The beginning of the job's id is enough, as `flashkit dev` shows it; without JOB the newest one is taken. Jobs
    are known as long as the platform keeps them: 30 minutes after their end, those of /runsync 1 minute.
    """
    asyncio.run(_replay(job_id, endpoint=endpoint, wait=wait, is_raw=is_raw, url=url))
    return 0


async def _replay(
    job_id: str | None, *, endpoint: str | None, wait: float | None, is_raw: bool, url: str | None
) -> None:
    from flashkit.cli.local_platform import LocalPlatform, local_settings
    from flashkit.cli.run import run_job, write_for_people, write_json_line
    from flashkit.errors import InputError

    settings = local_settings(url)
    async with LocalPlatform(settings) as platform:
        job = await platform.find_job(job_id, endpoint=endpoint)
    if "input" not in job:
        raise InputError(
            f"the input of job {job['id']} is not kept any more",
            hint="it goes with the job's result; send it again with flashkit run",
        )
    click.echo(f"job {job['id']} of {job['endpoint']}, again", err=True)
    await run_job(settings, str(job["endpoint"]), job["input"], wait, write_json_line if is_raw else write_for_people)
